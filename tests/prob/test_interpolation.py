"""Interpolation along great circles beside rotations of SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from jgen.prob.interpolation import slerp


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("library", [np, jnp])
def test_slerp_is_the_rotation_in_the_plane_of_both(library):
    rng = np.random.default_rng(0)
    a, b = unit(rng.standard_normal((2, 20, 5)))
    w = np.linspace(0, 1, 20)
    out = np.asarray(slerp(*(library.asarray(x, np.float32) for x in (a, b, w))))
    for x, y, weight, z in zip(a, b, w, out):
        v = unit(y - x * (x @ y))  # the generator of the rotation from x to v
        angle = np.arccos(x @ y)
        np.testing.assert_allclose(expm(weight * angle * (np.outer(v, x) - np.outer(x, v))) @ x, z, atol=2e-6)


def test_each_example_is_one_vector_and_the_ends_are_the_two():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 3, 2, 4, 1)).astype(np.float32)
    np.testing.assert_allclose(slerp(a, b, np.zeros(3, np.float32)), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, np.ones(3, np.float32)), b, atol=1e-6)
    middle = slerp(a, 2 * b, np.full(3, 0.5, np.float32))
    for i in range(3):
        np.testing.assert_allclose(middle[i], slerp(a[i : i + 1], 2 * b[i : i + 1], np.float32([0.5]))[0], atol=1e-6)


def test_noise_stays_noise():
    """Of unit variance, which the line halves at its middle."""
    a, b = np.random.default_rng(2).standard_normal((2, 4, 10_000)).astype(np.float32)
    out = slerp(a, b, np.full(4, 0.5, np.float32))
    np.testing.assert_allclose(out.var(axis=1), 1.0, atol=0.06)


@pytest.mark.parametrize("library", [np, jnp])
def test_vectors_in_one_direction_are_interpolated_along_the_line(library):
    a = library.asarray(np.random.default_rng(3).standard_normal((2, 6)).astype(np.float32))
    out = slerp(a, 3 * a, library.asarray(np.float32([0.25, 0.5])))
    np.testing.assert_allclose(out, np.asarray(a) * np.array([[1.5], [2.0]]), rtol=1e-5)
