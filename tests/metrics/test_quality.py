"""Distances of samples to real images, end to end on the digits: real ones are near, noise and copies are told."""

import numpy as np
import pytest
from PIL import Image

from jgen.data import dataset, sources
from jgen.data.config import Config
from jgen.data.pictures import read_images, to_display, write_images
from jgen.errors import UserError
from jgen.metrics import bootstrap, classifier, inception, quality

RECIPE = classifier.Recipe(widths=(16, 32), features=32, epochs=30, batch_size=64, shift=1)


@pytest.fixture(scope="module")
def network(digits):
    return quality.of_classifier(classifier.load(digits, RECIPE))


def real(digits, network, split, num=0):
    return quality.real_features(digits, split, num, network, lambda batch: batch["image"], "as they are")


def compare(images, network, *real):
    """The scores of images."""
    samples = quality.features_of(network, len(images), lambda start, stop: images[start:stop], "")
    return quality.quality(samples, network, *real)


def test_real_images_are_near_noise_is_far_and_copies_are_told(digits, network):
    train, test = real(digits, network, "train"), real(digits, network, "test")
    unseen = digits.splits["validation"].fetch(np.arange(digits.splits["validation"].num))["image"]
    copies = digits.splits["train"].fetch(np.arange(150))["image"]
    noise = np.random.default_rng(0).integers(0, 256, unseen.shape).astype(np.uint8)
    near, far, copied = (compare(images, network, test, train, test) for images in (unseen, noise, copies))
    assert near["num"] == len(unseen)
    assert near["network"].startswith("FD-digits-") and near["network"].endswith(near["network_hash"])
    for name in ("frechet_distance", "kernel_distance"):
        assert near[name]["value"] < 0.3 * far[name]["value"]
    assert near["frechet_distance"]["low"] <= near["frechet_distance"]["value"] <= near["frechet_distance"]["high"]
    assert near["spatial_frechet_distance"]["high"] < far["spatial_frechet_distance"]["low"]
    for name in ("precision", "density", "coverage"):
        assert near[name]["low"] > far[name]["high"]
    assert near["neighbours_num"] == len(unseen) == near["memorisation"]["test_num"]
    # What it is against: as many training images, whose only distance to the test images is that of finite numbers.
    places = np.sort(np.random.default_rng(0).permutation(train.num)[:150])
    chosen = digits.splits["train"].fetch(places)["image"]
    real_ones, reference = compare(chosen, network, test, train, test), near["reference"]
    assert (reference["split"], reference["num"]) == ("train", 150)
    np.testing.assert_allclose(reference["frechet_distance"], real_ones["frechet_distance"]["value"], rtol=1e-4)
    np.testing.assert_allclose(reference["kernel_distance"], real_ones["kernel_distance"]["value"], rtol=1e-4)
    assert all(reference[n] == real_ones[n]["value"] for n in ("precision", "recall", "density", "coverage"))
    assert quality.reference(150, train, train, 0) is None
    assert copied["memorisation"]["value"] > 0.99 and 0.3 < near["memorisation"]["value"] < 0.7
    assert far["memorisation"]["value"] < 0.1
    # Without all of train and test, whose features are dear, only these two are left out.
    without = compare(unseen, network, test, None, None)
    assert without == {name: value for name, value in near.items() if name not in ("memorisation", "reference")}


def test_real_features_are_kept_with_what_they_were_measured_on(digits, network, capsys):
    first = real(digits, network, "test", 60)
    assert first.num == 60 and first.split == "test" and first.features.shape == (60, 32)
    silent = network._replace(apply=lambda images: pytest.fail("computed again"))
    np.testing.assert_array_equal(real(digits, silent, "test", 60).features, first.features)
    assert real(digits, network, "test", 61).num == 61
    for path in (sources.cache_dir() / "features").glob("digits-test-60-*.npz"):
        path.write_bytes(path.read_bytes()[:-60])
    np.testing.assert_array_equal(real(digits, network, "test", 60).features, first.features)
    assert "is damaged: it is made anew" in capsys.readouterr().err
    # Of other data under the same name, or of images shown otherwise, they are computed anew.
    for data, how in ((digits._replace(fingerprint="other"), "as they are"), (digits, "binary")):
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            quality.real_features(data, "test", 60, silent, lambda batch: batch["image"], how)
    # The first images of another part of train are others.
    less = dataset.load(Config(name="digits", validation=0.2))
    features = [real(data, network, "validation", 50).features for data in (digits, less)]
    assert np.any(features[0] != features[1])
    with pytest.raises(UserError, match="9999 images were asked for: test of digits has"):
        real(digits, network, "test", 9999)


def test_spatial_features_of_large_images_are_averaged_to_few_places():
    """From 24x40 maps those of 12x13: means over two by three, the last column, which is one too many, left out."""
    maps = np.random.default_rng(0).standard_normal((2, 24, 40, 9)).astype(np.float32)
    reader = classifier.Classifier("x-12", 1.0, lambda images: (images, maps, images))
    spatial = quality.of_classifier(reader).apply(np.zeros((2, 3)))[1].reshape(2, 12, 13, inception.SPATIAL_CHANNELS)
    np.testing.assert_allclose(spatial[1, 2, 3], maps[1, 4:6, 9:12, :7].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(spatial[0, 11, 12], maps[0, 22:24, 36:39, :7].mean((0, 1)), rtol=1e-5)


def test_features_do_not_depend_on_the_batches(digits, network):
    images = digits.splits["test"].fetch(np.arange(60))["image"]

    def fetch(start, stop):
        return images[start:stop]

    whole = quality.features_of(network, 60, fetch, "")
    assert [len(array) for array in whole] == [60, 60, 60]
    for a, b in zip(quality.features_of(network._replace(batch_size=7), 60, fetch, ""), whole):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slow", [True, False])
def test_progress_is_shown_where_features_and_intervals_take_long(monkeypatch, capsys, slow):
    for module in (quality, bootstrap):
        monkeypatch.setattr(module, "PATIENCE", 0.0 if slow else 60.0)
    features = np.random.default_rng(0).standard_normal((60, 4))
    network = quality.FeatureNetwork("FID", "", lambda images: (images, images, images))
    quality.features_of(network, 60, lambda a, b: features[a:b], "features of test")
    bootstrap.bootstrap(np.mean, features)
    shown = capsys.readouterr().err
    assert ("features of test" in shown and "bootstrap" in shown) if slow else shown == ""


@pytest.mark.parametrize(
    "images,words",
    [
        (np.zeros((60, 8, 8, 1), np.float32), "float32"),
        (np.zeros((60, 9, 8, 1), np.uint8), "(9, 8, 1)"),
    ],
)
def test_samples_that_cannot_be_compared(images, words):
    with pytest.raises(UserError) as caught:
        quality.check_images(images, (8, 8, 1))
    assert words in str(caught.value)


def test_too_few_samples_are_refused():
    few = np.zeros((49, 4))
    real = quality.Real("test", 60, np.zeros((60, 4)), np.zeros((60, 4)))
    network = quality.FeatureNetwork("FID", "", lambda images: (images, images, images))
    with pytest.raises(UserError, match="^there are 49 images: distances need at least 50$"):
        quality.quality((few, few, few), network, real, None, None)


def test_images_of_any_program_are_read_as_they_were_written(digits, tmp_path):
    batch = digits.splits["test"].fetch(np.arange(12))
    write_images(tmp_path / "folder", batch["image"], None, 256, 4)
    write_images(tmp_path / "x.npz", batch["image"], batch["label"], 256, 4)
    images, labels = read_images(tmp_path / "folder", 1)
    np.testing.assert_array_equal(images, batch["image"])
    assert labels is None
    images, labels = read_images(tmp_path / "x.npz", 1)
    np.testing.assert_array_equal(images, batch["image"])
    np.testing.assert_array_equal(labels, batch["label"])
    numbers, letters = [str(i) for i in range(11)], ["a", "b", "c", "d"]
    for names, classes, wanted in ((("10", "2", "7"), numbers, [10, 2, 7]), (("a", "d", "b"), letters, [0, 3, 1])):
        for i, name in enumerate(names):
            write_images(tmp_path / "-".join(names) / name, batch["image"][i : i + 1], None, 256, 4)
        images, labels = read_images(tmp_path / "-".join(names), 1, classes)
        order = np.argsort(names)  # files are read in that of their names
        np.testing.assert_array_equal(images, batch["image"][order])
        np.testing.assert_array_equal(labels, np.array(wanted)[order])
    images = batch["image"]
    np.savez(tmp_path / "other.npz", pictures=images)
    for path, words in (("none", "nothing at"), ("other.npz", "pictures"), ("folder/000001.png", "must be an .npz")):
        with pytest.raises(UserError, match=words):
            read_images(tmp_path / path, 1)
    (tmp_path / "folder" / "000003.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="000003.png does not open as an image"):
        read_images(tmp_path / "folder", 1)


@pytest.mark.parametrize("levels", [2, 17])
def test_images_of_fewer_levels_are_read_as_they_are_shown(tmp_path, levels):
    images = np.random.default_rng(0).integers(0, levels, (6, 4, 4, 1)).astype(np.uint8)
    write_images(tmp_path / "x.npz", images, None, levels, 4)
    write_images(tmp_path / "folder", images, None, levels, 4)
    read, _ = read_images(tmp_path / "x.npz", 1)
    np.testing.assert_array_equal(read, to_display(images, levels))
    np.testing.assert_array_equal(read, read_images(tmp_path / "folder", 1)[0])
    np.savez(tmp_path / "none.npz", images=images)  # of another program, which says nothing: 0 .. 255
    np.testing.assert_array_equal(read_images(tmp_path / "none.npz", 1)[0], images)


def save_array(path, array):
    with path.open("wb") as file:
        np.save(file, array)


IMAGES = np.full((6, 4, 4, 1), 20, np.uint8)


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda path: path.write_bytes(b""), "is no .npz file"),
        (lambda path: save_array(path, IMAGES), "is no .npz file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-60]), "is no .npz file"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"NUMPY", b"MUMPY")), "cannot be read"),
        (lambda path: np.savez(path, images=np.array([{}])), "cannot be read"),
        (lambda path: np.savez(path, images=IMAGES, labels=np.arange(5)), "int64 of shape (5,)"),
        (lambda path: np.savez(path, images=IMAGES, labels=np.zeros(6)), "float64 of shape (6,)"),
        (lambda path: np.savez(path, images=IMAGES, levels=300), "are 300: they must"),
        (lambda path: np.savez(path, images=IMAGES, levels=np.arange(2)), "an array of shape (2,)"),
        (lambda path: np.savez(path, images=IMAGES, levels=20), "values up to 20"),
        (lambda path: np.savez(path, images=IMAGES / 20, levels=20), "are float64"),
    ],
)
def test_files_that_hold_no_images_are_one_line(tmp_path, make, words):
    path = tmp_path / "x.npz"
    np.savez(path, images=IMAGES)
    make(path)
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        read_images(path, 1)
    assert words in str(caught.value) and "x.npz" in str(caught.value)


def test_damaged_pictures_are_one_line(tmp_path, monkeypatch):
    write_images(tmp_path, IMAGES, None, 256, 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)  # a bomb is twice as large
    with pytest.raises(UserError, match="000000.png does not open as an image: .*bomb"):
        read_images(tmp_path, 1)
    monkeypatch.undo()
    whole = (tmp_path / "000000.png").read_bytes()
    (tmp_path / "000000.png").write_bytes(whole[:40] + bytes([whole[40] ^ 255]) + whole[41:])
    with pytest.raises(UserError, match="000000.png does not open as an image"):
        read_images(tmp_path, 1)
