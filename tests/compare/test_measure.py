"""`python -m jgen.compare.measure`: what one system costs, at several sizes."""

import json

import pytest
from conftest import ROOT

from jgen.cli import import_config
from jgen.compare import flops, measure, program
from jgen.core.model import ImageSpec
from jgen.errors import UserError
from jgen.experiment import make_model

COST = {"images_per_second": 20.0, "samples_per_second": 50.0}


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Operations are those of the size, without a process that counts them."""
    monkeypatch.setattr(flops, "counted_apart", lambda name, sizes: {str(size): 1e6 * size for size in (8, *sizes)})


def test_measuring_adds_to_what_the_file_holds(cache, tmp_path, monkeypatch):
    out, at = tmp_path / "measure.json", []

    def pretended(experiment, first, images, seconds):
        at.append((images.height, experiment.model.attention))
        return COST

    monkeypatch.setattr(measure, "measure", pretended)
    for sizes in (["16"], ["16", "32"]):
        args = ["configs/diffusion/ddpm.py:digits", "--out", str(out), "--add", "--sizes", *sizes]
        assert measure.command(args) == 0
    assert at == [(8, (4,)), (16, (8,)), (32, (16,))]
    assert list(json.loads(out.read_text())["sizes"]) == ["16", "32"]
    with pytest.raises(UserError, match="is of configs/diffusion/ddpm.py:digits: --add needs one of configs/vae"):
        measure.command(["configs/vae/vae.py:tiny", "--out", str(out), "--add"])


def test_a_size_that_cannot_be_run_leaves_the_others(cache, tmp_path, monkeypatch):
    def pretended(experiment, first, images, seconds):
        if images.height == 16:
            raise MemoryError("no room for 16x16\nfor once")
        return COST

    monkeypatch.setattr(measure, "measure", pretended)
    assert measure.command(["configs/vae/vae.py:digits", "--out", str(tmp_path / "x.json"), "--sizes", "16", "32"]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["own"] == COST | {"flops_per_image": 8e6}
    assert found["sizes"]["16"] == {"error": "MemoryError: no room for 16x16", "flops_per_image": 16e6}
    assert found["sizes"]["32"]["images_per_second"] == 20.0
    monkeypatch.setattr(measure, "measure", lambda experiment, first, images, seconds: COST | {"again": images.height})
    args = ["configs/vae/vae.py:digits", "--out", str(tmp_path / "x.json"), "--add", "--sizes", "16", "32"]
    assert measure.command(args) == 0  # what failed once may not again
    assert "error" not in json.loads((tmp_path / "x.json").read_text())["sizes"]["16"]


def test_a_size_that_does_not_fit_is_told_from_one_that_failed(cache, tmp_path):
    out = tmp_path / "x.json"
    assert measure.command(["configs/flow/glow.py:tiny", "--out", str(out), "--sizes", "7", "--seconds", "0.01"]) == 0
    found = json.loads(out.read_text())
    assert "7" in found["sizes"]["7"]["unfit"] and found["own"]["images_per_second"] > 0


def test_an_outcome_that_cannot_be_written_is_said_before_measuring(cache, tmp_path):
    with pytest.raises(UserError, match="^cannot write "):
        measure.command(["configs/vae/vae.py:digits", "--out", str(tmp_path)])


def test_seconds_of_a_step_are_a_mean_over_whole_cycles(monkeypatch):
    clock, steps = [0.0], []

    def train():
        steps.append(len(steps))
        clock[0] += 3.0 if steps[-1] % 4 == 0 else 1.0  # a phase that rests in three steps of four

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    assert measure.training_seconds(train, 4, 10.0) == 1.5 and len(steps) == 12


def test_memory_of_a_device_that_has_taken_none_is_none(monkeypatch):
    """Not that of this process, which the device's would then be taken from."""
    import jax

    class Device:
        def memory_stats(self):
            return {"peak_bytes_in_use": 0}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert measure.peak_mib() == 0.0
    monkeypatch.undo()
    assert 50 < measure.peak_mib() < 20_000  # of this process


@pytest.mark.parametrize("variant,size,heights", [("digits", 16, (8,)), ("mnist", 16, (8, 4)), ("mnist", 32, (16, 8))])
def test_attention_stays_at_its_levels_when_images_are_of_another_size(variant, size, heights):
    experiment = import_config(ROOT / "configs" / "diffusion" / "ddpm.py").get_config(variant)
    own = 8 if variant == "digits" else 28
    scaled = program.at_height(experiment, own, size)
    assert scaled.model.attention == heights and program.at_height(experiment, own, own) == experiment
    make_model(scaled.model, ImageSpec(size, size, 1, 10, 256))
    other = import_config(ROOT / "configs" / "vae" / "vae.py").get_config("digits")
    assert program.at_height(other, 8, size) is other
