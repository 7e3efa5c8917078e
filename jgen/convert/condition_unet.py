"""Conversion between diffusers' `UNet2DConditionModel`, as in Stable Diffusion 1.x, 2.x and XL, and
jgen/nn/condition_unet.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jgen.convert.layers import Layer, Tensors, layer, present, residual_block, to_params, to_tensors
from jgen.errors import require
from jgen.nn import condition_unet

NAME = "UNet2DConditionModel"
DOWN, UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")  # without and with attention


@dataclass(frozen=True)
class Fields:
    """The fields of config.json with diffusers' defaults; a Literal with one value is the only one jgen supports."""

    sample_size: int | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: Literal[False] = False
    flip_sin_to_cos: Literal[True] = True
    freq_shift: Literal[0] = 0
    down_block_types: tuple[str, ...] = (DOWN[1], DOWN[1], DOWN[1], DOWN[0])
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = (UP[0], UP[1], UP[1], UP[1])
    only_cross_attention: Literal[False] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: Literal[1] = 1
    mid_block_scale_factor: float = 1.0
    dropout: float = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple = 1
    reverse_transformer_layers_per_block: None = None
    attention_head_dim: int | tuple = 8
    num_attention_heads: int | tuple | None = None
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    addition_embed_type_num_heads: int = 64
    upcast_attention: bool | None = False  # jgen's softmax is always in float32
    resnet_time_scale_shift: Literal["default"] = "default"
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = None
    conv_in_kernel: Literal[3] = 3
    conv_out_kernel: Literal[3] = 3
    attention_type: Literal["default"] = "default"


def each_level(value: int | tuple, levels: int, name: str, where: Any) -> tuple[int, ...]:
    """One value per level, from a field that is one number for all levels, or one for each."""
    numbers = (value,) * levels if isinstance(value, int) else value
    fits = len(numbers) == levels and all(isinstance(number, int) for number in numbers)
    require(fits, f"{where}: {name} is {value}: it must be a whole number, or {levels}")
    return numbers


def network_of(fields: Fields, where: Any) -> condition_unet.Config:
    """The network that config.json describes. Raises `UserError` for one that jgen does not have."""
    channels, levels = fields.block_out_channels, len(fields.block_out_channels)
    require(levels > 0, f"{where}: block_out_channels is empty")
    for name, kinds in (("down_block_types", DOWN), ("up_block_types", UP)):
        types = getattr(fields, name)
        fits = len(types) == levels and set(types) <= set(kinds)
        require(fits, f"{where}: {name} is {types}: it must be {levels} of {' and '.join(kinds)}")
    attends = [kind == DOWN[1] for kind in fields.down_block_types]
    mirrored = [kind == UP[1] for kind in reversed(fields.up_block_types)]
    require(attends == mirrored, f"{where}: up_block_types must have attention where down_block_types have it")
    outputs, same = fields.out_channels, fields.in_channels == fields.out_channels
    require(same, f"{where}: in_channels is {fields.in_channels}: it must be out_channels = {outputs}")
    plain = fields.dropout == 0 and fields.mid_block_scale_factor == 1 and fields.resnet_out_scale_factor == 1
    wide = fields.time_embedding_dim in (None, 4 * channels[0])
    message = f"{where}: dropout must be 0, scale factors 1, and time_embedding_dim {4 * channels[0]}"
    require(plain and wide, message)
    depths = each_level(fields.transformer_layers_per_block, levels, "transformer_layers_per_block", where)
    # In every published configuration, the field attention_head_dim is in fact the number of heads.
    given = "attention_head_dim" if fields.num_attention_heads is None else "num_attention_heads"
    return condition_unet.Config(
        channels=channels,
        blocks=fields.layers_per_block,
        depths=tuple(depth if here else 0 for depth, here in zip(depths, attends)),
        middle_depth=depths[-1],
        heads=each_level(getattr(fields, given), levels, given, where),
        context=fields.cross_attention_dim,
        groups=fields.norm_num_groups,
        norm_eps=float(fields.norm_eps),
        **pooled_of(fields, where),
    )


def fields_of(network: condition_unet.Config, size: int, channels: int, linear: bool) -> Fields:
    """The fields of config.json for a network on square latents: the inverse of `network_of`.

    Raises:
      UserError: depths that `UNet2DConditionModel` does not have.
    """
    last, middle = network.depths[-1], network.middle_depth
    fits = middle > 0 and last in (0, middle)
    require(fits, f"network.middle_depth is {middle}: {NAME} has transformers in the middle, as many as at {last or 1}")
    attends = [depth > 0 for depth in network.depths]
    pooled: dict[str, Any] = {}
    if network.pooled:
        width = network.pooled + condition_unet.NUM_SIZES * network.size_features
        pooled = {"addition_embed_type": "text_time", "addition_time_embed_dim": network.size_features}
        pooled["projection_class_embeddings_input_dim"] = width
    return Fields(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        down_block_types=tuple(DOWN[here] for here in attends),
        up_block_types=tuple(UP[here] for here in reversed(attends)),
        block_out_channels=network.channels,
        layers_per_block=network.blocks,
        norm_num_groups=network.groups,
        norm_eps=network.norm_eps,
        cross_attention_dim=network.context,
        transformer_layers_per_block=(*(depth or 1 for depth in network.depths[:-1]), middle),
        attention_head_dim=network.heads,
        use_linear_projection=linear,
        **pooled,
    )


def pooled_of(fields: Fields, where: Any) -> dict[str, Any]:
    """The options of XL's embedding of the pooled text and of image sizes; {} for other networks."""
    kind = fields.addition_embed_type
    require(kind in (None, "text_time"), f"{where}: addition_embed_type is {kind!r}: it must be text_time, or null")
    if kind is None:
        return {}
    features, width = fields.addition_time_embed_dim, fields.projection_class_embeddings_input_dim
    pooled = (width or 0) - condition_unet.NUM_SIZES * (features or 0)
    message = f"{where}: projection_class_embeddings_input_dim is {width}, addition_time_embed_dim {features}"
    require(features is not None and pooled > 0, f"{message}: the first must be more than six times the second")
    assert features is not None
    return {"pooled": pooled, "size_features": features}


def spatial_transformer(path: str, name: str, depth: int, linear: bool) -> list[Layer]:
    """Transformer blocks on a feature map. linear: whether diffusers' projections in and out are linear layers, not
    convolutions."""
    kind: Any = "linear" if linear else "pointwise"
    ends = [layer(f"{path}/in", f"{name}.proj_in", kind), layer(f"{path}/out", f"{name}.proj_out", kind)]
    layers = [layer(f"{path}/norm", f"{name}.norm", "norm"), *ends]
    for i in range(depth):
        own, theirs = f"{path}/block{i}", f"{name}.transformer_blocks.{i}"
        for number, norm in enumerate(("norm_self", "norm_cross", "norm_feed_forward"), start=1):
            layers.append(layer(f"{own}/{norm}", f"{theirs}.norm{number}", "norm"))
        for number, attention in enumerate(("self_attention", "cross_attention"), start=1):
            for part, short in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("out", "to_out.0")):
                layers.append(layer(f"{own}/{attention}/{part}", f"{theirs}.attn{number}.{short}"))
        layers.append(layer(f"{own}/wide", f"{theirs}.ff.net.0.proj"))
        layers.append(layer(f"{own}/narrow", f"{theirs}.ff.net.2"))
    return layers


def all_layers(network: condition_unet.Config, linear: bool) -> list[Layer]:
    """The layers of the network, including some that not every network has."""
    levels, blocks = len(network.channels), network.blocks
    layers = [layer(f"conv_{end}", f"conv_{end}", "conv") for end in ("in", "out")]
    layers.append(layer("norm_out", "conv_norm_out", "norm"))
    for own, theirs in (("time", "time_embedding"), ("sizes", "add_embedding")):
        layers += [layer(f"{own}{i}", f"{theirs}.linear_{i}") for i in (1, 2)]
    for level in range(levels):
        for way, place, count in (
            ("down", f"down_blocks.{level}", blocks),
            ("up", f"up_blocks.{levels - 1 - level}", blocks + 1),
        ):
            for i in range(count):
                layers += residual_block(f"{way}{level}_block{i}", f"{place}.resnets.{i}", embedding=True)
                depth = network.depths[level]
                layers += spatial_transformer(f"{way}{level}_attention{i}", f"{place}.attentions.{i}", depth, linear)
            layers.append(layer(f"{way}{level}_{way}sample", f"{place}.{way}samplers.0.conv", "conv"))
    for i in (0, 1):
        layers += residual_block(f"middle_block{i}", f"mid_block.resnets.{i}", embedding=True)
    return layers + spatial_transformer("middle_attention", "mid_block.attentions.0", network.middle_depth, linear)


def tensors_of(network: condition_unet.Config, params: Any, linear: bool) -> dict[str, np.ndarray]:
    """The parameters by diffusers' names."""
    return to_tensors(present(all_layers(network, linear), params), params)


def params_of(network: condition_unet.Config, tensors: Tensors, linear: bool) -> dict[str, Any]:
    """The inverse of `tensors_of`."""
    return to_params([one for one in all_layers(network, linear) if f"{one.names[0]}.weight" in tensors], tensors)
