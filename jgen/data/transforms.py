"""What is done to images on the device: random flips, binarisation, fewer levels. Randomness belongs to an example."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch
from jgen.data.config import Config

STATIC_SEED = 0x62696E  # of the static binarisation: part of the data, and not the seed of a run
Transform = Callable[[jax.Array, Batch], Batch]


def make_transform(config: Config, levels: int, train: bool) -> Transform:
    """(keys (B,), batch with images 0 .. 255) -> batch with images 0 .. levels - 1; flips only where `train`.

    Args:
      levels: those of the data set's images, as `ImageSpec` has them; 2 where pixels are binarised.
    """

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
        return {**batch, "image": image}

    return transform


def draw_binary(keys: jax.Array, image: jax.Array) -> jax.Array:
    """Pixels that are 1 with probability x / 255 (Salakhutdinov & Murray 2008)."""
    return (rng.uniform(keys, image.shape[1:]) * 255.0 < image.astype(jnp.float32)).astype(jnp.uint8)
