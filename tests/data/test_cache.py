"""Decoded splits: written once, told damaged, hashed no more often than they must be, streamed where too large."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from data.small_sets import everything

from jgen.data import cache
from jgen.data import dataset as datasets
from jgen.data.config import Config
from jgen.data.sources import Records
from jgen.errors import UserError


def test_records_that_are_streamed_are_those_of_the_cache(prepared, own_cache, monkeypatch):
    config = Config(name="petite", dir=str(prepared), size=5)
    cached = datasets.load(config)
    before = sorted(own_cache.rglob("*"))
    monkeypatch.setattr(datasets, "memory_limit", lambda: 0)
    monkeypatch.setattr(datasets, "decoded", lambda *args: pytest.fail("decoded although it does not fit"))
    streamed = datasets.load(config)
    assert sorted(own_cache.rglob("*")) == before
    for name, split in cached.splits.items():
        positions = np.random.default_rng(0).permutation(split.num)
        a, b = split.fetch(positions), streamed.splits[name].fetch(positions)
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
            assert a[key].dtype == b[key].dtype


@pytest.mark.slow
def test_tensorflow_is_never_imported(prepared, python, tmp_path):
    program = """
import sys
import numpy as np
from jgen.data import dataset
from jgen.data.config import Config
for config in (Config(), Config(name="mnist", dir=sys.argv[1])):
    loaded = dataset.load(config)
    dataset.memory_limit = lambda: 0
    streamed = dataset.load(config)
    for each in (loaded, streamed):
        each.splits["train"].fetch(np.arange(3))
assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow" and sys.modules[name] is not None]
"""
    python("-c", program, prepared, JGEN_CACHE=str(tmp_path / "cache"))


def test_a_set_that_is_prepared_anew_is_decoded_anew(prepared, own_cache, monkeypatch):
    """Of the same name, version and sizes, as where a set was prepared from wrong files before."""
    folder = shutil.copytree(prepared, own_cache / "tfds")
    config = Config(name="petite", dir=str(folder))
    first, source = datasets.load(config), datasets.open_source(config)
    os.utime(next((folder / "petite").rglob("*array_record*")))
    open_source = datasets.open_source
    assert datasets.open_source(config).files != source.files

    def inverted(records):
        def fetch(positions):
            arrays = records.fetch(positions)
            return {**arrays, "image": 255 - arrays["image"]}

        return records._replace(fetch=fetch)

    splits = {name: inverted(part) for name, part in source.splits.items()}
    monkeypatch.setattr(
        datasets, "open_source", lambda config: source._replace(files=open_source(config).files, splits=splits)
    )
    again = datasets.load(config)
    before, after = (everything(dataset.splits["test"])["image"] for dataset in (first, again))
    np.testing.assert_array_equal(after, 255 - before)
    assert again.fingerprint != first.fingerprint


def test_a_set_is_decoded_once_and_again_when_damaged(prepared, own_cache, monkeypatch):
    calls = []
    real = datasets.open_source

    def counting(config):
        source = real(config)

        def wrap(name, records):
            def fetch(positions):
                calls.append(name)
                return records.fetch(positions)

            return Records(records.num, fetch)

        return source._replace(splits={name: wrap(name, records) for name, records in source.splits.items()})

    monkeypatch.setattr(datasets, "open_source", counting)
    config = Config(name="petite", dir=str(prepared))
    first = datasets.load(config)
    wanted = everything(first.splits["train"])
    assert set(calls) == {"train", "validation", "test"}
    calls.clear()
    assert datasets.load(config).fingerprint == first.fingerprint and not calls
    names = sorted(p.relative_to(own_cache) for p in own_cache.glob("decoded/*/train/*"))
    assert [name.name for name in names] == ["hash.json", "images.npy", "labels.npy"]
    for name in names:
        for damage in ("flip", "truncate", "remove"):
            path = own_cache / name
            content = path.read_bytes()
            if damage == "remove":
                path.unlink()
            else:
                path.write_bytes(content[:-1] + (bytes([content[-1] ^ 255]) if damage == "flip" else b""))
            calls.clear()
            again = datasets.load(config)
            assert set(calls) == {"train"}, (name, damage)
            assert again.fingerprint == first.fingerprint
            for key, array in everything(again.splits["train"]).items():
                np.testing.assert_array_equal(array, wanted[key])
    assert not list(own_cache.rglob(".train-*"))  # nothing is left of what was written aside


@pytest.fixture
def hashed(monkeypatch):
    """The folders whose files are read and hashed."""
    folders = []
    hash_files = cache.hash_files

    def count(folder, *args):
        folders.append(folder.name)
        return hash_files(folder, *args)

    monkeypatch.setattr(cache, "hash_files", count)
    return folders


def test_the_hash_is_that_of_the_files_and_no_file_is_hashed_at_a_start(prepared, own_cache, hashed):
    config = Config(name="petite", dir=str(prepared))
    first = datasets.load(config)
    (record,) = own_cache.glob("decoded/*/train/hash.json")
    content = b"".join((record.parent / name).read_bytes() for name in ("images.npy", "labels.npy"))
    assert json.loads(record.read_text())["sha256"] == hashlib.sha256(content).hexdigest()
    assert np.load(record.parent / "images.npy").shape == (20, 6, 8, 3)
    assert np.load(record.parent / "labels.npy").dtype == np.int32
    assert datasets.load(config).fingerprint == first.fingerprint and not hashed


def test_the_hash_of_the_digits_is_pinned(digits):
    """Runs keep it: it must not change with the version of jgen."""
    assert digits.fingerprint == "b5027442048c50a94938b76327f4355ecf17469d8183a93ca79bcfb10a121a26"


def test_without_classes_the_hash_is_that_of_classes_that_are_all_0(prepared, own_cache):
    """As it was when such sets had an array of labels."""
    datasets.load(Config(name="binarized_mnist", dir=str(prepared)))
    for record in own_cache.glob("decoded/*/*/hash.json"):
        assert sorted(path.name for path in record.parent.iterdir()) == ["hash.json", "images.npy"]
        labels = io.BytesIO()
        np.save(labels, np.zeros(len(np.load(record.parent / "images.npy")), np.int32))
        content = (record.parent / "images.npy").read_bytes() + labels.getvalue()
        assert json.loads(record.read_text())["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_copied_cache_is_hashed_once_and_its_record_refreshed(prepared, own_cache, hashed, monkeypatch):
    config = Config(name="petite", dir=str(prepared))
    first = datasets.load(config)
    for path in own_cache.glob("decoded/*/test/*.npy"):
        os.utime(path, ns=(1, 1))
    monkeypatch.setattr(cache, "decode_into", lambda *args: pytest.fail("decoded although nothing is damaged"))
    assert datasets.load(config).fingerprint == first.fingerprint and hashed == ["test"]
    assert datasets.load(config).fingerprint == first.fingerprint and hashed == ["test"]


def test_a_record_without_sizes_and_times_is_completed(prepared, own_cache, hashed, monkeypatch):
    """Older caches have such ones."""
    config = Config(name="petite", dir=str(prepared))
    first = datasets.load(config)
    (record,) = own_cache.glob("decoded/*/train/hash.json")
    record.write_text(json.dumps({"sha256": json.loads(record.read_text())["sha256"]}))
    monkeypatch.setattr(cache, "decode_into", lambda *args: pytest.fail("decoded although nothing is damaged"))
    for _ in range(2):
        assert datasets.load(config).fingerprint == first.fingerprint and hashed == ["train"]


def test_a_file_of_another_size_is_not_hashed(prepared, own_cache, hashed):
    config = Config(name="petite", dir=str(prepared))
    first = datasets.load(config)
    (path,) = own_cache.glob("decoded/*/train/images.npy")
    path.write_bytes(path.read_bytes()[:-1])
    assert datasets.load(config).fingerprint == first.fingerprint and not hashed


def test_files_are_on_the_disk_before_they_are_in_place(prepared, own_cache, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def log_fsync(handle):
        events.append(os.readlink(f"/proc/self/fd/{handle}").split("/")[-1])
        return fsync(handle)

    def log_replace(source, target):
        events.append(f"in place: {Path(target).name}")
        return replace(source, target)

    monkeypatch.setattr(cache.os, "fsync", log_fsync)
    monkeypatch.setattr(cache.os, "replace", log_replace)
    datasets.load(Config(name="binarized_mnist", dir=str(prepared)))
    images, record, record_moved, aside, aside_moved, parent = events[:6]
    assert images == "images.npy" and record.endswith("hash.json") and record_moved == "in place: hash.json"
    assert aside.startswith(".train-") and aside_moved == "in place: train" and parent.startswith("binarized_mnist-")


def test_no_room_in_the_cache_is_one_line(own_cache, monkeypatch):
    usage = shutil.disk_usage(own_cache.parent)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"cannot write the cache folder .*: it takes 0\.1 MB, and 0\.0 MB are free"):
        datasets.load(Config())
    assert not list(own_cache.rglob(".train-*"))


def test_the_hash_tells_the_content(digits, prepared, own_cache):
    a = datasets.load(Config(name="petite", dir=str(prepared)))
    b = datasets.load(Config(name="petite", dir=str(prepared), size=5))
    assert len({digits.fingerprint, a.fingerprint, b.fingerprint}) == 3
    hashes = [json.loads(p.read_text())["sha256"] for p in own_cache.glob("decoded/*/*/hash.json")]
    assert len(hashes) == 6 == len(set(hashes))


@pytest.mark.slow
def test_processes_that_start_at_once_prepare_one_cache(tmp_path, digits):
    program = "from jgen.data import dataset; from jgen.data.config import Config\n"
    program += "train = dataset.load(Config(name='digits')).splits['train']\n"
    program += "print(train.fetch(range(train.num))['image'].sum())"
    environment = {**os.environ, "JGEN_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    wanted = everything(digits.splits["train"])["image"].sum()
    for process in started:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert int(stdout) == wanted and "WARNING" not in stderr
    assert len(list(tmp_path.glob("decoded/*"))) == 1
