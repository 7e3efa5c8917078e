"""Folders of pictures, whose sub-folders may be classes, with captions in text files beside the pictures.

    pictures/           pictures/cat/1.png       pictures/1.png      a picture
        1.png                    cat/2.png               1.txt       its caption: UTF-8, of one or more lines
        2.jpg                    dog/3.png               2.jpg
                                                         2.txt

Classes and captions may both be there. Hidden files and folders, whose names begin with a dot, are passed over.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.data.config import Config
from jgen.data.sources import Records, Source, fit, map_in_threads, state_of
from jgen.errors import UserError, require

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_PART = 0.1  # part of a folder's images that is its test split


def find_pictures(root: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """(files by name, the class of each, int32, the classes' names) of a folder whose sub-folders, if any, are classes.

    Raises:
      UserError: no folder, no pictures in it, or pictures both in sub-folders and beside them.
    """
    require(root.is_dir(), f"folder {root} does not exist")
    paths = (p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    files = sorted(p for p in paths if not any(part.startswith(".") for part in p.relative_to(root).parts))
    require(bool(files), f"folder {root} has no images: it must hold files such as {', '.join(EXTENSIONS[:3])}")
    classes = sorted({p.relative_to(root).parts[0] for p in files if p.parent != root})
    mixed = bool(classes) and any(p.parent == root for p in files)
    require(not mixed, f"folder {root} has images beside its class folders: put them into a class, or use one folder")
    labels = np.array([classes.index(p.relative_to(root).parts[0]) if classes else 0 for p in files], np.int32)
    return files, labels, classes


def find_captions(files: list[Path]) -> list[Path]:
    """The text file beside each picture, `1.txt` for `1.png`; [] where no picture has one.

    Raises:
      UserError: some pictures have a caption and others none.
    """
    captions = [path.with_suffix(".txt") for path in files]
    present = [path.is_file() for path in captions]
    if not any(present):
        return []
    if not all(present):
        first = present.index(False)
        message = (
            f"{files[first]} has no caption {captions[first].name}, but {sum(present)} of {len(files)} pictures have"
        )
        raise UserError(f"{message}: all must have one, which may be empty, or none")
    return captions


def read_caption(path: Path) -> str:
    """The text of a caption's file as a whole: line breaks within it stay, white space at its ends does not.

    Raises:
      UserError: a file that cannot be read or that is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def picture_shape(files: list[Path], size: int) -> tuple[int, int, int]:
    """(H, W, C) of all pictures: grey where all are. Raises `UserError` for many sizes that are not resized to one."""
    headers = [picture_header(path) for path in files]
    channels = 1 if all(mode in ("1", "L") for _, mode in headers) else 3
    if size:
        return size, size, channels
    (width, height), _ = headers[0]
    for path, (other, _) in zip(files, headers):
        require(
            other == (width, height),
            f"{path} is {other[0]}x{other[1]}, {files[0].name} is {width}x{height}: set --data.size",
        )
    return height, width, channels


def folder_source(root: Path, config: Config) -> Source:
    """A folder of pictures; sub-folders are the field `label`, captions the field `text`.

    A fixed tenth, chosen by file name, is the test split.

    Raises:
      UserError: a folder without pictures, with mixed sizes, a damaged picture, or captions of some pictures only.
    """
    files, labels, classes = find_pictures(root)
    captions = find_captions(files)
    fields = {"label": ArraySpec((), "int32", len(classes))} if classes else {}
    texts = ("text",) if captions else ()
    for name in config.fields:
        there = ", ".join([*fields, *texts]) or "no fields: neither class folders nor captions"
        require(name in (*fields, *texts), f"data.fields has {name!r}: folder {root} has {there}")
    shape = picture_shape(files, config.size)

    names = [str(path.relative_to(root)) for path in files]
    order = np.array(sorted(range(len(files)), key=lambda i: hashlib.sha256(names[i].encode()).digest()))
    num_test = int(len(files) * TEST_PART)
    require(num_test >= 1, f"folder {root} has {len(files)} images: at least {round(1 / TEST_PART)} are needed")

    def records(part: np.ndarray) -> Records:
        def read_texts(name: str, positions: np.ndarray) -> list[str]:
            return map_in_threads(lambda i: read_caption(captions[i]), part[np.asarray(positions)])

        def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
            chosen = part[np.asarray(positions)]
            images = map_in_threads(lambda i: fit(read_picture(files[i], shape[2]), config.size), chosen)
            arrays = {"image": np.stack(images)}
            if classes:
                arrays["label"] = labels[chosen]
            if captions:
                arrays["text"] = np.array(read_texts("text", positions), object)
            return arrays

        return Records(len(part), fetch, read_texts if captions else None)

    version = state_of(root, files + captions)
    spec = DataSpec(ImageSpec(*shape, levels=256), fields)
    splits = {"train": records(order[:-num_test]), "test": records(order[-num_test:])}
    return Source(f"folder-{root.resolve().name}", version, version, spec, splits, texts)


def picture_header(path: Path) -> tuple[tuple[int, int], str]:
    """Size (width, height) and mode of a picture file. Raises `UserError` naming a file that is no picture."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.size, picture.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} does not open as an image: {error}") from error


def read_picture(path: Path, channels: int) -> np.ndarray:
    """uint8 (h, w, channels). Raises `UserError` naming a file that is damaged."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            image = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} does not open as an image: {error}") from error
    return image.reshape(*image.shape[:2], channels)
