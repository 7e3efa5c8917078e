"""Several steps in one compiled call: the bits of as many calls, the same files, and no slow loop."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import final_arrays, mistake
from contract_cases import AVERAGED, SGD, SYSTEMS, make_case, make_run, step_batch

import jgen
from jgen.cli import import_config
from jgen.compare.loops import inner_programs, open_jaxpr
from jgen.train.config import Config
from jgen.train.optimisers import average_decay, make_optimiser
from jgen.train.step import has_convolution, make_train_steps, metrics_by_step

STEPS = 3


def make_steps(model, count):
    roles = {role for phase in model.phases for role in phase.trains}
    optimisers = {role: make_optimiser(Config(optimiser=SGD), role) for role in roles}
    return make_train_steps(model, optimisers, count, ema_decay=average_decay(AVERAGED))


def together(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


# Dense and convolutional networks, statistics, phases that come and go, repeats, an array entry an example.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy:vae", "toy:lazy_gan", "toy:energy", "toy:fitted", "dcgan"])
def test_steps_in_one_call_are_as_many_calls(name):
    """To rounding: among other programs of a process, XLA's bits have been seen to differ in the last place."""
    compare_calls(name, lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy:vae", "toy:lazy_gan", "toy:energy", "toy:fitted", "dcgan"])
def test_steps_in_one_call_end_in_the_same_bits(name):
    compare_calls(name, np.testing.assert_array_equal)


def compare_calls(name, compare):
    """Several steps in one call, and in as many calls: states and metrics."""
    case = make_case(name)
    batches = [step_batch(case.model, seed) for seed in range(STEPS)]
    state, step = make_run(case)
    expected = []
    for number, batch in enumerate(batches):
        state, metrics = step(state, case.frozen, batch, number)
        expected += metrics_by_step(metrics)
    after = jax.device_get(state._replace(key=jax.random.key_data(state.key)))
    state, _ = make_run(case)
    state, metrics = make_steps(case.model, STEPS)(state, case.frozen, together(batches), 0)
    state = jax.device_get(state._replace(key=jax.random.key_data(state.key)))
    jax.tree.map(compare, state, after)
    together_metrics = metrics_by_step(metrics)
    assert len(together_metrics) == len(expected) == STEPS
    jax.tree.map(compare, together_metrics, expected)


def test_on_cpu_no_gradient_of_a_convolution_is_in_a_loop():
    """There it takes 30 times as long."""

    def scans(program):
        """The bodies of the loops over steps in a program, at any depth."""
        for equation in open_jaxpr(program).eqns:
            inner = [each for _, each in inner_programs(equation)]
            if equation.primitive.name == "scan" and equation.params["length"] == STEPS:
                yield from inner
            for each in inner:
                yield from scans(each)

    def loops(name):
        case = make_case(name)
        state, _ = make_run(case)
        batch = together([step_batch(case.model, seed) for seed in range(STEPS)])
        steps = make_steps(case.model, STEPS)
        return list(scans(jax.make_jaxpr(lambda state: steps(state, case.frozen, batch, 0))(state)))

    assert len(loops("toy:vae")) == 1 and not any(has_convolution(body) for body in loops("dcgan"))


@pytest.mark.slow
def test_a_run_leaves_the_same_files_whatever_its_steps_per_call(tmp_path):
    """Scores and checkpoints fall between calls; lines of metrics within them."""
    draw = np.random.default_rng(0)
    images, label = draw.integers(0, 256, (80, 8, 8, 1)).astype(np.uint8), np.arange(80) % 10
    tiny = import_config(SYSTEMS["vae"]).get_config("tiny")
    network = replace(tiny.model, network="dense", widths=(16,), blocks=0, hidden=())
    experiment = replace(tiny, model=network, data=replace(tiny.data, binarise="none", levels=0))
    often = {"log_every": 3, "validate_every": 10, "sample_every": 0, "checkpoint_every": 7}

    def run(name, steps_per_call, *lengths):
        for steps in lengths:
            train = replace(experiment.train, steps=steps, steps_per_call=steps_per_call, **often)
            train = replace(train, optimiser=replace(train.optimiser, schedule="constant"))
            assert jgen.fit(replace(experiment, train=train), tmp_path / name, images, label=label) == "trained"
        return final_arrays(tmp_path / name)

    arrays, metrics = run("one", 1, 24)
    for name, lengths in (("four", (24,)), ("resumed", (9, 24))):
        others, lines = run(name, 4, *lengths)
        for path, array in arrays.items():
            np.testing.assert_array_equal(others[path], array, err_msg=path)
        assert lines == metrics or name == "resumed"  # whose score and line at its first end stand beside


def test_a_call_has_a_step_at_least(tmp_path):
    tiny = import_config(SYSTEMS["vae"]).get_config("tiny")
    wrong = replace(tiny, train=replace(tiny.train, steps_per_call=0))
    mistake(lambda: jgen.fit(wrong, tmp_path / "run"), "train.steps_per_call is 0")
