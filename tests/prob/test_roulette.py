"""The roulette's determinants and gradients beside those of the whole Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.prob.roulette import draw_length, estimate_log_det, exact_log_det, weight

SHAPE = (1, 2, 2)  # of an image: 4 numbers
MATRIX = 2 * np.eye(4) + np.random.default_rng(0).normal(size=(4, 4))
MATRIX = 0.6 * MATRIX / np.linalg.norm(MATRIX, 2)
EXACT_TERMS, STOP, DRAWS = 1, 0.4, 20_000


def residual(matrix, x):
    """A contraction that is not linear, with the constant 0.6."""
    return jnp.tanh(x.reshape(x.shape[0], -1) @ matrix.T).reshape(x.shape)


def jacobian(matrix, x):
    """I + J of one image, (4, 4)."""
    return np.eye(4) + jax.jacobian(lambda x: residual(matrix, x.reshape(1, *SHAPE)).ravel())(x.ravel())


def standard_errors(draws, expected):
    """How many standard errors the mean of draws (n, ...) is from what is expected."""
    return np.abs(draws.mean(0) - expected) / (draws.std(0) / np.sqrt(len(draws)))


def test_exact_determinant_is_that_of_the_jacobian_of_any_map():
    x = np.random.default_rng(1).normal(size=(3, *SHAPE))
    matrix = -4.0 * MATRIX  # no contraction: the determinant's sign changes
    with jax.enable_x64(True):
        y, log_det = exact_log_det(residual, jnp.asarray(matrix), jnp.asarray(x))
        wanted = [np.linalg.slogdet(jacobian(matrix, image)) for image in x]
    assert y.dtype == np.float64
    np.testing.assert_allclose(log_det, [value for _, value in wanted], atol=1e-10)
    np.testing.assert_allclose(y, x + np.asarray(residual(matrix, x)), atol=1e-6)


@pytest.mark.slow
def test_estimates_and_their_gradients_are_unbiased():
    """Within 4 standard errors, of value, gradient by the parameters and gradient by the image."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, *SHAPE)), jnp.float32)
    matrix = jnp.asarray(MATRIX, jnp.float32)

    def exact(matrix, x):
        return exact_log_det(residual, matrix, x)[1][0]

    def estimate(matrix, x, key):
        key_length, key_probe = jax.random.split(key)
        length = draw_length(key_length, EXACT_TERMS, STOP)
        v = jax.random.normal(key_probe, x.shape)
        return estimate_log_det(residual, matrix, x, v, length, EXACT_TERMS, STOP)[1][0]

    keys = jax.random.split(jax.random.key(0), DRAWS)
    both = jax.jit(jax.vmap(jax.value_and_grad(estimate, (0, 1)), (None, None, 0)))
    value, (by_matrix, by_image) = jax.tree.map(np.asarray, both(matrix, x, keys))
    wanted, (wanted_by_matrix, wanted_by_image) = jax.value_and_grad(exact, (0, 1))(matrix, x)
    assert abs(wanted) > 0.2 and np.abs(wanted_by_image).max() > 0.02
    for draws, expected in ((value, wanted), (by_matrix, wanted_by_matrix), (by_image, wanted_by_image)):
        assert np.all(standard_errors(draws, np.asarray(expected)) < 4)
    # A series cut after one term, tr J, is further off than that: the test tells bias from noise.
    cut = np.trace(jacobian(MATRIX, np.asarray(x[0], np.float64)) - np.eye(4))
    assert standard_errors(value, cut) > 8


@pytest.mark.parametrize("exact_terms", [0, 2])
def test_weights_are_the_inverse_probabilities_of_the_lengths(exact_terms):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    lengths = np.asarray(jax.vmap(lambda key: draw_length(key, exact_terms, STOP))(keys))
    assert lengths.min() == exact_terms + 1
    for k in range(1, 8):
        p = 1 / weight(np.float32(k), exact_terms, STOP)
        assert abs(np.mean(lengths >= k) - p) <= 4 * np.sqrt(p * (1 - p) / DRAWS)
