"""Data sets by name: the embedded digits and prepared TFDS sets, their splits and their levels."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.small_sets import all_indices, as_multiset, everything, found_multiset, picture, png, wanted_multiset

from jgen.data import dataset as datasets
from jgen.data import prepare, tfds_sets
from jgen.data.config import Config
from jgen.data.sources import Records
from jgen.data.transforms import make_transform
from jgen.errors import UserError


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    wanted = load_digits()
    assert digits.spec.image.shape == (8, 8, 1) and digits.spec.num_classes == 10 and digits.spec.image.levels == 17
    parts = [everything(split) for split in digits.splits.values()]
    images = np.concatenate([part["image"] for part in parts])
    labels = np.concatenate([part["label"] for part in parts])
    assert images.dtype == np.uint8 and labels.dtype == np.int32 and len(images) == 1797
    levels = np.round(images.reshape(-1, 64) / 255 * 16).astype(int)
    rows = sorted(map(tuple, np.column_stack([levels, labels])))
    assert rows == sorted(map(tuple, np.column_stack([wanted.data.astype(int), wanted.target])))


def test_splits_are_disjoint_and_cover_the_set(digits):
    assert {name: split.num for name, split in digits.splits.items()} == {"train": 1350, "validation": 150, "test": 297}
    index = all_indices(digits)
    assert len(index) == 1797 == len(set(index.tolist())) and index.dtype == np.int32
    held_out = digits.splits["validation"].fetch(np.arange(150))["index"]
    assert held_out.tolist() == list(range(1350, 1500))  # the end of train
    whole = datasets.load(Config(validation=0.0))
    assert set(whole.splits) == {"train", "test"} and whole.splits["train"].num == 1500
    assert set(all_indices(whole).tolist()) == set(index.tolist())


def test_seventeen_levels_recover_the_digits_exactly(digits):
    batch = everything(digits.splits["train"])
    keys = jax.random.split(jax.random.key(0), len(batch["image"]))
    transformed = make_transform(Config(), digits.spec, train=True)(keys, batch)["image"]
    np.testing.assert_array_equal(transformed, np.round(batch["image"] / 255 * 16))
    assert transformed.dtype == jnp.uint8 and transformed.max() == 16


def test_levels_are_those_of_the_set_or_those_asked_for(digits):

    def levels(**options):
        return datasets.load(Config(**options)).spec.image.levels

    assert (levels(), levels(levels=17), levels(levels=256), levels(levels=4)) == (17, 17, 256, 4)
    assert levels(size=8) == 17 and levels(size=16) == 256  # resizing makes values between
    assert levels(binarise="threshold") == levels(binarise="static", levels=2) == 2


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_prepared_set_is_read_by_its_name(prepared, own_cache, monkeypatch, by):
    if by == "environment":
        monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    dataset = datasets.load(Config(name="mnist", dir=str(prepared) if by == "option" else ""))
    assert dataset.spec.image.shape == (28, 28, 1) and dataset.spec.num_classes == 10 and dataset.name == "mnist"
    splits = dataset.splits
    assert {name: split.num for name, split in splits.items()} == {"train": 36, "validation": 4, "test": 10}
    assert len(set(all_indices(dataset).tolist())) == 50
    assert found_multiset(splits["train"], splits["validation"]) == wanted_multiset("mnist", "train")
    assert found_multiset(splits["test"]) == wanted_multiset("mnist", "test")


def test_preparing_writes_what_loading_reads(own_cache, tmp_path):
    import tensorflow_datasets as tfds

    class Handful(tfds.core.GeneratorBasedBuilder):
        """A set that TFDS knows by its name, as those it comes with."""

        VERSION = tfds.core.Version("2.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(4, 4, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(18), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": png(np.full((4, 4, 3), 10 * i, np.uint8)), "label": i % 3}

    where = prepare.prepare("handful", str(tmp_path))
    assert list(Path(where).glob("*array_record*")) and "2.0.0" in where
    dataset = datasets.load(Config(name="handful", dir=str(tmp_path)))
    test = everything(dataset.splits["test"])
    rows = sorted((int(image.max()), int(label)) for image, label in zip(test["image"], test["label"]))
    assert rows == [(0, 0), (10, 1), (20, 2)] and dataset.spec.image.shape == (4, 4, 3)


def test_the_published_binary_digits_have_two_levels(prepared, own_cache):
    dataset = datasets.load(Config(name="binarized_mnist", dir=str(prepared)))
    assert dataset.spec.image.levels == 2 and dataset.spec.num_classes == 0
    batch = everything(dataset.splits["test"])
    images = make_transform(Config(), dataset.spec, train=False)(jax.random.split(jax.random.key(0), 4), batch)["image"]
    wanted = [picture((28, 28, 1), "test", i, 2) for i in range(4)]
    assert as_multiset(np.asarray(images), [0] * 4) == as_multiset(wanted, [0] * 4)
    assert datasets.load(Config(name="mnist", dir=str(prepared))).spec.image.levels == 256


@pytest.mark.parametrize("name", ["mnist", "petite"])
def test_a_set_in_the_default_format_of_tfds_says_so(prepared, tmp_path, name):
    folder = shutil.copytree(prepared, tmp_path / "tfds")
    (info,) = (folder / name).glob("*/dataset_info.json")
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    words = f"{name}' is prepared as tfrecord in .* `python -m jgen.data.prepare {name} --dir "
    for use in (lambda: datasets.load(Config(name=name, dir=str(folder))), lambda: prepare.prepare(name, str(folder))):
        with pytest.raises(UserError, match=words):
            use()


def test_a_set_that_has_changed_since_a_training_is_refused(digits):
    assert datasets.reopen(Config(), digits.fingerprint, "runs/x")[1].fingerprint == digits.fingerprint
    with pytest.raises(UserError, match="^digits has changed since runs/x was trained on it: its hash was 0123, is"):
        datasets.reopen(Config(), "0123", "runs/x")


def test_a_run_finds_its_data_where_the_environment_says_when_its_folder_is_gone(prepared, own_cache, monkeypatch):
    there = datasets.load(Config(name="mnist", dir=str(prepared)))
    saved = Config(name="mnist", dir=str(prepared / "gone"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    config, dataset = datasets.reopen(saved, there.fingerprint, "runs/x")
    assert config == Config(name="mnist") and dataset.fingerprint == there.fingerprint


def test_a_streamed_set_and_the_same_decoded_may_stand_for_one_another(prepared, own_cache, monkeypatch):
    config = Config(name="mnist", dir=str(prepared))
    decoded = datasets.load(config)
    monkeypatch.setattr(datasets, "memory_limit", lambda: 0)
    streamed = datasets.load(config)
    assert streamed.fingerprint.startswith("streamed-") and not decoded.fingerprint.startswith("streamed-")
    assert datasets.alike(streamed.fingerprint, decoded.fingerprint)
    assert datasets.alike(decoded.fingerprint, streamed.fingerprint)
    smaller = datasets.load(replace(config, size=14))
    assert smaller.fingerprint != streamed.fingerprint and not datasets.alike(smaller.fingerprint, streamed.fingerprint)


def test_a_validation_split_of_the_set_is_used(prepared, own_cache):
    dataset = datasets.load(Config(name="petite", dir=str(prepared), validation=0.5))
    assert dataset.spec.image.shape == (6, 8, 3)
    for split in ("train", "validation", "test"):
        assert found_multiset(dataset.splits[split]) == wanted_multiset("petite", split)
    assert len(set(all_indices(dataset).tolist())) == 32


def test_images_of_other_types_are_refused():
    features = {"image": SimpleNamespace(np_dtype=np.uint16, shape=(4, 4, 1))}
    builder = SimpleNamespace(name="deep", info=SimpleNamespace(features=features))
    with pytest.raises(UserError, match="data set 'deep' has images of uint16: jgen is about uint8"):
        tfds_sets.tfds_source(builder, Config())


@pytest.mark.parametrize("given", [(), ("test",), ("validation",), ("test", "validation")])
@pytest.mark.parametrize("validation", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("num", [3, 10, 1001])
def test_splits_never_overlap_and_cover_all(given, validation, num):
    sizes = {"train": num, **{name: num // 2 + 1 for name in given}}
    cuts = datasets.cut_splits(sizes, validation)
    images = Records(10**4, lambda positions: {"image": np.zeros((len(positions), 1, 1, 1), np.uint8)})
    splits = {n: datasets.slice_split(images, a, b, datasets.OFFSETS[part]) for n, (part, a, b) in cuts.items()}
    index = np.concatenate([everything(split)["index"] for split in splits.values()])
    assert len(index) == len(set(index.tolist())) == sum(sizes.values())
    assert "test" in splits and ("validation" in splits) == ("validation" in given or validation > 0)
    assert everything(splits["train"])["index"].tolist() == list(range(splits["train"].num))


def test_a_part_whose_indices_would_be_those_of_another_is_refused():
    most = 1 << 28
    assert datasets.cut_splits({"train": most, "test": most}, 0.0) == {
        "test": ("test", 0, most),
        "train": ("train", 0, most),
    }
    for name in ("train", "test"):
        with pytest.raises(UserError, match=f"^{name} has {most + 1} examples: it must have at most {most}$"):
            datasets.cut_splits({"train": 5, "test": 5, name: most + 1}, 0.0)
    ends = [offset + most - 1 for offset in datasets.OFFSETS.values()]
    assert max(ends) < 2**31 and sorted(datasets.OFFSETS.values())[1:] == [end + 1 for end in sorted(ends)[:-1]]
