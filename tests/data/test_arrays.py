"""A user's own arrays as a set: from Python and from a file, split, hashed, resumed."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import mistake
from data.small_sets import everything
from toy_systems import experiment_of

import jgen
from jgen.core.model import ArraySpec
from jgen.data import dataset as datasets
from jgen.data.arrays import given_arrays
from jgen.data.config import Config, DataLocation
from jgen.errors import UserError
from jgen.train.run_directory import read_config

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
NAMES = ["ant", "bee", "cat", "dog"]
LABELS = np.arange(40) // 10  # sorted, as people have them


def load(images=IMAGES, config=None, **fields):
    return datasets.load(config or Config(), arrays=given_arrays(images, fields))


def npz(path, **arrays):
    np.savez(path, **arrays)
    return Config(name=f"npz:{path}")


def test_arrays_are_a_set(tmp_path, own_cache):
    dataset = load(label=LABELS)
    assert {name: part.num for name, part in dataset.splits.items()} == {"train": 33, "validation": 3, "test": 4}
    assert dataset.spec.image.shape == (8, 8, 1) and dataset.spec.classes == ("0", "1", "2", "3")
    expected = {image.tobytes(): label for image, label in zip(IMAGES, LABELS)}
    labels_by_image = {}
    for part in map(everything, dataset.splits.values()):
        labels_by_image |= {image.tobytes(): label for image, label in zip(part["image"], part["label"])}
    assert labels_by_image == expected
    assert len({*everything(dataset.splits["train"])["label"].tolist()}) == 4


def test_a_file_of_the_same_is_the_same_set(tmp_path, own_cache):
    given = load(label=LABELS)
    from_file = datasets.load(npz(tmp_path / "x.npz", images=IMAGES[..., 0], labels=LABELS))
    assert from_file.fingerprint == given.fingerprint and from_file.spec == given.spec
    other = load(label=LABELS[::-1])
    assert other.fingerprint != given.fingerprint


def test_labels_may_be_names(own_cache):
    dataset = load(label=[NAMES[label] for label in LABELS])
    assert dataset.spec.classes == tuple(NAMES) and dataset.fingerprint == load(label=LABELS).fingerprint


def test_other_arrays_are_fields(own_cache):
    mask = np.zeros((40, 8, 8), bool)
    dataset = load(mask=mask, age=np.linspace(0, 1, 40), text=[f"image {i}" for i in range(40)])
    fields = dataset.spec.fields
    assert fields["mask"] == ArraySpec((8, 8), "bool", 2) and fields["age"] == ArraySpec((), "float32")
    part = everything(dataset.splits["test"])
    texts = [dataset.tokenizers["text"].decode(tokens) for tokens in part["text"]]
    assert texts == [f"image {[*map(bytes, IMAGES)].index(bytes(image))}" for image in part["image"]]
    mistake(lambda: load(mask=mask, config=Config(flip=True)), "field 'mask' may have places", "data.flip")


def test_a_file_says_its_levels_and_a_test_file_is_named(tmp_path, own_cache):
    few = (IMAGES // 16).astype(np.uint8)
    config = npz(tmp_path / "x.npz", images=few, levels=16)
    dataset = datasets.load(config)
    assert dataset.spec.image.levels == 16
    np.testing.assert_array_equal(np.unique(everything(dataset.splits["train"])["image"]), np.arange(16) * 17)
    np.savez(tmp_path / "test.npz", images=few[:5], levels=16)
    splits = datasets.load(replace(config, test=str(tmp_path / "test.npz"))).splits
    assert splits["test"].num == 5 and splits["train"].num == 36
    np.savez(tmp_path / "test.npz", images=few[:5])
    mistake(lambda: datasets.load(replace(config, test=str(tmp_path / "test.npz"))), "of 16 levels", "must be alike")


@pytest.mark.parametrize(
    "arrays,words",
    [
        ({"images": IMAGES / 255}, ["are float64", "uint8"]),
        ({"images": IMAGES[:, :, 0, 0]}, ["shape (40, 8)", "(n, H, W, C)"]),
        ({"images": IMAGES, "label": LABELS[:5]}, ["label", "(5,)", "40 images"]),
        ({"images": IMAGES, "label": LABELS / 2}, ["label", "float64", "whole numbers or names"]),
        ({"images": IMAGES, "label": LABELS - 1}, ["from -1 to 2"]),
        ({"images": IMAGES[:5]}, ["are 5", "at least 10"]),
        ({"pictures": IMAGES}, ["no array `images`", "pictures"]),
        ({"images": IMAGES, "levels": 7}, ["up to 255", "0 to 6"]),
        ({"images": IMAGES, "position": LABELS}, ["'position'"]),
    ],
)
def test_arrays_that_are_no_set(tmp_path, own_cache, arrays, words):
    config = npz(tmp_path / "x.npz", **arrays)
    mistake(lambda: datasets.load(config), *words, "x.npz")


@pytest.mark.slow
def test_a_run_of_arrays_goes_on_with_the_same_and_is_scored_from_a_file(tmp_path, own_cache, capsys):
    experiment = experiment_of("conditional")
    names = [NAMES[label] for label in LABELS]
    extra = {"text": [f"a {name}" for name in names], "low_resolution": IMAGES[:, ::2, ::2]}
    short = replace(experiment, train=replace(experiment.train, steps=2))
    run = tmp_path / "run"
    assert jgen.fit(short, run, images=IMAGES, label=names, **extra) == "trained"
    longer = replace(experiment, train=replace(experiment.train, steps=3))
    mistake(lambda: jgen.fit(longer, run, images=IMAGES[::-1], label=names, **extra), "the data's hash was")
    assert jgen.fit(longer, run, images=IMAGES, label=names, **extra) == "trained"
    gen = jgen.load(run)
    assert gen.classes == tuple(NAMES) and gen.config.data.name == "arrays"
    cond = {"text": "a bee", "low_resolution": IMAGES[0, ::2, ::2]}
    by_name = gen.sample(jax.random.key(0), 2, label="bee", **cond)
    np.testing.assert_array_equal(by_name, gen.sample(jax.random.key(0), 2, label=1, **cond))
    mistake(lambda: gen.sample(jax.random.key(0), 2, label="cow", **cond), "label is 'cow'", "ant, bee, cat, dog")
    with pytest.raises(UserError, match="arrays that were given from Python: give them again"):
        datasets.reopen(gen.config.data, "", run)
    config = npz(tmp_path / "x.npz", images=IMAGES, label=names, **extra)
    fingerprint = read_config(run)["data_fingerprint"]
    place = DataLocation(name=config.name)
    assert datasets.reopen(gen.config.data, fingerprint, run, gen.tokenizers, place)[1].fingerprint == fingerprint
    same = replace(longer, data=replace(experiment.data, name=config.name), train=replace(experiment.train, steps=4))
    assert jgen.fit(same, run) == "trained"  # the file holds what was given
