"""The cache: what it holds, and what goes."""

import os
import subprocess
import sys

import numpy as np
from data.small_sets import save

from jgen.data import cleaning
from jgen.data import dataset as datasets
from jgen.data.config import Config


def aged(path, days):
    for each in [*path.rglob("*"), path]:
        os.utime(each, (each.stat().st_mtime - days * 86400,) * 2)


def folder_set(root):
    for i in range(10):
        save(root / f"{i}.png", np.full((4, 4), i, np.uint8))
    return Config(name=f"folder:{root}")


def test_what_a_killed_decoding_left_goes_by_itself(tmp_path, own_cache):
    for name, age in ((".train-killed", 1), (".train-now", 0)):
        folder = own_cache / "decoded" / "other-1-x" / name
        folder.mkdir(parents=True)
        (folder / "images.npy").write_bytes(b"x" * 1000)
        aged(folder, age)
    held = own_cache / "decoded" / "other-1-x" / ".test-held"
    held.mkdir()
    aged(held, 1)
    with cleaning.held(held):
        datasets.load(folder_set(tmp_path / "set"))
        assert {path.name for path in held.parent.iterdir()} == {".train-now", ".test-held"}


def test_the_cache_is_listed_and_cleaned(tmp_path, own_cache, capsys):
    datasets.load(folder_set(tmp_path / "old"))
    for path in own_cache.glob("decoded/*"):
        aged(path, 40)
    datasets.load(folder_set(tmp_path / "new"))
    (own_cache / "features").mkdir()
    (own_cache / "features" / "x.npz").write_bytes(b"x" * 2_000_000)
    assert cleaning.command([]) == 0
    out = capsys.readouterr().out
    assert "40 days ago  decoded/folder-old-" in out and "today  decoded/folder-new-" in out
    assert "2.0 MB         today  features/x.npz" in out
    assert cleaning.command(["--clean"]) == 0
    assert [path.name.split("-")[1] for path in own_cache.glob("decoded/*")] == ["new"]
    assert cleaning.command(["--clean", "--days", "0"]) == 0
    assert not list(own_cache.glob("*/*"))


def test_use_is_noted(tmp_path, own_cache):
    config = folder_set(tmp_path / "set")
    datasets.load(config)
    (path,) = own_cache.glob("decoded/*")
    made = path.stat().st_mtime
    aged(path, 40)
    datasets.load(config)  # the files' times are those of another copy now, and they are hashed again
    (entry,) = [entry for entry in cleaning.entries(own_cache) if entry.kind == "decoded"]
    assert entry.used >= made


def test_the_command(own_cache):
    done = subprocess.run([sys.executable, "-m", "jgen.data.cache"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"in {own_cache}") and not done.stderr
