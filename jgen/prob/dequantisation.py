"""Continuous densities of uint8 images: uniform dequantisation (Theis et al. 2016, arXiv 1511.01844).

    log P(image) = log E_u p(image + u) >= E_u log p(image + u),   u uniform on [0, 1)^D,

where p is a density of dequantised images x, floats in [0, levels).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jgen.core import keys as rng


def dequantise(keys: jax.Array, images: jax.Array, margin: float = 0.0) -> jax.Array:
    """image + u, float32 (B, H, W, C) in [0, levels), u uniform on [margin, 1 - margin)."""
    u = rng.uniform(keys, images.shape[1:])
    level = images.astype(jnp.float32)
    # In float32, 255 + u rounds to 256, the next level, for u within 2^-17 of 1.
    return jnp.minimum(level + (margin + (1.0 - 2.0 * margin) * u), jnp.nextafter(level + 1.0, 0.0))


def quantise(x: Any, levels: int) -> Any:
    """Dequantised images back to uint8 images: floor(x), clipped to 0 .. levels - 1."""
    return jnp.clip(jnp.floor(x), 0, levels - 1).astype(jnp.uint8)


def importance_bound(
    log_density: Callable[[jax.Array], jax.Array], keys: jax.Array, images: jax.Array, samples: int
) -> jax.Array:
    """log of the mean of p(image + u) over `samples` draws of u, nats (B,): in expectation a lower bound of log P.

    One draw gives the usual bound, more a tighter one (Burda et al. 2016, with the uniform as proposal).

    Args:
      log_density: x (B, H, W, C) to nats (B,).
    """

    def one_draw(number: jax.Array) -> jax.Array:
        return log_density(dequantise(rng.fold_in(keys, number), images))

    log_densities = jax.lax.map(one_draw, jnp.arange(samples))
    return jax.nn.logsumexp(log_densities, axis=0) - math.log(samples)
