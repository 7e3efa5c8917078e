"""The diffusion transformer (Peebles & Xie 2023, arXiv 2212.09748): patches of noisy images as a sequence.

    tokens    x cut into p x p patches, each through one linear layer, plus a fixed position of sines and cosines
    c         MLP(embedding of t) + embedding of the class, (B, E)
    adaLN     (shift, scale, gate) for attention and for the MLP, from one linear layer of SiLU(c), zero at first
    block     h + gate * attention(LN(h) (1 + scale) + shift), the same with the MLP              (figure 3, adaLN-Zero)
    context   between the two, h + attention(h, tokens), if there are tokens (Chen et al. 2024, arXiv 2310.00426)
    output    LN(h) (1 + scale) + shift, a linear layer to the patch's pixels, zero at first

Every block is the identity at first, and the output is 0. The blocks' parameters are stacked, and all blocks share one
program. Position embeddings are sines and cosines of the row and the column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.core.model import ImageSpec
from jgen.errors import require, require_positive
from jgen.nn.attention import attention
from jgen.nn.cross_attention import CrossAttention, Tokens
from jgen.nn.dropout import dropout
from jgen.nn.embeddings import MAX_PERIOD, sinusoidal_embedding
from jgen.nn.resampling import depth_to_space, space_to_depth

UNROLLED = 8  # largest number of blocks that are compiled one by one, which runs faster
TIME_FEATURES = 256  # of the embedding of t
SMALL_T_SCALE = 1000.0  # of a t of order 1, for an embedding that is designed for steps 1 .. 1000


@dataclass(frozen=True)
class Config:
    """Sizes of a diffusion transformer."""

    patch: int = 2
    """Height and width p of a patch."""
    features: int = 768
    """Width of the transformer."""
    layers: int = 12
    """Blocks."""
    heads: int = 12
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP, as a multiple of `features`."""
    dropout: float = 0.0
    """Dropout rate after attention and MLP (the paper: 0)."""
    remat: bool = False
    """Recompute the blocks' activations in the backward pass, so that only their inputs are stored."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, statistics and losses stay float32."""


def small(**sizes: Any) -> Config:
    """DiT-S: 33 M parameters."""
    return Config(features=384, layers=12, heads=6, **sizes)


def base(**sizes: Any) -> Config:
    """DiT-B: 130 M parameters."""
    return Config(features=768, layers=12, heads=12, **sizes)


def large(**sizes: Any) -> Config:
    """DiT-L: 458 M parameters."""
    return Config(features=1024, layers=24, heads=16, **sizes)


def extra_large(**sizes: Any) -> Config:
    """DiT-XL: 675 M parameters."""
    return Config(features=1152, layers=28, heads=16, **sizes)


def dense(features: int, dtype: DTypeLike, name: str, zero: bool = False) -> nn.Dense:
    """A linear layer initialised as in the paper: Xavier uniform, or zeros."""
    init = nn.initializers.zeros if zero else nn.initializers.xavier_uniform()
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


def modulated(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """LN(x) (1 + scale) + shift, with the statistics in float32; x (B, L, E), shift and scale (B, E)."""
    h = x.astype(jnp.float32)
    h = h - jnp.mean(h, axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)
    return (h * (1.0 + scale[:, None]) + shift[:, None]).astype(x.dtype)


class Block(nn.Module):
    """Attention and an MLP, each modulated by the condition and added to its input: (B, L, E) to the same."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array, keys: jax.Array | None, context: Tokens | None = None) -> jax.Array:
        """x (B, L, E); c (B, E) after its SiLU; keys (B,) are for dropout, None for none; context: of
        cross-attention."""
        o, dtype = self.config, jnp.dtype(self.config.dtype)
        batch, length, width = x.shape
        key_attention, key_mlp = (None, None) if keys is None else rng.split(keys, 2)
        modulation = dense(6 * width, dtype, "modulation", zero=True)(c)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)
        h = modulated(x, shift_a, scale_a).reshape(-1, width)
        q, k, v = jnp.split(dense(3 * width, dtype, "qkv")(h), 3, axis=-1)
        heads = (batch, length, o.heads, width // o.heads)
        h = attention(q.reshape(heads), k.reshape(heads), v.reshape(heads)).reshape(-1, width)
        h = dense(width, dtype, "out")(h).reshape(x.shape)
        x = x + gate_a[:, None] * dropout(h, key_attention, o.dropout)
        if context is not None:
            cross = CrossAttention(o.heads, dtype, nn.initializers.zeros, name="cross_attention")
            x = x + cross(x, context)
        h = modulated(x, shift_m, scale_m).reshape(-1, width)
        h = nn.gelu(dense(int(o.mlp_ratio * width), dtype, "wide")(h))
        h = dense(width, dtype, "narrow")(h).reshape(x.shape)
        return x + gate_m[:, None] * dropout(h, key_mlp, o.dropout)


class DiT(nn.Module):
    """(x (B, H, W, C), t (B,), label (B,) or None, dropout keys (B,) or None) to float32 (B, H, W, out_channels).

    num_classes: 0 for no class embedding; else the number of embeddings, including a null class if there is one.
    time_scale:  factor on t before its embedding, which is designed for steps 1 .. 1000.

    vector (B, D), if given, is a further condition, such as how an image was augmented. If a context is given, such as
    the tokens of a text, every block attends to it.
    """

    config: Config
    num_classes: int
    out_channels: int
    time_scale: float = 1.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        label: jax.Array | None,
        keys: jax.Array | None,
        vector: jax.Array | None = None,
        context: Tokens | None = None,
    ) -> jax.Array:
        o, dtype = self.config, jnp.dtype(self.config.dtype)
        grid = (x.shape[1] // o.patch, x.shape[2] // o.patch)
        h = dense(o.features, dtype, "patches")(to_patches(x, o.patch).astype(dtype))
        h = h + jnp.asarray(positions(*grid, o.features), dtype)[None]
        c = nn.silu(self.condition(t, label, vector))
        h = self.blocks(h, c, keys if o.dropout else None, context)
        shift, scale = jnp.split(dense(2 * o.features, dtype, "modulation", zero=True)(c), 2, axis=-1)
        h = modulated(h, shift, scale).astype(jnp.float32)
        h = dense(o.patch**2 * self.out_channels, jnp.float32, "pixels", zero=True)(h)
        return from_patches(h, grid, o.patch)

    def condition(self, t: jax.Array, label: jax.Array | None, vector: jax.Array | None) -> jax.Array:
        """c (B, features)."""
        width, dtype = self.config.features, jnp.dtype(self.config.dtype)
        normal = nn.initializers.normal(0.02)
        h = sinusoidal_embedding(self.time_scale * t, TIME_FEATURES).astype(dtype)
        h = nn.silu(nn.Dense(width, dtype=dtype, kernel_init=normal, name="time1")(h))
        h = nn.Dense(width, dtype=dtype, kernel_init=normal, name="time2")(h)
        if self.num_classes:
            h = h + nn.Embed(self.num_classes, width, dtype=dtype, embedding_init=normal, name="classes")(label)
        if vector is not None:
            h = h + nn.Dense(width, use_bias=False, dtype=dtype, name="vector")(vector)
        return h

    def blocks(self, h: jax.Array, c: jax.Array, keys: jax.Array | None, context: Tokens | None) -> jax.Array:
        """All blocks, one after another, in one program."""
        o = self.config
        block = Block(o, parent=None)

        def init(key: jax.Array) -> Any:
            each = jax.random.split(key, o.layers)
            one = jax.tree.map(lambda x: x[:1], (h, c, None, context))
            return jax.vmap(lambda key: block.init(key, *one)["params"])(each)

        stacked = self.param("blocks", init)

        def layer(h: jax.Array, inputs: tuple) -> tuple[jax.Array, None]:
            params, number = inputs
            own = None if keys is None else rng.fold_in(keys, number)
            return block.apply({"params": params}, h, c, own, context), None

        body = jax.checkpoint(layer) if o.remat else layer
        unroll = o.layers if o.layers <= UNROLLED else 1
        return jax.lax.scan(body, h, (stacked, jnp.arange(o.layers)), unroll=unroll)[0]


def to_patches(x: jax.Array, patch: int) -> jax.Array:
    """(B, H, W, C) to (B, H W / p^2, p p C), patches in raster order and pixels in raster order within each."""
    h = space_to_depth(x, patch)
    return h.reshape(h.shape[0], -1, h.shape[-1])


def from_patches(x: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """The inverse of `to_patches`; grid: patches down and across."""
    return depth_to_space(x.reshape(x.shape[0], *grid, -1), patch)


def positions(rows: int, columns: int, features: int) -> np.ndarray:
    """Fixed embeddings of a grid's positions in raster order, (rows columns, features).

    For each position, a quarter of the features are sines of the column, a quarter its cosines, and the same for the
    row (as in DiT, after Dosovitskiy et al. 2021, arXiv 2010.11929). `features` must be divisible by 4.
    """
    frequencies = np.exp(-math.log(MAX_PERIOD) * np.arange(features // 4) / (features // 4))
    y, x = np.mgrid[:rows, :columns].reshape(2, -1)
    angles = [np.outer(place, frequencies) for place in (x, y)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def make_dit(config: Config, images: ImageSpec, num_classes: int, out_channels: int = 0, small_t: bool = False) -> DiT:
    """The transformer over images.

    Args:
      num_classes: of the class embedding, including a null class; 0 for none.
      out_channels: 0 takes those of the images.
      small_t: whether t is of order 1, not a step 1 .. T.
    Raises:
      UserError: sizes that the network cannot be built with.
    """
    check_dit(config, images)
    return DiT(config, num_classes, out_channels or images.channels, SMALL_T_SCALE if small_t else 1.0)


def check_dit(config: Config, images: ImageSpec) -> None:
    """Raises `UserError` for sizes that the network cannot be built with."""
    p, features, heads = config.patch, config.features, config.heads
    require_positive(patch=p, features=features, layers=config.layers, heads=heads, mlp_ratio=config.mlp_ratio)
    height, width = images.shape[:2]
    fits = height % p == 0 and width % p == 0
    require(fits, f"patch is {p}: it must divide the height and width of the images, {height}x{width}")
    require(features % heads == 0, f"features is {features}: it must be divisible by heads = {heads}")
    require(features % 4 == 0, f"features is {features}: it must be divisible by 4, for the positions' embedding")
    require(0 <= config.dropout < 1, f"dropout is {config.dropout}: it must be at least 0 and below 1")
