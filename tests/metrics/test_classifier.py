"""The classifier learns, is cached with its name, and its readings are counted as by hand."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import ROOT

from jgen.cli import import_file
from jgen.core.model import DataSpec
from jgen.data import dataset, sources
from jgen.data.config import Config
from jgen.errors import UserError
from jgen.metrics import classifier, table

RECIPE = classifier.Recipe(widths=(16, 32), features=32, epochs=30, batch_size=64, shift=1)


@pytest.mark.slow
def test_it_reads_digits_it_has_not_seen_and_is_trained_once(cache, monkeypatch):
    digits = dataset.load(Config(name="digits"))
    first = classifier.load(digits, RECIPE)
    assert first.accuracy > 0.93 and first.name.startswith("digits-")
    monkeypatch.setattr(classifier, "train", lambda *args: pytest.fail("trained again"))
    again = classifier.load(digits, RECIPE)
    assert again.name == first.name
    test = digits.splits["test"].fetch(np.arange(digits.splits["test"].num))
    features, maps, logits = again.apply(test["image"])
    assert features.shape == (len(logits), 32) and maps.shape == (len(logits), 4, 4, 32)
    assert classifier.label_accuracy(logits, test["label"])["accuracy"] == pytest.approx(first.accuracy)
    # Whatever the batches, an image has its own features.
    np.testing.assert_allclose(again.apply(test["image"][37:40])[0], features[37:40], rtol=1e-5, atol=1e-5)


def test_a_published_one_is_taken_as_it_is(cache, tmp_path, monkeypatch):
    digits = dataset.load(Config(name="digits"))
    name = classifier.load(digits, RECIPE, tmp_path).name  # there is none in the folder: the cache's
    (path,) = (path for path in (sources.cache_dir() / "classifiers").glob("digits-*.npz"))
    with np.load(path) as saved:
        np.savez(tmp_path / path.name, **{key: array * 1.5 for key, array in saved.items()})
    monkeypatch.setattr(classifier, "train", lambda *args: pytest.fail("trained again"))
    published = classifier.load(digits, RECIPE, tmp_path)
    assert published.name != name and published.name == classifier.load(digits, RECIPE, tmp_path).name
    # Damaged, the project's own is not silently another; that of the cache is trained anew.
    (tmp_path / path.name).write_bytes(b"")
    with pytest.raises(UserError, match=f"{path.name} is no .npz file, or is damaged"):
        classifier.load(digits, RECIPE, tmp_path)
    with np.load(path) as saved:
        arrays = [saved[str(i)] for i in range(len(saved.files) - 1)]
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path))
    (tmp_path / "classifiers").mkdir()
    (tmp_path / "classifiers" / path.name).write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr(classifier, "train", lambda *args: (arrays, 0.5))
    again = classifier.load(digits, RECIPE)
    assert again.name == name and again.accuracy == 0.5


def test_the_projects_own_reads_digits_as_well_as_it_says(monkeypatch):
    monkeypatch.setattr(classifier, "train", lambda *args: pytest.fail("not among those in configs/classifiers"))
    digits = dataset.load(Config(name="digits"))
    recipe = import_file(ROOT / "configs" / "classifier.py").get_recipe("digits")
    own = classifier.load(digits, recipe, ROOT / "configs" / "classifiers")
    test = digits.splits["test"].fetch(np.arange(digits.splits["test"].num))
    reads = classifier.label_accuracy(own.apply(test["image"])[2], test["label"])
    assert reads["accuracy"] == pytest.approx(own.accuracy, abs=0.005) and own.accuracy > 0.95


def test_it_is_of_the_images_as_they_are_shown_and_sets_without_classes_are_refused():
    digits = dataset.load(Config(name="digits"))
    name = classifier.load(digits, RECIPE).name
    assert name == classifier.load(dataset.load(Config(name="digits", binarise="threshold")), RECIPE).name
    with pytest.raises(UserError, match="no classes"):
        classifier.load(digits._replace(spec=DataSpec(digits.spec.image)), RECIPE)


def test_readings_by_hand():
    labels = np.array([0, 0, 1, 1, 2, 2])
    read = np.array([0, 1, 1, 1, 1, 1])
    scores = classifier.label_accuracy(np.asarray(jax.nn.one_hot(read, 4)), labels)
    assert scores["accuracy"] == 0.5 and scores["by_class"] == {0: 0.5, 1: 1.0, 2: 0.0} and scores["classes"] == 2
    p = 1 / 6
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert scores["balance"] == pytest.approx(entropy / np.log(3))
    for wrong in (-1, 4):
        with pytest.raises(UserError, match=f"{wrong}.*: they must be 0 to 3"):
            classifier.label_accuracy(np.zeros((2, 4)), np.array([0, wrong]))


def test_a_test_split_without_labels_gives_no_accuracy(digits, monkeypatch, tmp_path):
    """Some sets keep those to themselves, and store -1."""
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path))
    test = digits.splits["test"]

    def fetch(positions):
        return {**test.fetch(positions), "label": np.full(len(positions), -1, np.int32)}

    hidden = digits._replace(splits={**digits.splits, "test": test._replace(fetch=fetch)})
    for _ in range(2):  # trained, and from the cache
        assert classifier.load(hidden, replace(RECIPE, epochs=1)).accuracy is None
    document = {"data": "x", "data_fingerprint": "0", "likelihood": None}
    labels = {"classifier": "x-0", "classifier_test_accuracy": None, "names": ["ant"], "by_class": {"ant": 0.5}}
    line = table.protocol({**document, "labels": labels})
    assert line.endswith("classifier x-0, the real test images have no labels; right by class: ant 0.5000")
