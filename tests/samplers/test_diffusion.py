"""Guidance by hand, and samplers on images whose pixels depend on one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core import keys as rng
from jgen.prob import gaussian_diffusion as gd
from jgen.prob.schedules import make_schedule
from jgen.samplers.diffusion import ancestral, classifier_free_guidance, ddim


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_is_the_formula_of_the_paper(scale):
    """eps + (s - 1) (eps - eps_null), from a network that says which class and time it was asked for."""
    null, label = 3, jnp.array([0, 2, 1])
    asked = []

    def network(x_t, t, label):
        asked.append(x_t.shape[0])
        return x_t * (1.0 + label[:, None, None, None]) + t[:, None, None, None] ** 2

    x_t, t = jax.random.normal(jax.random.key(0), (3, 2, 2, 1)), jnp.array([1, 5, 9])
    guided = classifier_free_guidance(network, label, null, scale)(x_t, t)
    x, c, time = np.asarray(x_t), np.asarray(label)[:, None, None, None], np.asarray(t)[:, None, None, None]
    eps, eps_null = x * (1 + c) + time**2, x * (1 + null) + time**2
    np.testing.assert_allclose(guided, eps + (scale - 1) * (eps - eps_null), rtol=1e-5, atol=1e-5)
    assert asked == [3 if scale in (0.0, 1.0) else 6]  # one evaluation where one is enough


SHAPE = (2, 2, 1)
MEAN = np.array([0.3, -0.2, 0.1, 0.0])
# Correlations of both signs, and one pixel that is the mean of two others but for a little.
FACTOR = np.array([[0.3, 0, 0, 0], [0.2, 0.2, 0, 0], [-0.15, 0.1, 0.2, 0], [0.25, 0.1, 0, 0.05]])
COVARIANCE = FACTOR @ FACTOR.T


def exact_denoiser(schedule):
    """E[x_0 | x_t] of images with four Gaussian pixels: mean + signal C (signal^2 C + noise^2)^-1 (x_t - signal mean).

    In the eigenvectors of C, where it is one gain each.
    """
    values, vectors = (jnp.asarray(a, jnp.float32) for a in np.linalg.eigh(COVARIANCE))
    mean = jnp.asarray(MEAN, jnp.float32).reshape(1, 4)

    def denoiser(x_t, t):
        flat = x_t.reshape(-1, 4)
        signal, noise = gd.signal_and_noise(schedule, t, flat)
        gain = signal * values[None] / (signal**2 * values[None] + noise**2)
        x0 = mean + ((flat - signal * mean) @ vectors * gain) @ vectors.T
        return gd.Prediction(x0.reshape(x_t.shape), ((flat - signal * x0) / noise).reshape(x_t.shape))

    return denoiser


@pytest.mark.parametrize(
    "sampler",
    [
        lambda *args: ancestral(*args, "beta"),
        lambda *args: ancestral(*args, "beta_tilde"),
        lambda *args: ddim(*args, 0.0),
        lambda *args: ddim(*args, 0.5),
        lambda *args: ddim(*args, 1.0),
    ],
    ids=["beta", "beta_tilde", "ddim0", "ddim0.5", "ddim1"],
)
def test_samplers_recover_the_covariance_of_pixels(sampler):
    """Noise that pixels or images shared would show in the covariances, of pixels or of neighbouring images."""
    schedule, n = make_schedule("linear", 1000), 20_000
    key_start, key_steps = rng.split(rng.image_keys(jax.random.key(1), jnp.arange(n)), 2)
    x_T = rng.normal(key_start, SHAPE)

    def run(x_T, keys):
        return sampler(exact_denoiser(schedule), schedule, x_T, keys, range(1000, 0, -1))

    # Long to run, unlike the other programs of the tests: worth optimising.
    x = jax.jit(run, compiler_options={"xla_backend_optimization_level": 2})(x_T, key_steps)
    x = np.asarray(x, np.float64).reshape(n, 4)
    deviation = np.sqrt(np.diag(COVARIANCE))
    np.testing.assert_array_less(np.abs(x.mean(0) - MEAN), 5 * deviation / np.sqrt(n) + 0.003)
    # A covariance has the standard error sqrt((c_ii c_jj + c_ij^2) / n); steps that are not infinitely small add two
    # percent of the deviations.
    scale = np.outer(deviation, deviation)
    error = np.abs(np.cov(x.T) - COVARIANCE)
    np.testing.assert_array_less(error, 5 * np.sqrt((scale**2 + COVARIANCE**2) / n) + 0.02 * scale)
    z = (x - MEAN) / deviation
    np.testing.assert_array_less(np.abs(z[:-1].T @ z[1:]) / n, 5 / np.sqrt(n))
