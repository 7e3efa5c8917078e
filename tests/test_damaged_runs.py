"""Directories that are no run, and runs whose files are damaged, are one line, and stay as they are."""

import copy
import functools
import json
import shutil

import pytest
from conftest import mistake, snapshot

import jgen
import sample
import train

TINY_RUN = ["configs/diffusion/ddpm.py:tiny", "--train.steps", "4"]


def test_directories_that_are_no_run(own, tmp_path):
    for call in (jgen.load, lambda path: sample.command([str(path), "--num", "2"])):
        mistake(functools.partial(call, tmp_path / "none"), "there is no run at", "none")
        (tmp_path / "empty").mkdir(exist_ok=True)
        mistake(functools.partial(call, tmp_path / "empty"), "is not a run", "config.json")
    shutil.rmtree(own / "checkpoints")
    before = snapshot(own)
    mistake(lambda: jgen.load(own), "no checkpoint")
    mistake(lambda: sample.command([str(own), "--num", "2"]), "no checkpoint", "train.py")
    assert snapshot(own) == before


REMOVE = object()


def changed(document, path, value):
    document = copy.deepcopy(document)
    *parents, last = path.split(".")
    place = document
    for name in parents:
        place = place[name]
    if value is REMOVE:
        del place[last]
    else:
        place[last] = value
    return document


@pytest.mark.parametrize(
    "path,value,words",
    [
        ("experiment", REMOVE, ["lacks"]),
        ("data", REMOVE, ["lacks data"]),
        ("frozen_fingerprints", REMOVE, ["lacks frozen_fingerprints"]),
        ("frozen_fingerprints", [], ["frozen_fingerprints is []", "hashes by role"]),
        ("frozen_fingerprints", {"autoencoder": 5}, ["frozen_fingerprints is {'autoencoder': 5}"]),
        ("experiment.frozen", "runs/x", ["frozen is 'runs/x'"]),
        ("experiment.frozen", {"autoencoder": 5}, ["frozen"]),
        ("data_fingerprint", 5, ["data_fingerprint is 5"]),
        ("experiment", 5, ["no class"]),
        ("experiment.model.network.blocks", REMOVE, ["does not hold this model"]),  # it takes its default
        ("data.image.height", REMOVE, ["lacks height"]),
        ("experiment.model.nothing", 1, ["unknown", "nothing"]),
        ("experiment.model.nothing\n", 1, ["unknown", "nothing"]),
        ("experiment.model.network.blocks", "1", ["blocks is '1'", "int"]),
        ("experiment.model.network.blocks", 1.5, ["blocks is 1.5", "int"]),
        ("experiment.model.network.blocks", True, ["blocks is True", "int"]),
        ("experiment.model.network.blocks", None, ["blocks is None"]),
        ("experiment.model.network.channels", 8, ["channels is 8"]),
        ("experiment.model.network.channels", ["8", "8"], ["channels is"]),
        ("experiment.model.schedule", "round", ["schedule is 'round'", "cosine"]),
        ("experiment.model.sampling", {"steps": 3}, ["sampling is {'steps': 3}", "Sampling"]),
        ("experiment.model", 5, ["model is 5", "Config of a system"]),
        ("experiment.model", None, ["model is None"]),
        ("experiment.model", {"class": "jgen.train.config:Optimiser"}, ["Config of a system"]),
        ("experiment.train.ema_decay", "0.9", ["ema_decay", "float"]),
        ("experiment.seed", 0.5, ["seed is 0.5"]),
        ("data.image.height", "8", ["height is '8'"]),
        ("data.image.height", 9, ["9x8"]),
        ("data.image.channels", 0, ["above zero"]),
        ("data.image.levels", 1, ["1 levels"]),
        ("data.image.class", "jgen.experiment:Experiment", ["lacks"]),
        ("data.image", 5, ["image is 5"]),
        ("data.fields", 5, ["fields is 5"]),
        ("data.fields.label", 5, ["label"]),
        ("data.fields.label.shape", "x", ["shape is 'x'"]),
        ("data.fields.label.num_values", "x", ["num_values is 'x'"]),
        ("data.fields.label.num_values", 12, ["does not hold this model"]),
        ("data.class", "jgen.core.model:ImageSpec", ["lacks channels"]),
        ("experiment.class", "jgen.experiment:Nothing", ["does not exist"]),
        ("experiment.class", "jgen.nothing:Config", ["does not exist"]),
        ("experiment.class", "jgen.experiment:to_json", ["no dataclass"]),
        ("experiment.class", 3, ["no class"]),
        ("experiment.class", "os:path", ["'os:path'", "outside jgen", "not imported"]),
        ("experiment.model.class", "jgenx.models:Config", ["outside jgen"]),
    ],
)
def test_a_damaged_config(own, path, value, words):
    document = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(changed(document, path, value)))
    before = snapshot(own)
    mistake(lambda: jgen.load(own), *words)
    assert snapshot(own) == before


def test_a_model_of_another_kind_of_config(own):
    document = json.loads((own / "config.json").read_text())
    document["experiment"]["model"] = document["experiment"]["data"]
    (own / "config.json").write_text(json.dumps(document))
    mistake(lambda: jgen.load(own), "config.json", "Config of a system")


def test_a_config_that_is_not_json(own):
    whole = (own / "config.json").read_bytes()
    for content in (whole[:200], b"", b"not json", b"[]", b"\xff\xfe\x00", b"null"):
        (own / "config.json").write_bytes(content)
        before = snapshot(own)
        mistake(lambda: jgen.load(own), "config.json is damaged")
        mistake(lambda: sample.command([str(own), "--num", "2"]), "config.json is damaged")
        mistake(lambda: train.command([*TINY_RUN, "--workdir", str(own)]), "config.json is damaged")
        assert snapshot(own) == before


def test_a_class_outside_jgen_is_not_imported(own, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    (tmp_path / "hostile_module.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Config: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    document = json.loads((own / "config.json").read_text())
    for path in ("experiment.class", "experiment.model.class", "experiment.model.sampling.class", "data.image.class"):
        (own / "config.json").write_text(json.dumps(changed(document, path, "hostile_module:Config")))
        mistake(lambda: jgen.load(own), "hostile_module:Config", "outside jgen")
        if path.startswith("experiment"):
            mistake(lambda: train.command([*TINY_RUN, "--workdir", str(own)]), "outside jgen")
    assert not marker.exists()
    __import__("hostile_module")  # it would have been seen
    assert marker.exists()
