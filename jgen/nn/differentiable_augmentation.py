"""Differentiable augmentation of a discriminator's inputs (Zhao, Liu, Lin, Zhu & Han 2020, arXiv 2006.10738).

Every image, real or generated, gets each of these, and gradients pass through them:

    colour       brightness + U[-1/2, 1/2]; saturation times U[0, 2]; contrast times U[1/2, 3/2]
    translation  by whole pixels, at most 1/8 of the size, zeros (grey) moving in
    cutout       a rectangle of half the height and width, anywhere, is zero
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jgen.core import keys as rng

LARGEST_SHIFT, CUTOUT = 0.125, 0.5  # of the image's size


def augment(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Transformed images (B, H, W, C) of images in [-1, 1]; keys (B,)."""

    def one(key: jax.Array, x: jax.Array) -> jax.Array:
        key_colour, key_shift, key_cutout = rng.split_key(key, 3)
        return cut_out(key_cutout, shifted(key_shift, recoloured(key_colour, x)))

    return jax.vmap(one)(keys, x)


def recoloured(key: jax.Array, x: jax.Array) -> jax.Array:
    """x (H, W, C) with another brightness, saturation and contrast."""
    brightness, saturation, contrast = jax.random.uniform(key, (3,))
    x = x + brightness - 0.5
    grey = jnp.mean(x, axis=-1, keepdims=True)
    x = grey + 2.0 * saturation * (x - grey)
    mean = jnp.mean(x, keepdims=True)
    return mean + (0.5 + contrast) * (x - mean)


def shifted(key: jax.Array, x: jax.Array) -> jax.Array:
    """x (H, W, C) translated by whole pixels, with zeros from outside."""
    limits = [int(size * LARGEST_SHIFT + 0.5) for size in x.shape[:2]]
    padded = jnp.pad(x, ((limits[0], limits[0]), (limits[1], limits[1]), (0, 0)))
    start = jax.random.randint(key, (2,), 0, 2 * jnp.array(limits) + 1)
    return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), x.shape)


def cut_out(key: jax.Array, x: jax.Array) -> jax.Array:
    """x (H, W, C) with a rectangle of zeros, whose middle is anywhere in the image."""
    inside = []
    for size, uniform in zip(x.shape[:2], jax.random.uniform(key, (2,))):
        side = int(size * CUTOUT + 0.5)
        # The middle is at one of the size + (1 - side % 2) positions of the authors' code; parts may lie outside.
        first = jnp.floor(uniform * (size + 1 - side % 2)) - side // 2
        place = jnp.arange(size)
        inside.append((place >= first) & (place < first + side))
    return jnp.where((inside[0][:, None] & inside[1][None, :])[:, :, None], 0.0, x)
