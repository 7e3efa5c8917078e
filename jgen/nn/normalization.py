"""Group normalisation with an optional SiLU."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core.backend import for_cpu
from jgen.nn.cpu.group_norm import group_norm as group_norm_cpu


def group_norm(x: jax.Array, scale: Any, bias: Any, groups: int, eps: float = 1e-5, silu: bool = False) -> Any:
    """Group normalisation (Wu & He 2018, arXiv 1803.08494) of (B, H, W, C), then SiLU if asked.

    Computes in float32; the result has x's type.

    Args:
      scale, bias: float32 (C,); groups: a divisor of C.
    """
    if for_cpu():
        return group_norm_cpu(x, scale, bias, groups, eps, silu)
    grouped = x.astype(jnp.float32).reshape(*x.shape[:3], groups, -1)
    # Mean and mean square are read in one pass over x.
    mean = jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
    mean_square = jnp.mean(grouped * grouped, axis=(1, 2, 4), keepdims=True)
    variance = jnp.maximum(mean_square - mean * mean, 0.0)
    y = ((grouped - mean) * jax.lax.rsqrt(variance + eps)).reshape(x.shape)
    y = y * scale[None, None, None, :] + bias[None, None, None, :]
    return (nn.silu(y) if silu else y).astype(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation with a learned scale and bias, and SiLU where `silu` is set."""

    groups: int = 32
    eps: float = 1e-5
    silu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return group_norm(x, scale, bias, self.groups, self.eps, self.silu)
