"""What is done to images on the device: binarisation, levels, flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core import keys as rng
from jgen.data.config import Config
from jgen.data.transforms import make_transform


def constant_batch(value, size=500):
    image = np.full((size, 8, 8, 1), value, np.uint8)
    return {"image": image, "label": np.zeros(size, np.int32), "index": np.arange(size, dtype=np.int32)}


def keys_for(size, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(size))


def test_threshold():
    image = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    batch = {"image": image, "label": np.zeros(4, np.int32), "index": np.arange(4, dtype=np.int32)}
    found = make_transform(Config(binarise="threshold"), 2, train=True)(keys_for(4), batch)["image"]
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, image >= 128)


@pytest.mark.parametrize("binarise", ["dynamic", "static"])
def test_random_binarisation_has_the_pixels_as_its_mean(binarise):
    transform = jax.jit(make_transform(Config(binarise=binarise), 2, train=True))
    for value in (0, 1, 64, 127, 200, 254, 255):
        batch = constant_batch(value)
        found = np.asarray(transform(keys_for(500), batch)["image"])
        assert found.dtype == np.uint8 and set(np.unique(found)) <= {0, 1}
        p = value / 255
        assert abs(found.mean() - p) <= 5 * np.sqrt(p * (1 - p) / found.size), value


def test_dynamic_binarisation_belongs_to_the_key_and_static_to_the_image(digits):
    batch = digits.splits["train"].fetch(np.arange(40))
    dynamic = make_transform(Config(binarise="dynamic"), 2, train=True)
    static = make_transform(Config(binarise="static"), 2, train=True)
    a, b = (np.asarray(dynamic(keys_for(40, seed), batch)["image"]) for seed in (0, 1))
    assert np.any(a != b)
    np.testing.assert_array_equal(a, dynamic(keys_for(40, 0), batch)["image"])
    fixed = np.asarray(static(keys_for(40, 0), batch)["image"])
    np.testing.assert_array_equal(fixed, static(keys_for(40, 1), batch)["image"])
    some = np.array([30, 2, 17])
    part = static(keys_for(3, 5), digits.splits["train"].fetch(some))["image"]
    np.testing.assert_array_equal(part, fixed[some])
    held_out = make_transform(Config(binarise="static"), 2, train=False)
    np.testing.assert_array_equal(held_out(keys_for(40), batch)["image"], fixed)


def test_flips_mirror_whole_images_in_training_only(digits):
    batch = digits.splits["train"].fetch(np.arange(400))
    image = batch["image"]
    found = np.asarray(make_transform(Config(flip=True), 256, train=True)(keys_for(400), batch)["image"])
    mirrored = image[:, :, ::-1]
    same, flipped = (np.all(found == other, axis=(1, 2, 3)) for other in (image, mirrored))
    assert np.all(same | flipped)
    count = np.sum(flipped & ~same)
    assert abs(count - 200) <= 5 * np.sqrt(100)
    for config, train in ((Config(flip=True), False), (Config(), True)):
        after = make_transform(config, 256, train)(keys_for(400), batch)
        np.testing.assert_array_equal(after["image"], image)
        np.testing.assert_array_equal(after["label"], batch["label"])


def test_two_to_the_eight_levels_leave_images_alone_and_two_cut_at_the_middle():
    image = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    batch = {"image": image, "label": np.zeros(4, np.int32), "index": np.arange(4, dtype=np.int32)}
    np.testing.assert_array_equal(make_transform(Config(), 256, True)(keys_for(4), batch)["image"], image)
    found = np.asarray(make_transform(Config(), 2, True)(keys_for(4), batch)["image"])
    np.testing.assert_array_equal(found, image // 128)
    counts = np.bincount(np.asarray(make_transform(Config(), 4, True)(keys_for(4), batch)["image"]).ravel())
    assert counts.tolist() == [64] * 4
