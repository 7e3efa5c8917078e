"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from jgen.errors import UserError


def beside(path: Path) -> Path:
    """A name in the same folder, of the same ending, of this process's own."""
    return path.with_name(f".{os.getpid()}-{path.name}")


@contextlib.contextmanager
def written_whole(path: Path, advice: str = "") -> Iterator[Path]:
    """Around the writing of a file: a path beside `path` and of its ending, moved to `path` when all is written.

    Args:
      advice: ends the message of what cannot be written.
    Raises:
      UserError: the folder or the file cannot be written; what stood at `path` still does.
    """
    aside = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{advice}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def check_writable(path: Path) -> None:
    """Raises `UserError` where a file cannot be written, before the work that it is to hold; makes its folder."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        beside(path).touch()
        beside(path).unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
