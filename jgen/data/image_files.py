"""Picture files as uint8 arrays: upright, 8 bits, composited over a background, with one channel if they are grey.

orientation     according to the EXIF tag, 1 to 8
16 bits         0 .. 65535 becomes 0 .. 255, rounded; for other depths (12-bit TIFF), their full range
32-bit integer  treated as 16 bits: values must be from 0 to 65535
float           0 to 1 becomes 0 .. 255; other values are refused, since files do not define black and white
alpha           composited over the background; fully transparent pixels become exactly the background
grey            bilevel, grey, 16 bits, float, palettes of which only greys are used, and any of these with alpha
several frames  the first one is read
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen.errors import UserError, require

GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # modes with more than 8 bits
NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow only recognises them, or needs other programs
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # tags of TIFF and EXIF
WHITE_IS_ZERO = 0


class Header(NamedTuple):
    """What is known of a picture before decoding: its size when upright, and whether it is grey."""

    height: int
    width: int
    grey: bool


def import_pillow() -> Any:
    """Pillow's module `Image`, with the pixel limit of the environment's JGEN_MAX_PIXELS, if set.

    Raises:
      UserError: JGEN_MAX_PIXELS is not a number above zero.
    """
    from PIL import Image

    if limit := os.environ.get("JGEN_MAX_PIXELS", ""):
        number = limit.isdecimal() and int(limit) > 0
        require(number, f"JGEN_MAX_PIXELS is {limit!r}: it must be a whole number above zero")
        Image.MAX_IMAGE_PIXELS = int(limit)  # Pillow warns above the limit, and refuses twice as many
    return Image


@cache
def extensions() -> frozenset[str]:
    """The suffixes, such as ".png", of the files that Pillow reads."""
    image = import_pillow()
    formats = image.registered_extensions()  # this imports all formats
    readable = {ending for ending, name in formats.items() if name in image.OPEN and name not in NOT_READ}
    return frozenset(readable | {".mpo"})


def background_colour(background: str) -> tuple[int, int, int]:
    """The colour (red, green, blue), 0 .. 255, of a name such as "white" or of "#rrggbb". Raises `UserError` for other
    text."""
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(background)[:3]
    except ValueError as error:
        words = "it must be a colour such as white, black or #8090a0"
        raise UserError(f"data.background is {background!r}: {words}") from error


@contextmanager
def open_picture(path: Path | str) -> Iterator[Any]:
    """Opens a file as a Pillow image. Raises `UserError`, naming the file, if it is damaged or not a picture."""
    image = import_pillow()
    try:
        # Given a name, Pillow would memory-map an uncompressed TIFF, and read rotated ones incorrectly.
        with open(path, "rb") as file, image.open(file) as picture:
            yield picture
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except image.DecompressionBombError as error:
        how = "where you trust it, set JGEN_MAX_PIXELS to the number of pixels that may be read"
        raise UserError(f"{path} does not open as an image: {error} {how}") from error
    except Exception as error:  # of many types, depending on format and damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} does not open as an image: {reason}") from error


def read_header(path: Path | str, background: str = "white") -> Header:
    """Size and channels of a picture file. Raises `UserError`, naming the file, if it is not a picture."""
    with open_picture(path) as picture:
        grey = is_grey(picture)
        width, height = picture.size
        if orientation(picture) >= 5:
            width, height = height, width
        if grey and picture.has_transparency_data:
            grey = len(set(background_colour(background))) == 1
        return Header(height, width, grey)


def read_picture(path: Path | str, channels: int, background: str = "white") -> np.ndarray:
    """uint8 (h, w, channels), upright, over the background.

    Raises:
      UserError: the file is damaged, or its values cannot be mapped to 0 .. 255.
    """
    with open_picture(path) as picture:
        turned = upright(picture, orientation(picture))
        plain = flatten(to_eight_bits(turned, picture) if picture.mode in DEEP else turned, background)
        array = np.asarray(plain.convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels)


def is_grey(picture: Any) -> bool:
    """Whether an open picture is grey, so that one channel is enough."""
    if picture.mode in ("P", "PA"):
        used = np.unique(np.asarray(picture.convert("P") if picture.mode == "PA" else picture))
        palette = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        colours = palette[used[used < len(palette)]]
        return bool(np.all(colours == colours[:, :1]))
    # Pillow opens a PNG of grey and alpha in 16 bits as colour.
    return picture.mode in GREY or any("LA;16B" in tile for tile in picture.tile)


def orientation(picture: Any) -> int:
    """The EXIF orientation that remains to be undone, 1 to 8; 1 if there is no tag, or it is damaged."""
    if picture.format == "TIFF":  # Pillow rotates it by itself
        return 1
    if picture.format == "PNG" and not may_have_exif(picture):  # Pillow would decode it to find out
        return 1
    try:
        number = int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # of many types; the picture itself may be undamaged
        return 1
    return number if 1 <= number <= 8 else 1


def may_have_exif(picture: Any) -> bool:
    """Whether a PNG has a chunk that may hold EXIF tags; chunks are skipped without decoding."""
    if picture.fp is None or {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"} & set(picture.info):
        return True  # it is decoded already, or has them at the front
    file, place = picture.fp, picture.fp.tell()
    try:
        file.seek(8)  # after the signature
        while len(head := file.read(8)) == 8:
            if head[4:] in (b"eXIf", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    finally:
        file.seek(place)
    return False


def upright(picture: Any, number: int) -> Any:
    """Undoes an EXIF orientation by rotation and mirroring."""
    from PIL.Image import Transpose

    moves = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM}
    moves |= {5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
    picture.load()
    return picture.transpose(moves[number]) if number in moves else picture


def to_eight_bits(picture: Any, source: Any) -> Any:
    """Converts a picture of more than 8 bits to 8 bits, mode "L", or "LA" if a value marks transparent pixels.

    Args:
      source: the picture as it was opened, with its tags.
    Raises:
      UserError: values outside the range from black to white.
    """
    image = import_pillow()
    values = np.asarray(picture)
    tags = getattr(source, "tag_v2", {})
    white = 1.0 if picture.mode == "F" else 2.0 ** min(16, tags.get(BITS_PER_SAMPLE, (16,))[0]) - 1
    low, high = values.min(initial=0), values.max(initial=0)
    fits = bool(low >= 0 and high <= white)  # false for NaN
    kind = "floats" if picture.mode == "F" else "integers"
    require(fits, f"has {kind} from {low:g} to {high:g}: they must be from 0 to {white:g}, so scale them before")
    scaled = np.round(values * (255 / white)).astype(np.uint8)
    if picture.mode != "F" and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        scaled = 255 - scaled
    grey = image.fromarray(scaled)
    if "transparency" not in source.info:
        return grey
    opaque = np.where(values == source.info["transparency"], 0, 255).astype(np.uint8)
    return image.merge("LA", (grey, image.fromarray(opaque)))


def flatten(picture: Any, background: str) -> Any:
    """Composites a picture with alpha over the background colour."""
    if not picture.has_transparency_data:
        return picture
    image = import_pillow()
    above = picture.convert("RGBA")
    return image.alpha_composite(image.new("RGBA", above.size, (*background_colour(background), 255)), above)
