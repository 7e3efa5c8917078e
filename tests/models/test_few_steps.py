"""Systems that sample in one or two steps: consistency models and mean flows, where the right function is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from specs import data_of
from stub_network import CTX, PARAMS, column, gaussian_images, keys_of, stub_network

from jgen.core.model import Context, FrozenModel
from jgen.models.diffusion import consistency, edm, mean_flow
from jgen.nn import unet

DATA = data_of(2, 2, 1, 256, 3)
STD = 0.4


@pytest.fixture
def network(monkeypatch):
    return stub_network(monkeypatch)


def labels(n):
    return {"label": np.zeros(n, np.int32)}


def test_the_consistency_function_is_the_identity_at_the_least_noise(network):
    network.answer = lambda x, t, label: jnp.cos(5 * x) + 3
    system = consistency.make(consistency.Config(network=unet.TINY), DATA).phases[0].loss.args[0]
    x = jax.random.normal(jax.random.key(0), (5, 2, 2, 1))
    f = consistency.consistency_function(system, PARAMS, x, jnp.full(5, 0.002), labels(5), None)
    np.testing.assert_array_equal(f, x)


def test_noise_levels(network):
    """Their number doubles up to the largest; an example's interval has the papers' probability."""
    config = consistency.Config(network=unet.TINY, double_every=100)
    steps = np.array([0, 99, 100, 250, 699, 700, 10_000])
    np.testing.assert_array_equal(consistency.num_levels(config, steps), [11, 11, 21, 41, 641, 1281, 1281])
    n, draws = jnp.float32(11), 20_000
    sigma = np.asarray(consistency.level_noise(config, jnp.arange(11.0), n), np.float64)
    assert sigma[0] == pytest.approx(0.002, rel=1e-4) and sigma[-1] == pytest.approx(80, rel=1e-4)
    i = np.asarray(consistency.draw_levels(config, keys_of(draws), n), int)
    weight = np.diff(scipy.special.erf((np.log(sigma) + 1.1) / (np.sqrt(2) * 2.0)))  # equation 10 of the second paper
    counts = np.bincount(i, minlength=10)
    assert scipy.stats.chisquare(counts, draws * weight / weight.sum()).pvalue > 1e-3


def flow_map(x, sigma):
    """The end at sigma_min of the flow of data N(0, STD^2) from x at noise sigma."""
    return x * jnp.sqrt((STD**2 + 0.002**2) / (STD**2 + sigma**2))


def exact_network(x, noise, label):
    """F of the consistency function that is the flow's map."""
    sigma = column(jnp.exp(4 * noise), x)
    total, above = sigma**2 + 0.25, sigma - 0.002
    x = x * jnp.sqrt(total)
    return (flow_map(x, sigma) - 0.25 / (above**2 + 0.25) * x) * jnp.sqrt(total) / (0.5 * jnp.maximum(above, 1e-9))


@pytest.mark.slow
def test_distillation_has_no_loss_at_the_flows_map(network, monkeypatch):
    """The teacher's denoiser is exact; what is left is the error of a Heun step over one of 1,280 intervals."""
    teacher = edm.make(edm.Config(network=unet.TINY), DATA)

    def exact(params, ctx, x, t, cond):
        sigma = column(80 * t, x)
        return x * STD**2 / (STD**2 + sigma**2)

    teacher = teacher._replace(functions={**teacher.functions, "denoise": exact})
    config = consistency.Config(network=unet.TINY, levels_first=1280)
    model = consistency.make(config, DATA, teacher=teacher)
    system = model.phases[0].loss.args[0]
    ctx = Context(jnp.int32(0), jax.random.key(0), frozen={"teacher": FrozenModel({}, {})})
    sigma = consistency.level_noise(config, jnp.array([0.0, 300, 640, 900, 1279]), jnp.float32(1281))
    higher = consistency.level_noise(config, jnp.array([1.0, 301, 641, 901, 1280]), jnp.float32(1281))
    x = (
        STD
        * jax.random.normal(jax.random.key(0), (5, 2, 2, 1))
        * jnp.sqrt(1 + column(higher / STD, jnp.zeros((5, 1, 1, 1))) ** 2)
    )
    nearer = consistency.teacher_step(system, ctx, x, higher, sigma, {})
    np.testing.assert_allclose(flow_map(nearer, column(sigma, x)), flow_map(x, column(higher, x)), rtol=2e-4, atol=1e-6)
    network.answer = exact_network
    n = 64
    images, _ = gaussian_images(n, DATA.image, 0.0, STD)
    value = float(model.phases[0].loss(PARAMS, ctx, keys_of(n), {"image": images, **labels(n)})[0])
    network.answer = lambda x, noise, label: jnp.zeros_like(x)
    assert value < 0.02 * float(model.phases[0].loss(PARAMS, ctx, keys_of(n), {"image": images, **labels(n)})[0])


@pytest.mark.parametrize("sigmas", [(), (0.8,)])
def test_samples_of_the_exact_function_are_the_data(network, sigmas):
    network.answer = exact_network
    model = consistency.make(consistency.Config(network=unet.TINY), DATA)
    x = np.asarray(model.sample(PARAMS, CTX, keys_of(4000), labels(4000), sigmas=sigmas, clip=False), np.float64)
    x = x.reshape(-1) / 127.5 - 1
    clipped = np.clip(np.random.default_rng(0).normal(0, STD, 10**6), -1, 1)
    assert abs(x.mean()) < 5 * STD / np.sqrt(len(x)) and x.std() == pytest.approx(clipped.std(), rel=0.03)


@pytest.mark.slow
def test_the_mean_flows_target_by_finite_differences(network):
    """v - (t - r) du/dt along the path, of a smooth u, against central differences."""
    model = mean_flow.make(mean_flow.Config(network=unet.TINY, loss_power=0.0, label_dropout=0.0), DATA)
    system = model.phases[0].loss.args[0]

    def smooth(x, t, label):
        return jnp.sin(2 * x) * jnp.cos(column(t, x) / 6)

    def by_both_times(self, variables, x, t, label, key_drop, vector=None):
        return smooth(x, t, label) + 0.1 * jnp.sum(vector[:, 20:21], axis=1).reshape(-1, 1, 1, 1) * x

    type(network).apply, original_apply = by_both_times, type(network).apply
    try:
        n = 2000
        images, x_0 = gaussian_images(n, DATA.image, 0.0, STD)
        batch = {"image": images, **labels(n)}
        value = float(model.phases[0].loss(PARAMS, CTX, keys_of(n), batch)[0])
        from jgen.core import keys as rng

        key_times, key_eps, _, _ = rng.split(keys_of(n), 4)
        r, t = mean_flow.draw_times(system.config, key_times)
        eps = rng.normal(key_eps, DATA.image.shape)
        v = eps - x_0
        z = x_0 + column(t, v) * v
        h = 1e-3

        def u(z, t):
            return mean_flow.average_velocity(system, PARAMS, z, r, t, labels(n), None)

        rate = (u(z + h * v, t + h) - u(z - h * v, t - h)) / (2 * h)
        expected = np.mean((u(z, t) - (v - column(t - r, v) * rate)) ** 2)
    finally:
        type(network).apply = original_apply
    assert value == pytest.approx(float(expected), rel=1e-3)
    apart = np.asarray(t) > np.asarray(r)
    assert abs(apart.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / n) and np.all(np.asarray(r) <= np.asarray(t))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_exact_average_velocity_gives_the_data(network, steps):
    """Of data N(0, STD^2): the flow from z_t to z_r multiplies by the ratio of their deviations."""

    def spread(t):
        return jnp.sqrt((1 - t) ** 2 * STD**2 + t**2)

    def exact(self, variables, x, t, label, key_drop, vector=None):
        t = column(t, x) / mean_flow.TIME_SCALE
        r = t - 1.0 / steps
        return x * (1 - spread(r) / spread(t)) / (t - r)

    model = mean_flow.make(mean_flow.Config(network=unet.TINY), DATA)
    original_apply, type(network).apply = type(network).apply, exact
    try:
        images = model.sample(PARAMS, CTX, keys_of(4000), labels(4000), steps=steps)
    finally:
        type(network).apply = original_apply
    x = np.asarray(images, np.float64).reshape(-1) / 127.5 - 1
    clipped = np.clip(np.random.default_rng(0).normal(0, STD, 10**6), -1, 1)
    assert abs(x.mean()) < 5 * STD / np.sqrt(len(x)) and x.std() == pytest.approx(clipped.std(), rel=0.03)
