"""The adaptive solver and the density it gives, on Gaussian data, of which both are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import mistake
from gaussians import MEAN, PROCESSES, STD, flow_map, keys_of, mixture, pixelwise

from jgen.core import keys as rng
from jgen.prob.process import half_log_snr, prior_std, time_of
from jgen.samplers import ode

NAMES = ("vp", "linear", "edm")
TOLERANCE = 1e-5
# What a hundred steps add up to: each has an error of the tolerance times 1 + |x|, and the flow towards data contracts.
LIMIT = 100 * TOLERANCE
FACTOR = np.array([[0.3, 0, 0, 0], [0.2, 0.2, 0, 0], [-0.15, 0.1, 0.2, 0], [0.25, 0.1, 0, 0.15]])
COVARIANCE, PIXELS = FACTOR @ FACTOR.T, np.array([0.3, -0.2, 0.1, 0.0])


def unconditional(denoiser):
    return lambda x_t, t, cond: denoiser(x_t, t)


def low_of(process):
    return float(time_of(process, np.array([-np.log(0.02)]))[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_adaptive_solution_is_the_closed_form_of_each_image_alone(name):
    """An image does not depend on those beside it, which may need other steps."""
    process, low = PROCESSES[name], low_of(PROCESSES[name])
    denoiser = pixelwise(process)
    size = np.array([1.0, 0.1, 3.0, 10.0]).reshape(4, 1, 1, 1)
    x = jnp.asarray(size * np.asarray(rng.normal(keys_of(4), (2, 2, 1))) * prior_std(process), jnp.float32)
    solve = jax.jit(lambda x: ode.adaptive(unconditional(denoiser), process, x, {}, TOLERANCE, low)[0])
    solution = np.asarray(solve(x))
    at_low = flow_map(process, 1.0, low, np.asarray(x, np.float64))
    with jax.enable_x64(True):
        wanted = np.asarray(denoiser(jnp.asarray(at_low), jnp.full(4, low)))
    np.testing.assert_allclose(solution, wanted, rtol=LIMIT, atol=LIMIT)
    for i in range(3):
        np.testing.assert_allclose(solve(jnp.stack([x[i]] * 4))[0], solution[i], rtol=1e-6, atol=1e-6)


def exact_log_density(process, low, x):
    """log p(x) of what the flow makes of the prior: in the eigenvectors of the covariance it scales each axis."""
    values, vectors = np.linalg.eigh(COVARIANCE)
    y, mean = x.reshape(len(x), -1) @ vectors, PIXELS @ vectors
    ends = [flow_map(process, low, 1.0, y[:, j], mean[j], values[j] ** 0.5) for j in range(4)]
    growth = [flow_map(process, low, 1.0, 1.0, 0.0, v**0.5) for v in values]
    prior = scipy.stats.norm(0, float(prior_std(process)))
    return sum(prior.logpdf(end) + np.log(rate) for end, rate in zip(ends, growth))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_log_density_is_the_closed_form(name):
    """The exact divergence to the solver's tolerance; probes to their Monte Carlo error, and without bias."""
    process, low, n = PROCESSES[name], low_of(PROCESSES[name]), 256
    denoiser = mixture(process, np.ones(1), PIXELS[None], COVARIANCE)
    z = np.random.default_rng(0).standard_normal((4, 4))
    x = (PIXELS + z @ FACTOR.T).reshape(4, 2, 2, 1)

    def log_density(probes):
        def run(x, keys):
            return ode.log_density(unconditional(denoiser), process, x, {}, keys, TOLERANCE, low, probes)

        return jax.jit(run)

    exact = log_density(0)(jnp.asarray(x, jnp.float32), keys_of(4))
    wanted = exact_log_density(process, low, x)
    np.testing.assert_allclose(exact, wanted, atol=4 * LIMIT)  # of four pixels
    # Next to the density of the data itself, of which the prior is not quite the end.
    alpha, sigma = process.alpha(np.array(low)), process.sigma(np.array(low))
    data = scipy.stats.multivariate_normal(alpha * PIXELS, alpha**2 * COVARIANCE + sigma**2 * np.eye(4))
    np.testing.assert_allclose(wanted, data.logpdf(x.reshape(4, 4)), atol=0.05)
    same = jnp.broadcast_to(jnp.asarray(x[:1], jnp.float32), (n, 2, 2, 1))
    estimates = np.asarray(log_density(4)(same, keys_of(n)), np.float64)
    error = estimates.std() / np.sqrt(n)
    assert 0.001 < error and abs(estimates.mean() - float(exact[0])) < 5 * error + LIMIT, (error, estimates)


def test_the_flow_is_the_rate_of_its_closed_form():
    process, t, h = PROCESSES["vp"], 0.4, 1e-5
    with jax.enable_x64(True):
        x = jnp.linspace(-1, 1, 4).reshape(1, 2, 2, 1)
        derivative = ode.probability_flow(pixelwise(process), process)(x, jnp.array([t]))
        ends = [flow_map(process, t, t + shift, np.asarray(x)) for shift in (-h, h)]
        np.testing.assert_allclose(derivative, (ends[1] - ends[0]) / (2 * h), rtol=1e-6)
    assert (MEAN, STD) == (0.2, 0.3) and half_log_snr(process, np.array(t)) < 0  # where data and noise both matter


def test_a_solution_that_does_not_converge_is_no_number(monkeypatch):
    monkeypatch.setattr(ode, "MAX_STEPS", 2)
    end, steps = ode.solve(lambda t, y, args: -100.0 * y, jnp.ones((2, 3)), 0.0, 1.0, 1e-5, None)
    assert np.all(np.isnan(end)) and np.all(steps == 2)


def test_tolerances_that_cannot_be():
    for tolerance in (0.0, -1.0, 1.0, float("nan")):
        mistake(lambda value=tolerance: ode.check_ode(value), f"tolerance is {tolerance}")
    mistake(lambda: ode.check_ode(1e-3, -1), "probes is -1")
