"""Cascades: the first model draws small images, and each further model upsamples the images of the one before it.

Ho, Saharia, Chan, Fleet, Norouzi & Salimans 2022 (arXiv 2106.15282); Dhariwal & Nichol 2021 (arXiv 2105.05233).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jgen.core import keys as rng
from jgen.core.generate import Progress
from jgen.errors import require
from jgen.generator import Generator

FIELD = "low_resolution"  # the field that the upsamplers are conditioned on


class Cascade:
    """A generator and its upsamplers, sampled as one model: image i depends on its index only, as in
    `Generator.sample`.

    first, upsamplers: the stages, each as returned by `jgen.load`.
    model: the model of the last stage, which draws the final images.
    """

    def __init__(self, first: Generator, *upsamplers: Generator):
        """Raises `UserError` unless each stage upsamples the images of the one before it."""
        self.first, self.upsamplers = first, upsamplers
        images = first.model.images
        for stage in upsamplers:
            name, fields = stage.model.name, stage.model.data.fields
            is_upsampler = FIELD in stage.model.conditions
            require(is_upsampler, f"{name} is no upsampler: it was trained without data.low_resolution")
            wanted = fields[FIELD].shape
            fits = wanted == images.shape
            require(fits, f"{name} enlarges images {wanted}: the stage before it draws images {images.shape}")
            images = stage.model.images
        self.model = upsamplers[-1].model if upsamplers else first.model

    def __repr__(self) -> str:
        return " then ".join(map(repr, (self.first, *self.upsamplers)))

    def sample_batches(
        self,
        key: jax.Array,
        n: int,
        *,
        start: int = 0,
        batch_size: int = 64,
        progress: Progress = iter,
        **named: Any,
    ) -> Iterator[np.ndarray]:
        """The images of `sample`, one batch at a time, uint8 (b, H, W, C); see `Generator.sample_batches`."""
        names = [name for stage in (self.first, *self.upsamplers) for name in stage.model.conditions]
        given = {name: named[name] for name in dict.fromkeys(names) if name in named}
        own = {name: value for name, value in named.items() if name not in given or name in self.first.model.conditions}
        begin = start
        where: dict[str, Any] = {"start": start, "batch_size": batch_size, "progress": progress}
        for images in self.first.sample_batches(key, n, **where, **own):
            levels = self.first.model.images.levels
            for number, stage in enumerate(self.upsamplers):
                offset = begin - start
                part = {
                    name: part_of(given[name], stage, name, n, offset, len(images))
                    for name in stage.model.conditions
                    if name in given
                }
                stage_key = rng.stream(key, rng.CASCADE + number)
                images = with_levels(images, levels, levels := stage.model.images.levels)
                small: dict[str, Any] = {"start": begin, "batch_size": batch_size, FIELD: images}
                images = stage.sample(stage_key, len(images), **small, **part)
            begin += len(images)
            yield images

    def sample(self, key: jax.Array, n: int, *, start: int = 0, batch_size: int = 64, **named: Any) -> np.ndarray:
        """`n` images of the last stage, uint8 (n, H, W, C).

        Args:
          named: conditions, passed to every stage that has them, and options of the first stage's sampler.
        Raises:
          UserError: as `Generator.sample`.
        """
        return np.concatenate(list(self.sample_batches(key, n, start=start, batch_size=batch_size, **named)))


def with_levels(images: np.ndarray, levels: int, wanted: int) -> np.ndarray:
    """Converts uint8 images from `levels` pixel values to `wanted`."""
    if levels == wanted:
        return images
    return np.round(images.astype(np.float32) * ((wanted - 1) / (levels - 1))).astype(np.uint8)


def part_of(value: Any, stage: Generator, name: str, n: int, offset: int, count: int) -> Any:
    """The entries of a condition for images offset .. offset + count - 1 of n; a value shared by all images is returned
    unchanged."""
    array = np.asarray(value)
    per_image = array.ndim > len(stage.model.data.fields[name].shape) and len(array) == n
    return array[offset : offset + count] if per_image else value
