"""Conversion between diffusers' `UNet2DModel` (DDPM's network) and jgen/nn/unet.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jgen.convert.layers import Layer, Tensors, attention, layer, present, residual_block, to_params, to_tensors
from jgen.errors import require
from jgen.nn import unet

NAME = "UNet2DModel"
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")  # without and with attention


@dataclass(frozen=True)
class Fields:
    """The fields of config.json with diffusers' defaults; a Literal with one value is the only one jgen supports."""

    sample_size: int | tuple | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv"] = "conv"
    upsample_type: Literal["conv"] = "conv"
    dropout: float = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default"] = "default"
    add_attention: Literal[True] = True
    class_embed_type: None = None
    num_class_embeds: int | None = None
    num_train_timesteps: None = None


def image_size(fields: Fields, where: Any) -> tuple[int, int]:
    """Height and width of the images."""
    size = fields.sample_size
    pair = (size, size) if isinstance(size, int) else size or ()
    fits = len(pair) == 2 and all(isinstance(one, int) for one in pair)
    require(fits, f"{where}: sample_size is {size!r}: it must be a whole number, or two")
    return pair[0], pair[1]


def network_of(fields: Fields, where: Any) -> unet.Config:
    """The network that config.json describes. Raises `UserError` for one that jgen does not have."""
    channels, levels = fields.block_out_channels, len(fields.block_out_channels)
    height = image_size(fields, where)[0]
    require(levels > 0, f"{where}: block_out_channels is empty")
    for name, kinds in (("down_block_types", DOWN), ("up_block_types", UP)):
        types = getattr(fields, name)
        fits = len(types) == levels and set(types) <= set(kinds)
        require(fits, f"{where}: {name} is {types}: it must be {levels} of {' and '.join(kinds)}")
    attends = [kind == DOWN[1] for kind in fields.down_block_types]
    mirrored = [kind == UP[1] for kind in reversed(fields.up_block_types)]
    require(attends == mirrored, f"{where}: up_block_types must have attention where down_block_types have it")
    require(fields.freq_shift == 1, f"{where}: freq_shift is {fields.freq_shift}: jgen's embedding of t has 1")
    widths = (None, 4 * channels[0])
    wide = fields.time_embedding_dim in widths and fields.mid_block_scale_factor == 1
    require(wide, f"{where}: time_embedding_dim and mid_block_scale_factor must be {widths[1]} and 1")
    same = fields.in_channels == fields.out_channels
    require(same, f"{where}: out_channels is {fields.out_channels}: it must be in_channels = {fields.in_channels}")
    return unet.Config(
        channels=channels,
        blocks=fields.layers_per_block,
        attention=tuple(height // 2**level for level in range(levels) if attends[level]),
        head_dim=head_dim(fields, attends, where),
        groups=fields.norm_num_groups,
        dropout=float(fields.dropout),
        padding="even" if fields.downsample_padding else "end",
        norm_eps=float(fields.norm_eps),
    )


def head_dim(fields: Fields, attends: list[bool], where: Any) -> int:
    """The width of all heads; without attention_head_dim each level has one head of the whole width."""
    if fields.attention_head_dim is not None:
        return fields.attention_head_dim
    channels = fields.block_out_channels
    widths = {channels[-1], *(width for width, here in zip(channels, attends) if here)}
    message = f"{where}: attention_head_dim is null, and block_out_channels with attention differ: {sorted(widths)}"
    require(len(widths) == 1, f"{message}: jgen's heads have one width")
    return widths.pop()


def fields_of(network: unet.Config, size: tuple[int, int], channels: int, num_embeddings: int) -> Fields:
    """The fields of config.json for a network on images of this size. Raises `UserError` if diffusers has no such
    network."""
    kind, base = network.architecture, network.base
    require(kind == "ddpm", f"the network's architecture is {kind}: {NAME} has ddpm only")
    require(base in (0, network.channels[0]), f"base is {base}: {NAME} has the width of the first level only")
    require(network.patch == 1, f"patch is {network.patch}: {NAME} has convolutions of single pixels only")
    attends = [size[0] // 2**level in network.attention for level in range(len(network.channels))]
    return Fields(
        sample_size=size[0] if size[0] == size[1] else size,
        in_channels=channels,
        out_channels=channels,
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=tuple(DOWN[here] for here in attends),
        up_block_types=tuple(UP[here] for here in reversed(attends)),
        block_out_channels=network.channels,
        layers_per_block=network.blocks,
        downsample_padding=1 if network.padding == "even" else 0,
        dropout=network.dropout,
        attention_head_dim=network.head_dim,
        norm_num_groups=network.groups,
        norm_eps=network.norm_eps,
        num_class_embeds=num_embeddings or None,
    )


def all_layers(network: unet.Config, cosines_first: bool) -> list[Layer]:
    """The layers of the network, including some that not every network has."""
    levels, blocks = len(network.channels), network.blocks
    layers = [
        layer("conv_in", "conv_in", "conv"),
        layer("time1", "time_embedding.linear_1", "cosines_first" if cosines_first else "linear"),
        layer("time2", "time_embedding.linear_2"),
        layer("classes", "class_embedding", "embedding"),
    ]
    for level in range(levels):
        for way, place, count in (
            ("down", f"down_blocks.{level}", blocks),
            ("up", f"up_blocks.{levels - 1 - level}", blocks + 1),
        ):
            for i in range(count):
                layers += residual_block(f"{way}{level}_block{i}", f"{place}.resnets.{i}", embedding=True)
                layers += attention(f"{way}{level}_attention{i}", f"{place}.attentions.{i}")
            layers.append(layer(f"{way}{level}_{way}sample", f"{place}.{way}samplers.0.conv", "conv"))
    for i in (0, 1):
        layers += residual_block(f"middle_block{i}", f"mid_block.resnets.{i}", embedding=True)
    layers += attention("middle_attention", "mid_block.attentions.0")
    return [*layers, layer("norm_out", "conv_norm_out", "norm"), layer("conv_out", "conv_out", "conv")]


def tensors_of(network: unet.Config, params: Any, cosines_first: bool = False) -> dict[str, np.ndarray]:
    """The parameters by diffusers' names."""
    return to_tensors(present(all_layers(network, cosines_first), params), params)


def params_of(network: unet.Config, tensors: Tensors, cosines_first: bool) -> dict[str, Any]:
    """The inverse of `tensors_of`."""
    layers = [one for one in all_layers(network, cosines_first) if f"{one.names[0]}.weight" in tensors]
    return to_params(layers, tensors)
