"""Completions by chains in the latent space, against the closed form for a linear decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core.keys import image_keys
from jgen.errors import UserError
from jgen.samplers.latent_posterior import Inpainting, complete

LEVELS = 11


def linear_decoder():
    """x = W z + m of images 1x3x1 with two latents, and (W, m)."""
    W = np.asarray([[2.0, 0.3], [1.5, -1.0], [-0.5, 2.0]], np.float32)
    mean = np.asarray([4.0, 5.0, 6.0], np.float32)
    return lambda z: (z @ W.T + mean[None, :]).reshape(-1, 1, 3, 1), W, mean


@pytest.mark.parametrize("noise", [0.1, 0.02])
def test_latents_of_a_linear_decoder_have_the_posteriors_mean_and_covariance(noise):
    decode, W, mean = linear_decoder()
    num, y = 4000, np.asarray([6.0, 4.0, 0.0], np.float32)
    mask = jnp.broadcast_to(jnp.asarray([[True, True, False]]), (num, 1, 3))
    images = jnp.broadcast_to(jnp.asarray(y).reshape(1, 1, 3, 1), (num, 1, 3, 1))
    keys = image_keys(jax.random.key(0), jnp.arange(num))
    z = np.asarray(complete(decode, keys, 2, images, mask, LEVELS, Inpainting(steps=400, noise=noise)))
    known, sigma = W[:2].astype(np.float64), noise * (LEVELS - 1)
    covariance = np.linalg.inv(np.eye(2) + known.T @ known / sigma**2)
    expected = covariance @ known.T @ (y[:2] - mean[:2]) / sigma**2
    # A standard error of the mean is std / sqrt(4000); of a variance, its sqrt(2 / 4000).
    std = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(z.mean(axis=0) - expected) < 0.1 * std)
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.12 * covariance.max())


def test_an_energy_weighs_the_decoders_images():
    """Of a quadratic energy the distribution is still normal: its precision is the sum of all three."""
    decode, W, mean = linear_decoder()
    num, y, noise = 4000, np.asarray([6.0, 4.0, 0.0], np.float32), 0.1
    mask = jnp.broadcast_to(jnp.asarray([[True, False, False]]), (num, 1, 3))
    images = jnp.broadcast_to(jnp.asarray(y).reshape(1, 1, 3, 1), (num, 1, 3, 1))
    a = np.asarray([0.0, 0.5, 0.25])  # E(x) = sum_i a_i (x_i - 7)^2 / 2

    def weigh(x):
        return 0.5 * jnp.sum(a[None, :] * (x.reshape(-1, 3) - 7.0) ** 2, axis=1)

    keys = image_keys(jax.random.key(0), jnp.arange(num))
    o = Inpainting(steps=400, noise=noise)
    z = np.asarray(complete(decode, keys, 2, images, mask, LEVELS, o, weigh))
    known = W[:1].astype(np.float64) / (noise * (LEVELS - 1))
    covariance = np.linalg.inv(np.eye(2) + known.T @ known + W.T @ (a[:, None] * W))
    towards = known.T @ (y[:1] - mean[:1]) / (noise * (LEVELS - 1)) + W.T @ (a * (7.0 - mean))
    assert np.all(np.abs(z.mean(axis=0) - covariance @ towards) < 0.1 * np.sqrt(np.diag(covariance)))
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.12 * covariance.max())


def test_a_chain_depends_on_its_own_key_and_image_alone():
    decode, _, _ = linear_decoder()
    keys = image_keys(jax.random.key(1), jnp.arange(4))
    images = jnp.arange(12.0).reshape(4, 1, 3, 1)
    mask = jnp.asarray([[[True, False, False]], [[False, True, False]]] * 2)
    all_at_once = complete(decode, keys, 2, images, mask, LEVELS, Inpainting(steps=20))
    alone = complete(decode, keys[2:3], 2, images[2:3], mask[2:3], LEVELS, Inpainting(steps=20))
    np.testing.assert_allclose(all_at_once[2:3], alone, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"steps": 0}, {"noise": 0.0}])
def test_options_out_of_range(options):
    decode, _, _ = linear_decoder()
    keys = image_keys(jax.random.key(0), jnp.arange(1))
    (name,) = options
    with pytest.raises(UserError, match=name):
        complete(decode, keys, 2, jnp.zeros((1, 1, 3, 1)), jnp.ones((1, 1, 3), bool), LEVELS, Inpainting(**options))
