"""Conversion between diffusers' `DiTTransformer2DModel` and jgen/nn/dit.py.

In diffusers every block has its own copy of the embedding of time and class, where jgen has one; in the embedding of t,
cosines come before sines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from jgen.convert.layers import Layer, Tensors, layer, to_params, to_tensors
from jgen.errors import require
from jgen.nn import dit

NAME = "DiTTransformer2DModel"
# The class name in config.json files that predate DiTTransformer2DModel, and the fields with other defaults.
OLD_NAME = "Transformer2DModel"
OLD_DEFAULTS = (
    "attention_head_dim",
    "in_channels",
    "num_layers",
    "attention_bias",
    "sample_size",
    "patch_size",
    "activation_fn",
    "num_embeds_ada_norm",
    "norm_type",
    "norm_elementwise_affine",
)
EMBEDDER = "transformer_blocks.{}.norm1.emb"
MLP_RATIO = 4.0


@dataclass(frozen=True)
class Fields:
    """The fields of config.json with diffusers' defaults; a Literal with one value is the only one jgen supports."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    dropout: float = 0.0
    norm_num_groups: int = 32
    attention_bias: Literal[True] = True
    sample_size: int = 32
    patch_size: int = 2
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    num_embeds_ada_norm: int = 1000
    upcast_attention: bool = False
    norm_type: Literal["ada_norm_zero"] = "ada_norm_zero"
    norm_elementwise_affine: Literal[False] = False
    norm_eps: float = 1e-5


def network_of(fields: Fields, where: Any) -> dit.Config:
    """The network that config.json describes.

    The authors' network and jgen's have an epsilon of 1e-6 everywhere; diffusers' default of 1e-5 in one of the two
    normalisations of a block is ignored.
    """
    channels = fields.in_channels
    fits = fields.out_channels in (None, channels, 2 * channels)
    require(fits, f"{where}: out_channels is {fields.out_channels}: it must be in_channels = {channels}, or twice that")
    small = 0 < fields.norm_eps <= 1e-5
    require(small, f"{where}: norm_eps is {fields.norm_eps}: it must be above 0 and at most 1e-5")
    heads, width = fields.num_attention_heads, fields.attention_head_dim
    return dit.Config(
        patch=fields.patch_size,
        features=heads * width,
        layers=fields.num_layers,
        heads=heads,
        mlp_ratio=MLP_RATIO,
        dropout=float(fields.dropout),
    )


def fields_of(network: dit.Config, size: tuple[int, int], channels: int, outputs: int, num_classes: int) -> Fields:
    """The fields of config.json for a network on images of this size. Raises `UserError` if diffusers has no such
    network."""
    require(size[0] == size[1], f"images are {size[0]}x{size[1]}: {NAME} has square ones only")
    require(num_classes > 0, f"the run is not class-conditional: {NAME} always is")
    ratio = network.mlp_ratio
    require(ratio == MLP_RATIO, f"mlp_ratio is {ratio}: {NAME} has {MLP_RATIO} only")
    return Fields(
        num_attention_heads=network.heads,
        attention_head_dim=network.features // network.heads,
        in_channels=channels,
        out_channels=outputs,
        num_layers=network.layers,
        dropout=network.dropout,
        sample_size=size[0],
        patch_size=network.patch,
        num_embeds_ada_norm=num_classes,
        norm_eps=1e-6,
    )


def outer_layers(patch: int) -> list[Layer]:
    """All layers except those of the blocks."""
    embedder = EMBEDDER.format(0)
    return [
        layer("patches", "pos_embed.proj", "patches", patch),
        layer("time1", f"{embedder}.timestep_embedder.linear_1", "cosines_first"),
        layer("time2", f"{embedder}.timestep_embedder.linear_2"),
        layer("classes", f"{embedder}.class_embedder.embedding_table", "embedding"),
        layer("modulation", "proj_out_1"),
        layer("pixels", "proj_out_2"),
    ]


def block_layers(number: int) -> list[Layer]:
    """The layers of a block, with paths relative to it."""
    name = f"transformer_blocks.{number}"
    return [
        layer("modulation", f"{name}.norm1.linear"),
        Layer("qkv", tuple(f"{name}.attn1.to_{letter}" for letter in "qkv")),
        layer("out", f"{name}.attn1.to_out.0"),
        layer("wide", f"{name}.ff.net.0.proj"),
        layer("narrow", f"{name}.ff.net.2"),
    ]


def tensors_of(network: dit.Config, params: Any) -> dict[str, np.ndarray]:
    """The parameters by diffusers' names, with a copy of the embedding of time and class for every block."""
    tensors = to_tensors(outer_layers(network.patch), params)
    shared = {name: array for name, array in tensors.items() if name.startswith(EMBEDDER.format(0))}
    for i in range(network.layers):
        tensors |= {name.replace(EMBEDDER.format(0), EMBEDDER.format(i)): array for name, array in shared.items()}
        tensors |= to_tensors(block_layers(i), entry(params["blocks"], i))
    return tensors


def entry(tree: Any, number: int) -> Any:
    """The arrays of one block."""
    return jax.tree.map(lambda array: array[number], tree)


def params_of(network: dit.Config, tensors: Tensors, where: Any) -> dict[str, Any]:
    """The inverse of `tensors_of`. Raises `UserError` for blocks whose embeddings of time and class differ."""
    for name in (name for name in tensors if name.startswith(EMBEDDER.format(0))):
        for i in range(1, network.layers):
            other = name.replace(EMBEDDER.format(0), EMBEDDER.format(i))
            equal = np.array_equal(tensors[other], tensors[name])
            require(equal, f"{where}: {other} differs from {name}: in jgen all blocks have one embedding of time")
    blocks = [to_params(block_layers(i), tensors) for i in range(network.layers)]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *blocks)
    return {**to_params(outer_layers(network.patch), tensors), "blocks": stacked}
