"""VDM: its schedule, its bound on data whose likelihood is known, and the two gradients of one backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from specs import data_of
from stub_network import CTX, column, gaussian_images, keys_of, stub_network

from jgen.models.diffusion import vdm
from jgen.nn import unet
from jgen.prob.diffusion_bound import variational_bound
from jgen.prob.process import half_log_snr

DATA = data_of(4, 4, 1, 256, 3)
MEAN, STD = 0.1, 0.3


@pytest.fixture
def network(monkeypatch):
    return stub_network(monkeypatch)


def made(**options):
    config = vdm.Config(network=unet.TINY, schedule_features=16, fourier=(), **options)
    model = vdm.make(config, DATA)
    system = model.phases[0].loss.args[0]
    schedule = system.schedule.init(jax.random.key(3), jnp.ones(1))["params"]
    ends = {"gamma_0": jnp.float32(config.gamma_0), "gamma_1": jnp.float32(config.gamma_1)}
    return model, system, {"unet": {}, "ends": ends, "schedule": schedule}


def gaussian_answer(system, params):
    """eps - z, of the posterior mean of data N(MEAN, STD^2)."""
    low, high = (float(params["ends"][name]) for name in ("gamma_0", "gamma_1"))

    def answer(z, t, label):
        gamma = low + (high - low) * column(t, z) / vdm.TIME_SCALE
        alpha, sigma = jax.nn.sigmoid(-gamma) ** 0.5, jax.nn.sigmoid(gamma) ** 0.5
        x = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (z - alpha * MEAN)
        return (z - alpha * x) / sigma - z

    return answer


@pytest.mark.slow
def test_the_schedule_rises_from_end_to_end(network):
    model, system, params = made()
    t = np.linspace(0, 1, 101)
    gamma = np.asarray(vdm.gamma_of(system, params)(t), np.float64)
    assert gamma[0] == pytest.approx(-13.3, abs=1e-4) and gamma[-1] == pytest.approx(5, abs=1e-4)
    assert np.all(np.diff(gamma) > 0) and np.ptp(np.diff(gamma)) > 1e-3  # not a line
    process = model.functions["process"](params, None)
    np.testing.assert_allclose(half_log_snr(process, t), -gamma / 2, atol=1e-4)


@pytest.mark.slow
def test_the_bound_meets_the_likelihood_of_gaussian_images(network):
    """With the exact denoiser of the continuous density: the bound is below it by what dequantisation with the noise of
    t = 0, narrower than a level, costs; and the discrete bound of many steps of the same process comes to the same."""
    model, system, params = made()
    network.answer = gaussian_answer(system, params)
    n = 256
    images, _ = gaussian_images(n, DATA.image, MEAN, STD)
    label = {"label": np.zeros(n, np.int32)}
    log_p = np.asarray(model.log_prob(params, CTX, keys_of(n), images, label, times=200), np.float64)
    edges = (np.arange(257) - 0.5) / 127.5 - 1
    edges[0], edges[-1] = -np.inf, np.inf
    level = np.log(np.diff(scipy.stats.norm(MEAN, STD).cdf(edges)))
    exact = level[images].sum((1, 2, 3))
    error = np.std(log_p - exact) / np.sqrt(n)
    sigma, width = np.exp(-13.3 / 2), 2 / 255
    eps, weight = np.polynomial.hermite_e.hermegauss(80)
    logits = -0.5 * (eps[:, None] - np.arange(-5, 6) * width / sigma) ** 2
    read = (logits[:, 5] - scipy.special.logsumexp(logits, axis=1)) @ weight / weight.sum()
    expected = 16 * (read + 0.5 * np.log(2 * np.pi * np.e * sigma**2) - np.log(width))
    assert abs(np.mean(log_p - exact) - expected) < 5 * error and error < 0.2, (np.mean(log_p - exact), expected, error)

    process = model.functions["process"](params, None)

    def denoiser(x_t, t):
        return model.functions["denoise"](params, CTX, x_t, t, label)

    chain = np.arange(1, 401) / 400
    discrete = jax.jit(
        lambda x: variational_bound(denoiser, HostProcess(process), chain, x, keys_of(n), 256, "beta_tilde")
    )
    gap = np.mean(np.asarray(discrete(images), np.float64) - log_p)
    assert abs(gap) < 3.0, gap  # of about 80 nats


def HostProcess(process):
    """The process on the host, as a chain's bound takes it."""
    from jgen.prob.process import Process

    def on_host(f):
        def call(t):
            if isinstance(t, np.ndarray):
                with jax.ensure_compile_time_eval():
                    return np.asarray(f(t), np.float64)
            return f(t)

        return call

    return Process(on_host(process.alpha), on_host(process.sigma))


def test_each_role_has_its_own_gradient(network):
    """The network and the ends that of the mean, the schedule that of the mean of squares, by autodiff of each."""
    model, system, params = made()
    network.answer = lambda z, t, label: 0.1 * jnp.sin(3 * z) + 1e-4 * column(t, z)
    n = 8
    images, x = gaussian_images(n, DATA.image, MEAN, STD)
    keys, t, x = keys_of(n), jnp.linspace(0.05, 0.95, n), jnp.asarray(x, jnp.float32)
    cond = {"label": np.zeros(n, np.int32)}

    def losses(params):
        gamma, rate = vdm.schedule_at(system, params, t)
        return vdm.diffusion_loss(system, params, keys, gamma, rate, x, cond, None)

    def combined(params):
        return vdm.diffusion_and_variance(system, params, keys, t, x, cond, None)

    scale = 1 / (DATA.image.size * np.log(2))

    @jax.jit
    def evaluate(params):
        by_mean = jax.value_and_grad(lambda p: jnp.mean(losses(p)))(params)
        by_square = jax.grad(lambda p: scale * jnp.mean(losses(p) ** 2))(params)
        return jax.value_and_grad(combined)(params), by_mean, by_square

    (value, gradients), (mean, by_mean), by_square = evaluate(params)
    assert value == pytest.approx(float(mean), rel=1e-5)

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3 * np.max(np.abs(b)))

    jax.tree.map(close, gradients["ends"], by_mean["ends"])
    jax.tree.map(close, gradients["schedule"], by_square["schedule"])


def test_times_of_a_batch_are_evenly_spaced():
    t = np.sort(np.asarray(vdm.spread_times(CTX, {"position": jnp.arange(8) / 8})))
    np.testing.assert_allclose(np.diff(t), 1 / 8, atol=1e-6)
