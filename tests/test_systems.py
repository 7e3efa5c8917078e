"""The contract, system by system, over every configuration's `tiny` variant; what is slow to compile is marked slow."""

import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import ROOT, SYSTEMS, make_batch, make_case, make_run, step_batch
from contract_checks import (
    ADAM,
    after_two_steps,
    check_batch_independence,
    check_signatures,
    check_training,
    compare_runs,
    some_images,
)
from test_contract import ON_DEVICES

from jgen.cli import load_config
from jgen.core import parallel
from jgen.core.backend import plain_forms
from jgen.core.keys import image_keys
from jgen.core.model import ArraySpec, Context, DataSpec, ImageSpec
from jgen.experiment import make_model

SAMPLED = [name for name in SYSTEMS if make_case(name).model.sample is not None]
ONE_LOSS = [name for name in SYSTEMS if len(make_case(name).model.phases) == 1]  # a game has no loss that must fall


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_function_gives_the_shapes_and_types_of_the_contract(name):
    check_signatures(make_case(name))


@pytest.mark.parametrize("name", SYSTEMS)
def test_steps_reach_every_trained_leaf(name):
    check_training(make_case(name), 4, at_once=True)


@pytest.mark.parametrize("name", SAMPLED)
def test_images_are_of_the_datas_shape_and_levels(name):
    images, spec = some_images(name, 8), make_case(name).model.images
    assert images.shape == (8, *spec.shape) and images.max() < spec.levels
    assert len(np.unique(images.reshape(8, -1), axis=0)) > 1


@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_and_samplers_are_exported_for_every_platform(name):
    case, n = make_case(name), 2
    model, batch = case.model, make_batch(case.model, n)
    keys = image_keys(jax.random.key(1), jnp.arange(n))
    params, extra = jax.eval_shape(model.init, jax.random.key(0), batch, case.frozen)

    def context(params, extra):
        return Context(jnp.int32(0), jax.random.key(2), params, extra, case.frozen)

    def gradients(params, extra):
        def value(params, loss):
            return loss(params, context(params, extra), keys, batch)[0]

        return [jax.grad(value)(params, phase.loss) for phase in model.phases]

    def samples(params, extra):
        return model.sample(params, context(params, extra), keys, model.condition(batch))

    for function in (gradients, samples) if model.sample else (gradients,):
        with plain_forms():
            exported = jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(params, extra)
        assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


def test_the_cifar10_unet_has_the_papers_size():
    """35.7 million parameters (Ho et al. 2020, appendix B)."""
    experiment, _ = load_config("configs/diffusion/ddpm.py:cifar10", ROOT)
    model = make_model(experiment.model, DataSpec(ImageSpec(32, 32, 3, 256), {"label": ArraySpec((), "int32", 10)}))
    params, _ = jax.eval_shape(model.init, jax.random.key(0), make_batch(model, 1), {})
    assert sum(x.size for x in jax.tree.leaves(params)) == 35_746_307


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_image_i_does_not_depend_on_the_batch_size(name):
    check_batch_independence(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_LOSS)
def test_overfits_one_batch(name):
    case = make_case(name)
    state, step = make_run(case, optimiser=ADAM)
    batch = step_batch(case.model)
    losses = []
    for _ in range(150):
        state, metrics = step(state, case.frozen, batch)
        losses.append(metrics["loss"])
    losses = np.asarray(jax.device_get(losses))
    first, last = losses[:10].mean(), losses[-30:].mean()
    assert last < first - 0.15 * abs(first), (first, last)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("family", sorted({path.parent.name for path in SYSTEMS.values()}))
def test_devices_and_accumulation_change_only_the_order_of_sums(python, tmp_path, family):
    names = [name for name, path in SYSTEMS.items() if path.parent.name == family]
    # Of a game, BatchNorm normalises what is computed at once.
    cases = [(name, 2 if name in ONE_LOSS and not make_case(name).model.whole_batch else 1) for name in names]
    reference = after_two_steps([(name, 1) for name in names])
    assert parallel.device_count() == 1
    python("-c", ON_DEVICES, tmp_path / "arrays.npz", json.dumps(cases), devices=2, timeout=1200)
    compare_runs(reference, dict(np.load(tmp_path / "arrays.npz")), "on 2 devices")
