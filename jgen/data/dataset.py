"""A data set ready for training: disjoint splits, decoded once into memory-mapped uint8 arrays with their hash.

Sets whose decoded images would not fit in half of the memory are read from their records instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from jgen.core.model import ImageSpec
from jgen.data.config import Config, check_config
from jgen.data.sources import Records, Source, cache_dir, open_source
from jgen.errors import UserError, require

STREAMED = "streamed-"  # a hash that is of a set's name, version and sizes, not of its content
OFFSETS = {"train": 0, "validation": 1 << 28, "test": 2 << 28}  # where the indices of a part's examples start
CHUNK = 1024


class Split(NamedTuple):
    """Part of a set. fetch(positions 0 .. num - 1) -> {"image", "label", "index"}; `index` is unique within the set."""

    num: int
    fetch: Callable[[np.ndarray], dict[str, np.ndarray]]


class Dataset(NamedTuple):
    """Splits train, validation (where there is one) and test, the images' specification, and a hash of the content."""

    name: str
    images: ImageSpec
    splits: dict[str, Split]
    fingerprint: str


def memory_limit() -> int:
    """Bytes of decoded images beyond which a set is read from its records: half of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def load(config: Config) -> Dataset:
    """Opens, decodes on first use, and splits a data set.

    Raises:
      UserError: whatever is wrong with the options, the set, or the folder for the cache, in one line.
    """
    check_config(config)
    source = open_source(config)
    size = int(np.prod(source.shape)) * sum(records.num for records in source.splits.values())
    stream = size > memory_limit()
    # The content where it is decoded, so that a folder may move; the name and the version where it is streamed.
    hashes: list[Any] = []
    if stream:
        hashes.append([source.name, source.version, source.shape, {n: r.num for n, r in source.splits.items()}])
    parts = {}
    for name, records in source.splits.items():
        if not stream:
            records, digest = decoded(source, name, records)
            hashes.append([name, digest])
        parts[name] = records
    levels = 2 if config.binarise != "none" else config.levels or source.levels
    images = ImageSpec(*source.shape, num_classes=source.num_classes, levels=levels)
    fingerprint = STREAMED * stream + hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    return Dataset(source.name, images, make_splits(parts, config.validation), fingerprint)


def alike(one: str, other: str) -> bool:
    """Whether two hashes of data may be of the same: where one is of the content and the other is not, they may."""
    return one == other or one.startswith(STREAMED) != other.startswith(STREAMED)


def reopen(config: Config, fingerprint: str, run: str | Path) -> tuple[Config, Dataset]:
    """The data that a run was trained on, where it was then or, if that folder is gone, where the environment says.

    Args:
      fingerprint: the hash that the run keeps.
    Raises:
      UserError: data that is gone or has changed. Splits move when a set changes: what is a test image now may have
        been a training image then.
    """
    if config.dir and not Path(config.dir).expanduser().is_dir():
        config = replace(config, dir="")
    dataset = load(config)
    require(
        alike(dataset.fingerprint, fingerprint),
        f"{dataset.name} has changed since {run} was trained on it: its hash was {fingerprint[:12]}, is"
        f" {dataset.fingerprint[:12]}, so that images of its splits may have been trained on; restore the data",
    )
    return config, dataset


def make_splits(parts: dict[str, Records], validation: float) -> dict[str, Split]:
    """Train, validation and test. What a set lacks is cut from the end of train: a tenth for test, then validation."""
    stop = whole = parts["train"].num
    cuts = {name: (name, 0, records.num) for name, records in parts.items() if name != "train"}
    if "test" not in parts:
        cuts["test"] = ("train", stop := whole - max(1, whole // 10), whole)
    if "validation" not in parts and validation > 0:
        end, stop = stop, stop - max(1, int(stop * validation))
        cuts["validation"] = ("train", stop, end)
    cuts["train"] = ("train", 0, stop)
    require(stop > 0, f"no training images are left: train has {whole}, and data.validation takes {validation}")
    of_train = sorted(place[1:] for place in cuts.values() if place[0] == "train")
    assert all(before[1] <= after[0] for before, after in zip(of_train, of_train[1:])), f"splits overlap: {cuts}"
    return {name: slice_split(parts[part], start, end, OFFSETS[part]) for name, (part, start, end) in cuts.items()}


def slice_split(records: Records, start: int, stop: int, offset: int) -> Split:
    """The records start .. stop - 1 as a split; their indices are start + offset .. stop - 1 + offset."""

    def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
        where = np.asarray(positions) + start
        image, label = records.fetch(where)
        return {"image": image, "label": label, "index": (where + offset).astype(np.int32)}

    return Split(stop - start, fetch)


def decoded(source: Source, split: str, records: Records) -> tuple[Records, str]:
    """The records as memory-mapped arrays, decoded now unless that was done before, and the hash of their bytes."""
    sizes = {name: part.num for name, part in source.splits.items()}
    key = hashlib.sha256(repr((source.name, source.files, source.shape, sizes)).encode()).hexdigest()[:12]
    folder = cache_dir() / "decoded" / f"{source.name}-{source.version}-{key}" / split
    if not intact(folder):
        try:
            decode_into(folder, records, f"decoding {source.name} {split}")
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write the cache folder {folder}: {reason}; set JGEN_CACHE to another") from error
    images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    digest = json.loads((folder / "hash.json").read_text())["sha256"]
    return Records(records.num, lambda positions: (images[positions], labels[positions])), digest


def intact(folder: Path) -> bool:
    """Whether a decoded split is there and has the bytes that were written."""
    try:
        return json.loads((folder / "hash.json").read_text())["sha256"] == hash_files(folder)
    except (OSError, ValueError, KeyError):
        return False


def hash_files(folder: Path) -> str:
    """SHA-256 over the two arrays' files."""
    digest = hashlib.sha256()
    for name in ("images.npy", "labels.npy"):
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def decode_into(folder: Path, records: Records, title: str) -> None:
    """Decodes all records beside `folder` and moves the result into place whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        first, _ = records.fetch(np.arange(1))
        shape = (records.num, *first.shape[1:])
        needed, free = first.nbytes * records.num, shutil.disk_usage(aside).free
        if free < needed:  # asked before: a write to a mapped file on a full disk ends the process without a word
            raise OSError(f"it takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free on the disk")
        images = np.lib.format.open_memmap(aside / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        labels = np.zeros(records.num, np.int32)
        with tqdm(total=records.num, desc=title, unit="image", leave=False) as progress:
            for start in range(0, records.num, CHUNK):
                positions = np.arange(start, min(start + CHUNK, records.num))
                images[positions], labels[positions] = records.fetch(positions)
                progress.update(len(positions))
        images.flush()
        np.save(aside / "labels.npy", labels)
        (aside / "hash.json").write_text(json.dumps({"sha256": hash_files(aside)}))
        if folder.exists() and not intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(aside, folder)
        except OSError:  # another process was faster
            if not intact(folder):
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
