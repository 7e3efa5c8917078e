"""Sampling and scoring by several processes: the outcome of one."""

import gc
import itertools
import json
import signal
import sys
import threading

import jax
import numpy as np
import pytest
from clusters import assert_ended_by_another, in_threads, start_each, wait_for, wait_for_file
from conftest import ROOT
from PIL import Image

from jgen import evaluate
from jgen.core import failures, generate, parallel
from jgen.core.generate import batch_of, run_over, sample_images
from jgen.core.model import ArraySpec, Context, DataSpec, GenerativeModel, ImageSpec
from jgen.data.sample_store import SampleStore
from jgen.errors import UserError, require
from jgen.metrics import classifier, quality

sys.path.insert(0, str(ROOT))

import sample

PARAMS: dict = {"gain": {"scale": np.ones(1, np.float32)}}
CTX = Context(np.int32(0), None, {}, {}, {})
KEY = jax.random.key(3)


def draw(params, ctx, keys, cond):
    failures.report("the label is 9", cond["label"] == 9)
    return jax.vmap(lambda key: jax.random.bits(key, (4, 4, 1), "uint8"))(keys)


def score(params, ctx, keys, images, cond):
    return jax.vmap(jax.random.normal)(keys) + images.astype(np.float32).mean((1, 2, 3)) * 2.0**-20


def validate(params, ctx, keys, batch):
    return {"of all": batch["label"] - batch["label"].mean(), "own": batch["label"] > 1}


MODEL = GenerativeModel(
    "noise",
    DataSpec(ImageSpec(4, 4, 1, 256), {"label": ArraySpec((), "int32", 10)}),
    lambda key, batch, frozen: ({}, {}),
    (),
    sample=draw,
    conditions=("label",),
    log_prob=score,
    likelihood="exact",
    validate=validate,
)


@pytest.mark.parametrize("num", [2, 3])
def test_all_processes_have_what_one_would(monkeypatch, num):
    for n, batch_size in ((1, 4), (12, 2), (13, 4)):
        label = np.arange(n) % 9

        def work(n=n, label=label, batch_size=batch_size):
            images = sample_images(MODEL, PARAMS, CTX, KEY, n, cond={"label": label}, start=5, batch_size=batch_size)
            arrays = {"image": images, "index": np.arange(n), "cond": {"label": label}}
            nats = run_over(MODEL, "log_prob", PARAMS, CTX, KEY, arrays, batch_size=batch_size)
            batch = {"image": images, "index": np.arange(n), "label": label.astype(np.float32)}
            # Some scores are of all images of a batch: it is that of one process.
            return images, nats, run_over(MODEL, "validate", PARAMS, CTX, KEY, batch, batch_size=batch_size)

        alone = work()
        assert alone[1].dtype == np.float32 and alone[2]["own"].dtype == bool
        for outcome in in_threads(monkeypatch, num, work):
            jax.tree.map(np.testing.assert_array_equal, outcome, alone)
            assert jax.tree.map(lambda x: x.dtype, outcome) == jax.tree.map(lambda x: x.dtype, alone)


def test_processes_take_few_turns_of_even_parts():
    assert [batch_of(n, 100) for n in (1, 5, 64, 1000)] == [1, 8, 64, 100]
    assert [batch_of(1000, 100, num) for num in (1, 2, 8, 16)] == [100, 100, 64, 64]
    assert [batch_of(64, 64, num) for num in (2, 3, 64, 100)] == [32, 32, 1, 1]


def test_each_computes_its_part(monkeypatch):
    indices = {}

    def compiled(model, name, options):
        def function(params, ctx, key, numbers, arrays):
            index = arrays["index"]
            indices.setdefault(threading.get_ident(), []).extend(index.ravel().tolist())
            return np.stack([index, index], axis=-1), {}

        return function

    monkeypatch.setattr(generate, "compiled", compiled)
    outcomes = in_threads(monkeypatch, 2, lambda: sample_images(MODEL, PARAMS, CTX, KEY, 14, batch_size=4))
    for rows in outcomes:
        np.testing.assert_array_equal(rows, np.stack([np.arange(14)] * 2, axis=-1))
    first, second = sorted(indices.values())
    assert first == [0, 1, 2, 3, 8, 9, 10, 11] and second == [4, 5, 6, 7, 12, 13, 13, 13]


def test_an_image_that_fails_ends_all_and_one_process_alone_asks_no_other(monkeypatch):
    label = np.where(np.arange(8) == 6, 9, 0)
    outcomes = in_threads(
        monkeypatch, 2, lambda: sample_images(MODEL, PARAMS, CTX, KEY, 8, cond={"label": label}, batch_size=4)
    )
    assert [str(error) for error in outcomes] == [
        "process 1: image 6 failed: the label is 9",
        "image 6 failed: the label is 9",
    ]

    def work():
        with parallel.alone():
            return sample_images(MODEL, PARAMS, CTX, KEY, 3) if parallel.is_main_process() else None

    first, second = in_threads(monkeypatch, 2, work)
    assert len(first) == 3 and len(second) == 3  # each is the main process of its own work


def store(out, num=10):
    return SampleStore(out, num, 3, ImageSpec(4, 4, 1, 256), {"seed": 0})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "x.npz"])
def test_a_store_is_gone_on_with_by_another_number_of_processes(monkeypatch, tmp_path, name):
    whole = sample_images(MODEL, PARAMS, CTX, KEY, 10, cond={"label": 0}, start=3)
    asked = []

    def work(stop):
        def batches(start, num):
            asked.append((start, num))
            for images in generate.sample_batches(
                MODEL, PARAMS, CTX, KEY, num, cond={"label": 0}, start=start, batch_size=1
            ):
                require(start < stop, "stopped")
                start += len(images)
                yield images

        one = store(tmp_path / name)
        one.collect(batches)
        one.finish(None, 4)

    for num, stop in ((2, 7), (3, 10)):
        assert [str(error) for error in in_threads(monkeypatch, num, lambda stop=stop: work(stop))] == ["stopped"] * num
        gc.collect()  # the lock of the store
    work(13)
    assert asked == [(3, 10)] * 2 + [(7, 6)] * 3 + [(10, 3)]
    if name == "folder":
        files = [tmp_path / name / f"{i:06d}.png" for i in range(3, 13)]
        np.testing.assert_array_equal([np.asarray(Image.open(path)) for path in files], whole[..., 0])
    else:
        with np.load(tmp_path / name) as saved:
            np.testing.assert_array_equal(saved["images"], whole)
        assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_store_that_the_first_process_cannot_open_is_named_by_all(monkeypatch, tmp_path):
    held = store(tmp_path / "x.npz")
    errors = in_threads(monkeypatch, 2, lambda: store(tmp_path / "x.npz"))
    assert all("another process is writing" in str(error) for error in errors)
    held.drop()


def test_features_are_divided_and_stored_by_the_first(monkeypatch, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (23, 2, 2, 1)).astype(np.uint8)
    seen, fetched = [], []

    def apply(part):
        seen.append(len(part))
        return part.reshape(len(part), -1).astype(np.float64) / 3, part[:, 0, 0, 0]

    def network(images):
        return classifier.in_batches(apply, images, 3)

    def fetch(start, stop):
        fetched.append(start)
        require(start < 20 or len(fetched) > 6, "stopped")
        return images[start:stop]

    def work():
        return quality.features_of_each([network], len(images), fetch, "features", 10, tmp_path / "parts")

    outcomes = in_threads(monkeypatch, 2, work)
    assert [str(error) for error in outcomes] == ["stopped"] * 2 and sorted(fetched) == [0, 0, 10, 10, 20, 20]
    assert len(list((tmp_path / "parts").iterdir())) == 2 and len(seen) == 8  # batches of two chunks, by two
    first, second = in_threads(monkeypatch, 2, work)
    assert sorted(fetched[6:]) == [20, 20] and second == []
    features, values = first[0]
    np.testing.assert_array_equal(features, images.reshape(23, -1) / 3)  # float64, to the bit
    np.testing.assert_array_equal(values, images[:, 0, 0, 0])


def test_arrays_of_the_first_are_those_of_all(monkeypatch):
    number = itertools.count()
    outcomes = in_threads(monkeypatch, 3, lambda: parallel.arrays_from_main(lambda: {"a": np.float64(next(number))}))
    assert [outcome["a"] for outcome in outcomes] == [0.0] * 3 and next(number) == 1

    def fail():
        raise UserError("it is damaged")

    errors = in_threads(monkeypatch, 2, lambda: parallel.arrays_from_main(fail))
    assert [str(error) for error in errors] == ["it is damaged", "process 0: it is damaged"]


@pytest.mark.slow
def test_two_processes_go_on_with_samples_that_one_began(tiny_run, tmp_path, start_python):
    """To the bytes that one process leaves, which draws them at once."""
    words = ["sample.py", str(tiny_run), "--num", "12", "--batch-size", "4"]
    out = tmp_path / "x.npz"
    sample.command([*words[1:], "--out", str(tmp_path / "alone.npz")])
    write = SampleStore.write

    def write_once(self, images):
        if self.next > 0:
            raise KeyboardInterrupt
        write(self, images)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SampleStore, "write", write_once)
        sample.command([*words[1:], "--out", str(out)])
    assert (tmp_path / ".x.npz.partial").is_dir() and not out.exists()
    gc.collect()  # the lock of the store
    first, second = wait_for(start_each(start_python, [*words, "--out", out], devices=2))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "going on at image 4" in first[2] and "12 images of" in first[1]
    assert "going on" not in second[2] and "images of" not in second[1]
    assert out.read_bytes() == (tmp_path / "alone.npz").read_bytes() and not (tmp_path / ".x.npz.partial").exists()


def without_times(document):
    """A record of scores without what tells of the command, the machine and its speed."""
    if isinstance(document, dict):
        own = ("command", "environment", "seconds")
        return {name: without_times(value) for name, value in document.items() if name not in own}
    return document


def assert_close(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_close(a[name], b[name])
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    else:
        assert a == b


@pytest.mark.slow
def test_two_processes_score_as_one_does(tiny_run, tmp_path, start_python):
    words = ["-m", "jgen.evaluate", str(tiny_run), "--samples", "60", "--num", "60", "--batch-size", "16"]
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    outputs = {place: ["--out", str(place / "x.json"), "--grid", str(place / "x.png")] for place in (one, two)}
    assert evaluate.command([*words[2:], *outputs[one]]) == 0
    first, second = wait_for(start_each(start_python, [*words, *outputs[two]], devices=2))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "bits/dim" in first[1] and "bits/dim" not in second[1]
    scores = [without_times(json.loads((place / "x.json").read_text())) for place in (one, two)]
    assert_close(*scores)
    assert (one / "x.png").read_bytes() == (two / "x.png").read_bytes()
    assert sorted(path.name for path in two.iterdir()) == ["x.json", "x.png"]


# Without the first, the second ends at once; without the second, the first after 30 s.
@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other(tiny_run, tmp_path, start_python, killed):
    words = ["sample.py", str(tiny_run), "--num", "100000", "--batch-size", "8", "--out", tmp_path / "x.npz"]
    processes = start_each(start_python, words)
    wait_for_file(tmp_path / ".x.npz.partial" / ".samples.json", processes)
    processes[killed].send_signal(signal.SIGKILL)
    assert_ended_by_another(processes[1 - killed])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_one", "words"),
    [(("--seed", "7"), "process 1 differs from process 0 in seed"), (("--step", "3"), "has no checkpoint of step 3")],
)
def test_processes_that_would_draw_other_images_end_with_one_line(tiny_run, tmp_path, start_python, of_one, words):
    out = tmp_path / "x.npz"
    outcomes = wait_for(
        start_each(start_python, ["sample.py", str(tiny_run), "--num", "8", "--out", out], of_one=of_one)
    )
    for number, (code, _, errors) in enumerate(outcomes):
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code != 0 and len(lines) == 1 and "Traceback" not in errors, errors
        assert words in lines[0] or (number == 0 and "another process" in lines[0])
    assert words in outcomes[1][2] and not out.exists()
