"""Continuous densities of uint8 images: uniform dequantisation (Theis et al. 2016, arXiv 1511.01844).

    log P(image) = log E_u p(image + u) >= E_u log p(image + u),   u uniform on [0, 1)^D,

where p is a density of dequantised images x, floats in [0, levels). If u has another density q on [0, 1)^D instead of
the uniform one, log P(image) >= E_u log p(image + u) - log q(u) (Ho et al. 2019, arXiv 1902.00275, equation 12).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.prob.bijectors import logit
from jgen.prob.likelihoods import sum_image

# (keys (B,), uint8 images) to dequantised images, float32 (B, H, W, C), and log q of their noise, nats (B,).
Proposal = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def dequantise(keys: jax.Array, images: jax.Array, margin: float = 0.0) -> jax.Array:
    """image + u, float32 (B, H, W, C) in [0, levels), u uniform on [margin, 1 - margin)."""
    u = rng.uniform(keys, images.shape[1:])
    level = images.astype(jnp.float32)
    # In float32, 255 + u rounds to 256, the next level, for u within 2^-17 of 1.
    return jnp.minimum(level + (margin + (1.0 - 2.0 * margin) * u), jnp.nextafter(level + 1.0, 0.0))


def preprocess(x: jax.Array | np.ndarray, levels: int, alpha: float, inverse: bool = False) -> tuple[Any, Any]:
    """x in [0, levels) to x / levels - 1/2, or for alpha > 0 to the logit of x / levels; or back: (y, log_det)."""
    constant = jnp.full(x.shape[:1], x[0].size * math.log(levels), x.dtype)
    if inverse:
        x, log_det = logit(x, alpha, inverse=True) if alpha > 0 else (x + 0.5, 0.0)
        return x * levels, log_det + constant
    x = x / levels
    x, log_det = logit(x, alpha) if alpha > 0 else (x - 0.5, 0.0)
    return x, log_det - constant


def uniform(keys: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images dequantised with uniform noise, and its log-density, 0: see `Proposal`."""
    return dequantise(keys, images), jnp.zeros(images.shape[0])


def truncated_normal(std: float) -> Proposal:
    """Dequantisation with normal noise around the middle of a level, truncated to the level.

    Args:
      std: of the noise before it is truncated, in levels.
    """
    bound = 0.5 / std
    log_normaliser = math.log(std * math.sqrt(2 * math.pi) * math.erf(bound / math.sqrt(2)))

    def propose(keys: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = images.shape[1:]
        eps = jax.vmap(lambda key: jax.random.truncated_normal(key, -bound, bound, shape))(keys)
        level = images.astype(jnp.float32)
        x = jnp.clip(level + (0.5 + std * eps), level, jnp.nextafter(level + 1.0, 0.0))
        return x, -sum_image(0.5 * eps**2 + log_normaliser)

    return propose


def quantise(x: jax.Array, levels: int) -> Any:
    """Dequantised images back to uint8 images: floor(x), clipped to 0 .. levels - 1."""
    return jnp.clip(jnp.floor(x), 0, levels - 1).astype(jnp.uint8)


def importance_bound(
    log_density: Callable[[jax.Array], jax.Array],
    keys: jax.Array,
    images: jax.Array,
    samples: int,
    proposal: Proposal = uniform,
) -> jax.Array:
    """log of the mean of p(image + u) / q(u) over `samples` draws of u, nats (B,): in expectation a lower bound of
    log P.

    One draw gives the usual bound, more draws a tighter one (Burda et al. 2016, with q as proposal).

    Args:
      log_density: x (B, H, W, C) to nats (B,).
    """

    def one_draw(number: jax.Array) -> jax.Array:
        x, log_q = proposal(rng.fold_in(keys, number), images)
        return log_density(x) - log_q

    log_densities = jax.lax.map(one_draw, jnp.arange(samples))
    return jax.nn.logsumexp(log_densities, axis=0) - math.log(samples)
