"""PixelCNN++: every image of a tiny size enumerated, what a pixel depends on, and its cached sampler."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import all_images, enumerate_log_prob, pooled_chisquare
from naive_autoregressive import normal_params, random_params, sample_mixtures_naively
from specs import data_of

from jgen.core import keys as rng
from jgen.core.generate import sample_images
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.autoregressive import pixelcnn_pp
from jgen.nn.pixelcnn_pp import PixelCNNPP, concat_elu
from jgen.prob.logistic_mixture import LogisticMixture, num_parameters
from jgen.samplers import autoregressive
from jgen.samplers.two_streams import sample_two_streams

CTX = Context(jnp.int32(0))
CLASSES = 2
# (H, W, C, levels), scales: odd sizes, and resolutions down to a single pixel.
SIZES = {
    "binary 2x2": ((2, 2, 1, 2), 2),
    "binary 3x3": ((3, 3, 1, 2), 2),
    "3 levels 2x2": ((2, 2, 1, 3), 1),
    "RGB 1x2, 3 levels": ((1, 2, 3, 3), 2),
    "binary 3x4": ((3, 4, 1, 2), 3),
}


def make(size, **options):
    shape, scales = SIZES[size]
    config = pixelcnn_pp.Config(features=6, blocks=1, scales=scales, mixtures=2, class_conditional=True)
    return make_model(replace(config, **options), data_of(*shape, CLASSES))


def make_params(model):
    """Parameters far from their start, so that no probability is as any other."""
    batch = {"image": np.zeros((1, *model.images.shape), np.uint8), "label": np.zeros(1, np.int32)}
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), batch, {})
    return normal_params(shapes, gain=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_probabilities_of_all_images_sum_to_one(size):
    model = make(size)
    params = make_params(model)
    by_class = [enumerate_log_prob(model, params, {"label": label}) for label in range(CLASSES)]
    for log_p in by_class:
        assert abs(np.exp(log_p).sum() - 1) < 1e-5
        assert np.ptp(log_p) > 1  # far from uniform
    assert np.abs(by_class[0] - by_class[1]).max() > 0.1  # the class matters


@pytest.mark.slow
@pytest.mark.parametrize("size", ["binary 3x3", "RGB 1x2, 3 levels"])
def test_frequencies_of_samples_are_the_enumerated_probabilities(size):
    model = make(size)
    params = make_params(model)
    n, label = 4000, 1
    images = sample_images(model, params, CTX, jax.random.key(3), n, cond={"label": label}, batch_size=n)
    log_p = [enumerate_log_prob(model, params, {"label": c}) for c in range(CLASSES)]
    assert pooled_chisquare(images, model.images.levels, log_p[label]) > 1e-3
    assert pooled_chisquare(images, model.images.levels, log_p[0]) < 1e-6  # the test can fail


@pytest.mark.slow
def test_completion_draws_from_the_conditional_distribution():
    model = make("binary 3x3")
    params = make_params(model)
    n = 3000
    given = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0]], np.uint8).reshape(1, 3, 3, 1).repeat(n, 0)
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    model.check_mask(mask)
    keys = rng.image_keys(jax.random.key(5), jnp.arange(n))
    masks = jnp.broadcast_to(mask, (n, 3, 3))
    cond = {"label": jnp.ones(n, jnp.int32)}
    drawn = np.asarray(jax.jit(model.inpaint)(params, CTX, keys, given, masks, cond))
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[:, mask], given[:, mask])
    log_p = enumerate_log_prob(model, params, {"label": 1})
    possible = np.all(all_images(model.images)[:, mask] == given[:1, mask], axis=(1, 2))
    assert possible.sum() == 2**5
    assert pooled_chisquare(drawn, 2, np.where(possible, log_p, -np.inf)) > 1e-3
    with pytest.raises(UserError, match="mask keeps the pixel at row 2, column 0"):
        model.check_mask(np.arange(9).reshape(3, 3) > 5)


def test_the_loss_is_the_negative_log_probability_a_dimension():
    model = make("3 levels 2x2", dropout=0.0)
    params = make_params(model)
    images = all_images(model.images)[::7]
    batch = {"image": images, "label": np.arange(len(images), dtype=np.int32) % CLASSES}
    keys = rng.image_keys(jax.random.key(0), jnp.arange(len(images)))
    log_p, (loss, (metrics, _)), scores = jax.jit(
        lambda p: (
            model.log_prob(p, CTX, keys, images, {"label": batch["label"]}),
            model.phases[0].loss(p, CTX, keys, batch),
            model.validate(p, CTX, keys, batch),
        )
    )(params)
    np.testing.assert_allclose(loss, -np.mean(log_p) / 4, rtol=1e-5)
    np.testing.assert_allclose(metrics["bits_per_dim"], loss / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(scores["nll"], -log_p, rtol=1e-5)
    assert model.likelihood == "exact" and model.best == ("nll", "min")


@pytest.mark.slow
def test_dropout_belongs_to_an_example_and_is_for_training_only():
    model = make("binary 3x4", scales=2, dropout=0.5)
    params = make_params(model)
    images, label = np.zeros((3, 3, 4, 1), np.uint8), np.zeros(3, np.int32)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(3))

    @jax.jit
    def run(params):
        together = model.phases[0].loss(params, CTX, keys, {"image": images, "label": label})[0]
        one = {"image": images[:1], "label": label[:1]}
        alone = jax.vmap(lambda key: model.phases[0].loss(params, CTX, key[None], one)[0])(keys)
        return together, alone, model.log_prob(params, CTX, keys, images, {"label": label})

    together, alone, log_p = run(params)
    np.testing.assert_allclose(together, np.mean(alone), rtol=1e-5)
    assert np.ptp(alone) > 1e-3
    np.testing.assert_allclose(log_p, np.full(3, log_p[0]), rtol=1e-6)


# What a pixel depends on.


def make_network(shape, levels, scales, blocks=1, classes=0):
    outputs = num_parameters(2, shape[2])
    return PixelCNNPP(levels, shape[2], outputs, 8, blocks, scales, classes)


@pytest.mark.slow
@pytest.mark.parametrize("scales", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pixel_depends_on_all_pixels_before_it_and_on_nothing_else(scales, channels):
    """But for what the blocks of a single resolution do not reach: 5 rows up, and as many columns to each side."""
    height, width, levels = 5, 6, 3
    shape = (height, width, channels)
    network = make_network(shape, levels, scales)

    @jax.jit
    def jacobian(x, params):
        return jax.jacobian(lambda x: network.apply({"params": params}, x[None])[0])(x)

    x = np.random.default_rng(0).uniform(0, levels - 1, shape).astype(np.float32)
    depends = np.any(np.asarray(jacobian(x, random_params(network, shape))) != 0, axis=2)  # (H, W, H, W, C)
    i, j, k, m, _ = np.indices(depends.shape)
    before = k * width + m < i * width + j
    assert not np.any(depends & ~before)
    # Two blocks of two convolutions, and the first layer: in its own row to the left, as far as the windows reach.
    near = before & (i - k <= 4) & (abs(m - j) <= 4)
    np.testing.assert_array_equal(depends & near, near)
    if scales > 1:
        np.testing.assert_array_equal(depends, before)


def test_channels_of_a_pixel_depend_on_those_before_it_in_order():
    """log P of a pixel's first channels, the others summed out, by differences over all values of its channels."""
    shape, levels = (1, 2, 3), 3
    model = make("RGB 1x2, 3 levels")
    log_p = enumerate_log_prob(model, make_params(model), {"label": 0}).reshape((levels,) * 6)
    p = np.exp(log_p)
    second = p / p.sum((3, 4, 5), keepdims=True)  # of the second pixel given the first
    assert shape == model.images.shape and np.ptp(second, axis=(0, 1, 2)).max() > 0.05  # on every channel of the first
    for axis in range(3):
        assert np.ptp(second, axis=axis).max() > 0.01
    first = p.sum((3, 4, 5))
    for before, after in ((0, 1), (0, 2), (1, 2)):  # each later channel depends on each earlier one
        other = ({0, 1, 2} - {before, after}).pop()
        pair = first.sum(other) if other > after else first.take(0, axis=other)
        conditional = pair / pair.sum(1, keepdims=True)
        assert np.ptp(conditional, axis=0).max() > 1e-3


@pytest.mark.slow
def test_means_of_later_channels_alone_move_with_the_value_of_a_channel():
    """By automatic differentiation: the mean of channel c given the values before it has a triangular Jacobian."""
    parts = LogisticMixture(jnp.asarray(np.random.default_rng(0).normal(0, 1, (1, 20)), jnp.float32), 3, 9).components()

    def means(x):
        return jnp.stack([parts.mean(c, list(x[:c, None, None])) for c in range(3)])[..., 0]

    jacobian = np.asarray(jax.jacobian(means)(jnp.array([0.1, -0.4, 0.7])))  # (C, K, C)
    for k in range(2):
        assert np.array_equal(jacobian[:, k] != 0, np.tri(3, k=-1, dtype=bool))


def test_concat_elu_and_its_gradient():
    x = jnp.array([-30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0])
    wanted = np.concatenate([jax.nn.elu(x), jax.nn.elu(-x)])
    np.testing.assert_allclose(concat_elu(x), wanted, atol=1e-7)
    jacobian = jax.jacobian(concat_elu)(x)
    expected = jax.jacobian(lambda x: jnp.concatenate([jax.nn.elu(x), jax.nn.elu(-x)]))(x)
    # e^-30 is the derivative at -30; JAX 0.10 has it as expm1(-30) + 1, which is 0.
    np.testing.assert_allclose(jacobian, expected, rtol=1e-6, atol=1e-7)


# The cached sampler beside one that evaluates the network over the whole image for every pixel.

# network, (H, W, C), levels, temperature, batch: more than a chunk, odd sizes, one row, one column, one resolution.
CASES = {
    "one resolution": (dict(scales=1), (4, 3, 1), 2, 1.0, 4),
    "two, colours, classes": (dict(scales=2, classes=3), (4, 5, 3), 256, 0.7, 19),
    "three, odd": (dict(scales=3), (5, 7, 1), 4, 1.0, 3),
    "two blocks": (dict(scales=2, blocks=2), (4, 4, 1), 17, 1.5, 2),
    "one row": (dict(scales=2), (1, 4, 3), 4, 1.0, 1),
    "one column": (dict(scales=2), (5, 1, 1), 4, 1.0, 3),
}


def both(name, images=None, mask=None):
    """The images of the cached and of the naive sampler."""
    options, shape, levels, temperature, batch = CASES[name]
    network = make_network(shape, levels, **options)
    keys = rng.image_keys(jax.random.key(1), jnp.arange(batch))
    label = jnp.arange(batch) % network.num_classes if network.num_classes else None
    params = random_params(network, shape, None if label is None else label[:1])
    out = []
    for sampler in (sample_two_streams, sample_mixtures_naively):
        call = jax.jit(lambda p, s=sampler: s(network, p, keys, label, shape, levels, temperature, images, mask))
        out.append(np.asarray(call(params)))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_cached_sampler_draws_what_the_naive_one_draws(name):
    cached, naive = both(name)
    np.testing.assert_array_equal(cached, naive)
    assert cached.min() >= 0 and cached.max() < CASES[name][2] and len(np.unique(cached)) > 1


@pytest.mark.slow
def test_completion_keeps_what_is_given_and_draws_the_rest_as_the_naive_sampler():
    name = "two blocks"
    _, (height, width, channels), levels, _, batch = CASES[name]
    images = np.random.default_rng(3).integers(0, levels, (batch, height, width, channels)).astype(np.uint8)
    count = np.arange(batch) * height * width // batch  # another prefix for each image, the first keeps nothing
    mask = np.arange(height * width).reshape(1, height, width) < count.reshape(-1, 1, 1)
    cached, naive = both(name, jnp.asarray(images), jnp.asarray(mask))
    np.testing.assert_array_equal(cached, naive)
    np.testing.assert_array_equal(cached[mask], images[mask])
    assert np.any(cached[~mask] != images[~mask])


@pytest.mark.slow
def test_chunks_of_the_batch_do_not_change_an_image(monkeypatch):
    shape, n = (3, 4, 1), 7
    network = make_network(shape, 17, 2)
    params, keys = random_params(network, shape), rng.image_keys(jax.random.key(1), jnp.arange(n))

    def draw(n):
        return np.asarray(jax.jit(lambda p: sample_two_streams(network, p, keys[:n], None, shape, 17))(params))

    whole = draw(n)
    monkeypatch.setattr(autoregressive, "CHUNK", 3)
    np.testing.assert_array_equal(draw(n), whole)


@pytest.mark.slow
def test_the_program_holds_no_image_wide_convolution():
    """A new pixel never reruns the network over the image: the sampler computes products of rows and of pixels."""
    shape = (4, 4, 1)
    network = make_network(shape, 4, 3)
    params, keys = random_params(network, shape), rng.image_keys(jax.random.key(1), jnp.arange(2))

    def lowered(sampler):
        return jax.jit(lambda p: sampler(network, p, keys, None, shape, 4)).lower(params).as_text()

    assert "stablehlo.convolution" in lowered(sample_mixtures_naively)
    assert "stablehlo.convolution" not in lowered(sample_two_streams)


# Bad input.


@pytest.mark.parametrize(
    "options,words",
    [
        ({"features": 0}, "features is 0: it must be above zero"),
        ({"blocks": 0}, "blocks is 0: it must be above zero"),
        ({"mixtures": -1}, "mixtures is -1: it must be above zero"),
        ({"scales": 0}, "scales is 0: it must be above zero"),
        ({"scales": 4}, "scales is 4: it must be at most 3 for images of 3 x 4"),
        ({"dropout": 1.0}, "dropout is 1.0: it must be at least 0 and below 1"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"sampling": pixelcnn_pp.Sampling(temperature=0.0)}, "temperature is 0.0"),
    ],
)
def test_configurations_that_no_model_can_be_made_of(options, words):
    with pytest.raises(UserError) as caught:
        make("binary 3x4", **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_by_class_needs_labels():
    with pytest.raises(UserError, match="class_conditional is True, but the data has no labels"):
        pixelcnn_pp.make(pixelcnn_pp.Config(scales=1, class_conditional=True), data_of(4, 4, 1, 2))
