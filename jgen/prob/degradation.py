"""Linear degradations of images: what is measured in super-resolution, colourisation and denoising.

Each is a linear map of floats (B, H, W, C) whose weights sum to one, so that it is the same in levels and in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jgen.core.model import ImageSpec
from jgen.errors import require

Problem = Literal["super_resolution", "colourisation", "denoising"]
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


def make_degradation(problem: Problem, images: ImageSpec, factor: int = 2) -> Callable[[jax.Array], jax.Array]:
    """The map from images (B, H, W, C) to their measurements.

    Args:
      factor: of super_resolution, whose measurements are the means of blocks of factor x factor pixels.
    Raises:
      UserError: a problem that does not apply to these images.
    """
    if problem == "super_resolution":
        height, width = images.height, images.width
        fits = factor >= 2 and height % factor == 0 and width % factor == 0
        require(fits, f"factor is {factor}: it must be 2 or above and divide the sides of images of {height}x{width}")
        return partial(shrink, factor)
    if problem == "colourisation":
        channels = images.channels
        require(channels == 3, f"problem is colourisation: images have {channels} channel, it takes 3")
        return grey
    return same


def shrink(factor: int, x: jax.Array) -> jax.Array:
    """Means of blocks: (B, H, W, C) to (B, H / factor, W / factor, C)."""
    num, height, width, channels = x.shape
    blocks = x.reshape(num, height // factor, factor, width // factor, factor, channels)
    return jnp.mean(blocks, axis=(2, 4))


def grey(x: jax.Array) -> jax.Array:
    """Luma, (B, H, W, 1), of images of three channels."""
    return jnp.sum(x * jnp.array(LUMA, x.dtype)[None, None, None, :], axis=-1, keepdims=True)


def same(x: jax.Array) -> jax.Array:
    """The image itself: the measurement is the image with noise."""
    return x
