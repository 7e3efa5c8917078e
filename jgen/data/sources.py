"""The interface of a source of images: splits that fetch decoded images and further fields by position.

Sources neither cache nor split the data. They are made by `tfds_sets`, `folders` and others.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen.core.model import DataSpec

MAX_THREADS = 16
# (texts, uint8 images (n, H, W, C) in 0 .. 255) -> {score: float (n,)}: how well each image shows its text; "aligned"
# is 1 if it shows all of it; NaN if a score does not apply to the text.
Judge = Callable[[Sequence[str], np.ndarray], dict[str, np.ndarray]]


class Subjects(NamedTuple):
    """Classes that a set's texts name, for zero-shot classification by a model that compares images with texts.

    names: the names of the classes. prompts: texts in which {} stands for a name. classify: (texts) -> the class of
    each text's image, int (n,), -1 if it has none.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    classify: Callable[[Sequence[str]], np.ndarray]


class Records(NamedTuple):
    """The examples of one split.

    num:   the number of examples.
    fetch: (positions) -> {"image": uint8 (n, H, W, C), <field>: array (n, ...)}; a text field is an array of str.
    texts: (field, positions) -> [str], a text field, without decoding images; None if there are no texts.
    """

    num: int
    fetch: Callable[[np.ndarray], dict[str, np.ndarray]]
    texts: Callable[[str, np.ndarray], list[str]] | None = None


class Source(NamedTuple):
    """Named splits of one set.

    name:    for messages and for the cache.
    version: the set's version; for a folder, that of its files.
    files:   changes when the files do, to detect a stale cache.
    spec:    images of `levels` values, spread evenly over 0 .. 255, and further fields except texts.
    splits:  {"train": Records, ...}.
    texts:   names of the text fields, whose arrays depend on a tokenizer.
    tokens:  a hash of the tokenizers that were applied to text fields; "" without any.
    content: a hash of the files' content, as far as it is known without reading them, independent of their location; ""
             for sets that are identified by name and version.
    judges:  {text field: function that scores whether images show their texts}.
    subjects: {text field: `Subjects`}, for fields whose texts name a class.
    group:   the number of consecutive examples that belong together in every split, such as the letters of a font,
             whose classes are 0 .. group - 1 in this order; 0 for none.
    """

    name: str
    version: str
    files: str
    spec: DataSpec
    splits: dict[str, Records]
    texts: tuple[str, ...] = ()
    tokens: str = ""
    content: str = ""
    judges: Mapping[str, Judge] = {}
    subjects: Mapping[str, Subjects] = {}
    group: int = 0


def cache_dir() -> Path:
    """The folder of jgen's cache: the environment's JGEN_CACHE, else ~/.cache/jgen."""
    return Path(os.environ.get("JGEN_CACHE") or "~/.cache/jgen").expanduser()


def state_of(root: Path, files: list[Path]) -> str:
    """A hash that depends on the folder and on the sizes and modification times of files below it."""
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


def map_in_threads(function: Callable[[Any], Any], items: Iterable[Any], num: int = MAX_THREADS) -> list[Any]:
    """[function(item), ...] in order, computed by at most `num` threads, for work that releases the GIL, such as
    decoding; without threads in a decoding process of jgen/data/workers.py.

    Raises:
      the exception of the first item for which `function` raised one.
    """
    workers = min(num, os.cpu_count() or 1) if multiprocessing.parent_process() is None else 1
    if workers <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))
