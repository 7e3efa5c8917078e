"""The contents of a folder of pictures: files with sizes and times, classes, captions, and files that are left out.

Every name is looked at once: a million files take seconds. Hidden files and folders, whose names begin with a dot, are
skipped silently; links are followed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jgen.data.image_files import extensions
from jgen.errors import require

CAPTION = ".txt"
MOST_KINDS = 6  # suffixes named in the message about files left out
State = tuple[int, int]  # (bytes, modification time in nanoseconds) of a file


@dataclass
class Scan:
    """The files below a folder, by their relative names with "/" as separator."""

    pictures: dict[str, State] = field(default_factory=dict)
    captions: dict[str, State] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    """{suffix: number of files} of files that are not pictures."""
    loops: list[str] = field(default_factory=list)
    """Links to a folder that contains them."""
    folders: list[str] = field(default_factory=list)
    """The immediate sub-folders."""

    @property
    def with_pictures(self) -> set[str]:
        """The immediate sub-folders that contain pictures, and "" if there are pictures next to them."""
        return {name.split("/", 1)[0] if "/" in name else "" for name in self.pictures}


class Pictures(NamedTuple):
    """The pictures of one split.

    root:     the folder that names are relative to.
    names:    sorted.
    states:   size and time of each.
    captions: {name of the text file: size and time} of those that belong to a picture.
    """

    root: Path
    names: list[str]
    states: list[State]
    captions: dict[str, State]

    @property
    def classes(self) -> list[str]:
        """Names of the class folders in natural order; [] without any."""
        return sorted({name.split("/", 1)[0] for name in self.names if "/" in name}, key=natural_order)

    def labels(self, classes: Sequence[str]) -> np.ndarray:
        """The class of each picture, int32 (n,); -1 for a class that is not among `classes`."""
        numbers = {name: number for number, name in enumerate(classes)}
        return np.array([numbers.get(name.split("/", 1)[0], -1) for name in self.names], np.int32)

    def path(self, number: int) -> str:
        return os.path.join(self.root, self.names[number])


def natural_order(name: str) -> tuple:
    """A sort key for names that orders numbers in them by value: "2" before "10"."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def scan(root: Path) -> Scan:
    """All files below a folder. Raises `UserError` if there is no such folder, or it cannot be read."""
    require(root.is_dir(), f"folder {root} does not exist")
    contents = Scan()
    try:
        look_into(str(root), "", contents, ())
    except OSError as error:
        require(False, f"folder {error.filename or root} cannot be read: {error.strerror or error}")
    contents.folders.sort(key=natural_order)
    return contents


def look_into(folder: str, prefix: str, contents: Scan, above: tuple[tuple[int, int], ...]) -> None:
    """Adds the files of a folder and of those below it.

    Args:
      prefix: the prefix of their names; above: (device, inode) of the folders that contain this one.
    """
    here = os.stat(folder)
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        contents.loops.append(prefix[:-1])
        return
    readable = extensions()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_dir():
                if not prefix:
                    contents.folders.append(name)
                look_into(entry.path, f"{prefix}{name}/", contents, (*above, identity))
                continue
            dot = name.rfind(".")
            ending = name[dot:].lower() if dot > 0 else ""
            group = contents.pictures if ending in readable else contents.captions if ending == CAPTION else None
            if group is None:
                contents.left_out[ending or "without an ending"] += 1
                continue
            try:
                state = entry.stat()
            except OSError:
                contents.left_out["(broken link)"] += 1
                continue
            group[f"{prefix}{name}"] = (state.st_size, state.st_mtime_ns)


def select(root: Path, contents: Scan, prefix: str = "") -> Pictures:
    """The pictures of a scan whose names begin with `prefix`, such as "train/", and their captions.

    Raises:
      UserError: no pictures, or pictures both in sub-folders and next to them.
    """
    names = sorted(name[len(prefix) :] for name in contents.pictures if name.startswith(prefix))
    where = root / prefix
    left = f"; {describe_left_out(contents)}" if contents.left_out else ""
    require(bool(names), f"folder {where} has no images: it must hold files such as .png, .jpg, .tif{left}")
    inside = sum("/" in name for name in names)
    mixed = f"folder {where} has images beside its class folders: put them into a class, or use one folder"
    require(inside in (0, len(names)), mixed)
    wanted = (prefix + caption_of(name) for name in names if contents.captions)
    captions = {name[len(prefix) :]: contents.captions[name] for name in wanted if name in contents.captions}
    return Pictures(where, names, [contents.pictures[prefix + name] for name in names], captions)


def caption_of(name: str) -> str:
    """The name of a picture's caption file: `1.txt` for `1.png`."""
    return os.path.splitext(name)[0] + CAPTION


def describe_left_out(contents: Scan, used: Iterable[Pictures] = ()) -> str:
    """A line about files that are not pictures, "12 files are left out: 7 .heic, 5 .json"; "" if there are none."""
    counts = Counter(contents.left_out)
    parts = list(used)
    texts = len(contents.captions) - sum(len(part.captions) for part in parts)
    if parts and texts > 0:
        counts[CAPTION] += texts
    lines = []
    if num := sum(counts.values()):
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{count} {ending}" for ending, count in ordered[:MOST_KINDS]]
        more = [f"{len(counts) - MOST_KINDS} other kinds"] if len(counts) > MOST_KINDS else []
        what = "1 file is" if num == 1 else f"{num} files are"
        lines.append(f"{what} left out: {', '.join(kinds + more)}")
    if contents.loops:
        lines.append(f"links to a folder that they are in: {', '.join(contents.loops)}")
    with_pictures = contents.with_pictures
    empty = [name for name in contents.folders if name not in with_pictures]
    if parts and empty:
        lines.append(f"folders without pictures: {', '.join(empty)}")
    return "; ".join(lines)
