"""Sparse causal attention: a position sees some of those before it (Child et al. 2019, arXiv 1904.10509, section 4).

Position i of a sequence of N attends to the positions of a set that contains i, with l the stride:

    full      {0, ..., i}
    local     {max(0, i - l), ..., i}                           strided attention, A^(1)                (section 4.3)
    column    {j <= i: (i - j) mod l = 0}                       strided attention, A^(2)
    block     {j <= i: floor(j / l) = floor(i / l)}             fixed attention, A^(1)
    summary   {j <= i: j mod l >= l - c} and i itself           fixed attention, A^(2), c positions of every block

Two blocks, one with each pattern of a pair, let every position see all earlier ones, at a cost of N sqrt(N) if l is
near sqrt(N). Attention is computed in pieces of the sequence, without an N x N matrix. A prefix of P positions, such as
a text, comes first: all positions of the sequence see all of it, and within it attention is causal.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jgen.errors import require

MASKED = -1e30  # instead of a logit: finite, so that gradients of masked positions are zero and not NaN


# Keys (B, ..., heads, D), their values, and a mask of those that are attended to, None for all.
Source = tuple[jax.Array, jax.Array, jax.Array | None]


class Pattern(NamedTuple):
    """Which positions a position attends to: one of the sets above; `summary` is c."""

    kind: Literal["full", "local", "column", "block", "summary"]
    stride: int = 1
    summary: int = 1


def make_patterns(attention: Literal["dense", "strided", "fixed"], stride: int, summary: int) -> tuple[Pattern, ...]:
    """The patterns of successive blocks of a network: one, or two that alternate (equation 7 of section 4.3)."""
    if attention == "dense":
        return (Pattern("full"),)
    if attention == "strided":
        return Pattern("local", stride), Pattern("column", stride)
    return Pattern("block", stride, summary), Pattern("summary", stride, summary)


def check_patterns(attention: str, stride: int, summary: int, length: int) -> None:
    """Raises `UserError` for a stride that does not divide the sequence, or more summary positions than the stride."""
    if attention == "dense":
        return
    divides = 0 < stride <= length and length % stride == 0
    require(
        divides, f"stride is {stride}: it must divide the {length} positions of an image, height x width x channels"
    )
    if attention == "fixed":
        require(0 < summary <= stride, f"summary is {summary}: it must be from 1 to the stride, {stride}")


def sparse_attention(q: jax.Array, k: jax.Array, v: jax.Array, pattern: Pattern, prefix: int = 0) -> jax.Array:
    """Causal attention over prefix + N positions, to (B, P + N, heads, E).

    Args:
      q, k: (B, P + N, heads, D); v: (B, P + N, heads, E).
      pattern: its stride must divide N. prefix: P.
    """
    if pattern.kind == "full":
        return causal_attention(q, k, v)
    (q_prefix, q), (k_prefix, k), (v_prefix, v) = ((x[:, :prefix], x[:, prefix:]) for x in (q, k, v))
    batch, length = q.shape[:2]
    keys, values, is_earlier = pieces(k, pattern), pieces(v, pattern), earlier_in_pieces(pattern, length)
    queries, own_k, own_v = (split_pieces(x, pattern) for x in (q, k, v))
    sources: list[Source] = [(keys, values, is_earlier[None, :, None])]
    if prefix:
        sources.append((k_prefix[:, None], v_prefix[:, None], None))
    out = join_pieces(attend(queries, own_k, own_v, sources), pattern, length)
    return jnp.concatenate([causal_attention(q_prefix, k_prefix, v_prefix), out], axis=1) if prefix else out


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of every position to itself and all before it: q, k (B, L, heads, D), v (B, L, heads, E)."""
    scale, missing = q.shape[-1] ** -0.5, v.shape[-1] - q.shape[-1]
    if missing < 0:
        return causal_attention(q, k, jnp.pad(v, ((0, 0),) * 3 + ((0, -missing),)))[..., : v.shape[-1]]
    # `dot_product_attention` takes keys and values of one width: zeros in both queries and keys change no logit.
    q, k = (jnp.pad(x, ((0, 0),) * 3 + ((0, missing),)) for x in (q, k))
    if q.dtype == jnp.float64:  # flows are checked in float64, but jax.nn's softmax is always float32
        earlier = jnp.tril(jnp.ones((q.shape[1],) * 2, bool))
        logits = jnp.where(earlier, scale * jnp.einsum("bqhd,bkhd->bhqk", q, k), MASKED)
        return jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(logits, axis=-1), v)
    return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, sources: list[Source]) -> jax.Array:
    """Attention of each query to its own position and to the keys of several sources, with one softmax, in float32.

    Args:
      q, k: (B, G, Q, heads, D), queries in G pieces of Q positions and the keys of the same positions; v: with E for D.
      sources: keys (B, G or 1, K, heads, D), values, and a mask that broadcasts to (B, G, heads, Q, K) or None for all.
    Returns:
      (B, G, Q, heads, E), of v's type.
    """
    scale = q.shape[-1] ** -0.5
    own = scale * jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32), axis=-1)
    logits = [own.swapaxes(2, 3)[..., None]]
    for keys, _, mask in sources:
        part = scale * product("bgqhd,bgkhd->bghqk", q, keys)
        logits.append(part if mask is None else jnp.where(mask, part, MASKED))
    sizes = [part.shape[-1] for part in logits]
    weights = jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1)
    out = weights[..., 0].swapaxes(2, 3)[..., None] * v.astype(jnp.float32)
    first = 1
    for (_, values, _), size in zip(sources, sizes[1:]):
        part = weights[..., first : first + size].astype(v.dtype)
        out, first = out + product("bghqk,bgkhe->bgqhe", part, values), first + size
    return out.astype(v.dtype)


def product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """A product in float32 of x, which has an index g of pieces, and y, with as many pieces or one for all of them."""
    if y.shape[1] == 1:
        first, second = equation.split(",")
        equation, y = f"{first},{second.replace('g', '', 1)}", y[:, 0]
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def split_pieces(x: jax.Array, pattern: Pattern) -> jax.Array:
    """(B, N, ...) to (B, G, Q, ...): the pieces of the sequence whose queries are computed together."""
    if pattern.kind == "summary":
        return x[:, None]
    rows = x.reshape(x.shape[0], -1, pattern.stride, *x.shape[2:])
    return rows.swapaxes(1, 2) if pattern.kind == "column" else rows


def join_pieces(x: jax.Array, pattern: Pattern, length: int) -> jax.Array:
    """The inverse of `split_pieces`."""
    x = x.swapaxes(1, 2) if pattern.kind == "column" else x
    return x.reshape(x.shape[0], length, *x.shape[3:])


def pieces(x: jax.Array, pattern: Pattern) -> jax.Array:
    """The keys or values (B, N, heads, D) that each piece of queries may see: (B, G, K, heads, D)."""
    parts = split_pieces(x, pattern)
    if pattern.kind == "local":
        before = jnp.pad(parts[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
        return jnp.concatenate([before, parts], axis=2)
    if pattern.kind == "summary":
        rows = x.reshape(x.shape[0], -1, pattern.stride, *x.shape[2:])[:, :, pattern.stride - pattern.summary :]
        return rows.reshape(x.shape[0], 1, -1, *x.shape[2:])
    return parts


def earlier_in_pieces(pattern: Pattern, length: int) -> jax.Array:
    """Which keys of `pieces` each query attends to in addition to its own position: bool (G or 1, Q, K)."""
    stride, rows = pattern.stride, length // pattern.stride
    if pattern.kind == "local":
        i, j = jnp.arange(stride)[None, :, None] + stride, jnp.arange(2 * stride)[None, None, :]
        exists = (j >= stride) | (jnp.arange(rows)[:, None, None] > 0)
        return (j < i) & (j >= i - stride) & exists
    if pattern.kind == "summary":
        return summary_positions(pattern, length)[None, None, :] < jnp.arange(length)[None, :, None]
    size = rows if pattern.kind == "column" else stride
    return jnp.arange(size)[None, None, :] < jnp.arange(size)[None, :, None]


def summary_positions(pattern: Pattern, length: int) -> jax.Array:
    """The last c positions of every block, int32 (N / l c,)."""
    starts = jnp.arange(pattern.stride - 1, length, pattern.stride)[:, None]
    return (starts - jnp.arange(pattern.summary)[None, ::-1]).reshape(-1)


def earlier_positions(pattern: Pattern, length: int, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The candidate positions for position i besides its own, int32 (K,), and which of them it attends to, bool (K,).

    K does not depend on i: N for full, l for local and block, N / l for column, N / l c for summary.
    """
    stride = pattern.stride
    if pattern.kind == "full":
        j = jnp.arange(length)
    elif pattern.kind == "local":
        j = i - stride + jnp.arange(stride)
    elif pattern.kind == "column":
        j = i % stride + stride * jnp.arange(length // stride)
    elif pattern.kind == "block":
        j = i - i % stride + jnp.arange(stride)
    else:
        j = summary_positions(pattern, length)
    return jnp.maximum(j, 0), (j >= 0) & (j < i)
