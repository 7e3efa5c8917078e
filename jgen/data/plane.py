"""A density of the plane as a set of images of two pixels: test problems for flows, energy-based models and GANs.

density:NAME   gaussians, rings, spirals or checkerboard of `jgen.prob.densities`

The square [-4, 4)^2 has 256 x 256 cells; a point becomes an image (1, 2, 1): the column and the row of its cell.
Example i of a split depends only on the split and i. All possible images can be enumerated, and the entropy of the
density is known: since a cell's side is 1/32, the entropy of the images is larger by log(32^2) nats.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.core.model import DataSpec, ImageSpec
from jgen.data.config import Config
from jgen.data.sources import Records, Source
from jgen.errors import require
from jgen.prob.densities import DENSITIES, EXTENT, draw_points

NUM_TRAIN, NUM_TEST = 20_000, 5_000
LEVELS = 256


def to_pixels(points: np.ndarray) -> np.ndarray:
    """Converts points (n, 2) to images of their cells, uint8 (n, 1, 2, 1); points outside take the nearest cell."""
    cells = np.floor((points + EXTENT) * (LEVELS / (2 * EXTENT)))
    return np.clip(cells, 0, LEVELS - 1).astype(np.uint8).reshape(-1, 1, 2, 1)


def plane_source(name: str, config: Config) -> Source:
    """The density of this name as a set of images.

    Raises:
      UserError: no such density, or data options that do not apply to it.
    """
    require(name in DENSITIES, f"there is no density {name!r}: it must be of {', '.join(DENSITIES)}")
    require(config.size == 0, f"data.size is {config.size}: a point of density:{name} has two pixels, and it must be 0")
    require(not config.flip, f"data.flip is set: it would swap the coordinates of density:{name}")
    require(not config.fields, f"data.fields has {', '.join(config.fields)}: density:{name} has no fields")
    number = jnp.int32(list(DENSITIES).index(name))

    def records(split: str, num: int) -> Records:
        key = rng.stream(rng.seed_key(int(split == "test")), rng.DATA)

        def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
            points = jax.jit(draw_points)(rng.image_keys(key, np.asarray(positions)), number)
            return {"image": to_pixels(np.asarray(points))}

        return Records(num, fetch)

    splits = {"train": records("train", NUM_TRAIN), "test": records("test", NUM_TEST)}
    return Source(f"density-{name}", "1.0.0", "", DataSpec(ImageSpec(1, 2, 1, LEVELS)), splits)
