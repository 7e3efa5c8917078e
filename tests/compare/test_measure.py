"""`python -m jgen.compare.measure`: what one system costs, at several sizes."""

import json

import pytest
from conftest import ROOT

from jgen.cli import import_config
from jgen.compare import measure
from jgen.core.model import ImageSpec
from jgen.errors import UserError
from jgen.experiment import make_model

COST = {"images_per_second": 20.0, "samples_per_second": 50.0, "flops_per_image": 2e6}


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
    assert found["own"] == COST and found["sizes"]["16"] == {"error": "MemoryError: no room for 16x16"}
    assert found["sizes"]["32"]["images_per_second"] == 20.0


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
    scaled = measure.at_height(experiment, own, size)
    assert scaled.model.attention == heights and measure.at_height(experiment, own, own) == experiment
    make_model(scaled.model, ImageSpec(size, size, 1, 10, 256))
    other = import_config(ROOT / "configs" / "vae" / "vae.py").get_config("digits")
    assert measure.at_height(other, 8, size) is other
