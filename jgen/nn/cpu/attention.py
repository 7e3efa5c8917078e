"""Attention of a few heads at a time, whose weights stay in the cache.

At 16 heads of 8 the gradient of a plain einsum takes five times as long, and on JAX 0.10 the einsum itself eleven times
as long.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30  # instead of a logit: finite, so that gradients of masked keys are zero and not NaN
CHUNK = 1 << 19  # attention weights computed at a time: 2 MiB, which fits in a core's cache


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v; q (B, L, heads, D), k and v (B, M, heads, D), to (B, L, heads, D); of the keys where
    mask, bool (B, M), is true, or of all.

    The arithmetic is float32. For the gradient the weights are recomputed from the log-sum-exp of the logits.
    """
    q = q * (q.shape[-1] ** -0.5)
    if mask is not None:  # one more feature of queries and keys, which adds 0 or MASKED to the logits
        penalty = jnp.where(mask, 0.0, MASKED).astype(jnp.float32)[:, :, None, None]
        q = jnp.concatenate([q.astype(jnp.float32), jnp.ones((*q.shape[:3], 1))], axis=-1)
        k = jnp.concatenate([k.astype(jnp.float32), jnp.broadcast_to(penalty, (*k.shape[:3], 1))], axis=-1)
    return _attend(q.astype(jnp.float32), k.astype(jnp.float32), v.astype(jnp.float32)).astype(v.dtype)


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of scaled queries, float32."""
    return _forward(q, k, v)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    size = _chunk_size(q, k)
    chunks = tuple(_to_chunks(x, size) for x in (q, k, v))
    out, logsumexp = jax.lax.map(_forward_chunk, chunks)
    return _from_chunks(out, q.shape[0]), (*chunks, out, logsumexp)


def _backward(residuals: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, ...]:
    size = residuals[0].shape[1]
    gradients = jax.lax.map(_backward_chunk, (*residuals, _to_chunks(g, size)))
    return tuple(_from_chunks(x, g.shape[0]) for x in gradients)


_attend.defvjp(_forward, _backward)


def _forward_chunk(chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """The output (size, L, D) and the log-sum-exp of the logits (size, L)."""
    q, k, v = chunk
    logits = jnp.einsum("nqd,nkd->nqk", q, k)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.einsum("nqk,nkd->nqd", weights, v) / total, (top + jnp.log(total))[..., 0]


def _backward_chunk(chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of q, k and v."""
    q, k, v, out, logsumexp, g = chunk
    delta = jnp.sum(g * out, axis=-1)
    weights = jnp.exp(jnp.einsum("nqd,nkd->nqk", q, k) - logsumexp[:, :, None])
    d_logits = weights * (jnp.einsum("nqd,nkd->nqk", g, v) - delta[:, :, None])
    # Recomputed in transposed form: cheaper than transposing, as the products are narrow.
    weights_t = jnp.exp(jnp.einsum("nkd,nqd->nkq", k, q) - logsumexp[:, None, :])
    d_logits_t = weights_t * (jnp.einsum("nkd,nqd->nkq", v, g) - delta[:, None, :])
    dq = jnp.einsum("nqk,nkd->nqd", d_logits, k)
    dk = jnp.einsum("nkq,nqd->nkd", d_logits_t, q)
    return dq, dk, jnp.einsum("nkq,nqd->nkd", weights_t, g)


def _to_chunks(x: jax.Array, size: int) -> jax.Array:
    """(B, L, heads, D) to (chunks, size, L, D)."""
    batch, length, heads, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(-1, size, length, width)


def _from_chunks(x: jax.Array, batch: int) -> jax.Array:
    """(chunks, size, L, D) to (B, L, heads, D)."""
    return x.reshape(batch, -1, *x.shape[2:]).transpose(0, 2, 1, 3)


def _chunk_size(q: jax.Array, k: jax.Array) -> int:
    """The largest divisor of batch x heads whose attention weights fit into CHUNK."""
    pairs = q.shape[0] * q.shape[2]
    limit = max(1, CHUNK // (q.shape[1] * k.shape[1]))
    return max(size for size in range(1, min(pairs, limit) + 1) if pairs % size == 0)
