"""Relaxed categorical variables: their limits, and the gradient of an expectation beside the exact one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chisquare, entropy

from jgen.core import keys as rng
from jgen.prob.relaxed import gumbel_noise, gumbel_softmax, kl_from_uniform

LOGITS = np.array([1.0, -0.5, 0.3, 0.0], np.float32)
N = 20_000


def drawn(temperature, logits=LOGITS, n=N):
    keys = rng.image_keys(jax.random.key(0), jnp.arange(n))
    return gumbel_softmax(keys, jnp.broadcast_to(logits, (n, 4)), temperature)


def test_a_cold_sample_is_a_one_hot_sample_of_the_categorical():
    z = np.asarray(jax.jit(drawn, static_argnums=0)(1e-4))
    assert np.mean(z.max(axis=1) > 1 - 1e-6) > 0.999  # two are as large as each other once in a while
    assert chisquare(np.bincount(z.argmax(axis=1), minlength=4), N * softmax(LOGITS.astype(np.float64))).pvalue > 1e-3


def test_a_hot_sample_is_uniform_and_every_sample_has_its_place_at_the_noisy_maximum():
    z = np.asarray(jax.jit(drawn, static_argnums=0)(1e5))
    np.testing.assert_allclose(z, 0.25, atol=1e-3)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(N))
    place = np.argmax(LOGITS + np.asarray(gumbel_noise(keys, (4,))), axis=1)
    z = np.asarray(jax.jit(drawn, static_argnums=0)(0.5))
    np.testing.assert_array_equal(z.argmax(axis=1), place)
    np.testing.assert_allclose(z.sum(axis=1), 1.0, rtol=1e-5)


def test_the_gradient_of_an_expectation_comes_to_the_exact_one_as_it_cools():
    """Of E f(z), f linear, whose exact value is softmax(l) . f; the bias falls with the temperature."""
    f = np.array([2.0, -1.0, 0.5, 0.0], np.float32)
    exact = jax.grad(lambda logits: jax.nn.softmax(logits) @ f)(LOGITS)

    def each(temperature):
        """One estimate a key, (N, 4)."""
        keys = rng.image_keys(jax.random.key(1), jnp.arange(N))

        def one(key):
            return jax.grad(lambda logits: (gumbel_softmax(key[None], logits[None], temperature) @ f)[0])(LOGITS)

        return jax.jit(jax.vmap(one))(keys)

    errors = []
    for temperature in (2.0, 0.1):
        estimates = np.asarray(each(temperature), np.float64)
        errors.append(np.abs(estimates.mean(axis=0) - exact).max())
        noise = 4 * estimates.std(axis=0).max() / np.sqrt(N)
    assert errors[1] < noise + 0.02 and errors[0] > 2 * errors[1]


@pytest.mark.parametrize("logits", [LOGITS, np.zeros(4, np.float32), np.array([30.0, 0, 0, 0], np.float32)])
def test_the_divergence_from_uniform_is_scipys(logits):
    wanted = entropy(softmax(logits.astype(np.float64)), np.full(4, 0.25))
    np.testing.assert_allclose(kl_from_uniform(jnp.asarray(logits)), wanted, atol=1e-5)
