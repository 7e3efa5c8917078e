"""Dropout with a key per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jgen.core import keys as rng


def dropout(x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Inverted dropout of (B, ...) with one key per example; `keys=None` or a rate of 0 leaves x as it is."""
    if keys is None or rate == 0.0:
        return x
    keep = rng.bernoulli(keys, 1.0 - rate, x.shape[1:])
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
