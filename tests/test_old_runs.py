"""Runs of version 0.1 (commit b4849f1, on JAX 0.10) load, give the images that they gave, and go on."""

import copy
import dataclasses
import importlib
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import ROOT

import jgen
from jgen import experiment, runs
from jgen.errors import UserError
from jgen.train.config import Config, Optimiser

OLD = ROOT / "tests" / "data" / "old_runs"
KEY = jax.random.key(0)


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A folder with a copy of the runs, which is the current one."""
    shutil.copytree(OLD / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_an_autoencoder_gives_the_codes_and_images_that_it_gave(old):
    gen = jgen.load(old / "vq_vae-tiny")
    assert gen.step == 6 and gen.config.frozen == {} and gen.model.data.num_classes == 10
    with np.load(OLD / "expected.npz") as expected:
        images, codes, decoded = (expected[name] for name in ("images", "codes", "decoded"))
    np.testing.assert_array_equal(gen.encode(KEY, images), codes)
    off = np.abs(gen.decode(KEY, codes).astype(int) - decoded)
    assert off.max() <= 1 and np.mean(off > 0) < 0.01


def test_a_prior_finds_its_autoencoder_beside_it(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)  # from here, runs/vq_vae-tiny is not there
    gen = jgen.load(old / "vq_prior-tiny")
    assert gen.step == 6 and gen.config.frozen == {"autoencoder": "runs/vq_vae-tiny"}
    stands_on = jgen.load(old / "vq_vae-tiny")
    jax.tree.map(np.testing.assert_array_equal, gen.ctx.frozen["autoencoder"].params, stands_on.params)
    assert gen.seconds > stands_on.seconds > 0
    samples = gen.sample(KEY, 3, label=[1, 2, 3])
    assert samples.shape == (3, 8, 8, 1) and samples.max() < 17
    np.testing.assert_array_equal(samples[:2], gen.sample(KEY, 2, label=[1, 2]))
    # Another autoencoder is refused.
    document = json.loads((old / "vq_prior-tiny" / "config.json").read_text())
    document["first_stage_fingerprint"] = "0" * 64
    (old / "vq_prior-tiny" / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="^frozen autoencoder has changed since .*vq_prior-tiny was trained on it"):
        jgen.load(old / "vq_prior-tiny")


@pytest.mark.parametrize("name", experiment.MOVED_CLASSES)
def test_options_whose_class_has_moved_are_read(name):
    module, _, moved = experiment.MOVED_CLASSES[name].partition(":")
    cls = getattr(importlib.import_module(module), moved)
    given = {"temperature": 0.5} if "temperature" in cls.__dataclass_fields__ else {}
    read = experiment.from_value({"class": name, **given}, "here")
    assert type(read) is cls and cls.__module__ == module and read == cls(**given)


def test_they_go_on_and_say_which_version_began_them(old):
    for name in ("vq_vae-tiny", "vq_prior-tiny"):
        run = old / name
        before = json.loads((run / "config.json").read_text())
        experiment, data = runs.load_experiment(run)
        longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=8, keep=2))
        assert jgen.fit(longer, run) == "trained"
        assert jgen.load(run).step == 8 and jgen.load(run, step=6).step == 6
        document = json.loads((run / "config.json").read_text())
        assert document["version"] == "0.1.0" and "images" not in document and "first_stage_fingerprint" not in document
        assert document["data"]["fields"]["label"]["num_values"] == before["images"]["num_classes"]
        first = before["first_stage_fingerprint"]
        assert document["frozen_fingerprints"] == ({"autoencoder": first} if first else {})
        assert runs.load_experiment(run) == (longer, data)
        assert json.loads((run / "environment.json").read_text())["resumed"][0]["step"] == 6
    # The prior still depends on the autoencoder as it was at step 6.
    prior, autoencoder = jgen.load(old / "vq_prior-tiny"), jgen.load(old / "vq_vae-tiny", step=6)
    jax.tree.map(np.testing.assert_array_equal, prior.ctx.frozen["autoencoder"].params, autoencoder.params)


def test_a_changed_option_is_refused_by_its_name_of_now(old):
    experiment, _ = runs.load_experiment(old / "vq_prior-tiny")
    changed = dataclasses.replace(experiment.model, hidden=9)
    with pytest.raises(UserError, match="another configuration: model.hidden was 8, is 9 "):
        jgen.fit(dataclasses.replace(experiment, model=changed), old / "vq_prior-tiny")


def test_multiples_of_the_learning_rate_become_the_roles_own(old):
    path = old / "vq_vae-tiny" / "config.json"
    document = json.loads(path.read_text())
    scaled = copy.deepcopy(document)
    scaled["experiment"]["train"]["optimiser"]["scales"] = [["enc", 2.0], ["dec", 0.5]]
    path.write_text(json.dumps(scaled))
    experiment, _ = runs.load_experiment(path.parent)
    rate = document["experiment"]["train"]["optimiser"]["learning_rate"]
    wanted = (("enc", "learning_rate", 2.0 * rate), ("dec", "learning_rate", 0.5 * rate))
    assert experiment.train.optimiser.by_role == wanted
    assert experiment.train.optimiser.of("enc").learning_rate == 2 * rate
    # Where the document does not say the rate, it had the default.
    del scaled["experiment"]["train"]["optimiser"]["learning_rate"]
    path.write_text(json.dumps(scaled))
    by_role = runs.load_experiment(path.parent)[0].train.optimiser.by_role
    assert by_role[0] == ("enc", "learning_rate", 2.0 * Optimiser().learning_rate)
    path.write_text(json.dumps(document))
    assert runs.load_experiment(path.parent)[0].train.optimiser.by_role == Config().optimiser.by_role == ()
