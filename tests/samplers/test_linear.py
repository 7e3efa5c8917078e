"""Samplers on Gaussian data, whose denoiser is known, in distribution and step by step."""

import jax
import numpy as np
import pytest
from gaussians import PROCESSES, STD, keys_of, mixture, pixelwise, tabulated

from jgen.core import keys as rng
from jgen.samplers import linear
from jgen.samplers.linear import Corrector, Table

# Long to run, unlike the other programs of the tests: worth optimising.
OPTIMISED = {"xla_backend_optimization_level": 2}


def start(n, shape=(1, 1, 1)):
    key_start, key_steps = rng.split(keys_of(n), 2)
    return rng.normal(key_start, shape), key_steps


def full(table, columns=3):
    """The same table with noise and a corrector that may do nothing, so that tables can share a compiled program."""
    n = len(table.t)
    zero, nothing = np.zeros(n), np.zeros((n, columns))

    def wide(old):
        return np.concatenate([old, nothing[:, old.shape[1] :]], axis=1)

    c = table.corrector or Corrector(zero, np.ones(n), zero, nothing)
    noise = zero if table.noise is None else table.noise
    return Table(table.t, table.step, wide(table.denoised), noise, c._replace(old=wide(c.old)))


def make_runner(make_denoiser):
    """(process, table, x, keys) -> x_0 by `linear.run`, one program for all tables of a length on any process."""

    def run(table, alpha, sigma, x, keys):
        return linear.run(make_denoiser(tabulated(table.t, alpha, sigma)), table, x, keys)[0]

    compiled = jax.jit(run, compiler_options=OPTIMISED)

    def call(process, table, x, keys):
        # Without its last digits, which a sampler on an accelerator does not have either.
        table = jax.tree.map(np.float32, full(table))
        t = np.asarray(table.t, np.float64)
        x_0 = compiled(table, *(np.float32(f(t)) for f in (process.alpha, process.sigma)), x, keys)
        return np.asarray(x_0, np.float64)

    return call


def chain_times(n):
    return np.arange(n, 0, -1) / n


def test_no_variance_collapses_the_samples():
    x, keys = start(2000)
    process = PROCESSES["discrete"]
    x_0, _ = linear.run(pixelwise(process), linear.ancestral(process, chain_times(1000), "none"), x, keys)
    assert np.std(np.asarray(x_0)) < 0.2 * STD


SHAPE = (2, 2, 1)
PIXELS = np.array([0.3, -0.2, 0.1, 0.0])
# Correlations of both signs, and one pixel that is the mean of two others but for a little.
FACTOR = np.array([[0.3, 0, 0, 0], [0.2, 0.2, 0, 0], [-0.15, 0.1, 0.2, 0], [0.25, 0.1, 0, 0.05]])
COVARIANCE = FACTOR @ FACTOR.T


@pytest.fixture(scope="module")
def run_pixels():
    return make_runner(lambda process: mixture(process, np.ones(1), PIXELS[None], COVARIANCE))


@pytest.mark.parametrize(
    "sampler",
    [
        lambda *args: linear.ancestral(*args, "beta"),
        lambda *args: linear.ancestral(*args, "beta_tilde"),
        lambda *args: linear.ddim(*args, 0.0),
        lambda *args: linear.ddim(*args, 0.5),
        lambda *args: linear.ddim(*args, 1.0),
    ],
    ids=["beta", "beta_tilde", "ddim0", "ddim0.5", "ddim1"],
)
def test_samplers_recover_the_covariance_of_pixels(run_pixels, sampler):
    """Noise that pixels or images shared would show in the covariances, of pixels or of neighbouring images."""
    process, n = PROCESSES["discrete"], 5000
    x = run_pixels(process, sampler(process, chain_times(1000)), *start(n, SHAPE)).reshape(n, 4)
    deviation = np.sqrt(np.diag(COVARIANCE))
    np.testing.assert_array_less(np.abs(x.mean(0) - PIXELS), 5 * deviation / np.sqrt(n) + 0.003)
    # A covariance has the standard error sqrt((c_ii c_jj + c_ij^2) / n); steps that are not infinitely small add two
    # percent of the deviations.
    scale = np.outer(deviation, deviation)
    error = np.abs(np.cov(x.T) - COVARIANCE)
    np.testing.assert_array_less(error, 5 * np.sqrt((scale**2 + COVARIANCE**2) / n) + 0.02 * scale)
    z = (x - PIXELS) / deviation
    np.testing.assert_array_less(np.abs(z[:-1].T @ z[1:]) / n, 5 / np.sqrt(n))


def test_ddim_with_eta_one_is_ancestral_with_beta_tilde():
    process, times = PROCESSES["discrete"], np.array([1.0, 0.62, 0.24, 0.08, 0.02])
    x, keys = start(16, (2, 2, 1))
    a, _ = linear.run(pixelwise(process), linear.ancestral(process, times, "beta_tilde"), x, keys)
    b, _ = linear.run(pixelwise(process), linear.ddim(process, times, 1.0), x, keys)
    np.testing.assert_allclose(a, b, atol=1e-5)
