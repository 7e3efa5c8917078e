"""Folders of pictures, whose sub-folders may be classes or splits, with captions in text files next to the pictures.

    pictures/           pictures/cat/1.png       pictures/train/cat/1.png       pictures/1.png      a picture
        1.png                    cat/2.png                      dog/2.png                1.txt      its caption: UTF-8,
        2.jpg                    dog/3.png                test/cat/3.png                 2.jpg      of one or more lines
                                                                                         2.txt

Classes, captions and splits can be combined. Splits are train, test and validation (or val); `--data.test` names a test
folder elsewhere. For the supported files see `image_files`, and for those that are skipped `scan`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jgen.core.files import written_whole
from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.data.config import Config
from jgen.data.image_files import Header, read_header, read_picture
from jgen.data.scan import Pictures, caption_of, describe_left_out, scan, select
from jgen.data.sources import Records, Source, cache_dir, fit, map_in_threads
from jgen.errors import UserError, require

TEST_PART = 0.1  # fraction of a folder's images for the test split
# Folders that are splits, if there is a training folder.
SPLITS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}


def find_splits(root: Path, test: str = "") -> dict[str, Pictures]:
    """The pictures of each split that a folder has, {"train": ..., ...}; prints a line about files that are left out.

    Args:
      test: the folder of the test split, if it is elsewhere.
    Raises:
      UserError: no folder or no pictures; splits next to other folders, given twice, or without a training split.
    """
    contents = scan(root)
    with_pictures = contents.with_pictures
    folders = [name for name in contents.folders if name in with_pictures]
    named = [name for name in folders if name.lower() in SPLITS]
    kinds = [SPLITS[name.lower()] for name in named]
    prefixes = {"train": ""}
    if len(set(kinds)) > 1:
        beside = [name for name in (*folders, *contents.pictures) if name not in named and "/" not in name]
        holds = f"folder {root} has the splits {', '.join(named)}"
        require(not beside, f"{holds} beside {beside[0] if beside else ''}: splits must stand alone")
        require("train" in kinds, f"{holds}, but no folder train")
        require(len(set(kinds)) == len(kinds), f"{holds}: each must be one folder")
        prefixes = {kind: f"{name}/" for kind, name in zip(kinds, named)}
    elif kinds == ["train"] and folders == named and with_pictures == {*named}:
        prefixes = {"train": f"{named[0]}/"}
    parts = {kind: select(root, contents, prefix) for kind, prefix in prefixes.items()}
    print_left_out(root, describe_left_out(contents, parts.values()))
    if test:
        has_test = f"data.test is {test}, but folder {root} has a test split of its own"
        require("test" not in parts, has_test)
        place = Path(test.removeprefix("folder:")).expanduser()
        elsewhere = scan(place)
        parts["test"] = select(place, elsewhere)
        print_left_out(place, describe_left_out(elsewhere, [parts["test"]]))
    return parts


def print_left_out(root: Path, line: str) -> None:
    if line:
        print(f"folder {root}: {line}", file=sys.stderr)


def classes_of(parts: Mapping[str, Pictures]) -> list[str]:
    """The classes of a folder, defined by train. Raises `UserError` if another split has a class that train lacks."""
    classes = parts["train"].classes
    for part in parts.values():
        require(
            bool(part.classes) == bool(classes),
            f"folder {parts['train'].root} has {len(classes)} class folders, {part.root} {len(part.classes)}",
        )
        unknown = [name for name in part.classes if name not in classes]
        require(not unknown, f"folder {part.root} has the class {', '.join(unknown)}, which train does not have")
    return classes


def caption_files(part: Pictures) -> list[str]:
    """The text file of each picture; [] if no picture has one.

    Raises:
      UserError: some pictures have a caption and others have none.
    """
    if not part.captions:
        return []
    names = [caption_of(name) for name in part.names]
    present = [name in part.captions for name in names]
    if not all(present):
        first = present.index(False)
        missing = f"{part.path(first)} has no caption {os.path.basename(names[first])}"
        message = f"{missing}, but {sum(present)} of {len(names)} pictures have"
        raise UserError(f"{message}: all must have one, which may be empty, or none")
    return [os.path.join(part.root, name) for name in names]


def read_caption(path: str) -> str:
    """The text of a caption file, stripped of white space at its ends; line breaks inside are kept.

    Raises:
      UserError: a file that cannot be read or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def picture_shape(parts: Iterable[Pictures], config: Config, state: str) -> tuple[int, int, int]:
    """The common shape (H, W, C) of all pictures, with one channel if all are grey. It is cached for each state of the
    files.

    Raises:
      UserError: different sizes without `data.size`; a file that is not a picture.
    """
    path = cache_dir() / "headers" / f"{json_key(state, config.background)}.json"
    try:
        first, other, name, grey = json.loads(path.read_text())
    except (OSError, ValueError):
        first, other, name, grey = read_headers(parts, config.background)
        with contextlib.suppress(UserError), written_whole(path) as aside:  # a read-only cache
            aside.write_text(json.dumps([first, other, name, grey]))
    channels = 1 if grey else 3
    if config.size:
        return config.size, config.size, channels
    sizes = [f"{width}x{height}" for height, width in (first[1:], other or first[1:])]
    require(other is None, f"{name} is {sizes[1]}, {first[0]} is {sizes[0]}: set --data.size")
    return first[1], first[2], channels


def read_headers(parts: Iterable[Pictures], background: str) -> tuple[Any, Any, str, bool]:
    """([name of the first file, its height, width], the first different size or None, its path, whether all are
    grey)."""
    first: Header | None = None
    name, other, where, grey = "", None, "", True
    for part in parts:
        for number in range(len(part.names)):
            header = read_header(part.path(number), background)
            grey = grey and header.grey
            if first is None:
                first, name = header, os.path.basename(part.names[number])
            if other is None and header[:2] != first[:2]:
                other, where = list(header[:2]), part.path(number)
    assert first is not None
    return [name, first.height, first.width], other, where, grey


def json_key(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def state_of_parts(parts: Mapping[str, Pictures], places: bool) -> str:
    """A hash of the files' names and sizes, and with `places` also of their location and modification times."""
    digest = hashlib.sha256()
    for kind, part in parts.items():
        digest.update(repr((kind, str(part.root.resolve()) if places else "")).encode())
        files = [*zip(part.names, part.states), *part.captions.items()]
        digest.update(repr([(name, size, time if places else 0) for name, (size, time) in files]).encode())
    return digest.hexdigest()[:16]


def folder_source(root: Path, config: Config) -> Source:
    """A folder of pictures; class folders are the field `label`, captions the field `text`.

    Without a test split, a fixed tenth of the pictures, chosen by file name, is used.

    Raises:
      UserError: a folder without pictures, with mixed sizes, a damaged picture, or captions for some pictures only.
    """
    parts = find_splits(root, config.test)
    classes = classes_of(parts)
    texts = {kind: caption_files(part) for kind, part in parts.items()}
    captioned = [kind for kind in parts if texts[kind]]
    some = f"folder {root} has captions in {', '.join(captioned)} only: all splits must have them, or none"
    require(len(captioned) in (0, len(parts)), some)
    fields = {"label": class_spec(classes)} if classes else {}
    text_fields = ("text",) if captioned else ()
    for name in config.fields:
        there = ", ".join([*fields, *text_fields]) or "no fields: neither class folders nor captions"
        require(name in (*fields, *text_fields), f"data.fields has {name!r}: folder {root} has {there}")
    version = state_of_parts(parts, places=True)
    shape = picture_shape(parts.values(), config, version)
    splits = {}
    for kind, part in parts.items():
        order = by_hash(part.names)
        if kind == "train" and "test" not in parts:
            num_test = int(len(order) * TEST_PART)
            few = f"folder {root} has {len(order)} images: at least {round(1 / TEST_PART)} are needed"
            require(num_test >= 1, few)
            splits["test"] = part_records(part, order[-num_test:], texts[kind], classes, shape[2], config)
            order = order[:-num_test]
        splits[kind] = part_records(part, order, texts[kind], classes, shape[2], config)
    splits = {kind: splits[kind] for kind in ("train", "validation", "test") if kind in splits}
    spec = DataSpec(ImageSpec(*shape, levels=256), fields)
    content = json_key(state_of_parts(parts, places=False), config.background)
    files = json_key(version, config.background) if config.background != "white" else version
    return Source(f"folder-{root.resolve().name}", version, files, spec, splits, text_fields, content=content)


def class_spec(classes: Iterable[str]) -> ArraySpec:
    """The field of classes with these names; names that equal the classes' numbers are omitted."""
    names = tuple(classes)
    spec = ArraySpec((), "int32", len(names))
    return spec if names == spec.value_names else replace(spec, names=names)


def by_hash(names: list[str]) -> np.ndarray:
    """A pseudo-random order of the names that depends on the names only, not on the folder's location."""
    return np.array(sorted(range(len(names)), key=lambda i: hashlib.sha256(os.fsencode(names[i])).digest()))


def part_records(
    part: Pictures, order: np.ndarray, captions: list[str], classes: list[str], channels: int, config: Config
) -> Records:
    """The pictures `order` of a split as records."""
    labels = part.labels(classes)

    def read_texts(name: str, positions: np.ndarray) -> list[str]:
        return map_in_threads(lambda i: read_caption(captions[i]), order[np.asarray(positions)])

    def read_image(number: int) -> np.ndarray:
        return fit(read_picture(part.path(number), channels, config.background), config.size)

    def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
        chosen = order[np.asarray(positions)]
        arrays = {"image": np.stack(map_in_threads(read_image, chosen))}
        if classes:
            arrays["label"] = labels[chosen]
        if captions:
            arrays["text"] = np.array(read_texts("text", positions), object)
        return arrays

    return Records(len(order), fetch, read_texts if captions else None)
