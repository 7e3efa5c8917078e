"""The study of free-form Jacobians: densities beside quadrature, determinants of every contender beside autodiff, ways
back, the schedule in the optimiser's state, a record."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import mistake

from jgen.core import keys as rng
from jgen.nn.flow import ActNorm
from jgen.prob import densities
from jgen.studies import flow_trials, free_form_jacobian
from jgen.studies.contenders import CONTENDERS, log_density, parameters_of, width_for
from jgen.train.config import Config, Optimiser
from jgen.train.optimisers import make_optimiser

SHAPE = (1, 1, 2)
# FFJORD's is that of flow matching, and the roulette's that of exact determinants: only their losses differ.
SLOW = ("Flow matching", "Convex potential", "TarFlow", "Residual, roulette", "Glow")
DISTINCT = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in CONTENDERS
    if name not in ("FFJORD", "Residual, exact")
]


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_densities_integrate_to_one_and_samples_follow_them(name):
    number, n = list(densities.DENSITIES).index(name), 4000
    grid = densities.grid(200)
    p = np.exp(np.asarray(densities.DENSITIES[name]().log_prob(grid), np.float64))
    np.testing.assert_allclose(densities.integral(p), 1.0, atol=1e-4)
    keys = rng.image_keys(jax.random.key(1), jnp.arange(n))
    x = np.asarray(jax.jit(densities.draw_points)(keys, jnp.int32(number)), np.float64)
    weights = p * 64 / len(grid)
    for power in (1, 2):
        error = x**power - weights @ grid.astype(np.float64) ** power
        assert np.all(np.abs(error.mean(0)) < 4 * error.std(0) / np.sqrt(n) + 1e-3)
    log_p = np.asarray(densities.DENSITIES[name]().log_prob(x.astype(np.float32)), np.float64)
    assert abs(-log_p.mean() - densities.entropy(name, 400)) < 4 * log_p.std() / np.sqrt(n) + 1e-3


def test_entropies_of_closed_form():
    np.testing.assert_allclose(densities.entropy("checkerboard", 400), np.log(8), atol=1e-6)
    # Gaussians that overlap little: the entropy of one, and that of the choice.
    one = scipy.stats.norm(scale=0.2).entropy() * 2 + np.log(8)
    assert one - 2e-3 < densities.entropy("gaussians", 400) < one


@cache
def start(name):
    """A contender of about 300 parameters that has left its start, and points."""
    flow = CONTENDERS[name].make(SHAPE, width_for(CONTENDERS[name], SHAPE, 300))
    keys = rng.image_keys(jax.random.key(0), jnp.arange(64))
    x = densities.draw_points(keys, jnp.int32(1)).reshape(-1, *SHAPE)
    params, extra = jax.jit(flow.init)(jax.random.key(1), x)
    draw = np.random.default_rng(0).standard_normal
    return (
        flow,
        jax.tree.map(lambda leaf: leaf + np.float32(0.05) * draw(leaf.shape).astype(np.float32), params),
        extra,
        x,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT)
def test_determinants_are_those_of_the_jacobian_and_the_inverse_undoes(name):
    flow, params, extra, x = start(name)

    @jax.jit
    def both(x):
        z, log_det = flow.forward(params, extra, x)
        jacobian = jax.vmap(jax.jacfwd(lambda one: flow.forward(params, extra, one[None])[0][0]))(x)
        return z, log_det, jacobian, flow.inverse(params, extra, z), log_density(flow, params, extra, x)

    z, log_det, jacobian, back, nats = both(x[:8])
    np.testing.assert_allclose(log_det, np.linalg.slogdet(np.asarray(jacobian).reshape(8, 2, 2))[1], atol=1e-4)
    np.testing.assert_allclose(nats, scipy.stats.norm.logpdf(z).sum(1) + log_det, atol=1e-4)
    if CONTENDERS[name].bijective:
        np.testing.assert_allclose(back, x[:8], atol=1e-3)


@pytest.mark.slow
def test_widths_give_about_the_parameters_that_are_asked_for():
    for name, contender in CONTENDERS.items():
        width = width_for(contender, SHAPE, 8000)
        assert abs(parameters_of(contender.make(SHAPE, width), SHAPE) - 8000) < 700, name


@pytest.mark.slow
def test_the_gradient_of_a_free_form_flow_is_that_of_the_trace():
    """Of tr(g' df') with the whole Jacobians, and where g is f^-1 of -log |det f'|: the mean within 4.5 errors."""
    flow, params, extra, x = start("Free-form flow")
    x, n = x[:1], 4000

    def trace(params):
        z, log_det = flow.forward(params, extra, x)
        y, actnorm = ActNorm().apply({"params": params["actnorm"]}, x)

        def decode(z):  # in the encoder's inputs, as ActNorm gives them
            return ActNorm().apply({"params": params["actnorm"]}, flow.inverse(params, extra, z[None]))[0].ravel()

        def encode(y):
            back, _ = ActNorm().apply({"params": params["actnorm"]}, y.reshape(x.shape), True)
            return flow.forward(params, extra, back)[0].ravel()

        volume = jnp.trace(jax.jacobian(encode)(y.ravel()) @ jax.lax.stop_gradient(jax.jacobian(decode)(z[0])))
        nats = -0.5 * jnp.sum(z**2) + volume + actnorm[0]
        return -nats + 10.0 * jnp.sum((decode(z[0]) - y.ravel()) ** 2)

    def estimate(params, key):
        return flow.loss(params, extra, key, key[None], x)[0]

    keys = jax.random.split(jax.random.key(0), n)
    draws = jax.jit(jax.vmap(jax.grad(estimate), (None, 0)))(params, keys)
    exact = jax.jit(jax.grad(trace))(params)
    for drawn, wanted in zip(jax.tree.leaves(draws["encoder"]), jax.tree.leaves(exact["encoder"])):
        assert np.all(np.abs(np.mean(drawn, 0) - wanted) < 4.5 * np.std(drawn, 0) / np.sqrt(n) + 1e-4)


def test_the_schedule_in_the_state_is_that_of_the_options():
    for steps in (50, 3000):
        o = Optimiser(learning_rate=0.01, schedule="cosine", warmup_steps=min(100, steps // 10))
        wanted = make_optimiser(Config(steps=steps, optimiser=o)).learning_rate
        for step in (0, 3, steps // 2, steps - 1):
            rate = flow_trials.Schedule(jnp.float32(steps), jnp.float32(0.01), jnp.float32(step)).rate()
            np.testing.assert_allclose(rate, wanted(step), rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_equal_operations_are_steps_in_inverse_proportion_to_their_cost():
    budget, batch_size, costs = 1e10, 32, {}
    for name in ("RealNVP", "Free-form flow"):
        one = flow_trials.trial(name, "checkerboard", 300, batch_size)
        setting = {"minutes": 0.0, "teraflops": budget / 1e12, "batch_size": batch_size}
        steps, costs[name] = flow_trials.steps_of(setting, one), flow_trials.flops_of(one)
        assert steps % one.problem.per_call == 0
        spent = steps * batch_size * costs[name]
        assert abs(spent - budget) <= 0.5 * one.problem.per_call * batch_size * costs[name]
    # Dense networks: of each weight, a product and a sum, forward and twice backward; and what is not a product.
    products = 6 * parameters_of(CONTENDERS["RealNVP"].make(SHAPE, width_for(CONTENDERS["RealNVP"], SHAPE, 300)), SHAPE)
    assert 0.8 < costs["RealNVP"] / products < 4
    assert costs["RealNVP"] != costs["Free-form flow"]


@pytest.mark.slow
def test_a_record_its_table_and_its_figure(tmp_path, capsys):
    words = ["--data", "checkerboard", "--flows", "RealNVP; Free-form flow", "--minutes", "1e-6", "--teraflops", "1e-6"]
    words += ["--parameters", "300", "--batch-size", "32", "--seeds", "2", "--out", str(tmp_path)]
    assert free_form_jacobian.command(words) == 0
    rows = json.loads((tmp_path / "free_form_jacobian.json").read_text())["rows"]
    assert [row["setting"]["name"] for row in rows] == ["RealNVP", "Free-form flow"] * 2
    assert all(row["steps"] == 50 and len(row["nats"]) == 2 for row in rows)
    excess = [free_form_jacobian.excess(row) for row in rows]
    np.testing.assert_allclose(excess[0], np.array(rows[0]["nats"]) - np.log(8), atol=1e-4)
    np.testing.assert_allclose(excess[1], np.array(rows[1]["nats"]) - np.log(8) + np.log(rows[1]["mass"]), atol=1e-4)
    assert (tmp_path / "free_form_jacobian.png").stat().st_size > 10_000
    assert "| checkerboard | 1e-06 Tflop | Free-form flow | free-form |" in capsys.readouterr().out


@pytest.mark.parametrize("words,wanted", [
    (["--minutes", "-1"], ["--minutes is -1"]),
    (["--minutes", "0"], ["--minutes and --teraflops are 0"]),
    (["--flows", "Glow; NICE"], ["--flows has 'NICE'", "RealNVP"]),
    (["--data", "rings,squares"], ["squares"]),
    (["--learning-rates", "0"], ["--learning-rates is (0.0,)"]),
    (["--seeds", "0"], ["--seeds is 0"]),
])  # fmt: skip
def test_mistakes(words, wanted, tmp_path):
    mistake(lambda: free_form_jacobian.command([*words, "--out", str(tmp_path)]), *wanted)
