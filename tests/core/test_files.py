"""A file is written whole, or what stood there stays."""

import pytest

from jgen.core.files import check_writable, written_whole
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
    assert path.read_text() == "old" and [found.name for found in path.parent.iterdir()] == ["x.txt"]


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
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "folder"]


def test_what_can_be_written_is_told_beforehand_and_left_as_it_is(tmp_path):
    path = tmp_path / "folder" / "x.json"
    check_writable(path)
    assert path.parent.is_dir() and not list(path.parent.iterdir())
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old" and [found.name for found in path.parent.iterdir()] == ["x.json"]
    with pytest.raises(UserError, match=f"^cannot write {path.parent}: Is a directory$"):
        check_writable(path.parent)
    with pytest.raises(UserError, match=f"^cannot write {path / 'y.json'}: (Not a directory|File exists)$"):
        check_writable(path / "y.json")
