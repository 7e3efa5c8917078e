"""Attention of a feature map or a sequence to tokens, such as those of a text, and U-Net blocks with it.

    cross-attention   softmax(Q K^T / sqrt(d)) V,  Q = W_Q x,  K = W_K c,  V = W_V c      (Rombach et al. 2022, eq. 3)
    spatial           x + out(blocks(in(GroupNorm(x)))), each position of a feature map a member of a sequence
    block             h + attention(LN(h)),  + attention(LN(h), c),  + W (a gelu(b)), (a, b) = W' LN(h)    (GEGLU)

Latent diffusion's layers (Rombach et al. 2022, arXiv 2112.10752, appendix E.2.1), with the same parameters as in Stable
Diffusion. The residual branch of a layer starts at zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.nn.attention import attention
from jgen.nn.normalization import GroupNorm

LAYER_EPS, GROUP_EPS = 1e-5, 1e-6  # of normalisation, as in the authors' code


class Tokens(NamedTuple):
    """Tokens to attend to.

    features: (B, L, D).
    mask:     which of them are attended to, bool (B, L); None for all.
    offset:   int32 (B,): example i attends to its own values with the weights of example i + offset (prompt-to-prompt:
              Hertz et al. 2023, arXiv 2208.01626, section 3); None for its own weights.
    """

    features: jax.Array
    mask: jax.Array | None = None
    offset: jax.Array | None = None


class CrossAttention(nn.Module):
    """(x (B, N, C), tokens) to (B, N, C): multi-head attention of the positions of x to the tokens.

    out_init: of the last layer's weights.
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    out_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        width = x.shape[-1]

        def projected(h: jax.Array, name: str) -> jax.Array:
            h = nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(h)
            return h.reshape(*h.shape[:2], self.heads, width // self.heads)

        context, mask = tokens.features, tokens.mask
        q, k, v = projected(x, "query"), projected(context, "key"), projected(context, "value")
        if tokens.offset is not None:
            rows = jnp.arange(len(x)) + tokens.offset
            q, k, mask = q[rows], k[rows], None if mask is None else mask[rows]
        h = attention(q, k, v, mask).reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, kernel_init=self.out_init, name="out")(h)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the tokens and a gated feed-forward network, each added to (B, N, C)."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        def normalised(x: jax.Array, name: str) -> jax.Array:
            return nn.LayerNorm(LAYER_EPS, dtype=self.dtype, name=name)(x)

        h = normalised(x, "norm_self")
        x = x + CrossAttention(self.heads, self.dtype, name="self_attention")(h, Tokens(h))
        h = normalised(x, "norm_cross")
        x = x + CrossAttention(self.heads, self.dtype, name="cross_attention")(h, tokens)
        width = x.shape[-1]
        h = nn.Dense(8 * width, dtype=self.dtype, name="wide")(normalised(x, "norm_feed_forward"))
        h, gate = jnp.split(h, 2, axis=-1)
        h = h * nn.gelu(gate, approximate=False)
        return x + nn.Dense(width, dtype=self.dtype, name="narrow")(h)


class SpatialTransformer(nn.Module):
    """(x (B, H, W, C), tokens) to the same shape: `depth` blocks over the positions, added to x."""

    head_dim: int
    groups: int
    dtype: DTypeLike = jnp.float32
    depth: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, GROUP_EPS, name="norm")(x).reshape(batch, height * width, channels)
        h = nn.Dense(channels, dtype=self.dtype, name="in")(h)
        for i in range(self.depth):
            h = TransformerBlock(channels // self.head_dim, self.dtype, name=f"block{i}")(h, tokens)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(h)
        return x + h.reshape(x.shape)
