"""Dequantised images stay within their level."""

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.prob.dequantisation import dequantise, quantise


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
