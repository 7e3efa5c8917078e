"""A file is written whole, or what stood there stays."""

import errno
import json
import os

import numpy as np
import pytest

from jgen.core import files
from jgen.core.files import check_writable, finite_or_none, written_whole
from jgen.errors import UserError


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "folder" / "x.txt"
    with written_whole(path) as aside:
        assert aside.suffix == ".txt" and aside.parent == path.parent
        aside.write_text("old")
        assert not path.exists()
    assert path.read_text() == "old"
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), written_whole(path) as aside:
            aside.write_text("half")
            raise error
    assert path.read_text() == "old" and [file.name for file in path.parent.iterdir()] == ["x.txt"]


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.txt"
    with pytest.raises(UserError, match=rf"^cannot write {path}: (Not a directory|File exists); try another$"):
        with written_whole(path, "; try another") as aside:
            aside.write_text("")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError, match="Is a directory"), written_whole(folder) as aside:
        aside.write_text("")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_what_can_be_written_is_told_beforehand_and_left_as_it_is(tmp_path):
    path = tmp_path / "folder" / "x.json"
    check_writable(path)
    assert path.parent.is_dir() and not list(path.parent.iterdir())
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old" and [file.name for file in path.parent.iterdir()] == ["x.json"]
    with pytest.raises(UserError, match=f"^cannot write {path.parent}: Is a directory$"):
        check_writable(path.parent)
    with pytest.raises(UserError, match=f"^cannot write {path / 'y.json'}: (Not a directory|File exists)$"):
        check_writable(path / "y.json")


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And its name before the block ends."""
    path, steps, fsync = tmp_path / "x.txt", [], os.fsync

    def spy(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append(("the folder" if name == tmp_path.name else "the file", path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    with written_whole(path) as aside:
        aside.write_text("new")
        assert not steps
    assert steps == [("the file", False), ("the folder", True)]


@pytest.mark.parametrize("number,serves", [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_disk_that_fails_is_told_and_one_that_cannot_sync_folders_serves(tmp_path, monkeypatch, number, serves):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    path = tmp_path / "x.txt"
    if serves:
        with written_whole(path) as aside:
            aside.write_text("new")
    else:
        with pytest.raises(UserError, match=f"cannot write {path}: Input/output error"), written_whole(path) as aside:
            aside.write_text("new")
    assert path.exists() == serves and len(list(tmp_path.iterdir())) == serves


def test_numbers_that_json_has_no_word_for_are_null():
    document = {"a": [1.5, float("nan"), (np.float32("inf"), np.float64(2.0))], "b": {"c": -np.inf, "d": "nan", "e": 3}}
    plain = finite_or_none(document)
    assert plain == {"a": [1.5, None, [None, 2.0]], "b": {"c": None, "d": "nan", "e": 3}}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
