"""The map by a mixture of logistics beside SciPy, its derivative beside autodiff, its inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from jgen.prob import mixture_cdf


def mixture(shape, k=3, spread=3.0):
    draw = np.random.default_rng(0).normal
    parts = draw(size=(*shape, k)), spread * draw(size=(*shape, k)), draw(size=(*shape, k))
    return mixture_cdf.Mixture(*(jnp.asarray(part) for part in parts))


def test_values_and_derivatives_are_those_of_scipys_distribution():
    with jax.enable_x64(True):
        m, x = mixture((50,)), jnp.asarray(np.random.default_rng(1).normal(0, 4, 50))
        y, log_rate = mixture_cdf.apply(m, x)
        rate = jax.vmap(jax.grad(lambda x, m: mixture_cdf.apply(m, x)[0]))(x, m)
    weights = scipy.special.softmax(np.asarray(m.logits), axis=1)
    cdf = scipy.stats.logistic.cdf(np.asarray(x)[:, None], m.means, np.exp(m.log_scales))
    np.testing.assert_allclose(y, scipy.special.logit(np.sum(weights * cdf, axis=1)), atol=1e-8)
    np.testing.assert_allclose(log_rate, np.log(rate), atol=1e-9)


def test_equal_components_are_an_affine_map():
    m = mixture_cdf.Mixture(jnp.zeros((1, 4)), jnp.full((1, 4), 2.0), jnp.full((1, 4), np.log(3.0)))
    x = jnp.linspace(-30, 30, 7)
    y, log_rate = mixture_cdf.apply(m, x)
    np.testing.assert_allclose(y, (x - 2) / 3, atol=1e-5)
    np.testing.assert_allclose(log_rate, -np.log(3.0), atol=1e-5)


def test_the_inverse_finds_every_number_near_and_far():
    """Between components far apart, where the map is nearly flat, the error of x is that of y over the slope."""
    m = mixture((2000,), spread=8.0)
    y = jnp.asarray(np.random.default_rng(2).normal(0, 10, 2000), jnp.float32)
    m = jax.tree.map(lambda part: part.astype(jnp.float32), m)
    x, log_rate = jax.jit(mixture_cdf.invert)(m, y)
    back, forward_rate = mixture_cdf.apply(m, x)
    np.testing.assert_allclose(back, y, rtol=0, atol=1e-4)
    np.testing.assert_allclose(log_rate, -forward_rate, atol=1e-6)
