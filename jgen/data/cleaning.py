"""Lists jgen's cache, with sizes and times of last use, and cleans it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jgen.data.sources import cache_dir

YOUNG = 60.0  # seconds for which a folder counts as being written, locked or not
DAY = 86400.0


class Entry(NamedTuple):
    """A file or folder of the cache: its kind is its parent folder; `used` is in seconds since 1970."""

    path: Path
    kind: str
    size: int
    used: float
    leftover: bool


def entries(root: Path) -> list[Entry]:
    """Everything in the cache, by kind and name; all compiled programs are one entry."""
    listed = []
    for kind in sorted(path for path in root.glob("*") if path.is_dir()):
        for path in [kind] if kind.name in ("xla", "tfds") else sorted(kind.iterdir()):
            size, used = measure(path)
            listed.append(Entry(path, kind.name, size, used, path.name.startswith(".")))
    return listed + [Entry(path, "decoded", *measure(path), True) for path in leftovers(root)]


def measure(path: Path) -> tuple[int, float]:
    """Bytes of a file or folder, and the time of its last write or use."""
    size, used = 0, 0.0
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with contextlib.suppress(OSError):  # another process removed it
            state = each.stat()
            size, used = size + (state.st_size if each.is_file() else 0), max(used, state.st_mtime)
    return size, used


def leftovers(root: Path) -> Iterator[Path]:
    """Folders that killed processes left unfinished."""
    for path in sorted(root.glob("decoded/*/.*")):
        if path.is_dir() and is_abandoned(path):
            yield path


def is_abandoned(folder: Path) -> bool:
    """Whether no process is writing an unfinished folder, which would hold its lock."""
    try:
        if time.time() - folder.stat().st_mtime < YOUNG:
            return False
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder while it is written, on file systems that have locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(root: Path) -> None:
    """Removes what killed processes left unfinished."""
    for path in leftovers(root):
        shutil.rmtree(path, ignore_errors=True)


def note_use(folder: Path) -> None:
    """Marks a folder as used now, by its modification time."""
    with contextlib.suppress(OSError):  # a read-only cache
        os.utime(folder)


def clean(root: Path, days: float) -> int:
    """Removes leftovers, and what was not used for this many days; returns the number of bytes."""
    before = time.time() - days * DAY
    freed = 0
    for entry in entries(root):
        if entry.leftover or entry.used <= before:
            freed += entry.size
            if entry.path.is_dir():
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    entry.path.unlink()
    for folder in root.glob("decoded/*"):
        with contextlib.suppress(OSError):  # one that is not empty stays
            folder.rmdir()
    return freed


def listing(root: Path) -> str:
    """A line for each entry, and their sum."""
    items = entries(root)
    rows = [f"{size_of(e.size):>9}  {age_of(e.used):>12}  {e.path.relative_to(root)}{' *' * e.leftover}" for e in items]
    total = f"{size_of(sum(entry.size for entry in items)):>9}  in {root}"
    marked = ["* left by a process that was killed"] if any(entry.leftover for entry in items) else []
    return "\n".join([*rows, total, *marked])


def size_of(num: int) -> str:
    return f"{num / 1e6:.1f} MB"


def age_of(used: float) -> str:
    days = int((time.time() - used) / DAY)
    return "today" if days < 1 else f"{days} day{'s' * (days > 1)} ago"


def command(args: list[str]) -> int:
    """Lists the cache, or cleans it."""
    import argparse

    text = "What jgen keeps in its cache (JGEN_CACHE, else ~/.cache/jgen): size, last use, name."
    parser = argparse.ArgumentParser(prog="python -m jgen.data.cache", description=text)
    parser.add_argument("--clean", action="store_true", help="remove leftovers, and what was not used for --days")
    parser.add_argument(
        "--days", type=float, default=30.0, help="days without use after which to remove; 0: everything"
    )
    options = parser.parse_args(args)
    root = cache_dir()
    if options.clean:
        print(f"{size_of(clean(root, options.days))} removed")
    print(listing(root))
    return 0
