"""Group normalisation with an optional fused SiLU, and its closed-form gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def _coefficients(x, scale, bias, groups, eps):
    """Per image and channel the a, c of y = a x + c; the group's mean and 1 / std, each (B, G)."""
    batch, channels = x.shape[0], x.shape[-1]
    size = x.shape[1] * x.shape[2] * (channels // groups)
    wide = x.astype(jnp.float32)
    sums = jnp.sum(wide, axis=(1, 2)).reshape(batch, groups, -1).sum(-1)
    squares = jnp.sum(wide * wide, axis=(1, 2)).reshape(batch, groups, -1).sum(-1)
    mean = sums / size
    rstd = jax.lax.rsqrt(jnp.maximum(squares / size - mean * mean, 0.0) + eps)
    a = _to_channels(rstd, channels) * scale[None, :]
    c = bias[None, :] - _to_channels(mean, channels) * a
    # Computed once: without the barrier XLA moves this into the loop over all positions, which takes twice as long.
    return *jax.lax.optimization_barrier((a, c)), mean, rstd


def _to_channels(per_group, channels):
    """(B, G) to (B, C)."""
    return jnp.repeat(per_group, channels // per_group.shape[1], axis=1)


def _apply(x, a, c, silu):
    y = x.astype(jnp.float32) * a[:, None, None, :] + c[:, None, None, :]
    return (y * jax.nn.sigmoid(y) if silu else y).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(x: Any, scale: Any, bias: Any, groups: int, eps: float = 1e-5, silu: bool = False) -> Any:
    """Group normalisation (Wu & He 2018, arXiv 1803.08494) of (B, H, W, C), then SiLU if asked.

    Statistics are float32, from one pass of per-channel sums; the whole is one multiply-add per element. The gradient
    is in closed form, since autodiff of the statistics reads the activations more often than it needs to.

    Args:
      scale, bias: float32 (C,); groups: a divisor of C.
    """
    a, c, _, _ = _coefficients(x, scale, bias, groups, eps)
    return _apply(x, a, c, silu)


def _forward(x, scale, bias, groups, eps, silu):
    a, c, mean, rstd = _coefficients(x, scale, bias, groups, eps)
    return _apply(x, a, c, silu), (x, scale, a, c, mean, rstd)


def _backward(groups, eps, silu, saved, g):
    x, scale, a, c, mean, rstd = saved
    batch, channels = x.shape[0], x.shape[-1]
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
    group = lambda z: (z * scale[None, :]).reshape(batch, groups, -1).sum(-1)
    p = -group(sum_gn) * rstd * rstd / size
    q = -group(sum_g) * rstd / size - p * mean
    p, q = jax.lax.optimization_barrier((_to_channels(p, channels), _to_channels(q, channels)))
    dx = a[:, None, None, :] * g + p[:, None, None, :] * wide + q[:, None, None, :]
    return dx.astype(x.dtype), sum_gn.sum(0), sum_g.sum(0)


group_norm.defvjp(_forward, _backward)


class GroupNorm(nn.Module):
    """Group normalisation with a learned scale and bias, and SiLU where `silu` is set."""

    groups: int = 32
    eps: float = 1e-5
    silu: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return group_norm(x, scale, bias, self.groups, self.eps, self.silu)
