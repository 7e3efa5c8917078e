"""Attention, in the formulation that is fastest where it runs."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core.backend import for_cpu
from jgen.nn.normalization import GroupNorm

CHUNK = 1 << 19  # attention weights that are worked on at a time on CPU: 2 MiB, what a core's cache holds


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v; q (B, L, heads, D), k and v (B, M, heads, D), to (B, L, heads, D).

    The softmax is float32. On GPU and TPU this is `jax.nn.dot_product_attention`. On CPU the weights of a few heads at
    a time are worked on while they stay in the cache, and recomputed from the log-sum-exp for the gradient: at 16 heads
    of 8 a plain einsum's gradient takes five times as long, and on JAX 0.10 the einsum itself eleven times.
    """
    if not for_cpu():
        return jax.nn.dot_product_attention(q, k, v)
    q = q * (q.shape[-1] ** -0.5)
    return _attention_cpu(q.astype(jnp.float32), k.astype(jnp.float32), v.astype(jnp.float32)).astype(v.dtype)


@jax.custom_vjp
def _attention_cpu(q, k, v):
    """Attention of scaled queries, float32."""
    return _forward(q, k, v)[0]


def _chunks(x, size):
    """(B, L, heads, D) to (chunks, size, L, D)."""
    batch, length, heads, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(-1, size, length, width)


def _unchunk(x, batch):
    """(chunks, size, L, D) to (B, L, heads, D)."""
    return x.reshape(batch, -1, *x.shape[2:]).transpose(0, 2, 1, 3)


def _chunk_size(q, k):
    """The largest divisor of batch x heads whose attention weights fit into CHUNK."""
    pairs = q.shape[0] * q.shape[2]
    limit = max(1, CHUNK // (q.shape[1] * k.shape[1]))
    return max(size for size in range(1, min(pairs, limit) + 1) if pairs % size == 0)


def _forward(q, k, v):
    size = _chunk_size(q, k)

    def one(chunk):
        q, k, v = chunk
        logits = jnp.einsum("nqd,nkd->nqk", q, k)
        top = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return jnp.einsum("nqk,nkd->nqd", weights, v) / total, (top + jnp.log(total))[..., 0]

    parts = tuple(_chunks(x, size) for x in (q, k, v))
    out, logsumexp = jax.lax.map(one, parts)
    return _unchunk(out, q.shape[0]), (*parts, out, logsumexp)


def _backward(saved, g):
    batch, size = g.shape[0], saved[0].shape[1]

    def one(chunk):
        q, k, v, out, logsumexp, g = chunk
        delta = jnp.sum(g * out, axis=-1)
        weights = jnp.exp(jnp.einsum("nqd,nkd->nqk", q, k) - logsumexp[:, :, None])
        d_logits = weights * (jnp.einsum("nqd,nkd->nqk", g, v) - delta[:, :, None])
        # The same once more transposed: cheaper than transposing, as the products are narrow.
        weights_t = jnp.exp(jnp.einsum("nkd,nqd->nkq", k, q) - logsumexp[:, None, :])
        d_logits_t = weights_t * (jnp.einsum("nkd,nqd->nkq", v, g) - delta[:, None, :])
        dq = jnp.einsum("nqk,nkd->nqd", d_logits, k)
        dk = jnp.einsum("nkq,nqd->nkd", d_logits_t, q)
        return dq, dk, jnp.einsum("nkq,nqd->nkd", weights_t, g)

    gradients = jax.lax.map(one, (*saved, _chunks(g, size)))
    return tuple(_unchunk(x, batch) for x in gradients)


_attention_cpu.defvjp(_forward, _backward)


class SelfAttention2D(nn.Module):
    """Residual multi-head self-attention over the positions of (B, H, W, C), after group normalisation."""

    head_dim: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        heads = channels // self.head_dim
        h = GroupNorm(self.groups, name="norm")(x).reshape(batch, height * width, channels)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        q, k, v = (part.reshape(batch, -1, heads, self.head_dim) for part in jnp.split(qkv, 3, axis=-1))
        h = attention(q, k, v).reshape(batch, height * width, channels)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(h)
        return x + h.reshape(x.shape)
