"""Runs that are joined when they are sampled: a cascade of small and large images, a classifier that guides."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import ROOT, mistake

import jgen
import sample
from jgen import evaluate
from jgen.cli import import_config
from jgen.data.config import Config as Data
from jgen.data.pictures import to_display
from jgen.train.config import Optimiser

pytestmark = pytest.mark.slow

KEY = jax.random.key(3)


def tiny(name, **data):
    experiment = import_config(ROOT / "configs" / "diffusion" / f"{name}.py").get_config("tiny")
    train = dataclasses.replace(experiment.train, steps=8, sample_every=0, validate_every=0)
    train = dataclasses.replace(train, optimiser=Optimiser(learning_rate=0.02), ema_decay=0.0)
    own = Data(**{**vars(experiment.data), **data})
    return dataclasses.replace(experiment, train=train, data=own)


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    """A model of 4x4 digits, an upsampler to 8x8, and a classifier of noisy 8x8 digits."""
    folder = tmp_path_factory.mktemp("cascade")
    jgen.fit(tiny("dit", size=4), folder / "base")
    jgen.fit(tiny("upsampler"), folder / "upsampler")
    jgen.fit(tiny("noisy_classifier"), folder / "classifier")
    return folder


def test_a_cascade_is_its_models_one_after_the_other(runs):
    base, upsampler = jgen.load(runs / "base"), jgen.load(runs / "upsampler")
    cascade = jgen.Cascade(base, upsampler)
    labels = np.array([3, 1, 4, 1, 5])
    images = cascade.sample(KEY, 5, batch_size=4, label=labels, steps=2)
    assert images.shape == (5, 8, 8, 1) and cascade.model is upsampler.model
    small = np.round(base.sample(KEY, 5, label=labels, steps=2) * (16 / 255)).astype(np.uint8)  # digits have 17 levels
    key = jgen.cascade.rng.stream(KEY, jgen.cascade.rng.CASCADE)
    np.testing.assert_array_equal(images, upsampler.sample(key, 5, label=labels, low_resolution=small))
    np.testing.assert_array_equal(images[2:4], cascade.sample(KEY, 2, start=2, label=labels[2:4], steps=2))
    assert np.any(images != cascade.sample(KEY, 5, label=7, steps=2))


def test_the_scores_of_a_cascade_are_those_of_its_images(runs, tmp_path):
    base, upsampler = str(runs / "base"), str(runs / "upsampler")
    cascade, labels = jgen.Cascade(jgen.load(base), jgen.load(upsampler)), np.arange(60) % 10
    images = to_display(cascade.sample(jax.random.key(0), 60, label=labels, steps=2), 17)
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    rest = ["--num", "20", "--no-memorisation", "--out", str(tmp_path / "x.json")]

    def scores(*words):
        assert evaluate.command([*words, *rest]) == 0
        return json.loads((tmp_path / "x.json").read_text())

    of_images = scores("--images", str(tmp_path / "x.npz"), "--data.name", "digits")
    record = scores(base, "--cascade", upsampler, "--samples", "60", "--sampling.steps", "2")
    assert record["quality"]["frechet_distance"] == of_images["quality"]["frechet_distance"]
    assert record["labels"]["accuracy"] == of_images["labels"]["accuracy"] and record["likelihood"] is None
    assert [stage["system"] for stage in (record, *record["cascade"])] == ["dit", "adm"]
    words = [base, "--cascade", upsampler]
    mistake(lambda: evaluate.command([*words, "--samples", "0"]), "--cascade is of samples, of which --samples 0")
    mistake(lambda: evaluate.command([*words, "--reconstruct"]), "--reconstruct is of one run: --cascade has several")
    mistake(lambda: evaluate.command([base, "--cascade", base]), "dit is no upsampler")


def test_the_commands(runs, tmp_path):
    out, plain = tmp_path / "large.npz", tmp_path / "plain.npz"
    words = ["--num", "4", "--label", "2", "--steps", "2"]
    sample.command([str(runs / "base"), *words, "--out", str(out), "--cascade", str(runs / "upsampler")])
    with np.load(out) as arrays:
        cascade = jgen.Cascade(jgen.load(runs / "base"), jgen.load(runs / "upsampler"))
        np.testing.assert_array_equal(arrays["images"], cascade.sample(jax.random.key(0), 4, label=2, steps=2))
    small = np.zeros((4, 4, 1), np.uint8)
    np.save(tmp_path / "small.npy", small)
    given = [str(runs / "upsampler"), *words, "--cond.low-resolution", str(tmp_path / "small.npy")]
    guided = ["--frozen.classifier", str(runs / "classifier"), "--classifier-scale", "1e4"]
    sample.command([*given, "--out", str(plain)])
    sample.command([*given, "--out", str(out), *guided])
    with np.load(out) as with_classifier, np.load(plain) as without:
        assert np.any(with_classifier["images"] != without["images"])


def test_what_does_not_fit(runs):
    base, upsampler, classifier = (jgen.load(runs / name) for name in ("base", "upsampler", "classifier"))
    mistake(lambda: jgen.Cascade(base, base), "dit is no upsampler", "data.low_resolution")
    mistake(lambda: jgen.Cascade(upsampler, upsampler), "(4, 4, 1)", "(8, 8, 1)")
    load = jgen.load
    mistake(lambda: load(runs / "upsampler", frozen={"guide": runs / "base"}), "frozen has 'guide'", "takes classifier")
    mistake(lambda: load(runs / "upsampler", frozen={"classifier": runs / "base"}), "classifier is a dit")
    mistake(lambda: load(runs / "base", frozen={"classifier": runs / "classifier"}), "(8, 8, 1)", "(4, 4, 1)")
    mistake(lambda: classifier.sample(KEY, 2), "it classifies noisy images", kind=jgen.errors.NotSupported)
    assert jgen.load(runs / "upsampler", frozen={"classifier": runs / "classifier"}).ctx.frozen.keys() == {"classifier"}
