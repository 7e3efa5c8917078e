"""Attention, in the formulation that is fastest where it runs."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.nn.normalization import GroupNorm


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v; q, k, v: (B, L, heads, D), softmax in float32, result (B, L, heads, D).

    On GPU and TPU this is `jax.nn.dot_product_attention`; on CPU a plain einsum is faster.
    """
    if jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(q, k, v)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * (q.shape[-1] ** -0.5)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


class SelfAttention2D(nn.Module):
    """Residual multi-head self-attention over the positions of (B, H, W, C), after group normalisation."""

    head_dim: int
    groups: int
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        heads = channels // self.head_dim
        h = GroupNorm(self.groups, name="norm")(x).reshape(batch, height * width, channels)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        q, k, v = (part.reshape(batch, -1, heads, self.head_dim) for part in jnp.split(qkv, 3, axis=-1))
        h = attention(q, k, v).reshape(batch, height * width, channels)
        init = nn.initializers.zeros if self.zero_init else nn.linear.default_kernel_init
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=init, name="out")(h)
        return x + h.reshape(x.shape)
