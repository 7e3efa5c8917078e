"""Runs on a user's own data: names of classes, data that moved, work that is gone on with, one-line errors."""

import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import assert_user_mistake, mistake
from data.small_sets import save
from PIL import Image
from toy_systems import experiment_of

import jgen
import sample
from jgen import cli
from jgen.core import progress
from jgen.data import dataset as datasets
from jgen.data.config import Config as Data
from jgen.data.config import DataLocation
from jgen.metrics import quality
from jgen.train.run_directory import read_config


@pytest.fixture(scope="module")
def named(cache, tmp_path_factory):
    """A run on a folder of three named classes, shorter than `log_every`."""
    folder = tmp_path_factory.mktemp("named")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        for i in range(12):
            save(folder / "set" / name / f"{i}.png", rng.integers(0, 256, (8, 8), np.uint8))
            (folder / "set" / name / f"{i}.txt").write_text(name)
    data = Data(name=f"folder:{folder / 'set'}", low_resolution=2, text_length=8)
    experiment = experiment_of("conditional", data=data)
    experiment = replace(experiment, train=replace(experiment.train, steps=2, log_every=100))
    assert jgen.fit(experiment, folder / "run") == "trained"
    return folder, experiment


def test_a_run_keeps_the_names_of_its_classes(named, tmp_path):
    run = named[0] / "run"
    gen = jgen.load(run)
    assert gen.classes == ("ant", "bee", "cat")
    np.save(tmp_path / "low.npy", np.zeros((4, 4, 1), np.uint8))
    args = [str(run), "--num", "4", "--text", "x", "--cond.low-resolution", str(tmp_path / "low.npy")]
    for label, out in (("bee", "name.npz"), ("1", "number.npz")):
        assert sample.command([*args, "--label", label, "--out", str(tmp_path / out)]) == 0
    with np.load(tmp_path / "name.npz") as one, np.load(tmp_path / "number.npz") as other:
        np.testing.assert_array_equal(one["images"], other["images"])
        assert one["labels"].tolist() == [1] * 4
    call = [*args, "--label", "cow", "--out", str(tmp_path / "x.npz")]
    mistake(lambda: sample.command(call), "label is 'cow'", "ant, bee, cat")
    assert sample.command([*args, "--label", "bee", "--columns", "2", "--out", str(tmp_path / "grid.png")]) == 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[0] > 2 * 50 + 2  # a name beside each row


def test_a_condition_may_be_any_picture(named, tmp_path):
    spec = jgen.load(named[0] / "run").model.data.fields["low_resolution"]
    deep = np.full((4, 4), 32768, np.uint16)
    Image.fromarray(deep).save(tmp_path / "low.tif")
    assert (cli.read_condition(tmp_path / "low.tif", spec) == 128).all()


def test_a_run_shorter_than_log_every_logs_its_end(named):
    lines = [json.loads(line) for line in (named[0] / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [2]


def test_data_that_moved_is_accepted_when_it_is_the_same(named, tmp_path, monkeypatch):
    folder, experiment = named
    longer = replace(experiment, train=replace(experiment.train, steps=3))
    (folder / "set").rename(folder / "moved")
    mistake(lambda: jgen.fit(longer, folder / "run"), "set does not exist")
    monkeypatch.chdir(folder)
    moved = replace(longer, data=replace(longer.data, name="folder:moved"))
    save(folder / "moved" / "ant" / "0.png", np.zeros((8, 8), np.uint8))
    mistake(lambda: jgen.fit(moved, "run"), "data.name was", "the data's hash was")
    rng = np.random.default_rng(0)
    save(folder / "moved" / "ant" / "0.png", rng.integers(0, 256, (8, 8), np.uint8))
    assert jgen.fit(moved, "run") == "trained"
    document = read_config(folder / "run")
    assert document["experiment"]["data"]["name"] == f"folder:{folder / 'moved'}"
    gen = jgen.load(folder / "run")
    (folder / "moved").rename(folder / "again")
    place = DataLocation(name="folder:again")
    _, reopened = datasets.reopen(gen.config.data, document["data_fingerprint"], "run", gen.tokenizers, place)
    assert reopened.fingerprint == document["data_fingerprint"]


def test_paths_may_begin_with_the_users_folder(named, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(named[0]))
    monkeypatch.chdir(tmp_path)
    assert jgen.load("~/run").classes == ("ant", "bee", "cat")
    assert not (tmp_path / "~").exists()


def test_samples_come_a_batch_at_a_time(tiny_run):
    gen = jgen.load(tiny_run)
    batches = list(gen.sample_batches(jax.random.key(0), 10, batch_size=4, steps=2))
    assert [len(images) for images in batches] == [4, 4, 2]
    whole = gen.sample(jax.random.key(0), 10, batch_size=4, steps=2)
    np.testing.assert_array_equal(np.concatenate(batches), whole)


@pytest.mark.slow
def test_a_stopped_sampling_goes_on(tiny_run, tmp_path, monkeypatch, capsys):
    from jgen.data.sample_store import SampleStore

    write, written = SampleStore.write, []

    def stop(self, images):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(len(images))
        write(self, images)

    args = [str(tiny_run), "--num", "10", "--batch-size", "4", "--steps", "2", "--out"]
    monkeypatch.setattr(SampleStore, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        sample.command([*args, str(tmp_path / "some.npz")])
    monkeypatch.setattr(SampleStore, "write", write)
    assert sample.command([*args, str(tmp_path / "some.npz")]) == 0
    assert "going on at image 8" in capsys.readouterr().err
    assert sample.command([*args, str(tmp_path / "whole.npz")]) == 0
    with np.load(tmp_path / "some.npz") as some, np.load(tmp_path / "whole.npz") as whole:
        np.testing.assert_array_equal(some["images"], whole["images"])
        np.testing.assert_array_equal(some["labels"], whole["labels"])


def test_features_are_gone_on_with(tmp_path):
    asked = []

    def fetch(start, stop):
        asked.append(start)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return np.full((stop - start, 2, 2, 1), start, np.uint8)

    def network(images):
        flat = images.reshape(len(images), -1).astype(np.float32)
        return flat, flat + 1, flat + 2

    call = ([network], 10, fetch, "features", 3, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        quality.features_of_each(*call)
    (answers,) = quality.features_of_each(*call)
    assert asked == [0, 3, 6, 6, 9]
    np.testing.assert_array_equal(answers[0][:, 0], [0, 0, 0, 3, 3, 3, 6, 6, 6, 9])
    np.testing.assert_array_equal(answers[2], answers[0] + 2)


def test_progress_is_drawn_seldom_where_it_goes_into_a_file(monkeypatch):
    for terminal, seconds in ((True, 0.5), (False, 30.0)):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", stream)
        assert progress.progress_bar(range(3)).mininterval == seconds


def test_a_backend_that_is_not_there_is_one_line(python, tiny_run):
    done = python("sample.py", tiny_run, check=False, JAX_PLATFORMS="cuda")
    assert_user_mistake(done, "JAX does not start on JAX_PLATFORMS=cuda")


def test_a_terminal_that_lacks_a_letter(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit):
        cli.main(lambda args: print("1 ± 2"))
    stream.flush()
    assert stream.buffer.getvalue() == b"1 \\xb1 2\n"


def test_a_full_disk_at_the_first_use_of_the_digits_is_one_line(tmp_path, monkeypatch):
    from jgen.data import tfds_sets

    class Full:
        def __init__(self, **options):
            self.data_dir = str(tmp_path / "nowhere")

        def download_and_prepare(self):
            raise RuntimeError("array_record: RESOURCE_EXHAUSTED\nNo space left on device")

    monkeypatch.setitem(sys.modules, "jgen.data.digits", SimpleNamespace(Digits=Full))
    mistake(tfds_sets.digits_builder, "cannot write the cache folder", "No space left on device", "JGEN_CACHE")
