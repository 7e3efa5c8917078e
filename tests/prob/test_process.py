"""Processes: their own equations, and every conversion between predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from conftest import mistake
from gaussians import PROCESSES, keys_of

from jgen.core import keys as rng
from jgen.prob import process as processes
from jgen.prob.process import PREDICTIONS, add_noise, discrete, from_x0, half_log_snr, time_of, to_x0
from jgen.prob.schedules import KINDS, make_schedule

# None is a point of the chain, where the rates jump.
TIMES = np.array([0.0034, 0.0202, 0.1231, 0.3501, 0.5501, 0.7004, 0.8502, 0.9706])
PRESERVING = ("vp", "cosine", "discrete", "log_snr")


@pytest.mark.parametrize("t", [1, 100, 500, 1000])
def test_forward_marginals_are_those_of_the_chain(t):
    """x_t by t single steps of the chain, against the closed form, by a Kolmogorov-Smirnov test."""
    schedule = make_schedule("linear", 1000)
    n = 4000
    noise = np.random.default_rng(t).standard_normal
    x = np.full(n, 0.7)
    for s in range(1, t + 1):
        x = np.sqrt(1 - schedule.beta[s]) * x + np.sqrt(schedule.beta[s]) * noise(n)
    x_0 = jnp.full((n, 1, 1, 1), 0.7)
    x_t = add_noise(discrete(schedule), x_0, jnp.full(n, t / 1000), rng.normal(keys_of(n, 3), (1, 1, 1)))
    assert scipy.stats.ks_2samp(x, np.asarray(x_t).ravel()).pvalue > 1e-3
    ab = schedule.alpha_bar[t]
    marginal = scipy.stats.norm(np.sqrt(ab) * 0.7, np.sqrt(1 - ab))
    assert scipy.stats.kstest(np.asarray(x_t, np.float64).ravel(), marginal.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 7, 1000])
def test_a_chain_is_its_table(kind, T):
    schedule = make_schedule(kind, T)
    process, t = discrete(schedule), np.arange(T + 1) / T
    np.testing.assert_allclose(process.alpha(t) ** 2, schedule.alpha_bar, rtol=1e-12)
    np.testing.assert_allclose(process.sigma(t) ** 2, 1 - schedule.alpha_bar, rtol=1e-9, atol=1e-16)
    on_device = process.alpha(jnp.asarray(t, jnp.float32)), process.sigma(jnp.asarray(t, jnp.float32))
    # The time is rounded by 6e-8, or 6e-5 of a step, and -log(alpha_bar) and its rise in a step to the same part.
    step = np.max(np.diff(-np.log(schedule.alpha_bar)))
    np.testing.assert_allclose(on_device[0], np.sqrt(schedule.alpha_bar), rtol=1e-6 + 1e-7 * T * step)
    np.testing.assert_allclose(on_device[1] ** 2, 1 - schedule.alpha_bar, rtol=1e-6 * T, atol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_host_and_device_agree(name):
    process, t = PROCESSES[name], jnp.asarray(TIMES, jnp.float32)
    for function in (process.alpha, process.sigma):
        # A time is rounded to 6e-8, and the angle of the cosine to 1e-7, near the end of 5 % of it.
        np.testing.assert_allclose(function(t), function(TIMES), rtol=5e-6)
        assert function(TIMES).dtype == np.float64


def test_processes_are_those_of_their_papers():
    """Song et al. 2021: d log alpha = -beta / 2 dt, d sigma^2 = (g^2 - beta sigma^2) dt; others by their formulas."""

    def beta(t):
        return 0.1 + 19.9 * t

    for t in TIMES:
        integral = scipy.integrate.quad(beta, 0, t)[0]
        alpha = np.exp(-0.5 * integral)
        for name, sigma in {"vp": np.sqrt(1 - alpha**2), "sub_vp": 1 - alpha**2}.items():
            np.testing.assert_allclose(PROCESSES[name].alpha(t), alpha, rtol=1e-10)
            np.testing.assert_allclose(PROCESSES[name].sigma(t), sigma, rtol=1e-10)
        # g^2 of sub-VP, equation 29, from the rate of sigma^2.
        h, sigma = 1e-6, PROCESSES["sub_vp"].sigma
        g2 = (sigma(t + h) ** 2 - sigma(t - h) ** 2) / (2 * h) + beta(t) * sigma(t) ** 2
        np.testing.assert_allclose(g2, beta(t) * (1 - np.exp(-2 * integral)), rtol=1e-6)
        np.testing.assert_allclose(PROCESSES["ve"].sigma(t), 0.01 * 5000**t)
        np.testing.assert_allclose(PROCESSES["cosine"].alpha(t) ** 2 + PROCESSES["cosine"].sigma(t) ** 2, 1)
        np.testing.assert_allclose(half_log_snr(PROCESSES["log_snr"], np.array(t)), 4 - 7 * t)
    assert (PROCESSES["edm"].sigma(0.5), PROCESSES["linear"].alpha(0.25)) == (40.0, 0.75)
    for name in PRESERVING:
        np.testing.assert_allclose(processes.prior_std(PROCESSES[name], TIMES), 1)


@pytest.mark.parametrize("name", PROCESSES)
def test_rates_by_finite_differences(name):
    """In double precision: central differences have the error h^2 / 6 times a third derivative, 1e-7 of the rate."""
    process, h = PROCESSES[name], 1e-6
    with jax.enable_x64(True):
        rates = processes.rates(process, jnp.asarray(TIMES), jnp.asarray(TIMES))
    for rate, function in zip(rates, (process.alpha, process.sigma)):
        wanted = (function(TIMES + h) - function(TIMES - h)) / (2 * h)
        np.testing.assert_allclose(rate, wanted, rtol=1e-6, atol=1e-8)


def test_a_chain_has_the_precision_that_is_set():
    """Whichever was asked for before, inside a loop too: JAX 0.10 would take the table in the other one."""
    process = PROCESSES["discrete"]
    times = np.linspace(0.1, 0.9, 5)

    def total(times):
        return jax.lax.scan(lambda carry, t: (carry + process.alpha(t), None), 0.0 * times[0], times)[0]

    for _ in range(2):
        single = jax.jit(total)(jnp.asarray(times, jnp.float32))
        np.testing.assert_allclose(single, process.alpha(times).sum(), rtol=1e-6)
        with jax.enable_x64(True):
            double = jax.jit(total)(jnp.asarray(times))
            np.testing.assert_allclose(process.alpha(jnp.asarray(times)), process.alpha(times), rtol=1e-13)
        np.testing.assert_allclose(double, process.alpha(times).sum(), rtol=1e-13)


@pytest.mark.parametrize("name", PROCESSES)
def test_time_of_a_noise_is_its_inverse(name):
    process = PROCESSES[name]
    np.testing.assert_allclose(time_of(process, half_log_snr(process, TIMES)), TIMES, rtol=1e-9)
    times = time_of(process, jnp.asarray(half_log_snr(process, TIMES), jnp.float32))
    # Where the noise hardly changes, its rounding moves the time: VP's first times, most.
    np.testing.assert_allclose(times, TIMES, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(time_of(process, np.array([1e3, -1e3])), [0, 1], atol=1e-12)  # beyond its range


def values_of(process, x_0, eps, t):
    """What each prediction is of, by its own definition: the velocity and the score by differentiation."""
    alpha, sigma = (f(t)[:, None, None, None] for f in (process.alpha, process.sigma))
    x_t = alpha * x_0 + sigma * eps

    def log_density(x):
        return -0.5 * jnp.sum(((x - alpha * x_0) / sigma) ** 2)

    h = 1e-6
    ends = [add_noise(process, x_0, t + shift, eps) for shift in (-h, h)]
    values = {"x0": x_0, "eps": eps, "v": alpha * eps - sigma * x_0, "score": jax.grad(log_density)(x_t)}
    return x_t, {**values, "velocity": (ends[1] - ends[0]) / (2 * h)}


@pytest.mark.parametrize("name", PROCESSES)
def test_every_prediction_converts_to_every_other(name):
    """In double precision, to that of the differences, times what a noise of up to 80 multiplies it with."""
    process = PROCESSES[name]
    with jax.enable_x64(True):
        x_0, eps = jax.random.normal(jax.random.key(0), (2, len(TIMES), 2, 2, 1))
        t = jnp.asarray(TIMES)
        x_t, values = values_of(process, x_0, eps, t)
        assert set(values) == set(PREDICTIONS)
        for prediction, output in values.items():
            estimate = to_x0(prediction, process, x_t, t, output)
            np.testing.assert_allclose(estimate, x_0, atol=1e-6, err_msg=prediction)
            for other in PREDICTIONS:
                converted = from_x0(other, process, x_t, t, estimate)
                # A small error of x_0 is alpha / sigma times as large in eps, and sigma less in the score.
                limit = 1e-6 * float(1 + jnp.max(jnp.abs(values[other])))
                np.testing.assert_allclose(converted, values[other], atol=30 * limit, err_msg=f"{prediction} {other}")


def test_what_is_no_process():
    mistake(lambda: processes.variance_preserving(0.0), "beta_min is 0.0")
    mistake(lambda: processes.sub_variance_preserving(2.0, 1.0), "beta_min is 2.0", "at most beta_max, 1.0")
    mistake(lambda: processes.variance_exploding(2.0, 1.0), "sigma_min is 2.0", "below sigma_max, 1.0")
    mistake(lambda: processes.edm(-1.0), "sigma_max is -1.0")
    one = jnp.ones((1, 1, 1, 1))
    for function in (from_x0, to_x0):
        mistake(lambda f=function: f("noise", PROCESSES["vp"], one, one[0, 0, 0], one), "prediction is 'noise'", "eps")
