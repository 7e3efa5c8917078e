"""Group normalisation as one multiply-add per element, with its gradient in closed form.

Automatic differentiation of the statistics would read the activations more often than necessary.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, eps: float, silu: bool) -> jax.Array:
    """See `jgen.nn.normalization.group_norm`. Statistics come from one pass of per-channel sums."""
    a, c, _, _ = _coefficients(x, scale, bias, groups, eps)
    return _apply(x, a, c, silu)


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, eps: float, silu: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    a, c, mean, rstd = _coefficients(x, scale, bias, groups, eps)
    return _apply(x, a, c, silu), (x, scale, a, c, mean, rstd)


def _backward(
    groups: int, eps: float, silu: bool, residuals: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, a, c, mean, rstd = residuals
    channels = x.shape[-1]
    size = x.shape[1] * x.shape[2] * (channels // groups)
    wide, g = x.astype(jnp.float32), g.astype(jnp.float32)
    if silu:
        y = wide * a[:, None, None, :] + c[:, None, None, :]
        s = jax.nn.sigmoid(y)
        g = g * (s * (1.0 + y * (1.0 - s)))
    sum_g = jnp.sum(g, axis=(1, 2))  # (B, C)
    sum_gx = jnp.sum(g * wide, axis=(1, 2))
    channel_mean, channel_rstd = _to_channels(mean, channels), _to_channels(rstd, channels)
    sum_gn = (sum_gx - channel_mean * sum_g) * channel_rstd  # sum over positions of g * x_normalised
    # dx = a g - (sum over the group of scale g + x_n * sum of scale g x_n) rstd / size, as  a g + p x + q.
    p = -_sum_groups(sum_gn * scale[None, :], groups) * rstd * rstd / size
    q = -_sum_groups(sum_g * scale[None, :], groups) * rstd / size - p * mean
    p, q = jax.lax.optimization_barrier((_to_channels(p, channels), _to_channels(q, channels)))
    dx = a[:, None, None, :] * g + p[:, None, None, :] * wide + q[:, None, None, :]
    return dx.astype(x.dtype), sum_gn.sum(0), sum_g.sum(0)


group_norm.defvjp(_forward, _backward)


def _coefficients(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(a, c, mean, rstd): y = a x + c with a and c (B, C); the groups' means and 1 / standard deviation, (B, G)."""
    channels = x.shape[-1]
    size = x.shape[1] * x.shape[2] * (channels // groups)
    wide = x.astype(jnp.float32)
    sums = _sum_groups(jnp.sum(wide, axis=(1, 2)), groups)
    squares = _sum_groups(jnp.sum(wide * wide, axis=(1, 2)), groups)
    mean = sums / size
    rstd = jax.lax.rsqrt(jnp.maximum(squares / size - mean * mean, 0.0) + eps)
    a = _to_channels(rstd, channels) * scale[None, :]
    c = bias[None, :] - _to_channels(mean, channels) * a
    # Computed once: without the barrier XLA moves this into the loop over all positions, which takes twice as long.
    return *jax.lax.optimization_barrier((a, c)), mean, rstd


def _sum_groups(per_channel: jax.Array, groups: int) -> jax.Array:
    """(B, C) to (B, G)."""
    return per_channel.reshape(per_channel.shape[0], groups, -1).sum(-1)


def _to_channels(per_group: jax.Array, channels: int) -> jax.Array:
    """(B, G) to (B, C)."""
    return jnp.repeat(per_group, channels // per_group.shape[1], axis=1)


def _apply(x: jax.Array, a: jax.Array, c: jax.Array, silu: bool) -> jax.Array:
    y = x.astype(jnp.float32) * a[:, None, None, :] + c[:, None, None, :]
    return (y * jax.nn.sigmoid(y) if silu else y).astype(x.dtype)
