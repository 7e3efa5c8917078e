"""Autoregressive flows against automatic differentiation, quadrature, and their inverse one dimension after another."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params

from jgen.compare.flops import program_flops
from jgen.nn.autoregressive_flow import AutoregressiveFlow, Made

DIMS, CLASSES = 5, 3
Z = np.random.default_rng(0).standard_normal((4, DIMS)).astype(np.float32)
LABEL = np.array([0, 1, 2, 1])
MODULES = {
    "one layer": Made(DIMS, 3, 2),
    "one layer, shallow, classes": Made(DIMS, 4, 1, CLASSES),
    "flow": AutoregressiveFlow(DIMS, 3, 2, 2),
    "flow, classes": AutoregressiveFlow(DIMS, 3, 2, 3, CLASSES),
}


@cache
def make(name, seed=0):
    """(z, label) to (eps, log_det), and (eps, label) to z, of random parameters."""
    module = MODULES[name]
    params = normal_params(jax.eval_shape(module.init, jax.random.key(0), Z, LABEL)["params"], seed, gain=1.0)

    def forward(z, label=LABEL):
        return module.apply({"params": params}, z, label)

    def inverse(eps, label=LABEL):
        return module.apply({"params": params}, eps, label, method="inverse")

    return jax.jit(forward), jax.jit(inverse)


def jacobians(name):
    """d eps_i / d z_j of each example, (B, DIMS, DIMS)."""
    forward, _ = make(name)
    one = jax.jacobian(lambda z, label: forward(z[None], label[None])[0][0])
    return np.asarray(jax.jit(jax.vmap(one))(Z, LABEL))


@pytest.mark.parametrize("name", MODULES)
def test_log_det_is_that_of_the_jacobian(name):
    sign, log_det = np.linalg.slogdet(jacobians(name).astype(np.float64))
    assert np.all(sign == 1) and np.ptp(log_det) > 0.01
    np.testing.assert_allclose(make(name)[0](Z)[1], log_det, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_the_inverse_undoes_the_flow(name):
    forward, inverse = make(name)
    np.testing.assert_allclose(inverse(forward(Z)[0]), Z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(forward(inverse(Z))[0], Z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["one layer", "one layer, shallow, classes"])
def test_a_layer_is_autoregressive(name):
    """eps_i depends on z_1 .. z_i, on every one of them in some example."""
    depends = np.any(jacobians(name) != 0, axis=0)
    np.testing.assert_array_equal(depends, np.tril(np.ones((DIMS, DIMS), bool)))


@pytest.mark.parametrize("name", ["one layer", "one layer, shallow, classes"])
def test_the_inverse_is_that_of_a_whole_evaluation_for_each_dimension(name):
    """eps_i is linear in z_i, (z_i - mu) / sigma, so two evaluations tell mu and sigma given the dimensions before."""
    forward, inverse = make(name)
    eps = np.random.default_rng(1).standard_normal(Z.shape).astype(np.float32)
    z = np.zeros_like(Z)
    for i in range(DIMS):
        z[:, i] = 0.0
        at_zero = np.asarray(forward(z)[0])[:, i]
        z[:, i] = 1.0
        per_sigma = np.asarray(forward(z)[0])[:, i] - at_zero
        z[:, i] = (eps[:, i] - at_zero) / per_sigma
    np.testing.assert_allclose(inverse(eps), z, rtol=1e-3, atol=1e-4)


def test_the_way_back_costs_what_one_evaluation_costs():
    module, z = Made(16, 8, 2), jnp.zeros((4, 16))
    params = module.init(jax.random.key(0), z, None)
    there, back = (
        program_flops(partial(module.apply, method=method), params, z, None) for method in ("__call__", "inverse")
    )
    assert there > 2 * 4 * (128**2 + 3 * 128 * 16) and back < 1.2 * there


def test_the_flow_starts_as_the_identity_and_a_class_has_a_density_of_its_own():
    module = MODULES["flow, classes"]
    eps, log_det = module.apply(module.init(jax.random.key(0), Z, LABEL), Z, LABEL)
    np.testing.assert_array_equal(log_det, 0)
    np.testing.assert_array_equal(eps, Z)  # three layers, and two reversals between them
    forward, inverse = make("flow, classes")
    other = np.array([1, 1, 2, 0])
    same = np.isclose(forward(Z)[1], forward(Z, other)[1])
    np.testing.assert_array_equal(same, LABEL == other)
    np.testing.assert_allclose(inverse(forward(Z, other)[0], other), Z, rtol=1e-4, atol=1e-4)


def test_the_density_integrates_to_one():
    """On a grid over two dimensions."""
    module = AutoregressiveFlow(2, 3, 2, 2)
    points = np.linspace(-12, 12, 481, dtype=np.float32)
    z = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2)
    params = normal_params(jax.eval_shape(module.init, jax.random.key(0), z[:1], None)["params"], 3, gain=0.7)
    eps, log_det = (np.asarray(a, np.float64) for a in jax.jit(module.apply)({"params": params}, z, None))
    density = np.exp(log_det - 0.5 * np.sum(eps**2, axis=1)) / (2 * np.pi)
    assert np.ptp(log_det) > 0.5
    np.testing.assert_allclose(density.sum() * (points[1] - points[0]) ** 2, 1.0, atol=2e-3)
