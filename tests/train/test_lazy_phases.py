"""Phases that rest in most steps: their metrics, and what is in the programs of the steps with and without them."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from contract_cases import Case, make_run, step_batch

from jgen.core.model import DataSpec, GenerativeModel, ImageSpec, Phase, every
from jgen.prob.pixels import to_float
from jgen.train.logs import Window


def test_means_of_a_window_are_over_the_steps_that_ran_a_phase():
    window = Window()
    for number in range(6):
        seldom = {"loss_seldom": 4.0 + number} if number % 3 == 0 else {}
        window.add({"loss_disc": float(number), **seldom, "skipped": 0, "skipped_in_a_row": 0})
    assert window.line() == {"loss_disc": 2.5, "loss_seldom": 5.5, "skipped": 0}


def test_a_lazy_phase_is_in_the_programs_of_its_steps_alone_and_under_no_condition():
    """On CPU the gradient of a convolution inside a conditional takes 80 times as long."""
    net = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(1, (3, 3))])

    def init(key, batch, frozen):
        return {"net": net.init(key, to_float(batch["image"][:1], 256))["params"]}, {}

    def loss(params, ctx, keys, batch):
        return jnp.mean(net.apply({"params": params["net"]}, to_float(batch["image"], 256)) ** 2), ({}, {})

    phases = (Phase(("net",), loss), Phase(("net",), loss, runs=every(2), name="lazy"))
    case = Case(GenerativeModel("net", DataSpec(ImageSpec(8, 8, 1, 256)), init, phases), {})
    state, step = make_run(case)
    batch = step_batch(case.model)

    def operations(number):
        text = jax.jit(lambda state: step(state, {}, batch, number)).lower(state).as_text()
        return re.findall(r"stablehlo\.(\w+)", text)

    with_lazy, without = operations(0), operations(1)
    assert with_lazy.count("convolution") == 2 * without.count("convolution") > 0
    assert not {"if", "case", "while"} & {*with_lazy, *without}
