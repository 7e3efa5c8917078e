"""EDM's preconditioning, its noise, and the augmentation that it is told of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from specs import data_of
from stub_network import CTX, PARAMS, column, gaussian_images, keys_of, stub_network

from jgen.models.diffusion import edm
from jgen.nn import augmentation, unet

DATA = data_of(4, 4, 1, 256, 3)


@pytest.fixture
def network(monkeypatch):
    return stub_network(monkeypatch)


def batch_of(n):
    images, x_0 = gaussian_images(n, DATA.image, mean=0.0, std=0.25)
    return {"image": images, "label": (np.arange(n) % 3).astype(np.int32)}, x_0


def test_inputs_and_targets_have_unit_variance(network):
    """Table 1 is chosen so that they have, at every noise, for data of the standard deviation sigma_data."""
    model = edm.make(edm.Config(network=unet.TINY, sigma_data=0.25), DATA)
    n = 20_000
    batch, _ = batch_of(n)
    error = float(model.phases[0].loss(PARAMS, CTX, keys_of(n), batch)[0])  # of the answer 0: the targets' variance
    x, noise = network.calls[0][:2]
    assert np.var(np.asarray(x)) == pytest.approx(1, abs=0.02) and error == pytest.approx(1, abs=0.02)
    log_sigma = 4 * np.asarray(noise, np.float64)
    assert scipy.stats.kstest(log_sigma, scipy.stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    small, large = log_sigma < -2.4, log_sigma > 0
    assert np.var(np.asarray(x)[small]) == pytest.approx(1, abs=0.04)
    assert np.var(np.asarray(x)[large]) == pytest.approx(1, abs=0.04)


@pytest.mark.slow
def test_the_denoiser_of_the_right_answer_is_the_data(network):
    """F = (x_0 - c_skip x) / c_out gives D = x_0 and no loss."""
    model = edm.make(edm.Config(network=unet.TINY), DATA)
    batch, x_0 = batch_of(8)

    def right(scaled, noise, label):
        sigma = column(jnp.exp(4 * noise), scaled)
        x = scaled * jnp.sqrt(sigma**2 + 0.25)
        return (x_0 - 0.25 / (sigma**2 + 0.25) * x) * jnp.sqrt(sigma**2 + 0.25) / (0.5 * sigma)

    network.answer = right
    assert float(model.phases[0].loss(PARAMS, CTX, keys_of(8), batch)[0]) < 1e-8
    t = jnp.array([1e-3, 0.01, 0.1, 1.0, 0.5, 0.3, 0.05, 0.02])
    x_t = x_0 + 80 * column(t, x_0) * jax.random.normal(jax.random.key(0), x_0.shape)
    denoised = model.functions["denoise"](PARAMS, CTX, x_t, t, {"label": batch["label"]})
    np.testing.assert_allclose(denoised, x_0, atol=2e-4)


@pytest.mark.slow
def test_augmentations_by_hand():
    """Of one transformation each: flips, a quarter turn and a shift by whole pixels move pixels exactly."""
    x = jnp.arange(36.0).reshape(6, 6, 1)
    one, zero = jnp.float32(1), jnp.float32(0)
    np.testing.assert_allclose(augmentation.warp(x, augmentation.scaling(one, -one)), x[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(augmentation.warp(x, augmentation.scaling(-one, one)), x[::-1], atol=1e-4)
    turned = augmentation.warp(x, augmentation.rotation(jnp.float32(np.pi / 2)))
    assert any(np.allclose(turned, np.rot90(x, k), atol=1e-3) for k in (1, 3))
    shifted = augmentation.warp(x, augmentation.translation(jnp.array([2 / 6, zero])))  # the sides have the length 2
    np.testing.assert_allclose(shifted[:-1], x[1:], atol=1e-4)


@pytest.mark.slow
def test_what_was_done_is_told():
    """No augmentation but the mirror at p = 0; at p = 1 the told numbers have the distributions that were drawn."""
    x = jax.random.normal(jax.random.key(0), (400, 6, 6, 1))
    augment = jax.jit(augmentation.augment)
    moved, done = augment(keys_of(400), x, 0.0)
    mirrored = np.asarray(done[:, 0], bool)
    assert 150 < mirrored.sum() < 250 and not np.any(done[:, 1:])
    np.testing.assert_allclose(moved[mirrored], x[mirrored][:, :, ::-1], atol=1e-5)
    np.testing.assert_allclose(moved[~mirrored], x[~mirrored], atol=1e-5)
    _, done = augment(keys_of(4000), jnp.zeros((4000, 2, 2, 1)), 1.0)
    done = np.asarray(done, np.float64)
    assert done.shape[1] == augmentation.SIZE and abs(done[:, 1].mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    for numbers in (done[:, 2], np.sign(done[:, 5]) * np.hypot(done[:, 5], done[:, 6]), done[:, 7], done[:, 8]):
        assert abs(numbers.mean()) < 5 / np.sqrt(4000) and abs(np.mean(numbers**2) - 1) < 5 * np.sqrt(2 / 4000)
    np.testing.assert_allclose((done[:, 3] + 1) ** 2 + done[:, 4] ** 2, 1, atol=1e-5)


@pytest.mark.slow
def test_sampling_is_told_of_no_augmentation(network):
    model = edm.make(edm.Config(network=unet.TINY, augment=0.5), DATA)
    batch, _ = batch_of(4)
    model.phases[0].loss(PARAMS, CTX, keys_of(4), batch)
    assert np.any(network.calls[-1][4])
    with jax.disable_jit():
        model.sample(PARAMS, CTX, keys_of(4), {"label": batch["label"]}, steps=2)
    assert not np.any(network.calls[-1][4])
