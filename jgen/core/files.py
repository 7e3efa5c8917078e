"""Atomic writing of files: a file is complete, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from jgen.errors import UserError, require


def beside(path: Path) -> Path:
    """A temporary path in the same folder with the same suffix, unique to this process."""
    return path.with_name(f".{os.getpid()}-{path.name}")


def drop_unfinished(pattern: Path) -> None:
    """Removes temporary files of killed processes, for paths of this pattern; no other process may be writing them."""
    for path in pattern.parent.glob(f".[0-9]*-{pattern.name}"):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def written_whole(path: Path, advice: str = "") -> Iterator[Path]:
    """Context manager for writing a file: gives a temporary path, which is moved to `path` once it is on the disk.

    Args:
      advice: the end of the error message.
    Raises:
      UserError: the folder or the file cannot be written; an existing file at `path` is unchanged.
    """
    aside = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{advice}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def sync(path: Path) -> None:
    """Flushes a file, or a folder's entries, to the disk, so that it survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def finite_or_none(document: Any) -> Any:
    """A document in which numbers that are not finite, which JSON cannot represent, are replaced by None."""
    if isinstance(document, dict):
        return {name: finite_or_none(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [finite_or_none(value) for value in document]
    if isinstance(document, float | np.floating):
        return float(document) if math.isfinite(document) else None
    return document


def lock(folder: Path, what: str, advice: str) -> IO[str]:
    """Locks a folder, creating it if needed, until the returned file is closed or the process ends.

    Args:
      what: for the message, what another process that holds the lock is doing, such as "is training in"; advice: what
        to do about it.
    Raises:
      UserError: the folder cannot be written, or another process holds the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"another process {what} {folder}: {advice}") from error
    except OSError as error:  # some network file systems have no locks
        print(f"warning: {folder} cannot be locked ({error.strerror}): use it once at a time", file=sys.stderr)
    return file


def read_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, all or those in `names`. Raises `UserError` for a file that is damaged or not
    an .npz."""
    require(zipfile.is_zipfile(path), f"{path} is no .npz file, or is damaged")
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {name: np.asarray(saved[name]) for name in (saved.files if names is None else names)}
    except Exception as error:  # zipfile, zlib and NumPy raise different types for a damaged file
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def array_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype, int]]:
    """{name: (shape, dtype, checksum)} of the arrays of an .npz, without reading them. Raises as `read_arrays` does."""
    require(zipfile.is_zipfile(path), f"{path} is no .npz file, or is damaged")
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, _, dtype = read[version](file)
                headers[member.filename.removesuffix(".npy")] = (shape, dtype, member.CRC)
    except Exception as error:  # of many types, as above
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error
    return headers


def save_arrays(path: Path, arrays: dict[str, Any], compressed: bool = False) -> None:
    """Writes arrays by name to an .npz file."""
    save: Any = np.savez_compressed if compressed else np.savez
    save(path, **arrays)


def cached_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a cache file; None if there is no such file, or, with a warning, if it is damaged."""
    if not path.exists():
        return None
    try:
        return read_arrays(path)
    except UserError as error:
        print(f"warning: {error}: it is made anew", file=sys.stderr)
        return None


def check_writable(path: Path) -> None:
    """Raises `UserError` if a file cannot be written, to be called before its content is computed; makes its folder."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        beside(path).touch()
        beside(path).unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
