"""Reads tensors from files that `torch.save` wrote before PyTorch 1.6, without PyTorch and without executing code.

Such a file is five pickles (a magic number, the version, the sizes of types, the object, the keys of its storages) and
then every storage as its length and its raw numbers. The object is read by an unpickler that knows tensors, ordered
dictionaries and plain values, and refuses everything else.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen.errors import UserError, require

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
TYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
MOST = 1 << 31  # most bytes of a file


class Storage(NamedTuple):
    """Reference to a tensor's numbers, before they are read."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """Makes a view and checks that it lies within its storage."""
    fits = isinstance(storage, Storage) and len(shape) == len(strides) and offset >= 0
    fits = fits and all(size >= 0 and stride >= 0 for size, stride in zip(shape, strides))
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides)) if fits else 0
    require(fits and (0 in shape or last < storage.size), "a tensor is outside its storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


class Reader(pickle.Unpickler):
    """An unpickler of tensors, ordered dictionaries and plain values."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if module == "torch" and name in TYPES:
            return name
        raise UserError(f"it holds {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> Storage:
        fits = isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and pid[1] in TYPES
        require(fits and isinstance(pid[4], int) and pid[4] >= 0, "it names a storage of an unknown kind")
        _, kind, key, _, size = pid[:5]
        return Storage(str(key), TYPES[kind], size)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a file that holds a dictionary of tensors.

    Raises:
      UserError: no such file, another format, or a file that holds anything but tensors.
    """
    path = Path(path)
    require(path.is_file(), f"there is no file {path}")
    size = path.stat().st_size
    require(size <= MOST, f"{path} has {size} bytes: files of at most {MOST} are read")
    content = path.read_bytes()
    try:
        return parse(content)
    except UserError as error:
        raise UserError(f"{path} is not read: {error}") from error
    except Exception as error:  # pickle raises any type for bytes that are not a pickle
        raise UserError(f"{path} is not a file of tensors that PyTorch before 1.6 saved: {error}") from error


def parse(content: bytes) -> dict[str, np.ndarray]:
    """`read` of a file's content."""
    stream = io.BytesIO(content)
    magic, version = (Reader(stream).load() for _ in range(2))
    require((magic, version) == (MAGIC, VERSION), "it does not begin as a file of PyTorch before 1.6 does")
    Reader(stream).load()  # sizes of types: only little endian exists
    tensors = Reader(stream).load()
    keys = Reader(stream).load()
    named = isinstance(tensors, dict) and all(isinstance(value, Tensor) for value in tensors.values())
    require(named, "it must be a dictionary of tensors")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    arrays = {}
    for key in keys:
        require(key in storages, "it has a storage that no tensor is in")
        storage = storages[key]
        count = int.from_bytes(stream.read(8), "little")
        numbers = stream.read(count * storage.dtype.itemsize) if count == storage.size else b""
        whole = count == storage.size and len(numbers) == count * storage.dtype.itemsize
        require(whole, f"storage {key} is cut off, or is not of the length that its tensors have")
        arrays[key] = np.frombuffer(numbers, storage.dtype)
    require(set(arrays) == set(storages), "a storage is missing")
    return {str(name): view(arrays[tensor.storage.key], tensor) for name, tensor in tensors.items()}


def view(numbers: np.ndarray, tensor: Tensor) -> np.ndarray:
    """A tensor's array, copied."""
    strides = tuple(stride * numbers.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides).copy()
