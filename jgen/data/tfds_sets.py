"""TFDS sets, read as ArrayRecord without TensorFlow, and the embedded digits as one of them."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jgen.core.model import DataSpec, ImageSpec
from jgen.data.config import Config
from jgen.data.features import Feature, choose_features, import_tfds, subset
from jgen.data.sources import MAX_THREADS, Records, Source, cache_dir, fit, map_in_threads, state_of
from jgen.errors import UserError, require

PUBLISHED_BINARY = "binarized_mnist"  # stores 0 and 1; read here as 0 and 255
LEVELS = {"digits": 17, PUBLISHED_BINARY: 2}  # number of pixel values, for sets where it is not 256
SMALL = 1 << 14  # bytes; smaller images decode faster in one thread than in several


def tfds_dir(config_dir: str) -> Path:
    """The folder of TFDS sets: `config_dir`, else the environment's TFDS_DATA_DIR, else TFDS's own default."""
    return Path(config_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()


def digits_builder() -> Any:
    """The embedded digits, prepared in jgen's cache on first use (about two seconds)."""
    import_tfds()
    from jgen.data.digits import Digits

    folder = cache_dir() / "tfds"
    options = {"data_dir": str(folder), "file_format": "array_record"}
    try:
        builder = Digits(**options)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS would announce a download
            builder.download_and_prepare()
    except Exception as error:  # writers of records raise their own types for a full disk
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        cannot = f"cannot write the cache folder {folder}: {reason}; set JGEN_CACHE to another"
        try:
            builder = Digits(**options)
        except Exception as again:
            raise UserError(cannot) from again
        require(Path(builder.data_dir).is_dir(), cannot)  # if it exists, another process finished first
    return builder


def check_format(name: str, folder: Path, error: Exception) -> None:
    """Raises `UserError` if TFDS's message says that the set exists in another file format, such as its default."""
    match = re.search(r"(?:already set to (?:FileFormat\.)?|file formats in the DatasetInfo: \[')(\w+)", str(error))
    if match:
        raise UserError(
            f"data set {name!r} is prepared as {match[1].lower()} in {folder}: jgen reads array_record; prepare it anew"
            f" into another folder, `python -m jgen.data.prepare {name} --dir FOLDER`, and set --data.dir to that"
        ) from error


def prepared_builder(name: str, folder: Path) -> Any:
    """The builder of a TFDS set prepared as ArrayRecord in `folder`. Raises `UserError` if it is not prepared."""
    tfds = import_tfds()
    how = f"run `python -m jgen.data.prepare {name}`, or set --data.dir or TFDS_DATA_DIR to where it is"
    try:
        builder = tfds.builder(name, data_dir=str(folder), file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        check_format(name, folder, error)
        raise UserError(
            f"data set {name!r} is unknown: it must be digits, shapes, folder:PATH, npz:FILE or the name of a TFDS"
            " image set"
        ) from error
    require(Path(builder.data_dir).is_dir(), f"data set {name!r} is not prepared in {folder}: {how}")
    return builder


def tfds_source(builder: Any, config: Config) -> Source:
    """A prepared TFDS set whose examples have an `image`, with its class `label` if it has one and `config.fields`.

    Raises:
      UserError: no uint8 images, images of different sizes without `data.size`, or unknown or unsupported fields.
    """
    features = builder.info.features
    require("image" in features, f"data set {builder.name!r} has no images: its features are {list(features)}")
    kind = np.dtype(features["image"].np_dtype)
    require(kind == np.uint8, f"data set {builder.name!r} has images of {kind}: jgen is about uint8")
    size, shape = config.size, tuple(features["image"].shape)
    require(size > 0 or None not in shape, f"data set {builder.name!r} has images of many sizes: set --data.size")
    resized = size > 0 and shape[:2] != (size, size)  # resizing makes intermediate values
    levels = 256 if resized else LEVELS.get(builder.name, 256)
    if size:
        shape = (size, size, shape[2] or 3)
    moves = [f"data.size {size}"] * resized + ["data.flip"] * config.flip
    fields = choose_features(features, config.fields, f"data set {builder.name!r}", moves)
    splits = {
        name: split_records(builder, name, fields, size)
        for name in ("train", "validation", "test")
        if name in builder.info.splits
    }
    require("train" in splits, f"data set {builder.name!r} has no train split: it has {sorted(builder.info.splits)}")
    folder = Path(builder.data_dir)
    files = state_of(folder, sorted(p for p in folder.iterdir() if p.is_file()))
    arrays = {name: field.spec for name, field in fields.items() if field.spec is not None}
    texts = tuple(name for name, field in fields.items() if field.spec is None)
    height, width, channels = shape
    spec = DataSpec(ImageSpec(height, width, channels, levels), arrays)
    return Source(builder.name, str(builder.version), files, spec, splits, texts)


def split_records(builder: Any, split: str, fields: Mapping[str, Feature], size: int) -> Records:
    """The records of one split. Features that are not fields are neither parsed nor decoded."""
    tfds = import_tfds()
    source = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    features = builder.info.features
    shape = tuple(features["image"].shape)
    num_threads = 1 if None not in shape and np.prod(shape) < SMALL else min(MAX_THREADS, os.cpu_count() or 1)

    all_names = ("image", *fields)
    # For the usual reads, made in advance, since decoding processes get a copy.
    parsers = {
        names: subset(features, [path for n in names for path in (fields[n].paths if n in fields else [("image",)])])
        for names in (all_names, *((name,) for name, field in fields.items() if field.spec is None))
    }

    def read(names: tuple[str, ...], positions: np.ndarray) -> dict[str, list[Any]]:
        """The named columns of the examples at these positions."""
        columns: dict[str, list[Any]] = {name: [] for name in names}
        try:
            for record in source.__getitems__([int(i) for i in positions]):
                example = parsers[names].deserialize_example_np(record)
                for name in names:
                    value = fields[name].read(example) if name in fields else fit(example["image"], size)
                    columns[name].append(value)
        except Exception as error:  # of many types, depending on the decoder
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"data set {builder.name!r} in {builder.data_dir} cannot be read: {reason}") from error
        return columns

    def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
        chunks = [chunk for chunk in np.array_split(np.asarray(positions), num_threads) if len(chunk)]
        parts = map_in_threads(lambda chunk: read(all_names, chunk), chunks, num_threads)
        arrays = {}
        for name in all_names:
            values = [value for part in parts for value in part[name]]
            arrays[name] = np.array(values, object) if isinstance(values[0], str) else np.stack(values)
        if builder.name == PUBLISHED_BINARY:
            arrays["image"] = arrays["image"] * np.uint8(255)
        return arrays

    def read_texts(name: str, positions: np.ndarray) -> list[str]:
        return read((name,), np.asarray(positions))[name]

    return Records(len(source), fetch, read_texts)
