"""Where images come from, how they are cached and split, the order they come in, and what is done to them."""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from jgen.data import dataset as datasets
from jgen.data import prepare, sources
from jgen.data.config import Config
from jgen.data.sources import Records
from jgen.data.transforms import make_transform
from jgen.errors import UserError


def everything(split):
    return split.fetch(np.arange(split.num))


def all_indices(dataset):
    return np.concatenate([everything(split)["index"] for split in dataset.splits.values()])


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "own_cache"))
    return tmp_path / "own_cache"


# The embedded digits.


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    wanted = load_digits()
    assert digits.images.shape == (8, 8, 1) and digits.images.num_classes == 10 and digits.images.levels == 17
    parts = [everything(split) for split in digits.splits.values()]
    images = np.concatenate([part["image"] for part in parts])
    labels = np.concatenate([part["label"] for part in parts])
    assert images.dtype == np.uint8 and labels.dtype == np.int32 and len(images) == 1797
    levels = np.round(images.reshape(-1, 64) / 255 * 16).astype(int)
    found = sorted(map(tuple, np.column_stack([levels, labels])))
    assert found == sorted(map(tuple, np.column_stack([wanted.data.astype(int), wanted.target])))


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
    found = make_transform(Config(), digits.images.levels, train=True)(keys, batch)["image"]
    np.testing.assert_array_equal(found, np.round(batch["image"] / 255 * 16))
    assert found.dtype == jnp.uint8 and found.max() == 16


def test_levels_are_those_of_the_set_or_those_asked_for(digits):
    levels = lambda **options: datasets.load(Config(**options)).images.levels
    assert (levels(), levels(levels=17), levels(levels=256), levels(levels=4)) == (17, 17, 256, 4)
    assert levels(size=8) == 17 and levels(size=16) == 256  # resizing makes values between
    assert levels(binarise="threshold") == levels(binarise="static", levels=2) == 2


# Prepared TFDS sets.

SHAPES = {"mnist": ("3.0.1", (28, 28, 1)), "petite": ("1.0.0", (6, 8, 3)), "binarized_mnist": ("1.0.0", (28, 28, 1))}
COUNTS = {"mnist": {"train": 40, "test": 10}, "petite": {"train": 20, "validation": 5, "test": 7}}
COUNTS["binarized_mnist"] = {"train": 12, "validation": 4, "test": 4}


def picture(shape, split, i, levels=256):
    seed = [i, *split.encode()]
    return np.random.default_rng(seed).integers(0, levels, shape, np.uint8)


def png(array):
    """A file such as TFDS stores without TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "PNG")
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Small sets as TFDS writes them: two of names that TFDS has code for, two with a validation split."""
    import tensorflow_datasets as tfds

    def info(self):
        features = {"image": tfds.features.Image(shape=SHAPES[self.name][1])}
        if self.name != "binarized_mnist":  # as the published one
            features["label"] = tfds.features.ClassLabel(num_classes=10)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def examples(self, split, count):
        binary = self.name == "binarized_mnist"
        for i in range(count):
            image = png(picture(SHAPES[self.name][1], split, i, 2 if binary else 256))
            yield i, {"image": image} | ({} if binary else {"label": i % 10})

    def generators(self, manager):
        return {split: self._generate_examples(split, count) for split, count in COUNTS[self.name].items()}

    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    with tfds.core.registered.skip_registration():
        for name, (version, _) in SHAPES.items():
            body = {"VERSION": tfds.core.Version(version), "_info": info}
            body |= {"_generate_examples": examples, "_split_generators": generators, "__doc__": "Small."}
            body["__module__"] = __name__
            cls = type(name.title().replace("_", ""), (tfds.core.GeneratorBasedBuilder,), body)
            cls(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def as_multiset(images, labels):
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels))


def wanted_multiset(name, split):
    shape, count = SHAPES[name][1], COUNTS[name][split]
    return as_multiset([picture(shape, split, i) for i in range(count)], [i % 10 for i in range(count)])


def found_multiset(*splits):
    parts = [everything(split) for split in splits]
    return sorted(itertools.chain(*(as_multiset(part["image"], part["label"]) for part in parts)))


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_prepared_set_is_read_by_its_name(prepared, own_cache, monkeypatch, by):
    if by == "environment":
        monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    dataset = datasets.load(Config(name="mnist", dir=str(prepared) if by == "option" else ""))
    assert dataset.images.shape == (28, 28, 1) and dataset.images.num_classes == 10 and dataset.name == "mnist"
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
    found = sorted((int(image.max()), int(label)) for image, label in zip(test["image"], test["label"]))
    assert found == [(0, 0), (10, 1), (20, 2)] and dataset.images.shape == (4, 4, 3)


def test_the_published_binary_digits_have_two_levels(prepared, own_cache):
    dataset = datasets.load(Config(name="binarized_mnist", dir=str(prepared)))
    assert dataset.images.levels == 2 and dataset.images.num_classes == 0
    batch = everything(dataset.splits["test"])
    images = make_transform(Config(), 2, train=False)(jax.random.split(jax.random.key(0), 4), batch)["image"]
    wanted = [picture((28, 28, 1), "test", i, 2) for i in range(4)]
    assert as_multiset(np.asarray(images), batch["label"]) == as_multiset(wanted, [0] * 4)
    assert datasets.load(Config(name="mnist", dir=str(prepared))).images.levels == 256


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
    config, found = datasets.reopen(saved, there.fingerprint, "runs/x")
    assert config == Config(name="mnist") and found.fingerprint == there.fingerprint


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
    assert dataset.images.shape == (6, 8, 3)
    for split in ("train", "validation", "test"):
        assert found_multiset(dataset.splits[split]) == wanted_multiset("petite", split)
    assert len(set(all_indices(dataset).tolist())) == 32


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


# The cache.


def test_a_set_that_is_prepared_anew_is_decoded_anew(prepared, own_cache, monkeypatch):
    """Of the same name, version and sizes, as where a set was prepared from wrong files before."""
    folder = shutil.copytree(prepared, own_cache / "tfds")
    config = Config(name="petite", dir=str(folder))
    first, source = datasets.load(config), sources.open_source(config)
    os.utime(next((folder / "petite").rglob("*array_record*")))
    assert sources.open_source(config).files != source.files
    inverted = lambda found: (255 - found[0], found[1])
    splits = {
        name: part._replace(fetch=lambda places, fetch=part.fetch: inverted(fetch(places)))
        for name, part in source.splits.items()
    }
    monkeypatch.setattr(
        datasets, "open_source", lambda config: source._replace(files=sources.open_source(config).files, splits=splits)
    )
    again = datasets.load(config)
    before, after = (everything(found.splits["test"])["image"] for found in (first, again))
    np.testing.assert_array_equal(after, 255 - before)
    assert again.fingerprint != first.fingerprint


def test_images_of_other_types_are_refused():
    features = {"image": SimpleNamespace(np_dtype=np.uint16, shape=(4, 4, 1))}
    builder = SimpleNamespace(name="deep", info=SimpleNamespace(features=features))
    with pytest.raises(UserError, match="data set 'deep' has images of uint16: jgen is about uint8"):
        sources.tfds_source(builder, 0)


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


def test_no_room_in_the_cache_is_one_line(own_cache, monkeypatch):
    usage = shutil.disk_usage(own_cache.parent)
    monkeypatch.setattr(datasets.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"cannot write the cache folder .*: it takes 0\.1 MB, and 0\.0 MB are free"):
        datasets.load(Config())
    assert not list(own_cache.rglob(".train-*"))


@pytest.mark.parametrize("given", [(), ("test",), ("validation",), ("test", "validation")])
@pytest.mark.parametrize("validation", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("num", [3, 10, 1001])
def test_splits_never_overlap_and_cover_all(given, validation, num):
    records = lambda n: Records(n, lambda positions: (np.zeros((len(positions), 1, 1, 1), np.uint8), positions))
    parts = {"train": records(num), **{name: records(num // 2 + 1) for name in given}}
    splits = datasets.make_splits(parts, validation)
    index = np.concatenate([split.fetch(np.arange(split.num))["index"] for split in splits.values()])
    assert len(index) == len(set(index.tolist())) == sum(part.num for part in parts.values())
    assert "test" in splits and ("validation" in splits) == ("validation" in given or validation > 0)
    assert np.all(splits["train"].fetch(np.arange(splits["train"].num))["label"] == np.arange(splits["train"].num))


# Folders of pictures.


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_a_folder_with_classes(tmp_path, own_cache):
    wanted = {}
    for i in range(30):
        array = np.random.default_rng(i).integers(0, 256, (6, 8), np.uint8)
        save(tmp_path / "set" / "cab"[i % 3] / f"{i}.png", array)
        wanted[array.tobytes()] = "abc".index("cab"[i % 3])
    dataset = datasets.load(Config(name=f"folder:{tmp_path / 'set'}"))
    assert dataset.images.shape == (6, 8, 1) and dataset.images.num_classes == 3
    assert {name: split.num for name, split in dataset.splits.items()} == {"train": 25, "validation": 2, "test": 3}
    found = {}
    for split in dataset.splits.values():
        part = everything(split)
        found |= {image.tobytes(): label for image, label in zip(part["image"], part["label"])}
    assert found == wanted
    assert len(set(all_indices(dataset).tolist())) == 30
    again = datasets.load(Config(name=f"folder:{tmp_path / 'set'}"))
    for name, split in dataset.splits.items():
        for key, array in everything(split).items():
            np.testing.assert_array_equal(array, everything(again.splits[name])[key])


def test_a_split_of_a_folder_depends_on_file_names_only(tmp_path, own_cache):
    tests = []
    for place in ("here", "there"):
        for i in range(20) if place == "here" else reversed(range(20)):
            save(tmp_path / place / f"{i}.png", np.full((4, 4), i, np.uint8))
        dataset = datasets.load(Config(name=f"folder:{tmp_path / place}"))
        tests.append(everything(dataset.splits["test"])["image"])
    np.testing.assert_array_equal(tests[0], tests[1])


def test_a_folder_without_classes_in_colour(tmp_path, own_cache):
    for i in range(12):  # one colour picture makes the set a colour set
        array = np.random.default_rng(i).integers(0, 256, (4, 4, 3) if i == 0 else (4, 4), np.uint8)
        save(tmp_path / "set" / f"{i}.png", array)
    dataset = datasets.load(Config(name=f"folder:{tmp_path / 'set'}"))
    assert dataset.images.shape == (4, 4, 3) and dataset.images.num_classes == 0
    images = np.concatenate([everything(split)["image"] for split in dataset.splits.values()])
    grey = np.all(images == images[..., :1], axis=(1, 2, 3))
    assert grey.sum() == 11


def test_pictures_are_resized_and_their_centre_is_cut_out(tmp_path, own_cache):
    for i in range(10):
        width, height = (24, 8) if i % 2 else (4, 12)
        array = np.zeros((height, width, 3), np.uint8)
        if i % 2:  # red, green, blue side by side: the centre is green
            array[:, :8, 0] = array[:, 8:16, 1] = array[:, 16:, 2] = 255
        else:
            array[:4, :, 0] = array[4:8, :, 1] = array[8:, :, 2] = 255
        save(tmp_path / "set" / f"{i}.png", array)
    dataset = datasets.load(Config(name=f"folder:{tmp_path / 'set'}", size=8))
    assert dataset.images.shape == (8, 8, 3)
    images = np.concatenate([everything(split)["image"] for split in dataset.splits.values()]).astype(int)
    assert images.shape == (10, 8, 8, 3)
    inner = images[:, 2:-2, 2:-2]  # away from the colours' edges, which a resized picture blurs
    assert inner[..., 1].min() > 240 and inner[..., 0].max() < 15 and inner[..., 2].max() < 15
    exact = np.all(images == np.array([0, 255, 0]), axis=(1, 2, 3))
    assert exact.sum() == 5  # the 24x8 pictures are only cropped


def test_the_hash_tells_the_content(digits, prepared, own_cache):
    a = datasets.load(Config(name="petite", dir=str(prepared)))
    b = datasets.load(Config(name="petite", dir=str(prepared), size=5))
    assert len({digits.fingerprint, a.fingerprint, b.fingerprint}) == 3
    hashes = [json.loads(p.read_text())["sha256"] for p in own_cache.glob("decoded/*/*/hash.json")]
    assert len(hashes) == 6 == len(set(hashes))


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
        found, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert int(found) == wanted and "WARNING" not in said
    assert len(list(tmp_path.glob("decoded/*"))) == 1
