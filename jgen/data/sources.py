"""Where images come from: TFDS sets read as ArrayRecord without TensorFlow, the embedded digits, folders of pictures.

A source is a record of splits that fetch decoded images by position. Nothing is cached here and nothing is split off.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen.data.config import Config
from jgen.errors import UserError, require

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FOLDER_TEST = 0.1  # part of a folder's images that is its test split
PUBLISHED_BINARY = "binarized_mnist"  # stores 0 and 1; read here as 0 and 255
LEVELS = {"digits": 17, PUBLISHED_BINARY: 2}  # values that a pixel takes, of sets where they are not 256


class Records(NamedTuple):
    """`num` images; fetch(positions) -> (uint8 (n, H, W, C), int32 (n,))."""

    num: int
    fetch: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Source(NamedTuple):
    """Named splits of one set; `files` changes when they are written anew, so that a cache can be told stale.

    `version` is the set's own, of a folder that of its files. A pixel takes `levels` values, spread evenly over
    0 .. 255.
    """

    name: str
    version: str
    files: str
    shape: tuple[int, int, int]
    num_classes: int
    levels: int
    splits: dict[str, Records]


def cache_dir() -> Path:
    """Where jgen keeps what it derives: the environment's JGEN_CACHE, else ~/.cache/jgen."""
    return Path(os.environ.get("JGEN_CACHE") or Path.home() / ".cache" / "jgen")


def tfds_dir(config_dir: str) -> Path:
    """Where TFDS sets are: `config_dir`, else the environment's TFDS_DATA_DIR, else TFDS's own default."""
    return Path(config_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()


def open_source(config: Config) -> Source:
    """The source that `config.name` stands for.

    Raises:
      UserError: an unknown or unprepared set; a folder without images, with mixed sizes or a damaged picture.
    """
    if config.name.startswith("folder:"):
        return folder_source(Path(config.name.removeprefix("folder:")).expanduser(), config.size)
    if config.name == "digits":
        return tfds_source(digits_builder(), config.size)
    return tfds_source(prepared_builder(config.name, tfds_dir(config.dir)), config.size)


def import_tfds() -> Any:
    """The tensorflow_datasets module, without its advice. Raises `UserError` where it is not installed."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"reading data needs tensorflow-datasets, which does not import here: {error}") from error
    tfds.disable_progress_bar()
    return tfds


def digits_builder() -> Any:
    """The embedded digits, prepared in jgen's cache on first use (about two seconds)."""
    import_tfds()
    from jgen.data.digits import Digits

    folder = cache_dir() / "tfds"
    make = lambda: Digits(data_dir=str(folder), file_format="array_record")
    try:
        builder = make()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download, which this is not
            builder.download_and_prepare()
    except OSError as error:
        builder = make()
        require(  # where it is there nevertheless, another process was faster
            Path(builder.data_dir).is_dir(),
            f"cannot write the cache folder {folder}: {error.strerror or error}; set JGEN_CACHE to another",
        )
    return builder


def check_format(name: str, folder: Path, error: Exception) -> None:
    """Raises `UserError` where what TFDS says is that a set is there in another file format, such as its default."""
    found = re.search(r"(?:already set to (?:FileFormat\.)?|file formats in the DatasetInfo: \[')(\w+)", str(error))
    if found:
        raise UserError(
            f"data set {name!r} is prepared as {found[1].lower()} in {folder}: jgen reads array_record; prepare it anew"
            f" into another folder, `python -m jgen.data.prepare {name} --dir FOLDER`, and set --data.dir to that"
        ) from error


def prepared_builder(name: str, folder: Path) -> Any:
    """The builder of a TFDS set that is prepared as ArrayRecord in `folder`. Raises `UserError` where it is not."""
    tfds = import_tfds()
    how = f"run `python -m jgen.data.prepare {name}`, or set --data.dir or TFDS_DATA_DIR to where it is"
    try:
        builder = tfds.builder(name, data_dir=str(folder), file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        check_format(name, folder, error)
        raise UserError(
            f"data set {name!r} is unknown: it must be digits, folder:PATH or the name of a TFDS image set"
        ) from error
    require(Path(builder.data_dir).is_dir(), f"data set {name!r} is not prepared in {folder}: {how}")
    return builder


def tfds_source(builder: Any, size: int) -> Source:
    """A prepared TFDS set whose examples have an `image` and possibly a `label`."""
    features = builder.info.features
    require("image" in features, f"data set {builder.name!r} has no images: its features are {list(features)}")
    kind = np.dtype(features["image"].np_dtype)
    require(kind == np.uint8, f"data set {builder.name!r} has images of {kind}: jgen is about uint8")
    labels = features["label"] if "label" in features else None
    num_classes = getattr(labels, "num_classes", 0) or 0
    shape = tuple(features["image"].shape)
    require(size > 0 or None not in shape, f"data set {builder.name!r} has images of many sizes: set --data.size")
    resized = size > 0 and shape[:2] != (size, size)  # which makes values between those that there were
    levels = 256 if resized else LEVELS.get(builder.name, 256)
    if size:
        shape = (size, size, shape[2] or 3)

    def records(split: str) -> Records:
        # Features that are not read (bounding boxes, text) are not decoded either.
        unread = {name: import_tfds().decode.SkipDecoding() for name in features if name not in ("image", "label")}
        source = builder.as_data_source(split=split, decoders=unread or None)

        def fetch(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            try:
                examples = source.__getitems__([int(i) for i in positions])
            except Exception as error:  # of many kinds, by what decodes
                raise UserError(f"data set {builder.name!r} in {builder.data_dir} cannot be read: {error}") from error
            images = np.stack([fit(example["image"], size) for example in examples])
            if builder.name == PUBLISHED_BINARY:
                images = images * np.uint8(255)
            return images, np.array([example.get("label", 0) for example in examples], np.int32)

        return Records(len(source), fetch)

    splits = {split: records(split) for split in ("train", "validation", "test") if split in builder.info.splits}
    require("train" in splits, f"data set {builder.name!r} has no train split: it has {sorted(builder.info.splits)}")
    folder = Path(builder.data_dir)
    files = state_of(folder, sorted(p for p in folder.iterdir() if p.is_file()))
    return Source(builder.name, str(builder.version), files, shape, num_classes, levels, splits)


def state_of(root: Path, files: list[Path]) -> str:
    """A hash that changes when files below a folder are written anew, and when the folder is another."""
    state = [(str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(repr((str(root.resolve()), state)).encode()).hexdigest()[:16]


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (h, w, c) resized so that the shorter side is `size`, with the centre square cut out; 0: unchanged."""
    height, width = image.shape[:2]
    if size == 0 or (height == size and width == size):
        return image
    from PIL import Image

    scale = size / min(height, width)
    new = (max(size, round(width * scale)), max(size, round(height * scale)))
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).resize(new, Image.Resampling.LANCZOS)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, image.shape[2])


def find_pictures(root: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """(files by name, the class of each, int32, the classes' names) of a folder whose sub-folders, if any, are classes.

    Raises:
      UserError: no folder, no pictures in it, or pictures both in sub-folders and beside them.
    """
    require(root.is_dir(), f"folder {root} does not exist")
    hidden = lambda p: any(part.startswith(".") for part in p.relative_to(root).parts)
    found = (p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS and not hidden(p))
    files = sorted(p for p in found if p.is_file())
    require(bool(files), f"folder {root} has no images: it must hold files such as {', '.join(EXTENSIONS[:3])}")
    classes = sorted({p.relative_to(root).parts[0] for p in files if p.parent != root})
    mixed = bool(classes) and any(p.parent == root for p in files)
    require(not mixed, f"folder {root} has images beside its class folders: put them into a class, or use one folder")
    labels = np.array([classes.index(p.relative_to(root).parts[0]) if classes else 0 for p in files], np.int32)
    return files, labels, classes


def folder_source(root: Path, size: int) -> Source:
    """A folder of pictures; sub-folders are classes. A fixed tenth, chosen by file name, is the test split."""
    files, labels, classes = find_pictures(root)
    headers = [picture_header(p) for p in files]
    channels = 1 if all(mode in ("1", "L") for _, mode in headers) else 3
    shape = (size, size, channels)
    if size == 0:
        (width, height), _ = headers[0]
        for path, (found, _) in zip(files, headers):
            require(
                found == (width, height),
                f"{path} is {found[0]}x{found[1]}, {files[0].name} is {width}x{height}: set --data.size",
            )
        shape = (height, width, channels)

    names = [str(p.relative_to(root)) for p in files]
    order = np.array(sorted(range(len(files)), key=lambda i: hashlib.sha256(names[i].encode()).digest()))
    num_test = int(len(files) * FOLDER_TEST)
    require(num_test >= 1, f"folder {root} has {len(files)} images: at least {round(1 / FOLDER_TEST)} are needed")

    def records(positions: np.ndarray) -> Records:
        def fetch(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            chosen = positions[np.asarray(index)]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                images = list(pool.map(lambda i: fit(read_picture(files[i], channels), size), chosen))
            return np.stack(images), labels[chosen]

        return Records(len(positions), fetch)

    version = state_of(root, files)
    splits = {"train": records(order[:-num_test]), "test": records(order[-num_test:])}
    return Source(f"folder-{root.resolve().name}", version, version, shape, len(classes), 256, splits)


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
