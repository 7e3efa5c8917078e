"""Dequantised images stay within their level; noise that is not uniform has its density, and gives its bound."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jgen.core import keys as rng
from jgen.prob.dequantisation import dequantise, importance_bound, quantise, truncated_normal


def test_no_draw_reaches_the_next_level(monkeypatch):
    """255 + u is 256 in float32 for the largest u below 1, and is kept below it: [0, levels) holds."""
    images = jnp.arange(256, dtype=jnp.uint8).reshape(16, 4, 4, 1)
    largest = np.nextafter(np.float32(1), np.float32(0))
    assert np.float32(255) + largest == 256
    for u in (largest, np.float32(0)):
        monkeypatch.setattr(rng, "uniform", lambda keys, shape, u=u: jnp.full((len(keys), *shape), u))
        x = dequantise(rng.image_keys(jax.random.key(0), jnp.arange(16)), images)
        assert x.dtype == jnp.float32 and np.all(x >= images) and np.all(x < images.astype(jnp.float32) + 1)
        np.testing.assert_array_equal(quantise(x, 256), images)


def test_draws_are_uniform_between_the_margins():
    images = jnp.full((500, 4, 4, 1), 7, jnp.uint8)
    for margin in (0.0, 0.25):
        u = np.asarray(dequantise(rng.image_keys(jax.random.key(1), jnp.arange(500)), images, margin)) - 7
        assert margin <= u.min() < margin + 0.01 and 1 - margin - 0.01 < u.max() <= 1 - margin
        np.testing.assert_allclose(u.mean(), 0.5, atol=0.02)


def test_truncated_normal_noise_has_the_density_of_scipy_and_bounds_a_normal_exactly():
    """Where the noise is the density itself, given the level, one draw gives log P of the level."""
    images, std = jnp.full((2000, 2, 2, 1), 7, jnp.uint8), 0.4
    keys = rng.image_keys(jax.random.key(1), jnp.arange(2000))
    x, log_q = truncated_normal(std)(keys, images)
    noise, normal = (
        scipy.stats.truncnorm(-0.5 / std, 0.5 / std, loc=7.5, scale=std),
        scipy.stats.norm(7.5, std),
    )
    np.testing.assert_allclose(log_q, noise.logpdf(x).sum((1, 2, 3)), rtol=1e-4, atol=1e-4)
    assert scipy.stats.kstest(np.ravel(x), noise.cdf).pvalue > 1e-3

    def log_density(x):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, 7.5, std), axis=(1, 2, 3))

    bound = importance_bound(log_density, keys, images, 1, truncated_normal(std))
    np.testing.assert_allclose(bound, 4 * np.log(normal.cdf(8) - normal.cdf(7)), rtol=1e-4)
