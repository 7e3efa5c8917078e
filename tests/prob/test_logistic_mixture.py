"""The mixture of discretised logistics: beside SciPy in float64, enumerated, and sampled."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chisquare, logistic

from jgen.core import keys as rng
from jgen.prob.logistic_mixture import MIN_LOG_SCALE, LogisticMixture, num_parameters

MIXTURES = 3


def random_parameters(channels, shape=(), log_scale=-1.0, spread=1.0, seed=0):
    """Parameters (*shape, P) of components whose log scales are about `log_scale`."""
    generator = np.random.default_rng(seed)
    logits, means, scales = (generator.normal(0, spread, (*shape, k, MIXTURES)) for k in (1, channels, channels))
    coefficients = generator.normal(0, 1, (*shape, channels * (channels - 1) // 2, MIXTURES))
    parts = np.concatenate([logits, means, 0.3 * scales + log_scale, coefficients], axis=-2)
    return parts.reshape(*shape, -1).astype(np.float32)


def scipy_log_prob(parameters, values, levels):
    """log P of pixels (n, C) under one pixel's parameters (P,), in float64, component by component."""
    channels = values.shape[1]
    p = parameters.astype(np.float64).reshape(-1, MIXTURES)
    logits, means, scales = p[0], p[1 : 1 + channels], np.exp(np.maximum(p[1 + channels : 1 + 2 * channels], -7.0))
    coefficients, pairs = np.tanh(p[1 + 2 * channels :]), [(c, d) for c in range(channels) for d in range(c)]
    x, half = 2.0 * values / (levels - 1) - 1, 1.0 / (levels - 1)
    terms = np.zeros((len(values), MIXTURES))
    for k in range(MIXTURES):
        terms[:, k] = logits[k] - logsumexp(logits)
        for c in range(channels):
            moved = sum(coefficients[pairs.index((c, d)), k] * x[:, d] for d in range(c))
            terms[:, k] += mass(values[:, c], levels, x[:, c] - means[c, k] - moved, half, scales[c, k])
    return logsumexp(terms, axis=1)


def mass(values, levels, centre, half, scale):
    """log of the mass of logistic(0, scale) in centre +- half, to infinity at the ends, from the nearer tail."""
    upper = np.where(values == levels - 1, np.inf, centre + half) / scale
    lower = np.where(values == 0, -np.inf, centre - half) / scale
    high, low = np.where(centre > 0, -lower, upper), np.where(centre > 0, -upper, lower)
    log_high, log_low = logistic.logcdf(high), logistic.logcdf(low)
    # Of a bin much narrower than the scale the difference of two cdfs cancels in float64 too: density times width.
    middle = logistic.logpdf(centre / scale) + np.log(2 * half / scale)
    inside = (values > 0) & (values < levels - 1) & (2 * half / scale < 1e-6)
    with np.errstate(divide="ignore"):
        return np.where(inside, middle, log_high + np.log1p(-np.exp(log_low - log_high)))


def all_pixels(levels, channels):
    return np.array(list(itertools.product(range(levels), repeat=channels)), np.uint8)


@cache
def program(channels, levels):
    return jax.jit(lambda p, x: LogisticMixture(p, channels, levels).pixel_log_prob(x))


@pytest.mark.parametrize("channels,levels", [(1, 2), (1, 17), (1, 256), (2, 7), (3, 3), (3, 8)])
@pytest.mark.parametrize("log_scale", [-20.0, MIN_LOG_SCALE, -3.0, 0.0, 3.0, 9.0, 20.0])
def test_all_pixels_beside_scipy_and_their_sum(channels, levels, log_scale):
    """Scales from far below the distance of two levels to far above the range."""
    values = all_pixels(levels, channels)
    parameters = random_parameters(channels, (), log_scale)
    log_p = program(channels, levels)(np.broadcast_to(parameters, (len(values), parameters.size)), values)
    assert log_p.dtype == jnp.float32 and np.all(np.isfinite(log_p))
    wanted = scipy_log_prob(parameters, values, levels)
    # The tail of a narrow logistic is linear in the distance over the scale, which has float32's relative error.
    np.testing.assert_allclose(log_p, wanted, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(), 1.0, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_distant_means_and_extreme_scales_give_finite_numbers_and_gradients(channels):
    values = np.tile(np.array([0, 1, 127, 254, 255], np.uint8)[:, None], (1, channels))

    @jax.jit
    def run(parameters):
        def total(p):
            log_p = LogisticMixture(p, channels, 256).pixel_log_prob(values)
            return jnp.sum(log_p), log_p

        return jax.value_and_grad(total, has_aux=True)(parameters)

    for log_scale, spread in itertools.product((-50.0, -7.0, 0.0, 30.0), (0.1, 50.0)):
        p = random_parameters(channels, (5,), log_scale, spread)
        (_, log_p), gradient = run(p)
        assert np.all(np.isfinite(log_p)) and np.all(log_p <= 0) and np.all(np.isfinite(gradient))
        assert np.any(gradient != 0)


def test_the_logits_means_scales_and_coefficients_all_have_the_gradient_of_finite_differences():
    p = random_parameters(3, (4,), -1.5)
    values = np.random.default_rng(1).integers(0, 9, (4, 3)).astype(np.uint8)
    direction = np.random.default_rng(2).normal(0, 1, p.shape)

    @jax.jit
    def loss(p):
        return LogisticMixture(p, 3, 9).log_prob(values).sum()

    size = 1e-3
    wanted = [
        (sum(scipy_log_prob(q, values[i : i + 1], 9)[0] for i, q in enumerate(p + s * size * direction)))
        for s in (1.0, -1.0)
    ]
    gradient = np.sum(np.asarray(jax.grad(loss)(p), np.float64) * direction)
    np.testing.assert_allclose(gradient, (wanted[0] - wanted[1]) / (2 * size), rtol=1e-3)


def test_images_are_the_sum_over_their_pixels():
    p = random_parameters(3, (2, 4, 5), -1.0)
    images = np.random.default_rng(0).integers(0, 16, (2, 4, 5, 3)).astype(np.uint8)
    mixture = LogisticMixture(jnp.asarray(p), 3, 16)
    each = np.array([scipy_log_prob(q, x[None], 16)[0] for q, x in zip(p.reshape(40, -1), images.reshape(40, 3))])
    np.testing.assert_allclose(mixture.pixel_log_prob(images), each.reshape(2, 4, 5), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mixture.log_prob(images), each.reshape(2, 20).sum(1), rtol=1e-4)


def test_a_channel_moves_only_the_means_of_those_after_it():
    """The probabilities of a pixel factor into those of its channels in order: sums over what comes later are equal."""
    levels = 4
    p = random_parameters(3, (), -1.0)
    values = all_pixels(levels, 3)
    joint = np.exp(scipy_log_prob(p, values, levels)).reshape(levels, levels, levels)
    ours = np.exp(program(3, levels)(np.broadcast_to(p, (len(values), p.size)), values)).reshape(joint.shape)
    first = LogisticMixture(jnp.asarray(p.reshape(-1, MIXTURES)[[0, 1, 4]].reshape(1, -1)), 1, levels)
    alone = [np.exp(first.log_prob(np.full((1, 1), value, np.uint8)))[0] for value in range(levels)]
    np.testing.assert_allclose(ours.sum((1, 2)), alone, rtol=1e-4)
    conditional = ours.sum(2) / ours.sum((1, 2))[:, None]
    assert np.ptp(conditional, axis=0).max() > 0.1  # the first channel moves the second


@pytest.mark.parametrize("channels,levels,log_scale", [(1, 17, -1.0), (1, 2, 0.0), (3, 3, -0.7), (3, 3, 2.0)])
def test_frequencies_of_samples_are_the_probabilities(channels, levels, log_scale):
    n = 20_000
    p = random_parameters(channels, (), log_scale, seed=1)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(n))
    tiled = np.broadcast_to(p, (n, p.size))
    drawn = np.asarray(jax.jit(lambda p: LogisticMixture(p, channels, levels).sample(keys))(tiled))
    assert drawn.dtype == np.uint8 and drawn.shape == (n, channels)
    values = all_pixels(levels, channels)
    probabilities = np.exp(scipy_log_prob(p, values, levels))
    counts = np.bincount(drawn.astype(int) @ (levels ** np.arange(channels)[::-1]), minlength=len(values))
    common = probabilities * n >= 5
    observed, expected = (np.append(x[common], n - x[common].sum()) for x in (counts, probabilities * n))
    if expected[-1] < 5:  # too rare to test: fold into the last
        observed, expected = (np.append(x[:-2], x[-2:].sum()) for x in (observed, expected))
    assert chisquare(observed, expected).pvalue > 1e-3
    other = np.exp(scipy_log_prob(random_parameters(channels, (), log_scale, seed=2), values, levels))
    assert np.abs(other - probabilities).sum() > 0.05  # such parameters would be told apart


def test_temperature_divides_logits_and_multiplies_scales():
    temperature = 0.5
    p = random_parameters(1, (), -1.0).reshape(3, MIXTURES)
    cooled = np.stack([p[0] / temperature, p[1], p[2] + np.log(temperature)]).reshape(-1).astype(np.float32)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(500))
    tiled, cooled = (np.broadcast_to(x.reshape(-1), (500, 9)) for x in (p, cooled))
    at_temperature = LogisticMixture(jnp.asarray(tiled), 1, 17).sample(keys, temperature)
    np.testing.assert_array_equal(at_temperature, LogisticMixture(jnp.asarray(cooled), 1, 17).sample(keys))
    assert np.any(at_temperature != LogisticMixture(jnp.asarray(tiled), 1, 17).sample(keys))


@pytest.mark.slow
def test_an_image_depends_on_its_own_key_alone():
    p = jnp.asarray(random_parameters(3, (3, 4, 5), 0.0))
    keys = rng.image_keys(jax.random.key(0), jnp.arange(3))
    images = np.asarray(LogisticMixture(p, 3, 256).sample(keys))
    assert images.shape == (3, 4, 5, 3) and np.unique(images).size > 20
    np.testing.assert_array_equal(LogisticMixture(p[1:2], 3, 256).sample(keys[1:2]), images[1:2])


def test_the_mean_is_that_of_many_samples():
    """With narrow components well inside of the range, where neither levels nor clipping matter."""
    n = 20_000
    p = random_parameters(3, (), -4.0, spread=0.15, seed=3)
    mixture = LogisticMixture(jnp.broadcast_to(p, (n, p.size)), 3, 256)
    drawn = np.asarray(mixture.sample(rng.image_keys(jax.random.key(0), jnp.arange(n))), np.float64) / 127.5 - 1
    error = drawn.std(0) / np.sqrt(n)
    assert np.all(np.abs(drawn.mean(0) - np.asarray(mixture.mean())[0]) < 5 * error + 1e-3)
    far = LogisticMixture(jnp.asarray(random_parameters(3, (2, 4), 0.0, spread=30.0)), 3, 256).mean()
    assert far.shape == (2, 4, 3) and np.all(np.abs(far) <= 1)


def test_parameters_that_fit_no_number_of_components():
    assert num_parameters(10, 3) == 100 and num_parameters(5, 1) == 15
    for size in (0, 11):
        with pytest.raises(ValueError, match=f"{size} parameters a pixel: they must be a multiple of 10 for 3"):
            LogisticMixture(jnp.zeros((1, size)), 3, 256).components()
