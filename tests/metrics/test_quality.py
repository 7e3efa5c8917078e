"""Distances of samples to real images, end to end on the digits: real ones are near, noise and copies are told."""

import numpy as np
import pytest

from jgen.data import dataset
from jgen.data.config import Config
from jgen.data.pictures import read_images, write_images
from jgen.errors import UserError
from jgen.metrics import classifier, quality

RECIPE = classifier.Recipe(widths=(16, 32), features=32, epochs=30, batch_size=64, shift=1)


@pytest.fixture(scope="module")
def digits(cache):
    return dataset.load(Config(name="digits"))


@pytest.fixture(scope="module")
def network(digits):
    return quality.of_classifier(classifier.load(digits, RECIPE))


def real(digits, network, split, num=0):
    return quality.real_features(digits, split, num, network, lambda batch: batch["image"], "as they are")


def test_real_images_are_near_noise_is_far_and_copies_are_told(digits, network):
    train, test = real(digits, network, "train"), real(digits, network, "test")
    unseen = digits.splits["validation"].fetch(np.arange(digits.splits["validation"].num))["image"]
    copies = digits.splits["train"].fetch(np.arange(150))["image"]
    noise = np.random.default_rng(0).integers(0, 256, unseen.shape).astype(np.uint8)
    near = quality.quality(unseen, network, test, train, test)
    far = quality.quality(noise, network, test, train, test)
    copied = quality.quality(copies, network, test, train, test)
    assert near["num"] == len(unseen)
    assert near["network"].startswith("FD-digits-") and near["network"].endswith(near["network_hash"])
    for name in ("frechet_distance", "kernel_distance"):
        assert near[name]["value"] < 0.3 * far[name]["value"]
    assert near["frechet_distance"]["low"] <= near["frechet_distance"]["value"] <= near["frechet_distance"]["high"]
    assert near["spatial_frechet_distance"] < far["spatial_frechet_distance"]
    assert near["precision"] > far["precision"] and near["coverage"] > far["coverage"]
    # As many train images as test images are compared with, so only some of the copies find their original.
    assert copied["memorisation"]["ratio"] > near["memorisation"]["ratio"]


def test_real_features_are_kept_with_what_they_were_measured_on(digits, network, monkeypatch):
    first = real(digits, network, "test", 60)
    assert first.num == 60 and first.split == "test" and first.features.shape == (60, 32)
    silent = network._replace(apply=lambda images: pytest.fail("computed again"))
    np.testing.assert_array_equal(real(digits, silent, "test", 60).features, first.features)
    assert real(digits, network, "test", 61).num == 61
    with pytest.raises(UserError, match="9999 images were asked for: test of digits has"):
        real(digits, network, "test", 9999)


@pytest.mark.parametrize(
    "images,words",
    [
        (np.zeros((60, 8, 8, 1), np.float32), "float32"),
        (np.zeros((60, 9, 8, 1), np.uint8), "(9, 8, 1)"),
        (np.zeros((49, 8, 8, 1), np.uint8), "at least 50"),
    ],
)
def test_samples_that_cannot_be_compared(images, words):
    with pytest.raises(UserError) as caught:
        quality.check_images(images, (8, 8, 1))
    assert words in str(caught.value)


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
    np.savez(tmp_path / "other.npz", pictures=images)
    for path, words in (("none", "nothing at"), ("other.npz", "pictures"), ("folder/000001.png", "must be an .npz")):
        with pytest.raises(UserError, match=words):
            read_images(tmp_path / path, 1)
    (tmp_path / "folder" / "000003.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="000003.png cannot be read"):
        read_images(tmp_path / "folder", 1)
