"""What is done to images on the device: binarisation, levels, flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core import keys as rng
from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.data.config import Config, check_config
from jgen.data.transforms import added_fields, make_transform
from jgen.errors import UserError


def constant_batch(value, size=500):
    image = np.full((size, 8, 8, 1), value, np.uint8)
    return {"image": image, "label": np.zeros(size, np.int32), "index": np.arange(size, dtype=np.int32)}


def spec_of(levels, height=8, width=8):
    return DataSpec(ImageSpec(height, width, 1, levels), {"label": ArraySpec((), "int32", 10)})


def keys_for(size, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(size))


def test_threshold():
    image = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    batch = {"image": image, "label": np.zeros(4, np.int32), "index": np.arange(4, dtype=np.int32)}
    transformed = make_transform(Config(binarise="threshold"), spec_of(2), train=True)(keys_for(4), batch)["image"]
    assert transformed.dtype == jnp.uint8
    np.testing.assert_array_equal(transformed, image >= 128)


@pytest.mark.parametrize("binarise", ["dynamic", "static"])
def test_random_binarisation_has_the_pixels_as_its_mean(binarise):
    transform = jax.jit(make_transform(Config(binarise=binarise), spec_of(2), train=True))
    for value in (0, 1, 64, 127, 200, 254, 255):
        batch = constant_batch(value)
        transformed = np.asarray(transform(keys_for(500), batch)["image"])
        assert transformed.dtype == np.uint8 and set(np.unique(transformed)) <= {0, 1}
        p = value / 255
        assert abs(transformed.mean() - p) <= 5 * np.sqrt(p * (1 - p) / transformed.size), value


def test_dynamic_binarisation_belongs_to_the_key_and_static_to_the_image(digits):
    batch = digits.splits["train"].fetch(np.arange(40))
    dynamic = make_transform(Config(binarise="dynamic"), spec_of(2), train=True)
    static = make_transform(Config(binarise="static"), spec_of(2), train=True)
    a, b = (np.asarray(dynamic(keys_for(40, seed), batch)["image"]) for seed in (0, 1))
    assert np.any(a != b)
    np.testing.assert_array_equal(a, dynamic(keys_for(40, 0), batch)["image"])
    fixed = np.asarray(static(keys_for(40, 0), batch)["image"])
    np.testing.assert_array_equal(fixed, static(keys_for(40, 1), batch)["image"])
    some = np.array([30, 2, 17])
    part = static(keys_for(3, 5), digits.splits["train"].fetch(some))["image"]
    np.testing.assert_array_equal(part, fixed[some])
    held_out = make_transform(Config(binarise="static"), spec_of(2), train=False)
    np.testing.assert_array_equal(held_out(keys_for(40), batch)["image"], fixed)


def test_flips_mirror_whole_images_in_training_only(digits):
    batch = digits.splits["train"].fetch(np.arange(400))
    image = batch["image"]
    transformed = np.asarray(make_transform(Config(flip=True), spec_of(256), train=True)(keys_for(400), batch)["image"])
    mirrored = image[:, :, ::-1]
    same, flipped = (np.all(transformed == other, axis=(1, 2, 3)) for other in (image, mirrored))
    assert np.all(same | flipped)
    count = np.sum(flipped & ~same)
    assert abs(count - 200) <= 5 * np.sqrt(100)
    for config, train in ((Config(flip=True), False), (Config(), True)):
        after = make_transform(config, spec_of(256), train)(keys_for(400), batch)
        np.testing.assert_array_equal(after["image"], image)
        np.testing.assert_array_equal(after["label"], batch["label"])


def test_two_to_the_eight_levels_leave_images_alone_and_two_cut_at_the_middle():
    image = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    batch = {"image": image, "label": np.zeros(4, np.int32), "index": np.arange(4, dtype=np.int32)}
    np.testing.assert_array_equal(make_transform(Config(), spec_of(256), True)(keys_for(4), batch)["image"], image)
    transformed = np.asarray(make_transform(Config(), spec_of(2), True)(keys_for(4), batch)["image"])
    np.testing.assert_array_equal(transformed, image // 128)
    counts = np.bincount(np.asarray(make_transform(Config(), spec_of(4), True)(keys_for(4), batch)["image"]).ravel())
    assert counts.tolist() == [64] * 4


def test_the_draws_of_flips_and_binarisation_are_those_of_two_split_keys(digits):
    """Whatever fields are added: runs go on with the draws that they were started with."""
    batch = digits.splits["train"].fetch(np.arange(50))
    key_flip, key_binarise = rng.split(keys_for(50), 2)
    flip = np.asarray(rng.bernoulli(key_flip, 0.5))
    image = np.where(flip[:, None, None, None], batch["image"][:, :, ::-1], batch["image"])
    wanted = np.asarray(rng.uniform(key_binarise, (8, 8, 1))) * np.float32(255) < image.astype(np.float32)
    for low_resolution in (0, 2):
        config = Config(flip=True, binarise="dynamic", low_resolution=low_resolution)
        drawn = make_transform(config, spec_of(2), train=True)(keys_for(50), batch)
        np.testing.assert_array_equal(drawn["image"], wanted)


def test_other_fields_pass_through_untouched(digits):
    fields = {
        "text": np.arange(400 * 3, dtype=np.int32).reshape(400, 3),
        "mask": np.random.default_rng(0).integers(0, 256, (400, 8, 8, 1), np.uint8),
        "position": np.linspace(0, 1, 400, dtype=np.float32),
    }
    config = Config(flip=True, binarise="dynamic", low_resolution=4)
    batch = digits.splits["train"].fetch(np.arange(400)) | fields
    after = jax.jit(make_transform(config, spec_of(2), train=True))(keys_for(400), batch)
    assert set(after) == {"image", "label", "index", "low_resolution", *fields}
    for name in ("label", "index", *fields):
        np.testing.assert_array_equal(after[name], batch[name])
        assert after[name].dtype == batch[name].dtype


@pytest.mark.parametrize("options", [{}, {"levels": 17}, {"flip": True}, {"binarise": "static"}])
def test_the_low_resolution_is_the_mean_of_the_pixels_of_the_final_image(digits, options):
    levels = 2 if "binarise" in options else options.get("levels", 256)
    config = Config(low_resolution=4, **options)
    batch = digits.splits["train"].fetch(np.arange(100))
    after = jax.jit(make_transform(config, spec_of(levels), train=True))(keys_for(100), batch)
    small, image = np.asarray(after["low_resolution"]), np.asarray(after["image"], np.float64)
    means = image.reshape(100, 2, 4, 2, 4, 1).mean((2, 4))
    np.testing.assert_array_equal(small, np.floor(means + 0.5))
    spec = added_fields(config, spec_of(levels).image)["low_resolution"]
    assert spec == ArraySpec((2, 2, 1), "uint8", levels)
    assert small.shape[1:] == spec.shape and small.dtype == np.uint8 and 0 < small.max() < levels


def test_a_low_resolution_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="^data.low_resolution is 3: it must divide the images' sides, 9 and 8$"):
        added_fields(Config(low_resolution=3), ImageSpec(9, 8, 1, 256))
    with pytest.raises(UserError, match="^data.low_resolution is 1: it must be at least 2, or 0 for none$"):
        check_config(Config(low_resolution=1))
    assert added_fields(Config(), ImageSpec(9, 8, 1, 256)) == {}
