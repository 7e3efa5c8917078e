"""Flow contrastive estimation: its densities, its phases, and what it depends on."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from contract_cases import make_batch, make_case, make_run, step_batch

from jgen.core import keys as rng
from jgen.core.model import Context, frozen_context
from jgen.models.energy.flow_contrastive import Config, Sampling, make

CASE = make_case("flow_contrastive")
FLOW = make_case("realnvp").model
SMALL = Config(channels=(4, 4), blocks=1)


def started():
    """The batch, keys, parameters and context of a model before its first step."""
    batch = make_batch(CASE.model)
    keys = rng.image_keys(jax.random.key(1), jnp.arange(8))
    params, extra = jax.jit(CASE.model.init)(jax.random.key(0), batch, CASE.frozen)
    return batch, keys, params, Context(jnp.int32(0), jax.random.key(2), params, extra, CASE.frozen)


@pytest.mark.slow
def test_the_flow_starts_as_the_frozen_one_and_the_energy_relative_to_it():
    batch, keys, params, ctx = started()
    cond = CASE.model.condition(batch)

    @jax.jit
    def compared(params, ctx):
        frozen, inner = frozen_context(ctx, "flow")
        x = batch["image"].astype(jnp.float32) + 0.5
        q = FLOW.log_density(frozen, inner, keys, x, cond)
        moved = {**params, "flow": jax.tree.map(lambda p: p + 0.01, params["flow"])}
        dense = {"kernel": jnp.zeros((4, 1)), "bias": jnp.full(1, 2.0)}
        tilted = {**params, "energy": {**params["energy"], "dense": dense}}
        return {
            "q": q,
            "own": CASE.model.log_density(params, ctx, keys, x, cond),
            "moved": CASE.model.log_density(moved, ctx, keys, x, cond),
            "energy": CASE.model.energy(tilted, ctx, keys, batch["image"], cond),
            "energy_of_moved": CASE.model.energy({**tilted, "flow": moved["flow"]}, ctx, keys, batch["image"], cond),
            "bound": CASE.model.log_prob(params, ctx, keys, batch["image"], cond),
            "flows_bound": FLOW.log_prob(frozen, inner, keys, batch["image"], cond, samples=1),
        }

    out = jax.device_get(compared(params, ctx))
    np.testing.assert_allclose(out["own"], out["q"], rtol=1e-5)
    np.testing.assert_allclose(out["bound"], out["flows_bound"], rtol=1e-5)
    np.testing.assert_allclose(out["energy"], 2 - out["q"], rtol=1e-5)  # f is 2 everywhere
    np.testing.assert_array_equal(out["energy_of_moved"], out["energy"])  # relative to the frozen flow
    assert np.abs(out["moved"] - out["q"]).min() > 1e-3


@pytest.mark.slow
def test_the_phases_play_against_each_other_and_the_frozen_flow_stays():
    batch, keys, params, ctx = started()
    (value, _), (other, _) = jax.jit(
        lambda params: [phase.loss(params, ctx, keys, batch)[:2] for phase in CASE.model.phases]
    )(params)
    np.testing.assert_allclose(value, -other, rtol=1e-5)
    state, step = make_run(CASE)
    before = jax.device_get(CASE.frozen["flow"].params)
    start = jax.device_get(state.params)
    state, metrics = step(state, CASE.frozen, step_batch(CASE.model))
    assert 0 <= float(metrics["accuracy"]) <= 1
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(CASE.frozen["flow"].params))
    for role in ("energy", "flow"):
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start[role], jax.device_get(state.params[role]))
        assert any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_of_candidates_the_likelier_under_the_energy_are_chosen():
    """An energy that falls with brightness chooses brighter samples; of one candidate it chooses nothing."""
    batch, _, params, ctx = started()
    keys = rng.image_keys(jax.random.key(3), jnp.arange(64))
    cond = {"label": np.arange(64, dtype=np.int32) % 10}
    params = {**params, "energy": jax.tree.map(lambda x: 3 * x + 0.2, params["energy"])}

    @jax.jit
    def energies(params):
        draws = [CASE.model.sample(params, ctx, keys, cond, candidates=number) for number in (1, 6)]
        given = np.full((64, 8, 8, 1), 8, np.uint8)
        mask = np.broadcast_to(np.arange(64).reshape(8, 8) < 16, (64, 8, 8))
        chains = partial(CASE.model.inpaint, params, ctx, keys, given, mask, cond, steps=20)
        draws += [chains(candidates=number) for number in (1, 6)]
        frozen, inner = frozen_context(ctx, "flow")
        f = []
        for images in draws:
            q = FLOW.log_density(frozen, inner, keys, images.astype(jnp.float32) + 0.5, cond)
            f.append(CASE.model.energy(params, ctx, keys, images, cond) + q)
        return f

    one, six, completed, chosen = jax.device_get(energies(params))
    assert six.mean() < one.mean() - 2 * one.std() / 8
    assert chosen.mean() < completed.mean() - 2 * completed.std() / 8


def test_bad_input():
    data = CASE.model.data
    mistake(lambda: make(SMALL, data, flow=make_case("vae").model), "frozen.flow is a vae", "such as glow")
    mistake(lambda: make(replace(SMALL, flow_every=0), data, flow=FLOW), "flow_every is 0")
    mistake(lambda: make(replace(SMALL, channels=(4,) * 5), data, flow=FLOW), "5 entries, images are 8x8", "by 16")
    bad = replace(SMALL, sampling=Sampling(candidates=0))
    mistake(lambda: make(bad, data, flow=FLOW), "candidates is 0", "set --model.sampling.candidates")
    other = replace(data, image=replace(data.image, height=4))
    mistake(lambda: make(SMALL, other, flow=FLOW), "frozen.flow was trained on", "height=4")
    with pytest.raises(KeyError):
        make_case("ffjord").model.functions["draw_dequantised"]
