"""A user's own arrays as a data set: from Python, or from an .npz file.

images     uint8 (n, H, W, C), or (n, H, W) of one channel
label      the class of each image, (n,): integers 0, 1, ..., or names. In a file it may be called `labels`
levels     the number of pixel values, for images in 0 .. levels - 1; default: 256
<field>    any other array (n, ...), a further field
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen.core.files import array_headers, read_arrays
from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.data.config import Config
from jgen.data.features import RESERVED, has_places
from jgen.data.folders import TEST_PART, by_hash, class_spec
from jgen.data.scan import natural_order
from jgen.data.sources import Records, Source, fit, state_of
from jgen.errors import require

GIVEN = "arrays"  # the name of a set given as arrays in Python
OF_IMAGES = ("images", "arr_0")  # names of the images in a file


class Arrays(NamedTuple):
    """Images and their further fields.

    shape:  (n, H, W, C).
    images: returns uint8 (n, H, W, C), 0 .. levels - 1; a file is read at the first call.
    fields: {name: (n, ...)}.
    levels: the number of values that a pixel takes.
    files: changes when the files do; content: a hash of their content, independent of their location.
    where:  for messages, such as "images of x.npz".
    """

    shape: tuple[int, ...]
    images: Callable[[], np.ndarray]
    fields: Mapping[str, np.ndarray]
    levels: int
    files: str
    content: str
    where: str


def given_arrays(images: Any, fields: Mapping[str, Any]) -> Arrays:
    """Arrays from Python. Raises `UserError` for images that are not uint8 (n, H, W, C), or fields of another
    length."""
    array = np.asarray(images)
    shape = checked_shape(array.shape, array.dtype, "images")
    array = array.reshape(shape)
    named = {name: np.asarray(values) for name, values in fields.items() if values is not None}
    digest = hashlib.sha256()
    for name, values in [("images", array), *sorted(named.items())]:
        text = values.dtype.kind in "OU"
        digest.update(f"{name} {values.shape} {'text' if text else values.dtype}\n".encode())
        digest.update(repr(values.tolist()).encode() if text else np.ascontiguousarray(values).data)
    key = digest.hexdigest()[:16]
    return Arrays(shape, lambda: array, named, 256, key, key, "images")


def file_arrays(path: Path) -> Arrays:
    """The arrays of an .npz file. Raises `UserError` for a file that is missing, damaged, or without images."""
    require(path.is_file(), f"there is no file {path}")
    headers = array_headers(path)
    name = next((each for each in OF_IMAGES if each in headers), "")
    require(bool(name), f"{path} has no array `images`: it has {', '.join(sorted(headers)) or 'none'}")
    shape = checked_shape(*headers[name][:2], f"images of {path}")
    fields = read_arrays(path, [each for each in headers if each != name])
    if "labels" in fields:
        fields["label"] = fields.pop("labels")
    levels = checked_levels(fields.pop("levels", np.array(256)), f"levels of {path}")

    @cache
    def images() -> np.ndarray:
        array = read_arrays(path, [name])[name].reshape(shape)
        most = array.max(initial=0)
        require(most < levels, f"images of {path} have values up to {most}: its levels are 0 to {levels - 1}")
        return array

    content = hashlib.sha256(repr(sorted(headers.items())).encode()).hexdigest()[:16]
    files = state_of(path.parent, [path])
    return Arrays(shape, images, fields, levels, files, content, f"images of {path}")


def checked_shape(shape: tuple[int, ...], dtype: Any, where: str) -> tuple[int, ...]:
    """The shape (n, H, W, C) of images (n, H, W, C) or (n, H, W). Raises `UserError` for others."""
    require(dtype == np.uint8, f"{where} are {dtype}: they must be uint8, 0 to 255")
    fits = len(shape) in (3, 4) and min(shape) > 0 and (len(shape) == 3 or shape[3] in (1, 3))
    require(fits, f"{where} have shape {shape}: it must be (n, H, W, C), of 1 channel or 3, or (n, H, W)")
    return shape if len(shape) == 4 else (*shape, 1)


def checked_levels(levels: np.ndarray, where: str) -> int:
    """The number of levels that a file states. Raises `UserError` unless it is one integer from 2 to 256."""
    whole = levels.ndim == 0 and np.issubdtype(levels.dtype, np.integer) and 2 <= levels <= 256
    value = levels.item() if levels.ndim == 0 else f"an array of shape {levels.shape}"
    require(bool(whole), f"{where} are {value}: they must be one whole number from 2 to 256")
    return int(levels)


def array_source(name: str, train: Arrays, test: Arrays | None, config: Config) -> Source:
    """Arrays as a source, in a fixed shuffled order, since they may be sorted by class; a tenth is the test split.

    Raises:
      UserError: arrays whose length differs or that cannot be fields; a test set with other image shapes or levels.
    """
    parts = {"train": train} | ({"test": test} if test else {})
    specs, texts, values = fields_of(parts, config)
    for each in config.fields:
        there = ", ".join([*specs, *texts]) or "no fields beside its images"
        require(each in (*specs, *texts), f"data.fields has {each!r}: {train.where} have {there}")
    splits = {}
    for split, arrays in parts.items():
        alike = arrays.shape[1:] == train.shape[1:] and arrays.levels == train.levels
        kinds = [f"{one.where} are {one.shape[1:]} of {one.levels} levels" for one in (train, arrays)]
        require(alike, f"{', '.join(kinds)}: they must be alike")
        order = by_hash([str(i) for i in range(arrays.shape[0])])
        if split == "train" and not test:
            num_test = int(len(order) * TEST_PART)
            require(num_test >= 1, f"{train.where} are {len(order)}: at least {round(1 / TEST_PART)} are needed")
            splits["test"] = array_records(arrays, values[split], order[-num_test:], config)
            order = order[:-num_test]
        splits[split] = array_records(arrays, values[split], order, config)
    height, width, channels = train.shape[1:]
    resized = config.size > 0 and (height, width) != (config.size, config.size)
    if config.size:
        height = width = config.size
    image = ImageSpec(height, width, channels, 256 if resized else train.levels)
    files = " ".join(arrays.files for arrays in parts.values())
    content = " ".join(arrays.content for arrays in parts.values())
    splits = {split: splits[split] for split in ("train", "test")}
    return Source(name, train.content, files, DataSpec(image, specs), splits, tuple(texts), content=content)


def fields_of(
    parts: Mapping[str, Arrays], config: Config
) -> tuple[dict[str, ArraySpec], list[str], dict[str, dict[str, np.ndarray]]]:
    """The further fields: their specifications, the names of those that are texts, and their values by split."""
    train = parts["train"]
    values: dict[str, dict[str, np.ndarray]] = {split: {} for split in parts}
    specs: dict[str, ArraySpec] = {}
    texts = []
    for name in sorted(train.fields):
        columns = {split: arrays.fields.get(name) for split, arrays in parts.items()}
        for split, column in columns.items():
            num = parts[split].shape[0]
            size = None if column is None else column.shape
            one = f"{name} of {parts[split].where} has shape {size}: it must have one entry for each of {num} images"
            require(size is not None and size[:1] == (num,), one)
        require(name not in RESERVED, f"{train.where} have a field {name!r}: batches have one of that name")
        if name == "label":
            specs[name], classes = classes_of_labels(columns, train.where)
            columns |= classes
        elif train.fields[name].dtype.kind in "OU":
            texts.append(name)
        else:
            specs[name] = field_spec(name, columns.values(), train.where)
            columns = {split: np.asarray(column).astype(specs[name].dtype) for split, column in columns.items()}
            moved = [f"data.size {config.size}"] * (config.size > 0) + ["data.flip"] * config.flip
            with_places = (
                f"field {name!r} may have places in the image: with {', '.join(moved)} it would not move along"
            )
            require(not moved or not has_places(specs[name]), with_places)
        for split, column in columns.items():
            assert column is not None
            values[split][name] = column
    return specs, texts, values


def classes_of_labels(columns: Mapping[str, Any], where: str) -> tuple[ArraySpec, dict[str, np.ndarray]]:
    """The field of labels, and the class of each image, int32 (n,), by split; the train split defines the classes."""
    train = columns["train"]
    for labels in columns.values():
        kind = f"label of {where} is {labels.dtype} of shape {labels.shape}"
        wanted = f"{kind}: it must be whole numbers or names, one per image"
        require(labels.ndim == 1 and labels.dtype.kind in "iuU" and labels.dtype.kind == train.dtype.kind, wanted)
    if train.dtype.kind == "U":
        names = sorted(set(train.tolist()), key=natural_order)
        numbers = {name: number for number, name in enumerate(names)}
        for labels in columns.values():
            unknown = sorted(set(labels.tolist()) - set(names))
            require(not unknown, f"label of {where} has {', '.join(unknown[:3])}, which train does not have")
        return class_spec(names), {
            split: np.array([numbers[each] for each in labels.tolist()], np.int32) for split, labels in columns.items()
        }
    last = int(train.max())
    for labels in columns.values():
        fits = labels.min() >= 0 and labels.max() <= last
        seen = f"label of {where} is from {labels.min()} to {labels.max()}"
        require(bool(fits), f"{seen}: it must be 0 or above, and no class of test may be missing in train")
    return ArraySpec((), "int32", last + 1), {split: labels.astype(np.int32) for split, labels in columns.items()}


def field_spec(name: str, columns: Iterable[Any], where: str) -> ArraySpec:
    """The specification of a field of numbers. Raises `UserError` for other types, or shapes that differ."""
    arrays = list(columns)
    kinds = {"b": "bool", "i": "int32", "u": "int32", "f": "float32"}
    first = arrays[0]
    one = all(each.shape[1:] == first.shape[1:] and each.dtype == first.dtype for each in arrays)
    described = f"{name} of {where} is {first.dtype} of shape {first.shape}"
    require(first.dtype.kind in kinds and one, f"{described}: it must be of numbers, and alike in all splits")
    if first.dtype == np.uint8 and first.ndim >= 3:
        return ArraySpec(first.shape[1:], "uint8", 256)
    dtype = kinds[first.dtype.kind]
    if dtype != "int32":
        return ArraySpec(first.shape[1:], dtype, 2 if dtype == "bool" else 0)
    low, high = min(int(each.min()) for each in arrays), max(int(each.max()) for each in arrays)
    require(-(2**31) <= low and high < 2**31, f"{name} of {where} has {low} to {high}: it must fit into 32 bits")
    return ArraySpec(first.shape[1:], dtype, high + 1 if low >= 0 else 0)


def array_records(arrays: Arrays, values: Mapping[str, np.ndarray], order: np.ndarray, config: Config) -> Records:
    """The images `order` of the arrays as records, 0 .. 255."""

    def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
        chosen = order[np.asarray(positions)]
        images = arrays.images()[chosen]
        if arrays.levels < 256:  # spread evenly over 0 .. 255
            images = np.round(images * (255.0 / (arrays.levels - 1))).astype(np.uint8)
        if config.size:
            images = np.stack([fit(image, config.size) for image in images])
        return {"image": images, **{name: column[chosen] for name, column in values.items()}}

    def read_texts(name: str, positions: np.ndarray) -> list[str]:
        return [str(text) for text in values[name][order[np.asarray(positions)]]]

    return Records(len(order), fetch, read_texts)
