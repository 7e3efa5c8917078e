"""Images as pictures: scaling to 0 .. 255, grids, PNG files, .npz files and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jgen.core.files import check_writable, read_arrays, save_arrays, written_whole
from jgen.data.folders import find_pictures, read_picture
from jgen.errors import require


def to_display(images: np.ndarray, levels: int) -> np.ndarray:
    """uint8 0 .. levels - 1 to uint8 0 .. 255."""
    return np.round(images.astype(np.float32) * (255.0 / (levels - 1))).astype(np.uint8)


def make_grid(images: np.ndarray, columns: int, scale: int = 0, gap: int = 2) -> np.ndarray:
    """A contact sheet of (n, H, W, C), row by row, uint8 (height, width, C).

    Pixels are enlarged by a whole number, 0 meaning as many times as makes an image at least 48 pixels high.
    """
    n, height, width, channels = images.shape
    scale = scale or max(1, -(-48 // height))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    rows = -(-n // columns)
    cell_h, cell_w = height * scale + gap, width * scale + gap
    sheet = np.full((rows * cell_h + gap, columns * cell_w + gap, channels), 64, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * cell_h, gap + (i % columns) * cell_w
        sheet[top : top + height * scale, left : left + width * scale] = image
    return sheet


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 (H, W, 1 or 3). Raises `UserError` when it cannot."""
    from PIL import Image

    with written_whole(path) as aside:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(aside, "PNG")


def check_out(out: Path) -> None:
    """Raises `UserError` for a name that `write_images` does not know what to do with, or that cannot be written."""
    require(out.suffix in (".png", ".npz", ""), f"--out is {out}: it must end in .png or .npz, or name a folder")
    check_writable(out if out.suffix else out / "0.png")


def write_images(
    out: Path, images: np.ndarray, labels: np.ndarray | None, levels: int, columns: int, start: int = 0
) -> None:
    """Writes samples by what `out` looks like: a .png grid, an .npz of raw arrays, or a folder of PNGs numbered from
    `start`.

    An .npz holds `images`, 0 .. levels - 1, `levels`, and `labels` where there are any.

    Raises:
      UserError: another ending, or a path that cannot be written.
    """
    check_out(out)
    if out.suffix == ".png":
        write_png(out, make_grid(to_display(images, levels), columns))
    elif out.suffix == ".npz":
        arrays: dict[str, Any] = {"images": images, "levels": np.int32(levels)}
        arrays |= {} if labels is None else {"labels": labels}
        with written_whole(out) as aside:
            save_arrays(aside, arrays, compressed=True)
    else:
        for i, image in enumerate(to_display(images, levels), start):
            write_png(out / f"{i:06d}.png", image)


def read_images(path: Path, channels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Images that any program made, uint8 (n, H, W, C) in 0 .. 255, and their labels where there are any.

    Args:
      path: an .npz with `images` (or the one array `arr_0`) in 0 .. 255, or in 0 .. levels - 1 where it says its
        `levels`, and perhaps `labels`; or a folder of pictures, whose sub-folders, if it has any, are the classes: of
        the numbers that are their names, else 0, 1, ... in the names' order.
    Raises:
      UserError: nothing there, a file of another kind or damaged, labels that are not one whole number an image,
        pictures that cannot be read, or of mixed sizes.
    """
    require(path.exists(), f"there is nothing at {path}")
    if path.is_file():
        require(path.suffix == ".npz", f"{path} must be an .npz file or a folder of pictures")
        return of_arrays(path, read_arrays(path))
    files, labels, classes = find_pictures(path)
    images = []
    for file in files:
        images.append(read_picture(file, channels))
        require(
            images[-1].shape == images[0].shape, f"{file} is {images[-1].shape[:2]}, {files[0]} {images[0].shape[:2]}"
        )
    if classes and all(name.isdecimal() for name in classes):  # "10" stands before "2", and some may be missing
        labels = np.array([int(name) for name in classes], np.int32)[labels]
    return np.stack(images), labels if classes else None


def of_arrays(path: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Images and labels of an .npz file, as `read_images` gives them."""
    name = "images" if "images" in arrays else "arr_0"
    require(name in arrays, f"{path} has no array `images`: it has {', '.join(sorted(arrays)) or 'none'}")
    images, labels = arrays[name], arrays.get("labels")
    if "levels" in arrays:
        levels = arrays["levels"]
        whole = levels.ndim == 0 and np.issubdtype(levels.dtype, np.integer) and 2 <= levels <= 256
        found = levels.item() if levels.ndim == 0 else f"an array of shape {levels.shape}"
        require(bool(whole), f"levels of {path} are {found}: they must be one whole number from 2 to 256")
        require(images.dtype == np.uint8, f"images of {path} are {images.dtype}: they must be uint8")
        most = images.max(initial=0)
        require(most < levels, f"images of {path} have values up to {most}: its levels are 0 to {levels - 1}")
        images = to_display(images, int(levels))
    if labels is not None:
        fits = labels.shape == images.shape[:1] and np.issubdtype(labels.dtype, np.integer)
        found = f"labels of {path} are {labels.dtype} of shape {labels.shape}"
        require(fits, f"{found}: they must be whole numbers, one for each of {images.shape[0] if images.ndim else 0}")
    return images, labels
