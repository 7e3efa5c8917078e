"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from jgen.errors import UserError


@contextlib.contextmanager
def written_whole(path: Path, advice: str = "") -> Iterator[Path]:
    """Around the writing of a file: a path beside `path` and of its ending, moved to `path` when all is written.

    Args:
      advice: ends the message of what cannot be written.
    Raises:
      UserError: the folder or the file cannot be written; what stood at `path` still does.
    """
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{advice}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
