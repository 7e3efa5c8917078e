"""Conversion between diffusers' `AutoencoderKL` and jgen/nn/first_stage.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jgen.convert.layers import Layer, Tensors, attention, layer, present, residual_block, to_params, to_tensors
from jgen.errors import require
from jgen.nn import first_stage

NAME = "AutoencoderKL"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


@dataclass(frozen=True)
class Fields:
    """The fields of config.json with diffusers' defaults; a Literal with one value is the only one jgen supports."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = (DOWN,)
    up_block_types: tuple[str, ...] = (UP,)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: Literal["silu", "swish"] = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: None = None
    latents_mean: None = None
    latents_std: None = None
    force_upcast: bool = True
    use_quant_conv: Literal[True] = True
    use_post_quant_conv: Literal[True] = True
    mid_block_add_attention: bool = True


def network_of(fields: Fields, where: Any) -> first_stage.Config:
    """The networks that config.json describes. Raises `UserError` for those that jgen does not have."""
    levels = len(fields.block_out_channels)
    for name, kind in (("down_block_types", DOWN), ("up_block_types", UP)):
        types = getattr(fields, name)
        require(types == (kind,) * levels, f"{where}: {name} is {types}: it must be {levels} times {kind}")
    same = fields.in_channels == fields.out_channels
    require(same, f"{where}: out_channels is {fields.out_channels}: it must be in_channels = {fields.in_channels}")
    scale = fields.scaling_factor
    require(scale > 0, f"{where}: scaling_factor is {scale}: it must be above zero")
    return first_stage.Config(
        channels=fields.block_out_channels,
        blocks=fields.layers_per_block,
        latent_channels=fields.latent_channels,
        attention=fields.mid_block_add_attention,
        groups=fields.norm_num_groups,
    )


def fields_of(network: first_stage.Config, height: int, channels: int, scaling_factor: float) -> Fields:
    """The fields of config.json for the networks. Raises `UserError` for options that `AutoencoderKL` lacks."""
    within = network.attention_resolutions
    require(not within, f"network.attention_resolutions are {within}: {NAME} has no attention in its levels")
    levels = len(network.channels)
    return Fields(
        in_channels=channels,
        out_channels=channels,
        down_block_types=(DOWN,) * levels,
        up_block_types=(UP,) * levels,
        block_out_channels=network.channels,
        layers_per_block=network.blocks,
        latent_channels=network.latent_channels,
        norm_num_groups=network.groups,
        sample_size=height,
        scaling_factor=scaling_factor,
        mid_block_add_attention=network.attention,
    )


def all_layers(network: first_stage.Config) -> list[Layer]:
    """The layers of encoder and decoder, including some that not every autoencoder has."""
    levels = len(network.channels)
    layers = [
        layer("encoder/quant", "quant_conv", "pointwise"),
        layer("decoder/post_quant", "post_quant_conv", "pointwise"),
    ]
    for role in ("encoder", "decoder"):
        layers += [layer(f"{role}/conv_{end}", f"{role}.conv_{end}", "conv") for end in ("in", "out")]
        layers.append(layer(f"{role}/norm_out", f"{role}.conv_norm_out", "norm"))
        for i in (0, 1):
            layers += residual_block(f"{role}/middle/block{i}", f"{role}.mid_block.resnets.{i}", embedding=False)
        layers += attention(f"{role}/middle/attention", f"{role}.mid_block.attentions.0")
    for level in range(levels):
        for role, way, place, count in (
            ("encoder", "down", f"encoder.down_blocks.{level}", network.blocks),
            ("decoder", "up", f"decoder.up_blocks.{levels - 1 - level}", network.blocks + 1),
        ):
            for i in range(count):
                layers += residual_block(f"{role}/level{level}_block{i}", f"{place}.resnets.{i}", embedding=False)
            layers.append(layer(f"{role}/level{level}_{way}sample", f"{place}.{way}samplers.0.conv", "conv"))
    return layers


def tensors_of(network: first_stage.Config, params: Any) -> dict[str, np.ndarray]:
    """The parameters of the roles encoder and decoder, by diffusers' names."""
    return to_tensors(present(all_layers(network), params), params)


def params_of(network: first_stage.Config, tensors: Tensors) -> dict[str, Any]:
    """The inverse of `tensors_of`."""
    return to_params([one for one in all_layers(network) if f"{one.names[0]}.weight" in tensors], tensors)
