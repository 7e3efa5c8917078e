"""Contact sheets of images, with the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

GROUND, INK = 64, 255  # grey values of the gaps and of the names
FONT_SIZE, LINE = 11, 14  # pixels; height of a line of text
WIDEST = 160  # most pixels for names beside rows
PLOT, DOT = 512, 3  # pixels of a side of a scatter plot and of a point in it


def make_grid(images: np.ndarray, columns: int, scale: int = 0, gap: int = 2, names: Sequence[str] = ()) -> np.ndarray:
    """A contact sheet of (n, H, W, C), row by row, uint8 (height, width, C).

    Pixels are enlarged by the integer `scale`; 0: such that an image is at least 48 pixels high. Images of two pixels
    are points of the plane, and are drawn as a scatter plot: see `scatter`.

    Args:
      names: the images' class names, drawn beside the rows if each row has a single class, else below every image; ()
        draws none.
    """
    if are_points(images):
        return scatter(images)
    n, height, width, channels = images.shape
    scale = scale or max(1, -(-48 // height))
    height, width = height * scale, width * scale
    rows = [names[i : i + columns] for i in range(0, len(names), columns)]
    by_row = all(len(set(row)) == 1 for row in rows)
    below = 0 if by_row else LINE
    beside = [text_image(row[0], WIDEST) for row in rows] if by_row else []
    margin = max((len(text[0]) + gap for text in beside), default=0)
    cell_h, cell_w = height + below + gap, width + gap
    sheet = np.full((-(-n // columns) * cell_h + gap, margin + columns * cell_w + gap, channels), GROUND, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * cell_h, margin + gap + (i % columns) * cell_w
        sheet[top : top + height, left : left + width] = image.repeat(scale, axis=0).repeat(scale, axis=1)
        if below:
            put(sheet, text_image(names[i], width), top + height, left)
    for row, text in enumerate(beside):
        put(sheet, text, gap + row * cell_h + max(0, (height - LINE) // 2), gap)
    return sheet


def are_points(images: np.ndarray) -> bool:
    """Whether images (n, H, W, C) are points of the plane, (n, 1, 2, 1)."""
    return images.shape[1:] == (1, 2, 1)


def scatter(points: np.ndarray) -> np.ndarray:
    """A scatter plot, uint8 (512, 512, 1), of points (n, 1, 2, 1) with coordinates 0 .. 255: the first pixel is the
    horizontal one, the second the vertical one, upwards."""
    x, y = (points.reshape(-1, 2).astype(np.int64) * (PLOT - DOT) // 255).T
    plot = np.zeros((PLOT, PLOT, 1), np.uint8)
    for row in range(DOT):
        for column in range(DOT):
            plot[PLOT - 1 - y - row, x + column] = INK
    return plot


def put(sheet: np.ndarray, text: np.ndarray, top: int, left: int) -> None:
    """Writes a text's pixels, uint8 (h, w), into a sheet, clipped to it."""
    part = sheet[top : top + text.shape[0], left : left + text.shape[1]]
    part[:] = text[: part.shape[0], : part.shape[1], None]


def text_image(text: str, widest: int) -> np.ndarray:
    """A line of text, uint8 (LINE, w), truncated to `widest` pixels."""
    from PIL import Image, ImageDraw

    font: Any = default_font()
    plain = " ".join(text.encode("utf-8", "replace").decode().split()) or "?"
    try:
        width = int(font.getlength(plain)) + 1
    except UnicodeEncodeError:  # the font has Latin letters only
        plain = plain.encode("ascii", "replace").decode()
        width = int(font.getlength(plain)) + 1
    line = Image.new("L", (max(1, min(width, widest)), LINE), GROUND)
    ImageDraw.Draw(line).text((0, 0), plain, fill=INK, font=font)
    return np.asarray(line)


def default_font() -> Any:
    """Pillow's own font."""
    from PIL import ImageFont

    return ImageFont.load_default(FONT_SIZE)
