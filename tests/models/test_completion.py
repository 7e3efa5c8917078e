"""Completions of flows, GANs and energies: known pixels stay, each image has its own key, and an exact case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import make_batch, make_case
from naive_autoregressive import normal_params

from jgen.core.keys import image_keys
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.models.flow import ffjord
from jgen.nn.velocity_field import VelocityField
from jgen.samplers.langevin import langevin

QUICK = {
    "realnvp": {"steps": 2},
    "residual_flow": {"steps": 2},
    "ffjord": {"steps": 2, "solver_steps": 2},
    "dcgan": {"steps": 2},
    "igebm": {"steps": 2},
    "vaebm": {"steps": 2},
    "flow_contrastive": {"steps": 2, "candidates": 2},
}


@pytest.mark.parametrize("name", QUICK)
def test_known_pixels_stay_and_each_image_has_its_own_key(name):
    case, num = make_case(name), 3
    model, batch = case.model, make_batch(case.model, num)
    params, extra = jax.jit(model.init)(jax.random.key(0), make_batch(model), case.frozen)
    ctx = Context(jnp.int32(0), None, params, extra, case.frozen)
    rows, images, cond = jnp.arange(num), batch["image"], model.condition(batch)
    mask = np.zeros((num, *images.shape[1:3]), bool)
    mask[:, :, ::2] = True

    @jax.jit
    def complete(keys, images, mask, cond):
        return model.inpaint(params, ctx, keys, images, mask, cond, **QUICK[name])

    keys = image_keys(jax.random.key(1), rows)
    made = np.asarray(complete(keys, images, mask, cond))
    np.testing.assert_array_equal(made[mask], images[mask])
    assert made.dtype == np.uint8 and np.any(made != images)
    turned = complete(keys[::-1], images[::-1], mask, {field: array[::-1] for field, array in cond.items()})
    np.testing.assert_array_equal(np.asarray(turned)[::-1], made)


def test_langevin_of_some_coordinates_has_the_conditional_distribution():
    """Of two Gaussian coordinates with correlation 0.8, the second given 1.5: mean 1.2, variance 0.36."""
    precision = jnp.linalg.inv(jnp.asarray([[1.0, 0.8], [0.8, 1.0]]))
    keys = image_keys(jax.random.key(0), jnp.arange(4000))
    start = jnp.concatenate([jnp.zeros((4000, 1)), jnp.full((4000, 1), 1.5)], axis=1)
    step_size = 0.01
    how = {"steps": 600, "step_size": step_size, "noise": (2 * step_size) ** 0.5, "reflecting": False}
    x, diverged = langevin(lambda x: x @ precision, keys, start, movable=jnp.asarray([[True, False]]), **how)
    assert not np.any(diverged)
    np.testing.assert_array_equal(x[:, 1], 1.5)
    # Standard errors: 0.6 / sqrt(4000) = 0.0095 of the mean, 0.36 sqrt(2 / 4000) = 0.008 of the variance.
    assert abs(float(jnp.mean(x[:, 0])) - 1.2) < 0.04 and abs(float(jnp.var(x[:, 0])) - 0.36) < 0.035


def test_the_solver_of_a_continuous_flows_chains_has_order_4_and_the_adaptive_ones_limit():
    model = make_case("ffjord").model
    network = VelocityField((16,), False, 10)
    params = normal_params(jax.eval_shape(model.init, jax.random.key(0), make_batch(model), {})[0], gain=2.0)["flow"]
    label = jnp.arange(4) % 10
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        z = jnp.asarray(np.random.default_rng(0).normal(size=(4, *model.images.shape)))
        exact = ffjord.inverse_transport(network, params, z, label, 1e-11)
        errors = [np.abs(ffjord.inverse_by_steps(network, params, z, label, n) - exact).max() for n in (4, 8, 16)]
    assert errors[0] > errors[1] > errors[2] and errors[1] / errors[2] > 10  # 16 in the limit
    assert np.abs(exact - z).max() > 0.1


@pytest.mark.parametrize(
    "name,option",
    [
        ("realnvp", "noise"),
        ("residual_flow", "steps"),
        ("ffjord", "solver_steps"),
        ("vaebm", "noise"),
        ("flow_contrastive", "candidates"),
    ],
)
def test_options_out_of_range_are_one_line(name, option):
    case = make_case(name)
    model, batch = case.model, make_batch(case.model)
    shapes = jax.eval_shape(lambda key: model.init(key, batch, case.frozen), jax.random.key(0))
    params, extra = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    ctx, keys = Context(jnp.int32(0), None, params, extra, case.frozen), image_keys(jax.random.key(1), jnp.arange(8))
    mask = np.zeros((8, *model.images.shape[:2]), bool)
    given = params, ctx, keys, batch["image"], mask, model.condition(batch)
    with pytest.raises(UserError) as error:
        jax.eval_shape(lambda: model.inpaint(*given, **{option: 0}))
    assert str(error.value) == f"{option} is 0: it must be above zero"
