"""Augmentation of what a discriminator sees, of adaptive strength (Karras et al. 2020, arXiv 2006.06676, appendix B).

Each image, real or generated, has each of these transformations with probability p, in this order:

    pixels    mirrored (of those chosen, half); turned by a multiple of 90 degrees; moved by whole pixels, at most 1/8
    geometry  scaled by 2^N(0, 0.2^2); rotated by any angle; stretched by 2^N(0, 0.2^2) along one axis and shrunk along
              the other; rotated again; moved by N(0, 1/8^2) of the image's size
    colour    brightness + N(0, 0.2^2); contrast times 2^N(0, 0.5^2); luma mirrored (of those chosen, half); hue
              rotated; saturation times 2^N(0, 1). The last two are of images of three channels only.

The two rotations have probability 1 - sqrt(1 - p) each, so that either has p. While p is well below 1 the distribution
of the images shown determines that of images, so that a generator does not learn to show the transformations.

Differs from the paper: positions between pixels are interpolated linearly, where the authors filter with wavelets at
twice the resolution; movements by whole pixels are not of images smaller than eight.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.core.model import ImageSpec
from jgen.errors import require
from jgen.nn.augmentation import rotation, scaling, translation, warp

Number = float | jax.Array
SCALE_STD, STRETCH_STD, SHIFT_STD = 0.2, 0.2, 0.125
BRIGHTNESS_STD, CONTRAST_STD, SATURATION_STD = 0.2, 0.5, 1.0
MAX_WHOLE_SHIFT = 0.125
NOWHERE = np.zeros(2, np.float32)


def augment(keys: jax.Array, x: jax.Array, p: Number) -> jax.Array:
    """Transformed images (B, H, W, C) of one channel or three; keys (B,), p a scalar in [0, 1]."""

    def one(key: jax.Array, x: jax.Array) -> jax.Array:
        key_geometry, key_colour = rng.split_key(key, 2)
        height, width = x.shape[:2]
        return recolour(key_colour, warp(x, geometry(key_geometry, p, height, width)), p)

    return jax.vmap(one)(keys, x)


def geometry(key: jax.Array, p: Number, height: int, width: int) -> jax.Array:
    """A random map of output to input positions, (3, 3) in (y, x, 1) with image sides of length 2."""
    keys = iter(rng.split_key(key, 16))

    def chosen(probability: Number = p) -> jax.Array:
        return jax.random.bernoulli(next(keys), probability).astype(jnp.float32)

    p_rotation = 1.0 - jnp.sqrt(1.0 - jnp.asarray(p, jnp.float32))
    size = jnp.array([height, width], jnp.float32)
    mirror = chosen() * jax.random.bernoulli(next(keys))
    quarters = chosen() * jax.random.randint(next(keys), (), 0, 4)
    whole = jax.random.uniform(next(keys), (2,), minval=-MAX_WHOLE_SHIFT, maxval=MAX_WHOLE_SHIFT)
    whole = jnp.round(chosen() * whole * size) / size
    scale = 2.0 ** (SCALE_STD * chosen() * jax.random.normal(next(keys)))
    angle, angle2 = (chosen(p_rotation) * math.pi * jax.random.uniform(next(keys), minval=-1.0) for _ in range(2))
    stretch = 2.0 ** (STRETCH_STD * chosen() * jax.random.normal(next(keys)))
    shift = SHIFT_STD * chosen() * jax.random.normal(next(keys), (2,))
    return compose(mirror, quarters, whole, scale, angle, stretch, angle2, shift)


def compose(
    mirror: Number = 0.0,
    quarters: Number = 0.0,
    whole: Any = NOWHERE,
    scale: Number = 1.0,
    angle: Number = 0.0,
    stretch: Number = 1.0,
    angle2: Number = 0.0,
    shift: Any = NOWHERE,
) -> jax.Array:
    """The map of output to input positions of one image, (3, 3): see `geometry`.

    Args:
      mirror: 1 for left and right exchanged; quarters: turns by 90 degrees, 0 to 3; angle, angle2: in radians.
      whole, shift: (down, right), in units of the image's size; scale, stretch: above 1 the image becomes smaller.
    """
    # A quarter turn in whole numbers: the cosine of pi / 2 is not quite zero.
    turned = jnp.mod(quarters, 2.0)
    turn = jnp.eye(3) * (1.0 - turned) + jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]) * turned
    turn = turn.at[2, 2].set(1.0)
    half = jnp.where(quarters >= 2, -1.0, 1.0)
    matrix = scaling(1.0, 1.0 - 2.0 * mirror) @ turn @ scaling(half, half) @ translation(-2.0 * whole)
    matrix = matrix @ scaling(scale, scale) @ rotation(jnp.asarray(angle))
    matrix = matrix @ scaling(1.0 / stretch, stretch) @ rotation(jnp.asarray(angle2))
    return matrix @ translation(-2.0 * shift)


def recolour(key: jax.Array, x: jax.Array, p: Number) -> jax.Array:
    """x (H, W, C), of one channel or three, in [-1, 1], with random changes of colour."""
    keys = iter(rng.split_key(key, 12))

    def chosen() -> jax.Array:
        return jax.random.bernoulli(next(keys), p).astype(jnp.float32)

    channels = x.shape[-1]
    luma = jnp.full((channels,), channels**-0.5)  # the axis of grey
    projection = jnp.outer(luma, luma)
    x = x + BRIGHTNESS_STD * chosen() * jax.random.normal(next(keys))
    x = x * 2.0 ** (CONTRAST_STD * chosen() * jax.random.normal(next(keys)))
    matrix = jnp.eye(channels) - 2.0 * projection * (chosen() * jax.random.bernoulli(next(keys)))
    if channels == 3:
        angle = chosen() * math.pi * jax.random.uniform(next(keys), minval=-1.0)
        cross = jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) * 3**-0.5
        turn = jnp.cos(angle) * jnp.eye(3) + jnp.sin(angle) * cross + (1.0 - jnp.cos(angle)) * projection
        saturation = 2.0 ** (SATURATION_STD * chosen() * jax.random.normal(next(keys)))
        matrix = (projection + saturation * (jnp.eye(3) - projection)) @ turn @ matrix
    return x @ matrix.T


def require_augmentable(images: ImageSpec, name: str) -> None:
    """Raises `UserError`, for an option `name`, unless images are square and of one channel or three."""
    height, width, channels = images.shape
    require(
        height == width and channels in (1, 3),
        f"images are {height}x{width}x{channels}: {name} above 0 needs square ones of one channel or three",
    )
