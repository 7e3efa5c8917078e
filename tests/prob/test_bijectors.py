"""Bijections against the Jacobian and their own inverse; dequantisation against integrals by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core import keys as rng
from jgen.prob import bijectors
from jgen.prob.dequantisation import dequantise, importance_bound, quantise


def check_log_det(call, x):
    """A map of one example's (1, H, W, C): its log_det against the autodiff Jacobian in float64."""
    y, log_det = call(x)
    jacobian = jax.jacrev(lambda flat: call(flat.reshape(x.shape))[0].ravel())(x.ravel())
    np.testing.assert_allclose(log_det, np.linalg.slogdet(np.asarray(jacobian))[1], rtol=0, atol=1e-8)
    return y


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_squeeze_takes_blocks_of_pixels():
    x = draw(3, 4, 6, 2)
    y = np.asarray(bijectors.squeeze(jnp.asarray(x)))
    assert y.shape == (3, 2, 3, 8)
    for c in range(2):
        for i in range(2):
            for j in range(2):
                np.testing.assert_array_equal(y[..., 4 * c + 2 * i + j], x[:, i::2, j::2, c].astype(np.float32))
    np.testing.assert_array_equal(bijectors.unsqueeze(y), x.astype(np.float32))


def test_blocks_are_split_along_their_diagonal():
    x = draw(3, 4, 6, 2).astype(np.float32)
    stay, leave = bijectors.split_blocks(bijectors.squeeze(jnp.asarray(x)))
    for c in range(2):
        for n, (i, j) in enumerate([(0, 0), (1, 1)]):
            np.testing.assert_array_equal(stay[..., 2 * c + n], x[:, i::2, j::2, c])
        for n, (i, j) in enumerate([(0, 1), (1, 0)]):
            np.testing.assert_array_equal(leave[..., 2 * c + n], x[:, i::2, j::2, c])
    np.testing.assert_array_equal(bijectors.unsqueeze(bijectors.join_blocks(stay, leave)), x)


def test_masks_and_halves():
    board = np.asarray(bijectors.checkerboard(3, 4, 0))[0, :, :, 0]
    np.testing.assert_array_equal(board, [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    np.testing.assert_array_equal(bijectors.checkerboard(3, 4, 1)[0, :, :, 0], 1 - board)
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)
    np.testing.assert_array_equal(bijectors.swap_halves(x)[0, 0, 0], [3, 4, 5, 0, 1, 2])


@pytest.mark.parametrize("inverse", [False, True])
def test_affine_and_logit_have_the_determinant_of_their_jacobian(inverse):
    with jax.enable_x64(True):
        x, shift, log_scale = (jnp.asarray(draw(1, 2, 3, 2, seed=seed)) for seed in range(3))
        y = check_log_det(lambda x: bijectors.affine(x, shift, log_scale, inverse), x)
        np.testing.assert_allclose(bijectors.affine(y, shift, log_scale, not inverse)[0], x, atol=1e-12)
        for alpha in (0.05, 1e-6):
            x = jax.nn.sigmoid(x)
            start = bijectors.logit(x, alpha)[0] if inverse else x
            y = check_log_det(functools.partial(bijectors.logit, alpha=alpha, inverse=inverse), start)
            np.testing.assert_allclose(bijectors.logit(y, alpha, not inverse)[0], start, atol=1e-10)
        np.testing.assert_allclose(
            bijectors.logit(x, 0.05)[0], np.log((0.05 + 0.9 * x) / (0.95 - 0.9 * x)), rtol=1e-10, atol=1e-12
        )


def test_log_sigmoid_and_its_gradient():
    with jax.enable_x64(True):
        x = np.array([-800.0, -30.0, -1.0, 0.0, 0.5, 30.0, 800.0])
        np.testing.assert_allclose(bijectors.log_sigmoid(x), -np.logaddexp(0.0, -x), rtol=1e-12, atol=1e-15)
        gradient = jax.vmap(jax.grad(bijectors.log_sigmoid))(x)
        np.testing.assert_allclose(gradient, np.exp(-np.logaddexp(0.0, x)), rtol=1e-12, atol=1e-15)
        np.testing.assert_array_equal(bijectors.log_sigmoid(x.astype(np.float32)[[0, 3, 6]])[::2], [-800.0, 0.0])


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_lu_matrix_has_its_determinant_and_its_inverse(size):
    with jax.enable_x64(True):
        lower, upper = draw(size, size, seed=1), draw(size, size, seed=2)
        diagonal, order = draw(size, seed=3), np.random.default_rng(4).permutation(size)
        W = bijectors.assemble_lu(jnp.asarray(lower), jnp.asarray(upper), jnp.asarray(diagonal), jnp.asarray(order))
        sign, log_det = np.linalg.slogdet(np.asarray(W))
        np.testing.assert_allclose(log_det, np.log(np.abs(diagonal)).sum(), rtol=0, atol=1e-8)
        parity = np.linalg.det(np.eye(size)[order])
        assert sign == np.sign(parity * np.prod(diagonal))
        inverse = bijectors.invert_lu(jnp.asarray(lower), jnp.asarray(upper), jnp.asarray(diagonal), jnp.asarray(order))
        np.testing.assert_allclose(inverse @ W, np.eye(size), atol=1e-7)


def test_dequantised_images_are_uniform_in_their_bins():
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1)).astype(np.uint8)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(64))
    for margin in (0.0, 0.25):
        x = dequantise(keys, images, margin)
        np.testing.assert_array_equal(quantise(x, 256), images)
        u = np.asarray(x - images).ravel()
        # 4,096 draws: the mean within five of its standard errors, the range filled.
        assert abs(u.mean() - 0.5) < 5 * (1 - 2 * margin) / np.sqrt(12 * u.size)
        assert margin <= u.min() < margin + 0.01 and 1 - margin - 0.01 < u.max() <= 1 - margin
    np.testing.assert_array_equal(quantise(jnp.array([-3.0, -0.1, 0.0, 0.99, 4.0, 9.0]), 4), [0, 0, 0, 0, 3, 3])


def test_importance_bound_against_a_density_that_is_integrated_by_hand():
    """p(x) = x / 8 on [0, 4), one pixel: P(k) = (2 k + 1) / 16; one draw answers with log p(k + u)."""
    images = np.repeat(np.arange(4, dtype=np.uint8), 500).reshape(-1, 1, 1, 1)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(len(images)))

    def log_density(x):
        return jnp.log(x[:, 0, 0, 0] / 8)

    many = np.asarray(importance_bound(log_density, keys[::500], images[::500], 4000))
    np.testing.assert_allclose(np.exp(many), np.array([1, 3, 5, 7]) / 16, rtol=0.05)
    one = np.asarray(importance_bound(log_density, keys, images, 1)).reshape(4, 500).mean(1)
    two = np.asarray(importance_bound(log_density, keys, images, 2)).reshape(4, 500).mean(1)
    # E log p(k + u) = (k + 1) log(k + 1) - k log k - 1 - log 8; within five standard errors of 500 draws
    k = np.arange(4)
    expected = (k + 1) * np.log(k + 1) - k * np.log(np.maximum(k, 1)) - 1 - np.log(8)
    spread = np.std(np.log(k[:, None] + (np.arange(10_000) + 0.5) / 10_000), axis=1)  # 1 nat for k = 0, then less
    assert np.all(np.abs(one - expected) < 5 * spread / np.sqrt(500))
    assert one[0] < two[0] < np.log(1 / 16)
