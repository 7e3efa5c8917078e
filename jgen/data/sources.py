"""What a source of images is: splits that fetch decoded images and the fields beside them by position.

Nothing is cached here and nothing is split off. `tfds_sets` and `folders` make sources.
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
# (texts, uint8 images (n, H, W, C) in 0 .. 255) -> {score: float (n,)}: what of each text its image shows, "aligned" 1
# where that is all of it; NaN where a score is not about the text.
Judge = Callable[[Sequence[str], np.ndarray], dict[str, np.ndarray]]


class Subjects(NamedTuple):
    """Classes that a set's texts name, by which a model that compares images with texts is asked what an image shows.

    names: of the classes. prompts: texts with {} in place of a name. classify: (texts) -> the class of each text's
    image, int (n,), -1 where it is of none.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    classify: Callable[[Sequence[str]], np.ndarray]


class Records(NamedTuple):
    """The examples of one split.

    num:   how many there are.
    fetch: (positions) -> {"image": uint8 (n, H, W, C), <field>: array (n, ...)}; a text field is str objects.
    texts: (field, positions) -> [str], a text field without the decoding of images; None where there are no texts.
    """

    num: int
    fetch: Callable[[np.ndarray], dict[str, np.ndarray]]
    texts: Callable[[str, np.ndarray], list[str]] | None = None


class Source(NamedTuple):
    """Named splits of one set.

    name:    for messages and for the cache.
    version: the set's own; of a folder, that of its files.
    files: changes when the files are written anew, by which a stale cache is recognised.
    spec:    images of `levels` values, spread evenly over 0 .. 255, and the fields beside them, texts left out.
    splits:  {"train": Records, ...}.
    texts:   names of the fields that are text, whose arrays depend on a tokenizer.
    tokens:  a hash of the tokenizers that made fields of texts; "" without any.
    content: a hash of what is in the files as far as it is known without reading them, wherever they are; "" of sets
             whose name and version say it.
    judges: {text field: scores of whether images show its texts}.
    subjects: {text field: what each text names}, of the fields whose texts name a class.
    group:   how many examples in a row belong together, of every split: the letters of a font, whose classes are 0 ..
             group - 1 in this order; 0 for none.
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
    """Where jgen keeps what it derives: the environment's JGEN_CACHE, else ~/.cache/jgen."""
    return Path(os.environ.get("JGEN_CACHE") or "~/.cache/jgen").expanduser()


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


def map_in_threads(function: Callable[[Any], Any], items: Iterable[Any], num: int = MAX_THREADS) -> list[Any]:
    """[function(item), ...] in order, by at most `num` threads: for work that releases Python's lock, as decoding does.
    In a decoding process of jgen/data/workers.py, without threads.

    Raises:
      what `function` raised of the first item for which it did.
    """
    workers = min(num, os.cpu_count() or 1) if multiprocessing.parent_process() is None else 1
    if workers <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))
