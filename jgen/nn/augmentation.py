"""Geometric augmentation that the network is conditioned on (Karras et al. 2022, arXiv 2206.00364, appendix F.2).

Each image is flipped sideways with probability 1/2 and, each with probability p, flipped upside down, scaled, rotated,
stretched along a random direction and translated. Given the transformation as a condition, the network learns to
produce untransformed images in sampling, where the condition is all zeros.

Differs from the authors' code: pixels are interpolated linearly, where that code filters with wavelets at twice the
resolution.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

SCALE_STD, TRANSLATION_STD = 0.2, 0.125
SIZE = 9  # numbers that describe the transformation: two flips, scale, rotation (2), stretching (2), translation (2)


def augment(keys: jax.Array, x: jax.Array, p: float) -> tuple[jax.Array, jax.Array]:
    """Transformed images (B, H, W, C) and the description of each transformation, float32 (B, SIZE); keys (B,)."""

    def one(key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        matrix, done = transformation(key, p)
        return warp(x, matrix), done

    return jax.vmap(one)(keys, x)


def transformation(key: jax.Array, p: float) -> tuple[jax.Array, jax.Array]:
    """A random map of output to input positions, (3, 3) in (y, x, 1) with image sides of length 2, and its
    description."""
    keys = jax.random.split(key, 14)
    applies = [jax.random.bernoulli(k, p) for k in keys[:5]]
    mirror = jax.random.bernoulli(keys[5]).astype(jnp.float32)
    upside_down = jax.random.bernoulli(keys[6]) * applies[0].astype(jnp.float32)
    log_scale = jax.random.normal(keys[7]) * applies[1]
    angle = jax.random.uniform(keys[8], minval=-math.pi, maxval=math.pi) * applies[2]
    stretch = jax.random.normal(keys[9]) * applies[3]
    direction = jax.random.uniform(keys[10], minval=-math.pi, maxval=math.pi)
    shift = jax.random.normal(keys[11], (2,)) * applies[4]
    stretched = rotation(direction) @ scaling(1.0, 2.0 ** (-SCALE_STD * stretch)) @ rotation(-direction)
    matrix = scaling(1.0 - 2.0 * upside_down, 1.0 - 2.0 * mirror)
    matrix = matrix @ scaling(*[2.0 ** (-SCALE_STD * log_scale)] * 2) @ rotation(-angle) @ stretched
    matrix = matrix @ translation(-2.0 * TRANSLATION_STD * shift)
    done = [mirror, upside_down, log_scale, jnp.cos(angle) - 1.0, jnp.sin(angle)]
    done += [stretch * jnp.cos(direction), stretch * jnp.sin(direction), shift[0], shift[1]]
    return matrix, jnp.stack(done).astype(jnp.float32)


def warp(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x (H, W, C) read at `matrix` times each output position, linearly, mirrored beyond its edges."""
    height, width = x.shape[:2]
    half = jnp.array([height - 1, width - 1]) / 2.0
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    # Positions in units of half a side, so that a rotation is the same for images of any shape.
    unit = jnp.array([height, width]) / 2.0
    positions = (grid.reshape(2, -1) - half[:, None]) / unit[:, None]
    positions = matrix[:2, :2] @ positions + matrix[:2, 2:]
    coordinates = positions * unit[:, None] + half[:, None]

    def channel(plane: jax.Array) -> jax.Array:
        return map_coordinates(plane, list(coordinates), order=1, mode="mirror").reshape(height, width)

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(x)


def scaling(y: jax.Array | float, x: jax.Array | float) -> jax.Array:
    return jnp.diag(jnp.stack([jnp.asarray(y, jnp.float32), jnp.asarray(x, jnp.float32), jnp.float32(1.0)]))


def rotation(angle: jax.Array) -> jax.Array:
    """By an angle from y towards x."""
    cos, sin, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.float32(0.0), jnp.float32(1.0)
    return jnp.stack([jnp.stack([cos, -sin, zero]), jnp.stack([sin, cos, zero]), jnp.stack([zero, zero, one])])


def translation(shift: jax.Array) -> jax.Array:
    return jnp.eye(3).at[:2, 2].set(shift)
