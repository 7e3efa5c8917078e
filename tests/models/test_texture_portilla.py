"""The texture model of Portilla and Simoncelli: what it fits, and that what it draws has it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import data_of

from jgen.core import keys as rng
from jgen.core.generate import sample_images, sampled_images
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import from_json, make_model, to_json
from jgen.models.classical import texture
from jgen.models.classical.texture_portilla import Config, Sampling
from jgen.nn import texture_statistics as ts

SIZE = 32
CONFIG = Config(scales=2, orientations=2, neighbourhood=5, sampling=Sampling(steps=200))
DATA = data_of(SIZE, SIZE, 1, 256)


def crops(channels=1, num=3, size=SIZE):
    """Blobs of unlike sizes, in one of two colours, or, of one channel, greys."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    made = np.full((num, size, size, 3), (60.0, 90.0, 40.0))
    for image in made:
        for _ in range(size * size // 40):
            cy, cx, radius = *draw.uniform(0, size, 2), draw.uniform(1, 3)
            dy, dx = (np.abs(a - c) for a, c in ((y, cy), (x, cx)))
            near = np.minimum(dy, size - dy) ** 2 + np.minimum(dx, size - dx) ** 2 < radius**2
            image[near] = [(200.0, 180.0, 120.0), (130.0, 60.0, 160.0)][draw.integers(2)]
    noisy = made + draw.normal(scale=8, size=made.shape)
    return np.uint8(np.clip(noisy, 0, 255))[..., :channels]


def fit(config, images, batches=1):
    """The model of these crops, and its context after it has seen all of them in so many steps."""
    model = make_model(config, data_of(*images.shape[1:], 256))
    parts = np.split(images, batches)
    _, extra = jax.jit(model.init)(jax.random.key(0), {"image": parts[0]}, {})
    loss = jax.jit(model.phases[0].loss)
    for step, part in enumerate(parts):
        _, (_, new) = loss({}, Context(jnp.int32(step), extra=extra), None, {"image": part})
        extra = {**extra, **new}
    return model, Context(jnp.int32(batches), extra=extra)


@pytest.fixture(scope="module")
def fitted():
    return fit(CONFIG, crops())


@pytest.fixture(scope="module")
def drawn(fitted):
    model, ctx = fitted
    return sample_images(model, {}, ctx, jax.random.key(7), 2)


def errors(model, ctx, images, **options):
    return np.asarray(jax.jit(lambda x: model.functions["texture_error"]({}, ctx, x, **options))(images))


@pytest.mark.slow
def test_a_sample_has_the_statistics_of_the_source(fitted, drawn):
    """Within 1 %, where crops of it are unlike each other, and noise has nothing but the spectrum."""
    model, ctx = fitted
    assert drawn.shape == (2, SIZE, SIZE, 1) and np.all(errors(model, ctx, drawn) < 0.01)
    assert np.all(errors(model, ctx, crops(), source=True) > 0.03)
    noise = sample_images(model, {}, ctx, jax.random.key(7), 2, steps=1)
    assert np.all(errors(model, ctx, noise) > 0.2)
    assert np.mean(drawn[0] != drawn[1]) > 0.5


@pytest.mark.slow
def test_projections_come_near_to_the_statistics_of_the_source(fitted):
    """Within 5 % after 20 rounds, nearer than after one; of the source's range, and each image by its own key."""
    model, ctx = fitted
    few = sample_images(model, {}, ctx, jax.random.key(7), 1, method="projections", steps=1)
    drawn = sample_images(model, {}, ctx, jax.random.key(7), 2, method="projections", steps=20)
    early, late = errors(model, ctx, few), errors(model, ctx, drawn)
    assert np.all(late < 0.05) and np.all(late < 0.5 * early[0])
    assert np.mean(drawn[0] != drawn[1]) > 0.5
    range_of = ctx.extra["statistics"]["least"][0] * 255 - 1, ctx.extra["statistics"]["greatest"][0] * 255 + 1
    assert range_of[0] < drawn.min() < drawn.max() < range_of[1]


def test_projections_are_of_one_channel():
    model = make_model(CONFIG, data_of(SIZE, SIZE, 3, 256))
    with pytest.raises(UserError, match="^method is projections: images have 3 channels, it takes 1$"):
        sampled_images(model, {"method": "projections"})
    with pytest.raises(UserError, match="it takes 1: set --model.sampling.method"):
        make_model(replace(CONFIG, sampling=Sampling(method="projections")), data_of(SIZE, SIZE, 3, 256))


def test_a_run_with_the_options_that_all_textures_had_loads():
    document = to_json(CONFIG)
    document["sampling"] = to_json(texture.Sampling(size=64, steps=9))
    assert from_json(document) == replace(CONFIG, sampling=Sampling(size=64, steps=9))


@pytest.mark.slow
def test_a_sample_has_the_colours_of_the_source():
    """Mean and covariance of the channels, by NumPy, of pixels that are not decorrelated."""
    model, ctx = fit(CONFIG, crops(3))
    drawn = sample_images(model, {}, ctx, jax.random.key(7), 1, steps=100)
    made, source = (images.reshape(-1, 3) / 255 for images in (drawn, crops(3)))
    np.testing.assert_allclose(made.mean(axis=0), source.mean(axis=0), atol=0.002)
    np.testing.assert_allclose(np.cov(made.T), np.cov(source.T), atol=0.02 * np.trace(np.cov(source.T)))


def test_samples_tile(fitted, drawn):
    """Across the boundary, neighbours are no less alike than elsewhere, and a shifted sample is as good."""
    model, ctx = fitted
    image = drawn[0].astype(np.float64)
    for axis in (0, 1):
        steps = np.abs(np.roll(image, -1, axis) - image).mean(axis=(1 - axis, 2))
        assert steps[-1] < steps.mean() + 4 * steps.std()
    shifted = errors(model, ctx, np.roll(drawn, (4, 12), (1, 2)))
    np.testing.assert_allclose(shifted, errors(model, ctx, drawn), rtol=0.02)


@pytest.mark.slow
def test_samples_of_another_size(fitted):
    model, ctx = fitted
    images = sample_images(model, {}, ctx, jax.random.key(7), 1, size=48, steps=120)
    assert images.shape == (1, 48, 48, 1) and errors(model, ctx, images)[0] < 0.015
    assert sampled_images(model, {"size": 48}).shape == (48, 48, 1)
    assert sampled_images(model, {}) == model.images


def test_what_is_known_is_the_mean_over_all_crops():
    """In three steps of one crop, from the colours of the first: means of the statistics of decorrelated crops."""
    images = crops(3)
    model, ctx = fit(CONFIG, images, batches=3)
    colour = jax.device_get(ctx.extra["colour"])
    z = (images / 255 - colour["mean"]) @ colour["to"]
    first = z[0].reshape(-1, 3)
    np.testing.assert_allclose(np.cov(first.T, bias=True), np.eye(3), atol=1e-3)
    np.testing.assert_allclose(z @ colour["back"] + colour["mean"], images / 255, atol=1e-5)
    form = ts.Form(CONFIG.scales, CONFIG.orientations, CONFIG.neighbourhood)
    each = jax.jit(jax.vmap(lambda z: ts.statistics(form, z)))(z.astype(np.float32))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.mean(axis=0), rtol=1e-3, atol=1e-4),
        ctx.extra["statistics"]["phi"],
        each,
    )
    greatest = images.max(axis=(1, 2)).mean(axis=0) / 255
    np.testing.assert_allclose(ctx.extra["statistics"]["greatest"], greatest, rtol=1e-5)


def test_before_the_first_step_a_texture_is_faint_noise():
    model = make_model(CONFIG, DATA)
    _, extra = jax.jit(model.init)(jax.random.key(0), {"image": crops()}, {})
    loss = jax.jit(model.phases[0].loss)
    start, (_, new) = loss({}, Context(jnp.int32(0), extra=extra), None, {"image": crops()})
    after, _ = loss({}, Context(jnp.int32(1), extra={**extra, **new}), None, {"image": crops()})
    assert float(after) < 0.3 < float(start)
    pixels = extra["statistics"]["phi"]["pixels"]
    variance = float(pixels["covariance"][0, 0])
    assert variance == pytest.approx(0.09, rel=0.15)
    assert float(pixels["fourth"][0]) == pytest.approx(3 * variance**2, rel=0.2)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"scales": 0}, "scales is 0"),
        ({"orientations": 1}, "orientations is 1"),
        ({"neighbourhood": 4}, "neighbourhood is 4"),
        ({"scales": 3}, "an image of the data is 32x32: a pyramid of 3 scales .* needs sides of 40 pixels or more"),
        ({"sampling": Sampling(size=24, steps=0)}, "steps is 0.*--model.sampling.steps"),
        ({"sampling": Sampling(size=16)}, "size is 16x16: .* of 20 pixels or more: set --model.sampling.size"),
        ({"sampling": Sampling(size=30)}, "size is 30x30: sides must be multiples of 4.*--model.sampling.size"),
        ({"sampling": Sampling(size=-4)}, "size is -4"),
    ],
)
def test_options_out_of_range(changes, words):
    with pytest.raises(UserError, match=words):
        make_model(replace(CONFIG, **changes), DATA)


def test_a_size_that_cannot_be_drawn_is_one_line(fitted):
    model, ctx = fitted
    with pytest.raises(UserError, match="^size is 30x30: sides must be multiples of 4, 2 to the number of scales$"):
        sample_images(model, {}, ctx, jax.random.key(0), 1, size=30)


@pytest.mark.slow
def test_image_i_depends_on_its_key_alone(fitted):
    model, ctx = fitted
    few = Context(ctx.step, extra=ctx.extra)
    keys = rng.image_keys(jax.random.key(3), jnp.arange(5))
    draw = jax.jit(lambda keys: model.sample({}, few, keys, {}, steps=30))
    np.testing.assert_array_equal(draw(keys)[2:4], draw(keys[2:4]))
