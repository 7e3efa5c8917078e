"""Decoded splits as memory-mapped .npy files, one per field, with the hash of their bytes.

    decoded/<set>-<version>-<key>/<split>/images.npy        uint8 (num, H, W, C)
                                          labels.npy        int32 (num,), where there are classes
                                          field-<name>.npy  (num, ...), each further field
                                          hash.json         {"sha256": ..., "files": {name: [bytes, mtime_ns]}}

`python -m jgen.data.cache` lists the cache, and cleans it. Leftovers of killed processes are removed automatically.

The hash is computed while the files are written. Later, files with the recorded size and modification time are assumed
to be unchanged; only if a time differs, as in a copy, are they read and hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from jgen.core.files import beside
from jgen.core.progress import progress_bar
from jgen.data.cleaning import held, note_use, remove_leftovers
from jgen.data.sources import Records, Source, cache_dir
from jgen.errors import UserError

CHUNK = 1024  # examples decoded at a time
RECORD = "hash.json"


def decoded(source: Source, split: str) -> tuple[Records, str]:
    """A split's records as memory-mapped arrays, and the hash of their bytes; decodes them unless they are cached.

    Raises:
      UserError: the cache folder cannot be written.
    """
    records = source.splits[split]
    folder = cache_dir() / "decoded" / f"{source.name}-{source.version}-{cache_key(source)}" / split
    fields = list(source.spec.fields)
    digest = recorded_hash(folder, fields, records.num)
    if digest is None:
        try:
            digest = decode_into(folder, records, fields, f"decoding {source.name} {split}")
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write the cache folder {folder}: {reason}; set JGEN_CACHE to another") from error
    note_use(folder.parent)
    arrays = {name: np.load(folder / file_name(name), mmap_mode="r") for name in ("image", *fields)}
    return Records(records.num, lambda positions: {name: array[positions] for name, array in arrays.items()}), digest


def cache_key(source: Source) -> str:
    """A key that distinguishes sets of the same name and version. For sets of only images and classes, it is the same
    as in earlier versions of jgen."""
    sizes = {name: part.num for name, part in source.splits.items()}
    identity: tuple[Any, ...] = (source.name, source.files, source.spec.image.shape, sizes)
    further = sorted((name, spec) for name, spec in source.spec.fields.items() if name != "label")
    if further:
        identity += (further, source.tokens)
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:12]


def file_name(field: str) -> str:
    """The file name of a field; `images.npy` and `labels.npy` for images and classes."""
    return {"image": "images.npy", "label": "labels.npy"}.get(field, f"field-{quote(field, safe='')}.npy")


def recorded_hash(folder: Path, fields: Iterable[str], num: int) -> str | None:
    """The hash of a decoded split; None if it is missing or has changed since it was written.

    Files with other modification times than recorded are hashed, and if they are unchanged the record is updated.
    """
    names = [file_name(field) for field in ("image", *fields)]
    try:
        record = json.loads((folder / RECORD).read_text())
        digest, known = record["sha256"], record.get("files", {})
        states = {name: file_state(folder / name) for name in names}
        if states == known:
            return digest
        if any(states[name][0] != known[name][0] for name in names if name in known):
            return None
        if hash_files(folder, fields, num) != digest:
            return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError):
        return None
    with contextlib.suppress(OSError):  # a read-only cache
        write_record(folder, digest, names)
    return digest


def file_state(path: Path) -> list[int]:
    """[bytes, modification time in nanoseconds]."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def write_record(folder: Path, digest: str, names: Iterable[str]) -> None:
    path = folder / RECORD
    aside = beside(path)
    try:
        aside.write_text(json.dumps({"sha256": digest, "files": {name: file_state(folder / name) for name in names}}))
        sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(folder)


def sync(path: Path) -> None:
    """Flushes a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems do not sync folders
            raise
    finally:
        os.close(handle)


def hash_files(folder: Path, fields: Iterable[str], num: int) -> str:
    """SHA-256 of a decoded split: see `combined_hash`."""
    with open(folder / file_name("image"), "rb") as file:
        images = hashlib.file_digest(file, "sha256")
    others = {}
    for field in fields:
        if field != "label":
            with open(folder / file_name(field), "rb") as file:
                others[field] = hashlib.file_digest(file, "sha256").hexdigest()
    return combined_hash(folder, images, others, "label" in fields, num)


def combined_hash(folder: Path, images: Any, others: dict[str, str], has_labels: bool, num: int) -> str:
    """SHA-256 over the files of images and labels, then over the name and the hash of each further field.

    Args:
      images: the hash object of the images' file.
      others: {field: hash of its file}.
      has_labels: False if all `num` examples count as class 0.
    """
    if has_labels:
        with open(folder / file_name("label"), "rb") as file:
            digest = hashlib.file_digest(file, images.copy)
    else:
        digest = images.copy()
        zeros = io.BytesIO()
        np.save(zeros, np.zeros(num, np.int32))
        digest.update(zeros.getvalue())
    for field, each in sorted(others.items()):
        digest.update(f"{field} {each}\n".encode())
    return digest.hexdigest()


class ArrayFile:
    """An .npy file that is written in chunks of rows, and the hash of its bytes so far."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.dtype, self.hash = dtype, hashlib.sha256()
        self._file = open(path, "wb")
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
        self._write(header.getbuffer())

    def _write(self, content: Any) -> None:
        self.hash.update(content)
        self._file.write(content)

    def append(self, rows: np.ndarray) -> None:
        self._write(np.ascontiguousarray(rows, self.dtype).data.cast("B"))

    def close(self) -> None:
        """Closes the file once all is on the disk."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def decode_into(folder: Path, records: Records, fields: list[str], title: str) -> str:
    """Decodes all records into a temporary folder and moves it to `folder`; returns the hash."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(cache_dir())
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with held(aside):
            digest = write_arrays(aside, records, fields, title)
        write_record(aside, digest, [file_name(field) for field in ("image", *fields)])
        if folder.exists() and recorded_hash(folder, fields, records.num) is None:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(aside, folder)
        except OSError:  # another process finished first
            if recorded_hash(folder, fields, records.num) != digest:
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return digest


def write_arrays(folder: Path, records: Records, fields: list[str], title: str) -> str:
    """Writes the decoded arrays of all records into `folder`; returns their hash."""
    first = {name: array for name, array in records.fetch(np.arange(1)).items() if name in ("image", *fields)}
    needed, free = sum(array.nbytes for array in first.values()) * records.num, shutil.disk_usage(folder).free
    if free < needed:  # checked before the work
        raise OSError(f"it takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free on the disk")
    files: dict[str, ArrayFile] = {}
    try:
        for name, array in first.items():
            files[name] = ArrayFile(folder / file_name(name), (records.num, *array.shape[1:]), array.dtype)
        with progress_bar(total=records.num, desc=title, unit="image", leave=False) as progress:
            for start in range(0, records.num, CHUNK):
                positions = np.arange(start, min(start + CHUNK, records.num))
                arrays = records.fetch(positions)
                for name, file in files.items():
                    file.append(arrays[name])
                progress.update(len(positions))
    finally:
        for file in files.values():
            file.close()
    others = {name: file.hash.hexdigest() for name, file in files.items() if name not in ("image", "label")}
    return combined_hash(folder, files["image"].hash, others, "label" in fields, records.num)


if __name__ == "__main__":
    import sys

    from jgen.data.cleaning import command
    from jgen.errors import exit_code

    sys.exit(exit_code(lambda: command(sys.argv[1:])))
