"""Between uint8 images with values 0 .. levels - 1 and the floats inside a model; bits per dimension.

With levels = 0, "images" are floats, such as the latents of a first stage, and are left unchanged.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jgen.core import keys as rng


def to_float(images: jax.Array, levels: int) -> jax.Array:
    """uint8 0 .. levels - 1 to float32 in [-1, 1], level k at 2 k / (levels - 1) - 1."""
    if levels == 0:
        return images.astype(jnp.float32)
    return images.astype(jnp.float32) * (2.0 / (levels - 1)) - 1.0


def dequantise_to_float(keys: jax.Array, images: jax.Array, levels: int) -> jax.Array:
    """The same with uniform noise as wide as the distance between two levels, 2 / (levels - 1), around each; keys
    (B,)."""
    if levels == 0:
        return to_float(images, levels)
    u = rng.uniform(keys, images.shape[1:])
    return to_float(images, levels) + (u - 0.5) * (2.0 / (levels - 1))


def to_uint8(x: jax.Array, levels: int) -> jax.Array:
    """Floats in [-1, 1] to the nearest of the levels, as uint8; values outside are clipped."""
    if levels == 0:
        return x.astype(jnp.float32)
    scaled = jnp.round((x.astype(jnp.float32) + 1.0) * (0.5 * (levels - 1)))
    return jnp.clip(scaled, 0, levels - 1).astype(jnp.uint8)


def bits_per_dim(nats: Any, size: int) -> Any:
    """Bits per dimension of an image of `size` = H * W * C dimensions whose log-probability is `nats`."""
    return -nats / (size * math.log(2.0))
