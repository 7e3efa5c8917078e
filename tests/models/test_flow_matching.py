"""Flow matching: targets, couplings, pairs of a teacher, and the likelihood of data whose flow is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from specs import data_of
from stub_network import CTX, PARAMS, column, gaussian_images, keys_of, stub_network

from jgen.core.model import Context, FrozenModel
from jgen.models.diffusion import flow_matching
from jgen.nn import unet
from jgen.prob.coupling import optimal_transport
from jgen.samplers.diffusion import Sampling
from jgen.samplers.ode import Scoring

DATA = data_of(2, 2, 1, 256, 3)
MEAN, STD = 0.1, 0.3


@pytest.fixture
def network(monkeypatch):
    return stub_network(monkeypatch)


def gaussian_velocity(x, t, label):
    """E[eps - x_0 | x_t] of data N(MEAN, STD^2) on the straight path."""
    t = column(t, x) / flow_matching.TIME_SCALE
    gain = (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2)
    x_0 = MEAN + gain * (x - (1 - t) * MEAN)
    return (x - x_0) / jnp.maximum(t, 1e-6)


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
def test_the_velocity_is_that_of_the_path(network, path, times):
    """A network that knows the one image of the data has no loss: x_t and its derivative by finite differences."""
    config = flow_matching.Config(network=unet.TINY, path=path, times=times, dequantise=False)
    model = flow_matching.make(config, DATA)
    n = 500
    image = np.array([0, 255, 100, 30], np.uint8).reshape(1, 2, 2, 1)
    x_0 = image.astype(np.float64) / 127.5 - 1
    angle = {
        "linear": (lambda t: 1 - t, lambda t: t),
        "cosine": (lambda t: np.cos(t * np.pi / 2), lambda t: np.sin(t * np.pi / 2)),
    }
    alpha, sigma = angle[path]

    def right(x, t, label):
        t = np.asarray(column(t, x), np.float64) / flow_matching.TIME_SCALE
        eps = (np.asarray(x, np.float64) - alpha(t) * x_0) / sigma(t)
        h = 1e-6
        return jnp.asarray(
            ((alpha(t + h) - alpha(t - h)) * x_0 + (sigma(t + h) - sigma(t - h)) * eps) / (2 * h), jnp.float32
        )

    network.answer = right
    batch = {"image": np.broadcast_to(image, (n, 2, 2, 1)), "label": np.zeros(n, np.int32)}
    assert float(model.phases[0].loss(PARAMS, CTX, keys_of(n), batch)[0]) < 1e-4
    t = np.asarray(network.calls[-1][1], np.float64) / flow_matching.TIME_SCALE
    expected = scipy.stats.uniform() if times == "uniform" else scipy.stats.norm()
    drawn = t if times == "uniform" else np.log(t / (1 - t))
    assert scipy.stats.kstest(drawn, expected.cdf).pvalue > 1e-3


def test_optimal_transport_is_the_least_assignment():
    noise = jax.random.normal(jax.random.key(0), (32, 3, 3, 1))
    x = jax.random.normal(jax.random.key(1), (32, 3, 3, 1))
    coupled = jax.jit(optimal_transport)(noise, x)
    cost = np.sum((np.asarray(x)[:, None] - np.asarray(noise)[None]) ** 2, axis=(2, 3, 4))
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    np.testing.assert_array_equal(coupled, np.asarray(noise)[columns[np.argsort(rows)]])


@pytest.mark.slow
def test_likelihood_of_gaussian_images(network):
    """log P of uint8 images under the density that the known flow carries, against its closed form."""
    network.answer = gaussian_velocity
    scoring = Scoring(tolerance=1e-5, probes=0, low=1e-3)
    model = flow_matching.make(flow_matching.Config(network=unet.TINY, scoring=scoring), DATA)
    images, _ = gaussian_images(64, DATA.image, MEAN, STD)
    label = np.zeros(64, np.int32)
    log_p = np.asarray(model.log_prob(PARAMS, CTX, keys_of(64), images, {"label": label}), np.float64)
    # The dequantised image, of the same keys, has the density N(MEAN, STD^2), times a level's width.
    from jgen.core import keys as rng
    from jgen.prob.pixels import dequantise_to_float

    x = np.asarray(dequantise_to_float(rng.split(keys_of(64), 2)[0], jnp.asarray(images), 256), np.float64)
    low = 1e-3 / (1 + 1e-3)  # t where sigma / alpha is 1e-3
    spread = np.sqrt((1 - low) ** 2 * STD**2 + low**2)
    exact = scipy.stats.norm.logpdf(x, (1 - low) * MEAN, spread).sum((1, 2, 3)) + 4 * np.log(2 / 255)
    np.testing.assert_allclose(log_p, exact, atol=5e-3)


def test_samples_have_the_moments_of_the_data(network):
    network.answer = gaussian_velocity
    model = flow_matching.make(flow_matching.Config(network=unet.TINY), DATA)
    x = np.asarray(model.sample(PARAMS, CTX, keys_of(2000), {"label": np.zeros(2000, np.int32)}, steps=30), np.float64)
    x = x / 127.5 - 1
    assert abs(x.mean() - MEAN) < 5 * STD / np.sqrt(8000) + 0.004
    assert x.std() == pytest.approx(STD, rel=5 * np.sqrt(0.5 / 8000) + 0.02)


def test_a_teachers_pairs_are_the_ends_of_its_flow(network):
    """Of the Gaussian flow: x_0 = MEAN + STD eps."""
    network.answer = gaussian_velocity
    teacher = flow_matching.make(flow_matching.Config(network=unet.TINY), DATA)
    config = flow_matching.Config(network=unet.TINY, teacher=Sampling(sampler="heun", steps=40, clip=False))
    student = flow_matching.make(config, DATA, teacher=teacher)
    ctx = Context(jnp.int32(0), jax.random.key(0), frozen={"teacher": FrozenModel({"unet": {}}, {})})
    flow = student.phases[0].loss.args[0]
    x_0, eps = flow_matching.pairs(
        flow, ctx, keys_of(16), {"label": np.zeros(16, np.int32)}, {"label": np.zeros(16, np.int32)}
    )
    np.testing.assert_allclose(x_0, MEAN + STD * eps, atol=0.01)
