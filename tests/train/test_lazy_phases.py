"""Phases that rest in most steps: their rhythm, their metrics, how often they compile, and their speed."""

import logging
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from contract_cases import Case, make_run, step_batch

from jgen.core import parallel
from jgen.core.model import GenerativeModel, ImageSpec, Phase
from jgen.prob.pixels import to_float
from jgen.train.logs import Window


def lazy_gan():
    """The toy GAN, with a third phase that trains the discriminator in every third step."""
    model = toys.gan(parallel.AXIS, repeats=1)
    disc, gen = model.phases
    seldom = disc._replace(every=3, name="seldom")
    return Case(model._replace(phases=(disc, seldom, gen)), {})


def test_a_resting_phase_says_nothing_and_compiles_once_a_set_of_phases():
    case = lazy_gan()
    state, step = make_run(case)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(logging.Logger, "handle", lambda self, record: said.append(record.getMessage()))
        for number in range(6):
            state, metrics = step(state, {}, step_batch(case.model, number), number)
            assert ("loss_seldom" in metrics) == ("grad_norm_seldom" in metrics) == (number % 3 == 0)
            assert {"loss_disc", "grad_norm_disc", "loss_gen", "grad_norm_gen"} <= metrics.keys()
    assert len([line for line in said if line.startswith("Compiling")]) == 2, said


def test_the_number_is_read_from_the_state_where_it_is_not_given():
    case, found = lazy_gan(), []
    for given in (True, False):
        state, step = make_run(case)
        for number in range(4):
            state, _ = step(state, {}, step_batch(case.model, number), *([number] if given else []))
        found.append(jax.device_get((state.params, state.opt, state.extra)))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_means_of_a_window_are_over_the_steps_that_ran_a_phase():
    window = Window()
    for number in range(6):
        seldom = {"loss_seldom": 4.0 + number} if number % 3 == 0 else {}
        window.add({"loss_disc": float(number), **seldom, "skipped": 0, "skipped_in_a_row": 0})
    assert window.line() == {"loss_disc": 2.5, "loss_seldom": 5.5, "skipped": 0}


def test_a_lazy_convolution_is_as_fast_as_one_that_always_runs():
    """On CPU the gradient of a convolution inside a conditional takes 80 times as long."""
    images = ImageSpec(16, 16, 1, 0, 256)
    net = nn.Sequential([nn.Conv(64, (3, 3)), nn.relu, nn.Conv(64, (3, 3), strides=2), nn.relu, nn.Conv(1, (3, 3))])
    init = lambda key, batch: ({"net": net.init(key, to_float(batch["image"][:1], 256))["params"]}, {})

    def loss(params, ctx, keys, batch):
        return jnp.mean(net.apply({"params": params["net"]}, to_float(batch["image"], 256)) ** 2), ({}, {})

    def seconds(every):
        phases = (Phase(("net",), loss), Phase(("net",), loss, every=every, name="lazy"))
        case = Case(GenerativeModel("net", images, init, phases, None), {})
        state, step = make_run(case)
        found = []
        for number in range(12):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, {}, step_batch(case.model), number))
            if number % 2 == 0:
                found.append(time.perf_counter() - start)
        return np.median(found[1:])

    assert seconds(2) < 5 * seconds(1)
