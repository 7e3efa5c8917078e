"""`python -m jgen.compare.measure`: what one system costs, at several sizes."""

import json
from dataclasses import replace

import jax
import pytest
from pretended import ALONE, GENERATORS, STAGED

from jgen.compare import flops, measure
from jgen.compare.facts import attention_at_height
from jgen.compare.program import make_part, make_program, phase_sets
from jgen.compare.systems import load_training, same_at_every_height
from jgen.core.model import always, every
from jgen.errors import UserError

FIGURES = {"images_per_second": 20.0, "samples_per_second": 50.0}
CONFIG = ALONE.training.config
SCALED = [system for system in GENERATORS if system.training.at_height is not same_at_every_height]


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Operations are those of the size, without a process that counts them."""
    monkeypatch.setattr(flops, "count_in_process", lambda name, sizes: {str(size): 1e6 * size for size in (8, *sizes)})


def test_measuring_adds_to_what_the_file_holds(cache, tmp_path, monkeypatch):
    out, measured = tmp_path / "measure.json", []

    def pretended(training, size, seconds):
        measured.append((training.config, size))
        return FIGURES

    monkeypatch.setattr(measure, "measure", pretended)
    for sizes in (["16"], ["16", "32"]):
        assert measure.command([CONFIG, "--out", str(out), "--add", "--sizes", *sizes]) == 0
    assert measured == [(CONFIG, None), (CONFIG, 16), (CONFIG, 32)]
    assert list(json.loads(out.read_text())["sizes"]) == ["16", "32"]
    other = STAGED.training.config
    with pytest.raises(UserError, match=f"is of {CONFIG}: --add needs one of {other}"):
        measure.command([other, "--out", str(out), "--add"])


def test_a_size_that_cannot_be_run_leaves_the_others(cache, tmp_path, monkeypatch):
    def pretended(training, size, seconds):
        if size == 16:
            raise MemoryError("no room for 16x16\nfor once")
        return FIGURES

    monkeypatch.setattr(measure, "measure", pretended)
    assert measure.command([CONFIG, "--out", str(tmp_path / "x.json"), "--sizes", "16", "32"]) == 0
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["own"] == FIGURES | {"flops_per_image": 8e6}
    assert document["sizes"]["16"] == {"error": "MemoryError: no room for 16x16", "flops_per_image": 16e6}
    assert document["sizes"]["32"]["images_per_second"] == 20.0
    monkeypatch.setattr(measure, "measure", lambda training, size, seconds: FIGURES | {"again": size})
    args = [CONFIG, "--out", str(tmp_path / "x.json"), "--add", "--sizes", "16", "32"]
    assert measure.command(args) == 0  # what failed once may not again
    assert "error" not in json.loads((tmp_path / "x.json").read_text())["sizes"]["16"]


@pytest.mark.slow
def test_a_size_that_does_not_fit_is_told_from_one_that_failed(cache, tmp_path):
    out, config = tmp_path / "x.json", STAGED.training.config.replace(":digits", ":tiny")
    assert measure.command([config, "--out", str(out), "--sizes", "7", "--seconds", "0.01"]) == 0
    document = json.loads(out.read_text())
    assert "7" in document["sizes"]["7"]["unfit"] and document["own"]["images_per_second"] > 0
    assert document["own"]["samples_per_second"] > 0
    program = make_program(load_training(config))

    def init(key):
        return program.part.model.init(key, program.part.batch, program.init_frozen(key))

    params, _ = jax.eval_shape(init, jax.random.key(0))
    own = sum(x.size for x in jax.tree.leaves(params))
    assert document["own"]["parameters"] > own  # and those of the frozen model


def test_an_outcome_that_cannot_be_written_is_reported_before_measuring(cache, tmp_path):
    with pytest.raises(UserError, match="^cannot write "):
        measure.command([CONFIG, "--out", str(tmp_path)])


def test_phases_that_run_together_are_counted_over_all_steps():
    assert phase_sets((always, always), 10) == {0: 1.0}
    assert phase_sets((always, every(4)), 10) == {0: 0.3, 1: 0.7}
    assert phase_sets((lambda step: step < 8, lambda step: step >= 6), 10) == {0: 0.6, 6: 0.2, 8: 0.2}


def test_seconds_of_a_step_are_a_mean_weighted_by_how_often_phases_run(monkeypatch):
    clock = [0.0]

    class Program:
        phase_sets = {0: 0.25, 1: 0.75}
        batch = None

        def step(self, state, frozen, batch, number):
            clock[0] += 3.0 if number == 0 else 1.0
            return state, {}

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    figures = measure.time_training(Program(), None, {}, 40.0)
    assert figures == {"step_seconds": 0.25 * 3.0 + 0.75 * 1.0, "compile_seconds": 0.0}


def test_memory_of_a_device_that_has_taken_none_is_none(monkeypatch):
    """Not that of this process, which the device's would then be taken from."""

    class Device:
        def memory_stats(self):
            return {"peak_bytes_in_use": 0}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert measure.peak_mib() == 0.0
    monkeypatch.undo()
    assert 50 < measure.peak_mib() < 20_000  # of this process


@pytest.mark.parametrize("training", [s.training for s in SCALED], ids=[s.name for s in SCALED])
def test_a_system_with_options_of_the_height_is_made_at_other_sizes(cache, training):
    assert training.at_height(training.experiment, 8, 8) == training.experiment
    part = make_part(training, 16)
    scales = not hasattr(training.experiment.model, "network") or training.experiment.model.network.attention
    assert part.model.images.shape == (16, 16, 1)
    assert not scales or part.training.experiment != training.experiment


def test_attention_stays_at_its_levels_when_images_are_of_another_size():
    experiment = next(s.training.experiment for s in GENERATORS if hasattr(s.training.experiment.model, "network"))
    network = replace(experiment.model.network, attention=(14, 7))
    experiment = replace(experiment, model=replace(experiment.model, network=network))
    for height, levels in ((28, (14, 7)), (16, (8, 4)), (32, (16, 8))):
        assert attention_at_height(experiment, 28, height).model.network.attention == levels
