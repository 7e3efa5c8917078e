"""Files of PyTorch before 1.6, written here by hand: tensors are read, everything else is refused."""

import collections
import os
import pickle

import numpy as np
import pytest
from conftest import mistake

from jgen.core import torch_file


def written(entries, storages, magic=torch_file.MAGIC, keys=None, counts=None, cut=0):
    """The bytes of a file. entries: {name: (storage key, offset, shape, strides)}; storages: {key: array}."""

    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def number(value):
        return b"J" + int(value).to_bytes(4, "little", signed=True)

    def sequence(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    kinds = {"float32": "FloatStorage", "int64": "LongStorage"}
    body = b"ccollections\nOrderedDict\n)R("
    for name, (key, offset, shape, strides) in entries.items():
        numbers = storages[key]
        pid = b"(" + text("storage") + b"ctorch\n" + kinds[numbers.dtype.name].encode() + b"\n"
        pid += text(key) + text("cpu") + number(numbers.size) + b"NtQ"
        rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(offset) + sequence(shape) + sequence(strides)
        body += text(name) + rebuild + b"\x89ccollections\nOrderedDict\n)RtR"
    content = b"".join(pickle.dumps(part, 2) for part in (magic, torch_file.VERSION, {"little_endian": True}))
    content += b"\x80\x02" + body + b"u." + pickle.dumps(list(storages) if keys is None else keys, 2)
    for numbers in storages.values():
        count = numbers.size if counts is None else counts
        content += count.to_bytes(8, "little") + numbers.tobytes()
    return content[: len(content) - cut]


A, B = np.arange(12, dtype=np.float32), np.arange(4, dtype=np.int64)
ENTRIES = {"a": ("0", 0, (3, 4), (4, 1)), "t": ("0", 2, (2, 2), (1, 4)), "b": ("1", 0, (), ())}


def test_tensors_are_read_with_their_strides(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(written(ENTRIES, {"0": A, "1": B}))
    arrays = torch_file.read(path)
    np.testing.assert_array_equal(arrays["a"], A.reshape(3, 4))
    np.testing.assert_array_equal(arrays["t"], [[2, 6], [3, 7]])
    assert arrays["b"] == 0 and arrays["b"].dtype == np.int64 and list(arrays) == ["a", "t", "b"]


@pytest.mark.parametrize(
    "content,words",
    [
        (written(ENTRIES, {"0": A, "1": B}, magic=7), ["before 1.6"]),
        (written(ENTRIES, {"0": A, "1": B}, cut=3), ["storage 1", "cut off"]),
        (written(ENTRIES, {"0": A, "1": B}, counts=5), ["storage 0", "length"]),
        (written(ENTRIES, {"0": A, "1": B}, keys=["0"]), ["a storage is missing"]),
        (written(ENTRIES, {"0": A, "1": B}, keys=["0", "2"]), ["that no tensor is in"]),
        (written({"a": ("0", 0, (3, 5), (5, 1))}, {"0": A}), ["outside its storage"]),
        (written({"a": ("0", -1, (3, 4), (4, 1))}, {"0": A}), ["outside its storage"]),
        (written({"a": ("0", 0, (3, 4), (-4, 1))}, {"0": A}), ["outside its storage"]),
        (b"not a pickle", ["not a file of tensors"]),
        (b"", ["not a file of tensors"]),
    ],
)
def test_damaged_files_are_one_line(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    mistake(lambda: torch_file.read(path), str(path), *words)


def test_nothing_that_is_in_a_file_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    plain = [torch_file.MAGIC, torch_file.VERSION, {"little_endian": True}]
    for evil in (Evil(), {"a": Evil()}, collections.OrderedDict(a=Evil())):
        content = b"".join(pickle.dumps(part, 2) for part in (*plain, evil, []))
        mistake(lambda content=content: torch_file.parse(content), "which is no tensor", "system")
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Evil(), 2))
    mistake(lambda: torch_file.read(path), "which is no tensor")
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (*plain, {"a": 3}, [])))
    mistake(lambda: torch_file.read(path), "a dictionary of tensors")
    assert not (tmp_path / "ran").exists()
    mistake(lambda: torch_file.read(tmp_path / "none.pth"), "there is no file")
