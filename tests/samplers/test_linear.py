"""Samplers on Gaussian data, whose denoiser is known, in distribution and step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussians import MEAN, PROCESSES, STD, flow_map, keys_of, mixture, pixelwise, tabulated

from jgen.core import keys as rng
from jgen.prob.process import prior_std, time_of
from jgen.samplers import linear
from jgen.samplers.diffusion import Sampling, evaluations, table_of
from jgen.samplers.linear import Corrector, Table
from jgen.samplers.times import make_times

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


@pytest.mark.slow
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


# Data of two unequal modes of correlated pixels, by every sampler on every process.

WEIGHTS = np.array([0.3, 0.7])
MODES = np.array([[-0.6, 0.3], [0.5, -0.2]])
WITHIN = np.array([[0.02, 0.012], [0.012, 0.03]])
ROWS = 201
OPTIONS = {
    "ancestral": {},
    "ddim": {},
    "ddim, eta 0.5": {"eta": 0.5},
    "euler": {},
    "euler_ancestral": {},
    "heun": {},
    "heun, churn": {"churn": 40.0},
    "dpmpp_2m": {},
    "dpmpp_2m_sde": {},
    "dpmpp_3m": {},
    "unipc": {},
}
FEW = ("vp", "linear")
# Euler's method in the time of geometric noise needs a thousand steps: its order is tested below.
PAIRS = [(sampler, name) for sampler in OPTIONS for name in PROCESSES if (sampler, name) != ("euler", "ve")]


@pytest.fixture(scope="module")
def run_mixture():
    return make_runner(lambda process: mixture(process, WEIGHTS, MODES, WITHIN))


def check_mixture(x):
    """Mode weights by a binomial bound, means and covariances by their standard errors; steps that are not infinitely
    small add three percent of the deviations."""
    nearest = np.argmin(np.sum((x[:, None] - MODES) ** 2, axis=2), axis=1)
    n, share = len(x), np.mean(nearest == 1)
    assert abs(share - WEIGHTS[1]) < 5 * np.sqrt(WEIGHTS[0] * WEIGHTS[1] / n) + 0.003, share
    deviation = np.sqrt(np.diag(WITHIN))
    scale = np.outer(deviation, deviation)
    for k, mode in enumerate(MODES):
        of_mode = x[nearest == k]
        n = len(of_mode)
        np.testing.assert_array_less(np.abs(of_mode.mean(0) - mode), deviation * (5 / np.sqrt(n) + 0.03))
        error = np.abs(np.cov(of_mode.T) - WITHIN)
        np.testing.assert_array_less(error, 5 * np.sqrt((scale**2 + WITHIN**2) / n) + 0.03 * scale)


@pytest.mark.parametrize(
    "sampler,name",
    [pytest.param(*pair, marks=() if pair[1] in FEW or pair[0] == "heun" else pytest.mark.slow) for pair in PAIRS],
)
def test_samplers_recover_modes_and_covariances(run_mixture, sampler, name):
    process, n = PROCESSES[name], 4000
    kind = sampler.partition(",")[0]
    times = make_times(process, "log_snr", (ROWS + 1) // 2 if kind == "heun" else ROWS, low=0.01)
    table = table_of(Sampling(sampler=kind, **OPTIONS[sampler]), process, times)
    noise, keys = start(n, (2, 1, 1))
    check_mixture(run_mixture(process, table, noise * prior_std(process), keys).reshape(n, 2))


# Order of convergence, in double precision.

ORDERS = {
    "euler": (linear.euler, 1),
    "ddim": (linear.ddim, 1),
    "heun": (linear.heun, 2),
    "dpmpp_2m": (linear.dpm_solver_2m, 2),
    "dpmpp_3m": (linear.dpm_solver_3m, 3),
    "unipc": (linear.unipc, 3),  # a corrector of order p takes a predictor of order p - 1 to p
}


@pytest.mark.parametrize("name", ["vp", "ve", "linear"])
@pytest.mark.parametrize("sampler", ORDERS)
def test_halving_the_steps_divides_the_error_by_two_to_the_order(sampler, name):
    """Against the exact flow. Times are of lambda = -2 + 4 u^2 for even u: smooth, with first steps so short that a
    multistep method's start of lower order costs nothing. The last row gives D, which is compared at the exact state.
    """
    process, (make, order) = PROCESSES[name], ORDERS[sampler]
    z = np.linspace(-2, 2, 9).reshape(-1, 1, 1, 1)
    errors = []
    with jax.enable_x64(True):
        for n in (128, 256, 512):
            times = time_of(process, -2.0 + 4.0 * np.linspace(0, 1, n + 1) ** 2)
            alpha, sigma = process.alpha(times[0]), process.sigma(times[0])
            x = alpha * MEAN + np.sqrt(alpha**2 * STD**2 + sigma**2) * z
            x_0, _ = linear.run(pixelwise(process), make(process, times), jnp.asarray(x), keys_of(9))
            at_last = jnp.asarray(flow_map(process, times[0], times[-1], x))
            wanted = pixelwise(process)(at_last, jnp.full(9, times[-1]))
            errors.append(float(jnp.max(jnp.abs(x_0 - wanted))))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(np.abs(orders - order) < 0.12), (errors, orders)


# One method in the form of another.


@pytest.mark.parametrize("name", PROCESSES)
def test_ancestral_sampling_is_eulers_ancestral_method(name):
    """That of k-diffusion, in x / alpha and sigma / alpha: x + (x - D) / sigma (sigma_down - sigma) + sigma_up z."""
    process = PROCESSES[name]
    times = make_times(process, "uniform", 20)[1:]  # where alpha is 0, sigma / alpha is no number
    table, following = linear.ddim(process, times, 1.0), times[1:]
    alpha, alpha_s = process.alpha(times)[:-1], process.alpha(following)
    ratio, ratio_s = process.sigma(times)[:-1] / alpha, process.sigma(following) / alpha_s
    up = np.sqrt(ratio_s**2 * (ratio**2 - ratio_s**2) / ratio**2)
    down = np.sqrt(ratio_s**2 - up**2)
    np.testing.assert_allclose(table.step[:-1], alpha_s / alpha * down / ratio, rtol=1e-9)
    np.testing.assert_allclose(table.denoised[:-1, 0], alpha_s * (1 - down / ratio), rtol=1e-9)
    np.testing.assert_allclose(table.noise[:-1], alpha_s * up, rtol=1e-9)
    assert (table.step[-1], table.denoised[-1, 0], table.noise[-1]) == (0, 1, 0)
    for a, b in zip(table, linear.ancestral(process, times, "beta_tilde")):
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("name", ["linear", "edm"])
def test_euler_is_ddim_where_noise_is_a_line_in_time(name):
    process = PROCESSES[name]
    times = make_times(process, "karras", 20, low=0.01)
    euler, ddim = linear.euler(process, times), linear.ddim(process, times)
    np.testing.assert_allclose(euler.step, ddim.step, rtol=1e-5, atol=1e-7)  # rates are in single precision
    np.testing.assert_allclose(euler.denoised, ddim.denoised, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_3m", "unipc", "ddim"])
def test_methods_in_lambda_are_the_same_on_every_process(name, sampler):
    """At equal signal-to-noise ratios, x / alpha goes through the same states on each."""
    x, keys = start(4, (2, 2, 1))
    finals = []
    for process in (PROCESSES[name], PROCESSES["edm"]):
        times = time_of(process, np.linspace(-1.0, 3.0, 8))
        first = x * np.float32(process.alpha(times[0]))
        table = table_of(Sampling(sampler=sampler), process, times)
        finals.append(linear.run(pixelwise(process), table, first, keys)[0])
    np.testing.assert_allclose(finals[0], finals[1], atol=2e-5)


@pytest.mark.parametrize("churn", [linear.Churn(40.0, 0.05, 50.0, 1.003), linear.Churn(3.0, 0.0, 1.0, 1.0), None])
def test_heun_is_algorithm_2_of_its_paper(churn):
    """Karras et al. 2022, in plain NumPy, with the same noise; in double precision."""
    process, n, shape = PROCESSES["edm"], 18, (2, 2, 1)
    times = make_times(process, "karras", n, low=0.002)
    sigma = np.append(80.0 * times, 0.0)
    with jax.enable_x64(True):
        keys, denoiser = keys_of(3), jax.jit(pixelwise(process))

        def denoise(x, level):
            return np.asarray(denoiser(jnp.asarray(x), jnp.full(3, level / 80.0)))

        first = x = 80.0 * np.asarray(rng.normal(keys_of(3, 2), shape, jnp.float64))
        for i in range(n):
            level, following = sigma[i], sigma[i + 1]
            if churn is not None and i > 0 and churn.low <= level <= churn.high:
                raised = level * (1 + min(churn.amount / n, np.sqrt(2) - 1))
                z = np.asarray(rng.normal(rng.fold_in(keys, 2 * i - 1), shape, jnp.float64))
                x, level = x + np.sqrt(raised**2 - level**2) * churn.noise * z, raised
            slope = (x - denoise(x, level)) / level
            ahead = x + (following - level) * slope
            if following > 0:
                slope = 0.5 * (slope + (ahead - denoise(ahead, following)) / following)
                ahead = x + (following - level) * slope
            x = ahead
        x_0, estimates = linear.run(pixelwise(process), linear.heun(process, times, churn), jnp.asarray(first), keys)
    np.testing.assert_allclose(x_0, x, atol=1e-9)
    assert len(estimates) == 2 * n - 1 == evaluations(Sampling(sampler="heun", steps=n))


@pytest.mark.parametrize("name", PROCESSES)
def test_churned_noise_stays_within_the_process(name):
    """Adding noise keeps x_t distributed as x_t is: scaled data, and the variance of the later time."""
    process, times = PROCESSES[name], make_times(PROCESSES[name], "log_snr", 12, low=0.02)
    later, gain, noise = linear.churned(process, times, linear.Churn(100.0, 0.0, np.inf, 1.0))
    assert np.all(later >= times) and np.all(later[1:] > times[1:]) and later[0] == times[0] and np.all(later <= 1)
    np.testing.assert_allclose(gain * process.alpha(times), process.alpha(later), rtol=1e-9)
    variance = gain**2 * process.sigma(times) ** 2 + noise**2
    np.testing.assert_allclose(variance, process.sigma(later) ** 2, rtol=1e-6)
