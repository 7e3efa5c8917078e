"""Adaptive augmentation of a discriminator's inputs (Karras et al. 2020, arXiv 2006.06676, appendix B).

Each image, real or generated, has each of these transformations with probability p, in this order:

    pixels    mirrored (of those chosen, half); turned by a multiple of 90 degrees; moved by whole pixels, at most 1/8
    geometry  scaled by 2^N(0, 0.2^2); rotated by any angle; stretched by 2^N(0, 0.2^2) along one axis and shrunk along
              the other; rotated again; moved by N(0, 1/8^2) of the image's size
    colour    brightness + N(0, 0.2^2); contrast times 2^N(0, 0.5^2); luma mirrored (of those chosen, half); hue
              rotated; saturation times 2^N(0, 1). The last two are of images of three channels only.

The two rotations have probability 1 - sqrt(1 - p) each, so that at least one occurs with probability p. While p is well
below 1, the distribution of augmented images determines that of the images, so that a generator does not learn to
produce the transformations.

Differs from the paper: pixels are interpolated linearly, where the authors filter with wavelets at twice the
resolution; translations by whole pixels are rounded, so that images of up to 4 pixels are never shifted.
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
    # All draws at once: each call of the random generator adds to the compile time.
    key_uniform, key_normal = rng.split_key(key, 2)
    chosen = jax.random.uniform(key_uniform, (14,))
    normal = jax.random.normal(key_normal, (4,))
    p_rotation = 1.0 - jnp.sqrt(1.0 - jnp.asarray(p, jnp.float32))
    size = jnp.array([height, width], jnp.float32)
    mirror = (chosen[0] < p) * jnp.floor(2.0 * chosen[7])
    quarters = (chosen[1] < p) * jnp.floor(4.0 * chosen[8])
    whole = jnp.round((chosen[2] < p) * MAX_WHOLE_SHIFT * (2.0 * chosen[9:11] - 1.0) * size) / size
    scale = 2.0 ** (SCALE_STD * (chosen[3] < p) * normal[0])
    angle, angle2 = (chosen[4:6] < p_rotation) * math.pi * (2.0 * chosen[11:13] - 1.0)
    stretch = 2.0 ** (STRETCH_STD * (chosen[6] < p) * normal[1])
    shift = SHIFT_STD * (chosen[13] < p) * normal[2:4]
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
    key_uniform, key_normal = rng.split_key(key, 2)
    chosen = jax.random.uniform(key_uniform, (7,))
    normal = jax.random.normal(key_normal, (3,))
    channels = x.shape[-1]
    luma = jnp.full((channels,), channels**-0.5)  # the axis of greys
    projection = jnp.outer(luma, luma)
    x = x + BRIGHTNESS_STD * (chosen[0] < p) * normal[0]
    x = x * 2.0 ** (CONTRAST_STD * (chosen[1] < p) * normal[1])
    matrix = jnp.eye(channels) - 2.0 * projection * ((chosen[2] < p) & (chosen[3] < 0.5))
    if channels == 3:
        angle = (chosen[4] < p) * math.pi * (2.0 * chosen[5] - 1.0)
        cross = jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) * 3**-0.5
        turn = jnp.cos(angle) * jnp.eye(3) + jnp.sin(angle) * cross + (1.0 - jnp.cos(angle)) * projection
        saturation = 2.0 ** (SATURATION_STD * (chosen[6] < p) * normal[2])
        matrix = (projection + saturation * (jnp.eye(3) - projection)) @ turn @ matrix
    return x @ matrix.T


def require_augmentable(images: ImageSpec, name: str) -> None:
    """Raises `UserError`, for an option `name`, unless images are square and of one channel or three."""
    height, width, channels = images.shape
    require(
        height == width and channels in (1, 3),
        f"images are {height}x{width}x{channels}: {name} above 0 needs square ones of one channel or three",
    )
