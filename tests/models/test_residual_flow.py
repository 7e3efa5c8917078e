"""Residual flows: norms beside singular values, Lipschitz constants of pairs, the roulette beside exact determinants,
the gradient of a step, fixed points that do not converge."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params
from specs import data_of

from jgen.core import failures
from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.flow import residual_flow
from jgen.models.flow.dequantised import preprocess
from jgen.nn.residual_flow import (
    Draws,
    LipschitzNetwork,
    apply_linear,
    constrain,
    constrain_all,
    invert,
    lip_swish,
    start_vectors,
    transport,
)
from jgen.nn.spectral_norm import operator_norm

DATA = data_of(2, 4, 1, 8, num_classes=2)
CONFIG = residual_flow.Config(scales=1, blocks=2, widths=(8, 6), convolutional=False)


def keys_of(n, seed=1):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def batch(n=8):
    image = np.random.default_rng(0).integers(0, 8, (n, *DATA.image.shape)).astype(np.uint8)
    return {"image": image, "label": np.arange(n, dtype=np.int32) % 2}


@cache
def make_case(config=CONFIG):
    model = make_model(config, DATA)
    params, extra = jax.jit(model.init)(jax.random.key(0), batch(), {})
    return model, params, Context(jnp.int32(0), jax.random.key(2), extra=extra)


@pytest.mark.parametrize("shape", [(5, 7), (3, 3, 2, 4), (1, 1, 3, 2)])
def test_operator_norms_are_the_largest_singular_values_of_the_whole_map(shape):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    inside, outside = ((shape[0],), (shape[1],)) if len(shape) == 2 else ((4, 3, shape[2]), (4, 3, shape[3]))
    eye = np.eye(int(np.prod(inside)), dtype=np.float32).reshape(-1, *inside)
    matrix = np.asarray(apply_linear(kernel, eye)).reshape(len(eye), -1)
    u = jnp.asarray(np.random.default_rng(1).normal(size=(1, *outside)), jnp.float32)
    norm, unit = operator_norm(apply_linear, kernel, u, 200)
    left, singular, right = np.linalg.svd(matrix.astype(np.float64))
    np.testing.assert_allclose(norm, singular[0], rtol=1e-5)
    if shape[:2] != (1, 1):  # whose map has each singular value once for every position
        np.testing.assert_allclose(abs(np.ravel(unit) @ right[0]), 1.0, rtol=1e-4)
    gradient = jax.grad(lambda kernel: operator_norm(apply_linear, kernel, u, 200)[0])(kernel)
    direction = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    moved = np.asarray(apply_linear(jnp.asarray(direction), eye)).reshape(len(eye), -1)
    np.testing.assert_allclose(np.vdot(gradient, direction), left[:, 0] @ moved @ right[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("convolutional", [False, True])
def test_lipschitz_constants_of_random_pairs_are_below_one(convolutional):
    """Of networks whose weights are far larger than the bound."""
    network = LipschitzNetwork((12, 12), convolutional, 2)
    x, label = jnp.zeros((2000, *DATA.image.shape)), jnp.zeros(2000, jnp.int32)
    shapes = jax.eval_shape(lambda key: network.init(key, x, label)["params"], jax.random.key(0))
    params = normal_params(shapes, gain=20.0)
    bounded, _ = constrain(params, start_vectors(jax.random.key(1), params, DATA.image.shape[:2]), 0.98, 50)
    draw = np.random.default_rng(3).normal
    a = 3 * draw(size=x.shape)
    b = a + draw(size=x.shape) * 10.0 ** draw(size=(len(a), 1, 1, 1))

    @jax.jit
    def ratios(params):
        change = network.apply({"params": params}, a, label) - network.apply({"params": params}, b, label)
        return jnp.sqrt(jnp.sum(change**2, axis=(1, 2, 3)) / jnp.sum((a - b) ** 2, axis=(1, 2, 3)))

    assert 0.01 < ratios(bounded).max() < 1 < ratios(params).min()


def test_the_derivatives_of_an_inverse_are_the_inverse_jacobian():
    """In both modes, beside a linear solve with the Jacobian of x + g(x); of a parameter, beside finite differences."""
    W = 0.15 * np.random.default_rng(0).normal(size=(6, 6))

    def residual(scale, x):
        return jnp.tanh(scale * (x.reshape(-1, 6) @ W.T)).reshape(x.shape)

    with jax.enable_x64(True):
        y = jnp.asarray(np.random.default_rng(1).normal(size=(1, 2, 3, 1)))

        def inverse(scale, flat):
            return invert(lambda x: residual(scale, x), flat.reshape(y.shape), 1e-13, 500)[0].ravel()

        flat, one = y.ravel(), jnp.asarray(1.3)
        x = inverse(one, flat)
        jacobian = jax.jacfwd(lambda x: x + residual(one, x.reshape(y.shape)).ravel())(x)
        np.testing.assert_allclose(x + residual(one, x.reshape(y.shape)).ravel(), flat, atol=1e-12)
        for mode in (jax.jacrev, jax.jacfwd):
            np.testing.assert_allclose(jax.jit(mode(inverse, 1))(one, flat), np.linalg.inv(jacobian), atol=1e-10)
        by_scale = jax.grad(lambda scale: jnp.sum(inverse(scale, flat) ** 2))(one)
        h = 1e-5
        ends = [np.sum(np.asarray(inverse(one + d, flat)) ** 2) for d in (-h, h)]
        np.testing.assert_allclose(by_scale, (ends[1] - ends[0]) / (2 * h), rtol=1e-7)


def test_the_derivative_of_lip_swish_is_below_one():
    z = jnp.linspace(-20, 20, 4001)
    for beta in (-2.0, 0.5, 5.0):
        largest = np.abs(jax.vmap(jax.grad(lip_swish), (0, None))(z, beta)).max()
        assert 0.99 < largest < 1


@pytest.mark.slow
def test_the_flow_by_roulette_has_the_exact_determinants_mean_and_gradient():
    model, params, ctx = make_case()
    residual, draws = residual_flow.make_residual_flow(CONFIG, DATA), 4000
    constrained, _ = constrain_all(params["flow"], ctx.extra["flow"], CONFIG.lipschitz, 50)
    x, _ = preprocess(batch()["image"][:1] + np.float32(0.5), 8, 0.0)
    label = jnp.zeros(1, jnp.int32)

    def nats(constrained, x, draws):
        z, log_det = transport(residual.network, constrained, x, label, draws)
        return log_det[0] - 0.5 * jnp.sum(z**2)

    def estimate(key):
        key, own = jax.random.split(key)
        own_draws = Draws(key, own[None], 2)
        return jax.value_and_grad(nats, (0, 1))(constrained, x, own_draws)

    flat = jax.jit(lambda keys: jax.tree.map(lambda a: a.reshape(len(keys), -1), jax.vmap(estimate)(keys)))
    value, gradients = flat(jax.random.split(jax.random.key(5), draws))
    exact, exact_gradients = jax.jit(jax.value_and_grad(nats, (0, 1)))(constrained, x, None)
    assert abs(value.mean() - exact) < 4 * value.std() / np.sqrt(draws)
    mean, std = (np.concatenate([np.ravel(f(g, 0)) for g in jax.tree.leaves(gradients)]) for f in (np.mean, np.std))
    wanted = np.concatenate([np.ravel(g) for g in jax.tree.leaves(exact_gradients)])
    assert np.all(np.abs(mean - wanted) < 4.5 * std / np.sqrt(draws) + 1e-4)  # one of 500 numbers may be past 4


@pytest.mark.slow
def test_log_prob_by_probes_is_near_the_exact_one_and_training_moves_the_vectors():
    model, params, ctx = make_case()
    data, keys = batch(), keys_of(8)
    cond = {"label": data["label"]}

    @jax.jit
    def scores(params, ctx):
        exact, estimated = (
            model.log_prob(params, ctx, keys, data["image"], cond, samples=1, probes=probes, terms=8)
            for probes in (0, 200)
        )
        return exact, estimated, model.phases[0].loss(params, ctx, keys, data)

    exact, estimated, (loss, (metrics, extra)) = scores(params, ctx)
    np.testing.assert_allclose(estimated, exact, atol=0.3)
    assert np.std(exact) > 0.5 and metrics == {} and np.isfinite(loss)
    before, after = (jax.tree.leaves(vectors) for vectors in (ctx.extra["flow"], extra["flow"]))
    assert [a.shape for a in before] == [a.shape for a in after]
    for u in after:
        np.testing.assert_allclose(np.sum(np.square(u), axis=tuple(range(1, u.ndim))), 1.0, rtol=1e-4)


def test_a_fixed_point_that_does_not_converge_names_image_and_block():
    model, params, ctx = make_case()
    cond = {"label": jnp.zeros(2, jnp.int32)}
    with failures.collect() as reports:
        model.sample(params, ctx, keys_of(2), cond, temperature=1.0, tolerance=1e-6, iterations=1)
    assert list(reports) == [
        f"the inverse of block {block} of scale0 did not converge in 1 iterations to a tolerance of 1e-06"
        for block in (0, 1)
    ]
    with pytest.raises(UserError, match=r"images 3, 4 failed: the inverse of block 0 of scale0"):
        failures.check({what: np.asarray(failed) for what, failed in reports.items()}, np.array([3, 4]))
    with failures.collect() as reports:
        model.sample(params, ctx, keys_of(2), cond, temperature=1.0, tolerance=1e-5, iterations=500)
    assert len(reports) == 2 and not np.any(list(reports.values()))


@pytest.mark.parametrize("options,words", [
    ({"scales": 3}, ["2x4", "scales can be at most 2"]),
    ({"blocks": 0}, ["blocks is 0"]),
    ({"widths": (8, 0)}, ["widths is (8, 0)"]),
    ({"power_iterations": 0}, ["power_iterations is 0"]),
    ({"lipschitz": 1.0}, ["lipschitz is 1.0", "no inverse"]),
    ({"log_det": "odd"}, ["log_det is 'odd'", "roulette"]),
    ({"terms": -1}, ["terms is -1"]),
    ({"sampling": residual_flow.Sampling(tolerance=0.0)}, ["tolerance is 0.0", "set --model.sampling.tolerance"]),
    ({"sampling": residual_flow.Sampling(iterations=0)}, ["iterations is 0", "set --model.sampling.iterations"]),
    ({"scoring": residual_flow.Scoring(probes=-1)}, ["probes is -1", "set --model.scoring.probes"]),
    ({"scoring": residual_flow.Scoring(terms=-1)}, ["terms is -1", "set --model.scoring.terms"]),
])  # fmt: skip
def test_configurations_that_no_flow_can_be_made_of(options, words):
    with pytest.raises(UserError) as error:
        make_model(replace(CONFIG, **options), DATA)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
