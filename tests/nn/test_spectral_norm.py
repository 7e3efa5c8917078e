"""Spectral normalisation against numpy's singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.nn.spectral_norm import normalise, spectral_norm, start_vector


def kernel(shape):
    """A random kernel (..., O) whose two largest singular values are well apart, and its W."""
    matrix = np.random.default_rng(1).standard_normal((int(np.prod(shape[:-1])), shape[-1]))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s[0] = 2.0 * s[1] if len(s) > 1 else 3.0
    return jnp.asarray((u * s @ vt).reshape(shape), jnp.float32)


@pytest.mark.parametrize("shape", [(4, 4, 3, 8), (12, 1), (10, 6)])
def test_sigma_and_its_gradient_are_those_of_the_singular_value_decomposition(shape):
    w = kernel(shape)
    u = start_vector(jax.random.key(0), w)
    left, singular, right = np.linalg.svd(np.asarray(w, np.float64).reshape(-1, shape[-1]), full_matrices=False)
    sigma, new_u = spectral_norm(w, u)
    np.testing.assert_allclose(sigma, singular[0], rtol=1e-5)
    np.testing.assert_allclose(abs(np.dot(new_u, right[0])), 1.0, rtol=1e-5)
    gradient = jax.grad(lambda w: spectral_norm(w, u)[0])(w).reshape(-1, shape[-1])
    np.testing.assert_allclose(gradient, np.outer(left[:, 0], right[0]), atol=1e-4)


def test_one_power_iteration_by_hand():
    w = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    u = np.array([1.0, 0.0, 0.0], np.float32)
    v = w @ u / np.linalg.norm(w @ u)
    u_next = w.T @ v / np.linalg.norm(w.T @ v)
    sigma, new_u = spectral_norm(jnp.asarray(w), jnp.asarray(u))
    np.testing.assert_allclose(new_u, u_next, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sigma, v @ w @ u_next, rtol=1e-5)
    assert sigma <= np.linalg.svd(w)[1][0] * (1 + 1e-6)


def test_normalised_kernels_have_norm_one_and_vectors_approach_the_singular_vector():
    kernels = {"conv": kernel((4, 4, 3, 8)), "dense": kernel((10, 6))}
    vectors = {name: jnp.eye(w.shape[-1])[0] for name, w in kernels.items()}
    for _ in range(60):
        normalised, vectors = normalise(kernels, vectors)
    for w in normalised.values():
        top = np.linalg.svd(np.asarray(w).reshape(-1, w.shape[-1]))[1][0]
        np.testing.assert_allclose(top, 1.0, rtol=1e-5)
