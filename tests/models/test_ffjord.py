"""FFJORD: its density beside the Jacobian of its map and integrated on a grid, the trace's estimates, the steps of
training beside matrix exponentials, round trips."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from naive_autoregressive import normal_params
from specs import data_of

from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.flow import ffjord
from jgen.models.flow.dequantised import preprocess
from jgen.samplers import ode

DATA = data_of(2, 3, 1, 8, num_classes=2)
CONFIG = ffjord.Config(widths=(12,), steps=4, scoring=ffjord.Scoring(probes=0))
CTX, SIZE = Context(jnp.int32(0)), DATA.image.size


def keys_of(n, seed=1):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def batch(data=DATA, n=8):
    image = np.random.default_rng(0).integers(0, data.image.levels, (n, *data.image.shape)).astype(np.uint8)
    return {"image": image, "label": np.arange(n, dtype=np.int32) % 2}


@cache
def make_case(config=CONFIG, data=DATA, gain=2.0):
    model = make_model(config, data)
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), batch(data), {})
    return model, normal_params(shapes, gain=gain)


DENSE = {"convolutional": False, "logit_alpha": 1e-3}


@pytest.mark.parametrize("options", [{}, pytest.param(DENSE, marks=pytest.mark.slow)])
def test_log_density_is_that_of_the_jacobian_in_float64(options):
    config = replace(CONFIG, scoring=ffjord.Scoring(probes=0, tolerance=1e-11), **options)
    model, params = make_case(config)
    flow, label = ffjord.make_bijection(config, DATA), jnp.ones(1, jnp.int32)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)

        def latents(x):
            y, _ = preprocess(x.reshape(1, *DATA.image.shape), DATA.image.levels, config.logit_alpha)
            return flow.forward(params["flow"], {}, y, label)[0][0].ravel()

        @jax.jit
        def both(x):
            density = model.log_density(params, CTX, None, x.reshape(1, *DATA.image.shape), {"label": label})
            return latents(x), jax.jacfwd(latents)(x), density[0]

        x = np.random.default_rng(3).uniform(0.5, 7.5, SIZE)
        z, jacobian, density = map(np.asarray, both(jnp.asarray(x)))
    assert density.dtype == np.float64
    expected = scipy.stats.norm.logpdf(z).sum() + np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(density, expected, rtol=0, atol=1e-8)
    assert np.all(np.abs(jacobian) > 1e-9)  # free-form: each latent depends on each pixel


@pytest.mark.parametrize("kind", [pytest.param("gaussian", marks=pytest.mark.slow), "rademacher"])
def test_estimates_of_the_trace_have_the_exact_ones_mean(kind):
    model, params = make_case(replace(CONFIG, probe=kind))
    n, image, label = 1500, batch()["image"][:1], jnp.zeros(1, jnp.int32)
    x, _ = preprocess(image + np.float32(0.5), DATA.image.levels, 0.0)

    def log_det(x, keys, probes):
        network = ffjord.make_ffjord(CONFIG, DATA).network
        labels = jnp.broadcast_to(label, x.shape[:1])
        return ffjord.transport(network, params["flow"], x, labels, keys, 1e-5, probes, kind)[1]

    many = jnp.broadcast_to(x, (n, *x.shape[1:]))
    program = jax.jit(lambda many, k: (log_det(x, k[:1], 0)[0], log_det(many, k, 1), log_det(many, k, 4)))
    exact, one, four = map(np.asarray, program(many, keys_of(n)))
    for estimates in (one, four):
        assert 0 < estimates.std()
        assert abs(estimates.mean() - exact) < 4 * estimates.std() / np.sqrt(n)
    np.testing.assert_allclose(four.var(), one.var() / 4, rtol=0.2)


@pytest.mark.slow
def test_density_integrates_to_one_and_samples_follow_it():
    data, points, n, alpha = data_of(1, 2, 1, 4, num_classes=2), 81, 3000, 0.01
    config = replace(CONFIG, logit_alpha=alpha, scoring=ffjord.Scoring(probes=0, tolerance=1e-5))
    model, params = make_case(config, data)
    p = (np.arange(points) + 0.5) / points
    axis = 4 * (p - alpha) / (1 - 2 * alpha)  # the logit's domain is a little wider than [0, levels]
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2, 1).astype(np.float32)

    @jax.jit
    def density(x):
        cond = {"label": jnp.ones(len(x), jnp.int32)}
        return jnp.exp(model.log_density(params, CTX, keys_of(len(x)), x, cond))

    mass = np.asarray(density(grid), np.float64) * (4 / (1 - 2 * alpha) / points) ** 2
    np.testing.assert_allclose(mass.sum(), 1.0, atol=2e-3)
    images = jax.jit(lambda k: model.sample(params, CTX, k, {"label": jnp.ones(n, jnp.int32)}))(keys_of(n))
    level = np.clip(np.floor(grid.reshape(-1, 2)), 0, 3).astype(int)
    expected, seen = np.zeros((4, 4)), np.zeros((4, 4))
    np.add.at(expected, tuple(level.T), mass / mass.sum())
    np.add.at(seen, tuple(np.asarray(images).reshape(n, 2).T), 1)
    assert expected.max() < 0.9
    # The grid's cells straddle the levels: their share is beneath one row and column of 81.
    np.testing.assert_allclose(seen / n, expected, atol=5 * np.sqrt(0.25 / n))


MATRIX = np.random.default_rng(7).normal(0, 0.8, (SIZE, SIZE))


def linear_field(x, t):
    return (x.reshape(x.shape[0], -1) @ jnp.asarray(MATRIX.T, x.dtype)).reshape(x.shape)


def test_steps_of_training_integrate_a_linear_flow_and_its_regularisation():
    """dx/dt = A x: the end is e^A x, the trace tr A, the kinetic energy an integral of matrix exponentials."""
    n = 4000
    x = np.broadcast_to(np.random.default_rng(1).normal(size=(1, *DATA.image.shape)), (n, *DATA.image.shape))
    errors = []
    with jax.enable_x64(True):
        v = ode.probe_directions(keys_of(n), DATA.image.shape, 1, "gaussian")[:, 0].astype(jnp.float64)
        for steps in (4, 8, 16):
            end = jax.jit(lambda x, v, s=steps: ode.integrate(linear_field, x, v, s))(jnp.asarray(x), v)
            end = jax.tree.map(np.asarray, end)
            errors.append(np.abs(end.x[0].ravel() - scipy.linalg.expm(MATRIX) @ x[0].ravel()).max())
    assert all(12 < a / b < 20 for a, b in zip(errors, errors[1:]))  # of order 4
    times = np.linspace(0, 1, 2001)
    speeds = [np.mean((MATRIX @ scipy.linalg.expm(t * MATRIX) @ x[0].ravel()) ** 2) for t in times]
    np.testing.assert_allclose(end.kinetic, np.trapezoid(speeds, times), rtol=1e-4)
    for estimates, exact in ((end.trace, np.trace(MATRIX)), (end.jacobian, np.sum(MATRIX**2) / SIZE)):
        assert abs(np.mean(estimates) - exact) < 4 * np.std(estimates) / np.sqrt(n)


@pytest.mark.slow
def test_the_loss_is_the_likelihood_and_its_regularisation():
    model, params = make_case(replace(CONFIG, kinetic=0.3, jacobian=0.2, steps=16))
    image, n = batch(n=1)["image"].repeat(2000, 0), 2000
    data = {"image": image, "label": np.zeros(n, np.int32)}

    @jax.jit
    def both(params, keys, other):
        loss, (metrics, _) = model.phases[0].loss(params, CTX, keys, data)
        return loss, metrics, model.log_prob(params, CTX, other, image, {"label": data["label"]}, samples=1, probes=1)

    loss, metrics, nats = both(params, keys_of(n), keys_of(n, 5))
    bits = -np.asarray(nats) / (SIZE * np.log(2))
    np.testing.assert_allclose(metrics["bits_per_dim"], bits.mean(), atol=4 * bits.std() * (2 / n) ** 0.5)
    wanted = metrics["bits_per_dim"] + 0.3 * metrics["kinetic"] + 0.2 * metrics["jacobian"]
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert metrics["kinetic"] > 0.01 and metrics["jacobian"] > 0.01


@pytest.mark.slow
def test_images_to_latents_and_back():
    model, params = make_case()
    data, keys = batch(), keys_of(8)
    cond = {"label": data["label"]}

    @jax.jit
    def there_and_back(images):
        latents = model.encode(params, CTX, keys, images, cond)
        return latents, model.decode(params, CTX, keys, latents, cond)

    (z,), images = there_and_back(data["image"])
    np.testing.assert_array_equal(images, data["image"])
    assert z.shape == data["image"].shape


@pytest.mark.parametrize("options,words", [
    ({"widths": (8, 0)}, ["widths is (8, 0)"]),
    ({"steps": 0}, ["steps is 0"]),
    ({"probe": "odd"}, ["probe is 'odd'", "rademacher"]),
    ({"kinetic": -1.0}, ["kinetic is -1.0"]),
    ({"jacobian": float("inf")}, ["jacobian is inf"]),
    ({"sampling": ffjord.Sampling(tolerance=0.0)}, ["tolerance is 0.0", "set --model.sampling.tolerance"]),
    ({"scoring": ffjord.Scoring(probes=-1)}, ["probes is -1", "set --model.scoring.probes"]),
])  # fmt: skip
def test_configurations_that_no_flow_can_be_made_of(options, words):
    with pytest.raises(UserError) as error:
        make_model(replace(CONFIG, **options), DATA)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.slow
def test_a_solver_that_does_not_converge_is_named(monkeypatch):
    from jgen.core import failures

    model, params = make_case()
    monkeypatch.setattr(ode, "MAX_STEPS", 1)
    with failures.collect() as reports:
        model.sample(params, CTX, keys_of(2), {"label": jnp.zeros(2, jnp.int32)}, temperature=1.0, tolerance=1e-6)
    assert [np.all(failed) for failed in reports.values()] == [True]
    assert "did not converge at tolerance 1e-06" in next(iter(reports))
