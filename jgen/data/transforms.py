"""Transforms of a batch on the device: flips, binarisation, quantisation, low-resolution copies, style letters.

All randomness is per example.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import ArraySpec, Batch, DataSpec, ImageSpec
from jgen.data.config import Config
from jgen.data.style import SIBLINGS, draw_style, style_fields
from jgen.errors import require

STATIC_SEED = 0x62696E  # seed of static binarisation: part of the data, independent of the run's seed
Transform = Callable[[jax.Array, Batch], Batch]


def added_fields(config: Config, image: ImageSpec) -> dict[str, ArraySpec]:
    """The fields that `make_transform` adds to a batch of such images.

    Raises:
      UserError: image sides that are not multiples of `low_resolution`, or more style letters than there are.
    """
    factor = config.low_resolution
    added = style_fields(config.style, image) if config.style else {}
    if not factor:
        return added
    require(
        image.height % factor == 0 and image.width % factor == 0,
        f"data.low_resolution is {factor}: it must divide the images' sides, {image.height} and {image.width}",
    )
    shape = (image.height // factor, image.width // factor, image.channels)
    return {"low_resolution": ArraySpec(shape, "uint8", image.levels), **added}


def make_transform(config: Config, spec: DataSpec, train: bool) -> Transform:
    """(keys (B,), batch as fetched by a `Split`) -> batch that matches `spec`; flips only if `train`.

    Images 0 .. 255 become 0 .. levels - 1, the fields of `added_fields` are added, and all other fields are unchanged.

    Args:
      spec: the specification of the data set; with binarisation its images have 2 levels.
    """
    levels = spec.image.levels
    added = added_fields(config, spec.image)

    def transform(keys: jax.Array, batch: Batch) -> Batch:
        key_flip, key_binarise = rng.split(keys, 2)
        image = batch["image"]
        if config.flip and train:
            flip = rng.bernoulli(key_flip, 0.5)
            image = jnp.where(flip[:, None, None, None], image[:, :, ::-1, :], image)
        if config.binarise == "threshold":
            image = (image >= 128).astype(jnp.uint8)
        elif config.binarise == "dynamic":
            image = draw_binary(key_binarise, image)
        elif config.binarise == "static":
            image = draw_binary(rng.image_keys(jax.random.key(STATIC_SEED), batch["index"]), image)
        elif levels < 256:
            image = (image.astype(jnp.int32) * levels // 256).astype(jnp.uint8)
        batch = {**batch, "image": image}
        if "low_resolution" in added:
            batch["low_resolution"] = shrink(image, config.low_resolution)
        if "style" in added:
            siblings = batch.pop(SIBLINGS)
            batch |= draw_style(rng.fold_in(keys, rng.STYLE), siblings, batch["label"], config.style)
        return batch

    return transform


def shrink(image: jax.Array, factor: int) -> jax.Array:
    """uint8 (B, H / factor, W / factor, C): the mean of each square of pixels, rounded to the nearest level, .5 up."""
    n, height, width, channels = image.shape
    squares = image.reshape(n, height // factor, factor, width // factor, factor, channels).astype(jnp.int32)
    area = factor * factor
    return ((2 * squares.sum((2, 4)) + area) // (2 * area)).astype(jnp.uint8)


def draw_binary(keys: jax.Array, image: jax.Array) -> jax.Array:
    """Draws binary pixels that are 1 with probability x / 255 (Salakhutdinov & Murray 2008)."""
    return (rng.uniform(keys, image.shape[1:]) * 255.0 < image.astype(jnp.float32)).astype(jnp.uint8)
