"""A texture: one picture, cut into squares that do not overlap, as the examples of a data set.

texture:FILE     any picture file
texture:NAME     brick, grass or gravel: grey pictures of 512x512 in scikit-image, all of them CC0 (public domain)

The side of the squares is `size` pixels, or, if that is 0, half the picture's shorter side, rounded down to a multiple
of 32 if possible. They are taken row by row from the top left corner; the rest at the right and at the bottom is not
used. The last tenth of them, at least one, is the test split.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from jgen.core.model import DataSpec, ImageSpec
from jgen.data.config import TEXTURES, Config
from jgen.data.image_files import read_header, read_picture
from jgen.data.sources import Records, Source
from jgen.errors import UserError, require

MULTIPLE = 32  # default sides are multiples of this


def texture_source(name: str, config: Config) -> Source:
    """The picture with this name or path, as a set of squares.

    Raises:
      UserError: no such picture, or one that is too small for two squares, one for training and one for testing.
    """
    picture = named_picture(name) if name in TEXTURES else file_picture(name, config.background)
    height, width, channels = picture.shape
    size = config.size or default_size(min(height, width))
    rows, columns = height // size, width // size
    given = f"data.size is {size}" if config.size else f"data.size is 0, which is {size} here"
    require(
        rows * columns >= 2,
        f"texture {name} is {height}x{width}: {given}, and two squares of it at least must fit, the last to test with",
    )
    corners = [(row * size, column * size) for row in range(rows) for column in range(columns)]
    squares = np.stack([picture[y : y + size, x : x + size] for y, x in corners])

    def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": squares[np.asarray(positions)]}

    content = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()[:16]
    spec = DataSpec(ImageSpec(size, size, channels, 256))
    title, version = f"texture-{Path(name).stem}", f"{content}-{size}"
    return Source(title, version, version, spec, {"train": Records(len(squares), fetch)}, content=content)


def default_size(side: int) -> int:
    """The default side of squares, for a picture with this shorter side."""
    half = side // 2
    return max(half // MULTIPLE * MULTIPLE, min(half, MULTIPLE), 1)


def file_picture(path: str, background: str) -> np.ndarray:
    """The pixels of a picture file, uint8 (H, W, 1 or 3). Raises `UserError` for a file that is not a picture."""
    file = Path(path).expanduser()
    known = f"it must be a picture file, or one of {', '.join(TEXTURES)}"
    require(path != "" and file.is_file(), f"there is no texture {path!r}: {known}")
    return read_picture(file, 1 if read_header(file, background).grey else 3, background)


def named_picture(name: str) -> np.ndarray:
    """A picture of scikit-image, uint8 (512, 512, 1). Raises `UserError` if that is not installed."""
    try:
        from skimage import data
    except ImportError as error:
        needs = f"texture:{name} is a picture of scikit-image, which is not installed"
        raise UserError(f"{needs}: pip install 'jgen[textures]', or name a picture file, texture:FILE") from error
    return np.asarray(getattr(data, name)(), np.uint8)[..., None]
