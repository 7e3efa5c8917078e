"""Likelihoods that are distributions, beside SciPy, and that stay numbers at their ends."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jgen.prob import likelihoods
from jgen.prob.pixels import bits_per_dim, to_float, to_uint8


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("std", [1e-4, 1e-3, 0.02, 0.5, 3.0, 40.0, 1e4])
@pytest.mark.parametrize("mean", [-50.0, -5.0, -1.0, -0.3, 0.0, 0.77, 1.0, 5.0, 50.0])
def test_discretised_normal_is_a_distribution(levels, std, mean):
    level = jnp.arange(levels)
    logp = likelihoods.discretised_normal_log_prob(level, jnp.full(levels, mean), std, levels)
    assert np.all(np.isfinite(logp))
    np.testing.assert_allclose(np.exp(np.asarray(logp, np.float64)).sum(), 1.0, atol=2e-5)


def test_discretised_normal_matches_scipy():
    levels, std = 256, 0.05
    mean = np.linspace(-1.2, 1.2, levels)
    k = np.arange(levels)
    x, half = 2 * k / 255 - 1, 1 / 255
    upper = np.where(k == 255, np.inf, x + half)
    lower = np.where(k == 0, -np.inf, x - half)
    # In the upper tail SciPy's difference of cdfs cancels; survival functions do not.
    flip = x > mean
    mass = np.where(
        flip,
        scipy.stats.norm.sf(lower, mean, std) - scipy.stats.norm.sf(upper, mean, std),
        scipy.stats.norm.cdf(upper, mean, std) - scipy.stats.norm.cdf(lower, mean, std),
    )
    log_prob = likelihoods.discretised_normal_log_prob(jnp.asarray(k), jnp.asarray(mean, jnp.float32), std, levels)
    np.testing.assert_allclose(log_prob, np.log(mass), rtol=2e-4, atol=2e-4)


def test_discretised_normal_gradient_is_finite_far_away():
    mean = jnp.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    gradient = jax.grad(lambda m: likelihoods.discretised_normal_log_prob(jnp.full(5, 128), m, 0.01, 256).sum())(mean)
    assert np.all(np.isfinite(gradient))


@cache
def normal_and_gradients(levels):
    """(mean, log std), (levels,) each, to the log-probabilities and gradients of all levels, compiled once."""

    def logp(m, s):
        return likelihoods.discretised_normal_log_prob(jnp.arange(levels), m, jnp.exp(s), levels)

    return jax.jit(lambda m, s: (logp(m, s), jax.grad(lambda m, s: logp(m, s).sum(), argnums=(0, 1))(m, s)))


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [9e-4, 1e-3, 0.02])
@pytest.mark.parametrize("mean", [-50.0, -8.0, -5.0, 0.77, 5.0, 8.0, 50.0])
def test_discretised_normal_is_finite_at_extreme_means_and_scales(levels, std, mean):
    """A learned scale may fall to exp(-7) = 9e-4, and a mean is not bounded: values and gradients stay finite."""
    where = np.full(levels, mean, np.float32), np.full(levels, np.log(std), np.float32)
    log_prob, gradients = normal_and_gradients(levels)(*where)
    assert all(np.all(np.isfinite(values)) for values in (log_prob, *gradients)) and np.all(log_prob <= 0)
    # All the mass is where the mean is, and far from it the gradient in the mean points to the level.
    assert int(jnp.argmax(log_prob)) == round(np.clip((mean + 1) / 2, 0, 1) * (levels - 1))
    if abs(mean) > 1:
        assert np.all(np.sign(gradients[0])[1:-1] == -np.sign(mean))


def test_normal_kl_against_monte_carlo():
    mean_q, logvar_q, mean_p, logvar_p = 0.3, -0.5, -0.2, 0.4
    n = 200_000
    x = mean_q + np.exp(0.5 * logvar_q) * np.random.default_rng(0).standard_normal(n)
    log_ratio = likelihoods.normal_log_prob(x, mean_q, logvar_q) - likelihoods.normal_log_prob(x, mean_p, logvar_p)
    kl = likelihoods.normal_kl(mean_q, logvar_q, mean_p, logvar_p)
    assert abs(np.mean(log_ratio) - kl) < 5 * np.std(log_ratio) / np.sqrt(n)


def test_normal_log_prob_matches_scipy():
    x = np.linspace(-3, 3, 50)
    np.testing.assert_allclose(
        likelihoods.normal_log_prob(x, 0.5, np.log(4.0)), scipy.stats.norm.logpdf(x, 0.5, 2.0), rtol=1e-6
    )


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_pixels_round_trip(levels):
    images = jnp.arange(levels, dtype=jnp.uint8).reshape(1, levels, 1, 1)
    x = to_float(images, levels)
    assert x.min() == -1 and x.max() == 1
    np.testing.assert_array_equal(to_uint8(x, levels), images)
    np.testing.assert_array_equal(to_uint8(x * 3, levels) <= levels - 1, True)


def test_bits_per_dim_of_the_uniform_distribution_is_eight():
    assert bits_per_dim(-28 * 28 * np.log(256), 28 * 28) == pytest.approx(8.0)


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.5, 3.0, 1e4])
@pytest.mark.parametrize("mean", [-50.0, -1.0, -0.3, 0.0, 0.77, 1.0, 50.0])
def test_discretised_logistic_is_a_distribution(levels, scale, mean):
    level = jnp.arange(levels)
    logp = likelihoods.discretised_logistic_log_prob(level, jnp.full(levels, mean), scale, levels)
    assert np.all(np.isfinite(logp)) and np.all(logp <= 0)
    np.testing.assert_allclose(np.exp(np.asarray(logp, np.float64)).sum(), 1.0, atol=2e-5)


def test_discretised_logistic_matches_scipy():
    levels, scale = 256, 0.05
    mean = np.linspace(-1.2, 1.2, levels).astype(np.float32)
    k = np.arange(levels)
    x, half = 2 * k / 255 - 1, 1 / 255
    upper = np.where(k == 255, np.inf, x + half)
    lower = np.where(k == 0, -np.inf, x - half)
    of = scipy.stats.logistic(mean.astype(np.float64), scale)
    mass = np.where(x > mean, of.sf(lower) - of.sf(upper), of.cdf(upper) - of.cdf(lower))
    log_prob = likelihoods.discretised_logistic_log_prob(jnp.asarray(k), jnp.asarray(mean), scale, levels)
    np.testing.assert_allclose(log_prob, np.log(mass), rtol=2e-4, atol=2e-4)


def test_discretised_logistic_gradient_is_finite_far_away():
    level = jnp.array([0, 128, 128, 128, 255])
    mean, log_scale = jnp.array([30.0, -30.0, 0.0, 30.0, -30.0]), jnp.full(5, -9.0)

    def logp(m, s):
        return likelihoods.discretised_logistic_log_prob(level, m, jnp.exp(s), 256).sum()

    gradients = jax.grad(logp, argnums=(0, 1))(mean, log_scale)
    assert all(np.all(np.isfinite(g)) for g in gradients) and np.all(gradients[0][jnp.array([0, 1, 3, 4])] != 0)


def test_bernoulli_matches_scipy():
    logits = jnp.linspace(-30, 30, 13)
    for x in (0.0, 1.0):
        expected = scipy.stats.bernoulli.logpmf(int(x), scipy.special.expit(np.asarray(logits, np.float64)))
        log_prob = likelihoods.bernoulli_log_prob(jnp.full(13, x), logits)
        np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-6)
