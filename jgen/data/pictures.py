"""Reading and writing images: scaling to 0 .. 255, PNG files, .npz files and folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jgen.core.files import check_writable, read_arrays, save_arrays, written_whole
from jgen.data.arrays import OF_IMAGES, checked_levels
from jgen.data.folders import print_left_out
from jgen.data.grids import make_grid
from jgen.data.image_files import read_picture
from jgen.data.scan import describe_left_out, scan, select
from jgen.errors import require


def to_display(images: np.ndarray, levels: int) -> np.ndarray:
    """Scales uint8 0 .. levels - 1 to uint8 0 .. 255."""
    shown = np.round(np.arange(256, dtype=np.float32) * (255.0 / (levels - 1)))
    return np.minimum(shown, 255).astype(np.uint8)[images]


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 (H, W, 1 or 3). Raises `UserError` if that fails."""
    from PIL import Image

    with written_whole(path) as aside:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(aside, "PNG")


ANIMATED = (".gif", ".webp", ".png")
MOST_FRAMES = 100


def check_animation(out: Path, option: str) -> None:
    """Raises `UserError` for a suffix that is not an animation format, or a path that cannot be written."""
    require(out.suffix in ANIMATED, f"{option} is {out}: it must end in {', '.join(ANIMATED)}")
    check_writable(out)


def write_animation(out: Path, paths: np.ndarray, levels: int, columns: int, seconds: float = 4.0) -> None:
    """Writes trajectories, uint8 (n, steps, H, W, C), as an animation of grids that pauses on the last one.

    Args:
      seconds: the time from the first frame to the last; at most `MOST_FRAMES` of the steps are shown.
    """
    from PIL import Image

    steps = paths.shape[1]
    shown = np.unique(np.linspace(0, steps - 1, min(steps, MOST_FRAMES)).round().astype(int))
    grids = (make_grid(to_display(paths[:, step], levels), columns) for step in shown)
    first, *others = [Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid) for grid in grids]
    each = max(20, round(1000 * seconds / len(shown)))
    durations = [each] * len(others) + [1500]
    kind = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}[out.suffix]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    with written_whole(out) as aside:
        first.save(aside, kind, save_all=True, append_images=others, duration=durations, loop=0, **lossless)


def check_out(out: Path) -> None:
    """Raises `UserError` for a name that `write_images` does not support, or a path that cannot be written."""
    require(out.suffix in (".png", ".npz", ""), f"--out is {out}: it must end in .png or .npz, or name a folder")
    check_writable(out if out.suffix else out / "0.png")


def write_images(
    out: Path,
    images: np.ndarray,
    labels: np.ndarray | None,
    levels: int,
    columns: int,
    start: int = 0,
    names: Sequence[str] = (),
) -> None:
    """Writes samples in the format of `out`'s suffix: a .png grid, an .npz of raw arrays, or a folder of PNGs numbered
    from `start`.

    An .npz contains `images` in 0 .. levels - 1, `levels`, and `labels` if there are any.

    Args:
      names: class names to draw in a grid; () draws none.
    Raises:
      UserError: another suffix, or a path that cannot be written.
    """
    check_out(out)
    if out.suffix == ".png":
        named = [names[label] for label in labels] if names and labels is not None else []
        write_png(out, make_grid(to_display(images, levels), columns, names=named))
    elif out.suffix == ".npz":
        arrays: dict[str, Any] = {"images": images, "levels": np.int32(levels)}
        arrays |= {} if labels is None else {"labels": labels}
        with written_whole(out) as aside:
            save_arrays(aside, arrays, compressed=True)
    else:
        for i, image in enumerate(to_display(images, levels), start):
            write_png(out / f"{i:06d}.png", image)


def read_images(
    path: Path, channels: int, classes: Sequence[str] = (), background: str = "white"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads images made by any program, uint8 (n, H, W, C) in 0 .. 255, and their classes, int32 (n,), or None.

    Args:
      path: an .npz with `images` (or the single array `arr_0`) in 0 .. 255, or in 0 .. levels - 1 if it has `levels`,
        and optionally `labels`, numbers or names; or a folder of pictures, whose sub-folders, if any, are named after
        the classes.
      classes: the names of the data's classes; without any, labels are numbers, and those of a folder are ignored.
      background: the colour behind transparent pixels.
    Raises:
      UserError: nothing there, a file of another format or damaged, labels that are not one per image, a class that the
        data does not have, pictures that cannot be read, or of different sizes.
    """
    path = path.expanduser()
    require(path.exists(), f"there is nothing at {path}")
    if path.is_file():
        require(path.suffix == ".npz", f"{path} must be an .npz file or a folder of pictures")
        return of_arrays(path, read_arrays(path), classes)
    contents = scan(path)
    pictures = select(path, contents)
    print_left_out(path, describe_left_out(contents, [pictures]))
    images = []
    for number in range(len(pictures.names)):
        file = pictures.path(number)
        images.append(read_picture(file, channels, background))
        shape, first = images[-1].shape[:2], images[0].shape[:2]
        require(shape == first, f"{file} is {shape}, {pictures.path(0)} {first}")
    names = pictures.classes
    if not names or not classes:
        return np.stack(images), None
    numbers = class_numbers(names, classes, f"folder {path}")
    return np.stack(images), numbers[pictures.labels(names)]


def class_numbers(names: Sequence[str], classes: Sequence[str], where: str) -> np.ndarray:
    """The classes with these names, int32 (n,); "007" means the class "7" unless there is a class "007".

    Raises:
      UserError: a name that is not a class.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    values = {int(name): number for number, name in enumerate(classes) if name.isdecimal()}
    known = [numbers.get(name, values.get(int(name), -1) if name.isdecimal() else -1) for name in names]
    unknown = [name for name, number in zip(names, known) if number < 0]
    has = ", ".join(classes[:20]) + ", ..." * (len(classes) > 20)
    require(not unknown, f"{where} has the class {', '.join(map(repr, unknown[:3]))}: the data has {has}")
    return np.array(known, np.int32)


def of_arrays(
    path: Path, arrays: dict[str, np.ndarray], classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images and labels of an .npz file, as `read_images` gives them."""
    name = next((each for each in OF_IMAGES if each in arrays), "")
    require(bool(name), f"{path} has no array `images`: it has {', '.join(sorted(arrays)) or 'none'}")
    images, labels = arrays[name], arrays.get("labels", arrays.get("label"))
    if "levels" in arrays:
        levels = checked_levels(arrays["levels"], f"levels of {path}")
        require(images.dtype == np.uint8, f"images of {path} are {images.dtype}: they must be uint8")
        most = images.max(initial=0)
        require(most < levels, f"images of {path} have values up to {most}: its levels are 0 to {levels - 1}")
        images = to_display(images, levels)
    if labels is not None:
        fits = labels.shape == images.shape[:1] and labels.dtype.kind in ("iuU" if classes else "iu")
        described = f"labels of {path} are {labels.dtype} of shape {labels.shape}"
        wanted = "whole numbers or names" if classes else "whole numbers"
        require(fits, f"{described}: they must be {wanted}, one for each of {images.shape[0] if images.ndim else 0}")
        if labels.dtype.kind == "U":
            names, places = np.unique(labels, return_inverse=True)
            labels = class_numbers([str(each) for each in names], classes, str(path))[places]
    return images, labels
