"""Every system in bfloat16: parameters, gradients and losses stay float32, and the loss is nearly that of float32."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import SYSTEMS, make_batch, make_case, system_of
from naive_autoregressive import normal_params, sample_naively
from specs import data_of

from jgen.cli import import_config
from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.experiment import make_model
from jgen.models.autoregressive import gated_pixelcnn, pixelcnn, pixelrnn
from jgen.nn.gated_pixelcnn import GatedPixelCNN
from jgen.nn.pixelcnn import PixelCNN
from jgen.nn.pixelrnn import PixelRNN


def tiny(name):
    return import_config(SYSTEMS[name]).get_config("tiny")


# {case: (system, what differs from its tiny variant)}: every system, and what no tiny variant has.
def settings(model):
    """The dataclass that has the type of a model's arithmetic: the configuration itself, or that of its network."""
    return model if hasattr(model, "dtype") else getattr(model, "network", None)


def with_settings(model, changes):
    changed = replace(settings(model), **changes)
    return changed if settings(model) is model else replace(model, network=changed)


CASES = {name: (name, {}) for name in SYSTEMS if hasattr(settings(tiny(name).model), "dtype")}
CASES["vae, dense"] = ("vae", {"network": "dense", "widths": (16,), "hidden": ()})
CASES["gated_pixelcnn, embedding"] = ("gated_pixelcnn", {"embedding": 2, "blocks": 2})
CASES["pixelrnn, rows"] = ("pixelrnn", {"layer": "row"})
CASES["ddpm, attention"] = ("ddpm", {"attention": (4,)})
FLOWS = [name for name in CASES if (model := make_case(CASES[name][0]).model).log_density and model.encode]


def keys_of(n):
    return rng.image_keys(jax.random.key(1), jnp.arange(n))


def all_float32(*trees):
    leaves = [x for x in jax.tree.leaves(trees) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return len(leaves) > 0 and all(x.dtype == jnp.float32 for x in leaves)


def shaken(tree):
    """What starts at zero hides what lies behind it."""
    return jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), tree)


@cache
def make_pair(name):
    """The model in float32 and in bfloat16, parameters and context that the second makes, and a batch."""
    system, changes = CASES[name]
    case, experiment = make_case(system), tiny(system)
    below = {role: make_case(system_of(run)).model for role, run in experiment.frozen.items()}
    wide, narrow = (
        make_model(with_settings(experiment.model, {**changes, "dtype": dtype}), case.model.data, below)
        for dtype in ("float32", "bfloat16")
    )
    batch = make_batch(wide)
    params, extra = jax.jit(narrow.init)(jax.random.key(0), batch, case.frozen)
    assert all_float32(params) and (not jax.tree.leaves(extra) or all_float32(extra))
    params = shaken(params)
    ctx = Context(jnp.int32(0), jax.random.key(2), params, extra, case.frozen)
    return wide, narrow, params, ctx, batch


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_nearly_that_of_float32_and_all_that_is_stored_is_float32(name):
    wide, narrow, params, ctx, batch = make_pair(name)

    def run(phase):
        def loss(trained):
            value, (_, new_extra) = phase.loss({**params, **trained}, ctx, keys_of(8), batch)
            return value, new_extra

        trained = {role: params[role] for role in phase.trains}
        step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(trained)
        return step.compile()(trained), step.as_text()

    for wide_phase, narrow_phase in zip(wide.phases, narrow.phases, strict=True):
        ((value, _), gradients), text = run(wide_phase)
        ((narrow_value, new_extra), narrow_gradients), narrow_text = run(narrow_phase)
        assert all_float32(narrow_value, narrow_gradients)
        assert not jax.tree.leaves(new_extra) or all_float32(new_extra)
        assert np.isfinite(narrow_value) and np.all(np.isfinite(flat(narrow_gradients)))
        np.testing.assert_allclose(narrow_value, value, rtol=0.03)
        a, b = flat(gradients), flat(narrow_gradients)
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.97  # one direction
        assert "bf16" in narrow_text and "bf16" not in text


NETWORKS = {
    "pixelcnn": (pixelcnn, {}, PixelCNN(2, 1, 8, 2, 8, num_classes=3, dtype=jnp.bfloat16)),
    "pixelrnn": (pixelrnn, {}, PixelRNN(2, 1, "diagonal", 8, 2, 8, num_classes=3, dtype=jnp.bfloat16)),
    "gated_pixelcnn": (
        gated_pixelcnn,
        {"embedding": 2},
        GatedPixelCNN(2, 1, 8, 2, 8, embedding=2, num_classes=3, dtype=jnp.bfloat16),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_cached_sampler_in_bfloat16_draws_what_the_naive_one_draws_but_for_rounding(name):
    system, options, network = NETWORKS[name]
    config = system.Config(features=8, blocks=2, hidden=8, class_conditional=True, dtype="bfloat16", **options)
    model, n = system.make(config, data_of(3, 3, 1, 2, num_classes=3)), 32
    batch = {"image": np.zeros((1, 3, 3, 1), np.uint8), "label": np.zeros(1, np.int32)}
    params = normal_params(jax.eval_shape(model.init, jax.random.key(0), batch, {})[0])
    label = jnp.arange(n) % 3
    drawn = np.asarray(jax.jit(lambda p: model.sample(p, Context(0), keys_of(n), {"label": label}))(params))
    assert drawn.dtype == np.uint8 and drawn.max() == 1
    naive = np.asarray(
        jax.jit(lambda p: sample_naively(network, p, keys_of(n), label, (3, 3, 1), 2))(params["pixelcnn"])
    )
    assert np.mean(np.all(naive == drawn, axis=(1, 2, 3))) > 0.9  # a tie within rounding changes what follows


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_a_flows_latents_and_densities_stay_float32(name):
    wide, narrow, params, ctx, batch = make_pair(name)
    x, cond = batch["image"] + np.float32(0.4), wide.condition(batch)

    def run(model):
        latents = model.encode(params, ctx, keys_of(8), batch["image"], cond)
        return latents, model.log_density(params, ctx, None, x, cond), model.decode(params, ctx, None, latents, cond)

    (_, expected, _), (latents, density, images) = (jax.jit(lambda model=m: run(model))() for m in (wide, narrow))
    assert all_float32(latents, density)
    np.testing.assert_allclose(density, expected, rtol=0.03)
    # The way back computes with networks whose input is rounded once more.
    assert np.abs(np.asarray(images, int) - batch["image"]).max() <= 1
