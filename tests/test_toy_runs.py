"""Whole runs of toys, one for each feature of the contract: trained, stopped, resumed, loaded, sampled and scored."""

import functools
import json
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toys
from conftest import final_arrays, mistake
from toy_systems import TRAIN, experiment_of

import jgen
import sample
import train
from jgen import evaluate, runs
from jgen.errors import NotSupported
from jgen.train import checkpoints, loop
from jgen.train.config import Optimiser

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """toy -> a finished run of it, for tests to read, beside those of the toys that it depends on."""
    folder = tmp_path_factory.mktemp("toys")

    @functools.cache
    def run_of(toy):
        experiment = experiment_of(toy, {role: run_of(below) for role, below in toys.TOYS[toy].stands_on.items()})
        assert jgen.fit(experiment, folder / toy) == "trained"
        return folder / toy

    return run_of


def frozen_of(toy, trained):
    return {role: trained(below) for role, below in toys.TOYS[toy].stands_on.items()}


def same_arrays(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


# Resuming.


class Killed(Exception):
    """As a power cut: nothing is saved."""


def kill():
    raise Killed


def fit_until(experiment, run, step, stop):
    """Trains, and stops after a step."""
    after = loop.Training.after

    def stopping(training, number):
        after(training, number)
        if number == step:
            stop()

    with pytest.MonkeyPatch.context() as patch, pytest.raises((Killed, loop.Interrupted)):
        patch.setattr(loop.Training, "after", stopping)
        jgen.fit(experiment, run)


@pytest.mark.slow
@pytest.mark.parametrize("toy", ["energy", "fitted", "growing", "chain", "flow_map", "classifier", "lazy_gan"])
def test_a_run_that_is_stopped_ends_in_the_same_bits(trained, tmp_path, toy):
    """State of the examples, a fit without gradients, phases that come and go, a chain of three, a shared key, no
    sampler, BatchNorm: stopped by a signal at step 3, and killed at step 8, two after its checkpoint."""
    unbroken, broken = trained(toy), tmp_path / "broken"
    experiment = experiment_of(toy, frozen_of(toy, trained))
    fit_until(experiment, broken, 3, functools.partial(signal.raise_signal, signal.SIGTERM))
    assert checkpoints.steps_in(broken / "checkpoints") == [3]
    fit_until(experiment, broken, 8, kill)
    assert checkpoints.steps_in(broken / "checkpoints") == [6, 3]
    assert jgen.fit(experiment, broken) == "trained" and jgen.fit(experiment, broken) == "finished"
    (arrays, lines), (again, lines_again) = final_arrays(unbroken), final_arrays(broken)
    assert lines == lines_again and arrays.keys() == again.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
    kinds = {name.split("'")[1] for name in arrays}
    assert ("params" in kinds and "ema" in kinds) != (toy == "fitted")
    assert ("extra" in kinds) == (toy in ("energy", "fitted", "lazy_gan"))
    grids = [[path.read_bytes() for path in sorted(run.glob("samples/*.png"))] for run in (unbroken, broken)]
    assert grids[0] == grids[1] and len(grids[0]) == (toy != "classifier")


def test_a_loaded_run_has_the_state_of_its_examples_and_of_its_fit(trained):
    gen = jgen.load(trained("energy"))
    moves = np.asarray(gen.ctx.extra["buffer"]["moves"])
    assert moves.shape == (8, toys.SLOTS) and np.all(moves.sum(axis=1) == 10)  # one in each of ten steps
    gen = jgen.load(trained("fitted"))
    assert gen.params == {} and int(gen.ctx.extra["moments"]["weight"]) == 10
    assert gen.sample(KEY, 2).shape == (2, 8, 8, 1)
    lines = [json.loads(line) for line in (trained("growing") / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: {name for name in line if name.startswith("loss")} for line in lines}
    assert losses[3] == losses[6] == {"loss_small", "loss_large"} and losses[9] == {"loss_large"}


def test_a_chain_of_three_samples_through_all(trained):
    """By hand: the outer prior's draw, decoded by the inner one, by the autoencoder."""
    gen = jgen.load(trained("chain"))
    inner, autoencoder = jgen.load(trained("latent_prior")), jgen.load(trained("vae"))
    same_arrays(gen.ctx.frozen["autoencoder"].params, inner.params)
    same_arrays(gen.ctx.frozen["autoencoder"].frozen["autoencoder"].params, autoencoder.params)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    latents = gen.encode(KEY, images)
    z = autoencoder.encode(KEY, images)
    for each in (inner, gen):
        prior = each.params["prior"]
        z = (z - np.asarray(prior["mean"])) * np.exp(-np.asarray(prior["log_std"]))
    np.testing.assert_allclose(latents, z, rtol=1e-4, atol=1e-5)
    assert gen.seconds > inner.seconds > autoencoder.seconds > 0


# Models without a sampler.


def test_a_model_without_a_sampler_is_trained_and_says_what_it_can(cache, tmp_path, capsys):
    run, experiment = tmp_path / "run", experiment_of("classifier")
    experiment = replace(experiment, train=replace(TRAIN, validate_every=2, checkpoint_every=2, keep=9))
    assert train.train(experiment, run) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{run} is trained to step 10"
    assert train.train(experiment, run) == 0
    assert capsys.readouterr().out == f"{run} is finished at step 10: train on with --train.steps N\n"
    assert not (run / "samples").exists()
    gen = jgen.load(run)
    can = "toy classifier cannot {}: it can logits"
    mistake(lambda: gen.sample(KEY, 2), can.format("sample"), kind=NotSupported)
    mistake(lambda: sample.command([str(run), "--num", "2"]), can.format("sample"), kind=NotSupported)
    mistake(lambda: gen.log_prob(KEY, np.zeros((1, 8, 8, 1), np.uint8)), can.format("log_prob"), kind=NotSupported)
    mistake(lambda: evaluate.command([str(run)]), can.format("sample"))
    without = SimpleNamespace(model=gen.model._replace(validate=None))
    none = evaluate.Arguments(samples=0)
    mistake(lambda: evaluate.check_capabilities(without, none), "has no likelihood", "nothing to score")
    assert evaluate.command([str(run), "--samples", "0", "--num", "20"]) == 0
    document = json.loads((run / "evaluation.json").read_text())
    about = {"split": "test", "num": 20, "batch_size": 100, "seed": 0}
    assert document["held_out"]["protocol"] == about and "sampling" not in document
    score = document["held_out"]["scores"]["cross_entropy"]
    assert 0 < score < 10 and f"20 test images, 100 at a time: cross_entropy {score:.4f}" in capsys.readouterr().out
    x = np.zeros((2, *toys.IMAGES.shape), np.float32)
    assert gen.model.functions["logits"](gen.params, gen.ctx, x).shape == (2, 10)

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["cross_entropy"] for line in lines if line["split"] == "validation"}
    assert set(scores) == {2, 4, 6, 8, 10} and len(set(scores.values())) == 5
    best = min(scores, key=scores.get)
    assert jgen.load(run, step="best").step == best
    worse = [{**line, "cross_entropy": 9.0} if line["step"] == best else line for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in worse))
    del scores[best]
    assert jgen.load(run, step="best").step == min(scores, key=scores.get)


def test_without_a_score_no_checkpoint_is_best(trained):
    mistake(lambda: jgen.load(trained("lazy_gan"), step="best"), "does not say which checkpoint is best", "no scores")


# Frozen runs by role.


@pytest.fixture
def moved(trained, tmp_path):
    """A folder with a run that depends on two others, all of which have been moved since."""
    before = tmp_path / "before"
    for name in ("classifier", "latent_prior"):
        shutil.copytree(trained(name), before / name)
    frozen = {"classifier": before / "classifier", "autoencoder": before / "latent_prior"}
    assert jgen.fit(experiment_of("guided", frozen), before / "guided") == "trained"
    return before.rename(tmp_path / "after")


def test_a_run_that_is_reached_in_two_ways_counts_once(trained):
    prior, autoencoder = trained("latent_prior"), trained("vae")
    stands_on = runs.load_frozen({"prior": prior, "autoencoder": autoencoder}, {}, jgen.load)
    gen = jgen.load(prior)
    assert len(runs.frozen_seconds(stands_on)) == 2 and gen.own_seconds > 0
    assert sum(runs.frozen_seconds(stands_on).values()) == gen.seconds > gen.own_seconds


@pytest.mark.slow
def test_frozen_runs_are_known_by_their_roles_and_hashes(moved, trained):
    gen, wanted = jgen.load(moved / "guided"), jgen.load(moved / "guided").sample(KEY, 3)
    same_arrays(gen.ctx.frozen["classifier"].params, jgen.load(trained("classifier")).params)
    same_arrays(gen.ctx.frozen["autoencoder"].params, jgen.load(trained("latent_prior")).params)
    assert set(gen.params) == {"push"} and set(gen.config.frozen) == {"classifier", "autoencoder"}
    prints = json.loads((moved / "guided" / "config.json").read_text())["frozen_fingerprints"]
    assert set(prints) == {"classifier", "autoencoder"} and all(len(digest) == 64 for digest in prints.values())
    # One that is gone, or another, is refused; elsewhere it is found where it is said to be.
    shutil.rmtree(moved / "classifier")
    gone = f"{moved / 'guided'} depends on the run {moved.parent / 'before' / 'classifier'}, which is neither there nor"
    mistake(lambda: jgen.load(moved / "guided"), gone, "--frozen.classifier")
    assert jgen.fit(experiment_of("classifier", seed=1), moved / "classifier") == "trained"
    changed = "frozen classifier has changed since"
    mistake(lambda: jgen.load(moved / "guided"), changed)
    mistake(lambda: jgen.fit(guided(moved), moved / "guided"), "the hash of frozen classifier was", "is")
    other = {"classifier": str(trained("classifier"))}
    np.testing.assert_array_equal(jgen.load(moved / "guided", frozen=other).sample(KEY, 3), wanted)
    out = moved / "x.npz"
    words = [str(moved / "guided"), "--num", "3", "--seed", "3", "--out", str(out)]
    mistake(lambda: sample.command(words), changed)
    mistake(lambda: sample.command([*words, "--frozen.teacher", "x"]), "--frozen.teacher")
    assert sample.command([*words, "--frozen.classifier", other["classifier"]]) == 0
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["images"], wanted)
    words = ["--samples", "60", "--no-memorisation", "--frozen.classifier", other["classifier"]]
    assert evaluate.command([str(moved / "guided"), *words]) == 0
    document = json.loads((moved / "guided" / "evaluation.json").read_text())
    frozen = [jgen.load(trained(name)).params for name in ("classifier", "latent_prior", "vae")]
    assert document["parameters"] == sum(x.size for x in jax.tree.leaves((gen.params, frozen)))


def guided(folder, **changes):
    """The experiment of the moved run, with its frozen runs where they are now."""
    experiment = experiment_of("guided", {"classifier": folder / "classifier", "autoencoder": folder / "latent_prior"})
    return replace(experiment, train=replace(TRAIN, **changes))


@pytest.mark.slow
def test_a_frozen_run_that_was_trained_on_is_taken_as_it_was(moved):
    wanted = jgen.load(moved / "guided").sample(KEY, 3)
    longer = experiment_of("classifier", train=replace(TRAIN, steps=14))
    assert jgen.fit(longer, moved / "classifier") == "trained"
    assert checkpoints.steps_in(moved / "classifier" / "checkpoints")[:3] == [14, 12, 10]
    gen = jgen.load(moved / "guided")
    np.testing.assert_array_equal(gen.sample(KEY, 3), wanted)
    same_arrays(gen.ctx.frozen["classifier"].params, jgen.load(moved / "classifier", step=10).params)
    assert jgen.fit(guided(moved, steps=12), moved / "guided") == "trained"
    # Its checkpoint of then is gone: what stands there now is another.
    for step in (10, 12):
        shutil.rmtree(moved / "classifier" / "checkpoints" / str(step))
    mistake(lambda: jgen.load(moved / "guided"), "frozen classifier has changed since")


def test_roles_that_are_missing_or_unknown(trained, tmp_path):
    experiment = experiment_of("guided", {"classifier": trained("classifier"), "text": "x"})
    mistake(lambda: jgen.fit(experiment, tmp_path / "run"), "frozen has 'text'", "takes autoencoder, classifier")
    mistake(lambda: jgen.load(trained("guided"), frozen={"text": "x"}), "frozen has 'text'", "classifier, autoencoder")
    assert not (tmp_path / "run").exists()


# Energies, and options by role.


def test_energies_are_those_of_the_models_function(trained):
    gen = jgen.load(trained("energy"))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    energy = gen.energy(KEY, images, batch_size=2)
    p = gen.params["energy"]
    h = np.tanh(np.asarray(toys.flat(images)) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    np.testing.assert_allclose(energy, (h @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"])[:, 0], rtol=1e-4, atol=1e-5)
    assert energy.shape == (5,) and energy.dtype == np.float32
    mistake(lambda: gen.energy(KEY, images[:, :7]), "images have shape")
    mistake(lambda: gen.log_prob(KEY, images), "cannot log_prob: it can sample, energy", kind=NotSupported)
    needs = "cannot classify: that takes a likelihood or an energy given a class; it can sample"
    mistake(lambda: gen.classify(KEY, images), needs, kind=NotSupported)


def test_reconstructions_of_an_unconditional_model_are_read_by_the_classes_of_their_images(trained, tmp_path):
    out = tmp_path / "x.json"
    words = ["--reconstruct", "--samples", "0", "--num", "60", "--no-memorisation", "--out", str(out)]
    assert evaluate.command([str(trained("vae")), *words]) == 0
    scores = json.loads(out.read_text())["reconstruction"]
    assert scores["num"] == scores["labels"]["num"] == scores["quality"]["num"] == 60
    assert 0 <= scores["labels"]["accuracy"] < 0.9 < scores["labels"]["classifier_test_accuracy"] and scores["mse"] > 0


def test_a_skip_norm_below_every_gradient_stops_the_run(cache, tmp_path):
    train = replace(TRAIN, steps=30, optimiser=Optimiser(skip_norm=1e-9))
    experiment = replace(experiment_of("vae"), train=train)
    words = "norm was above train.optimiser.skip_norm, in 20 steps up to step 20;"
    mistake(lambda: jgen.fit(experiment, tmp_path / "run"), words)


@pytest.mark.slow
def test_a_role_has_options_of_its_own(trained, tmp_path):
    own = (("disc", "learning_rate", 1e-30), ("disc", "warmup_steps", 2.0))
    optimiser = Optimiser(name="sgd", learning_rate=0.01, by_role=own)
    experiment = replace(experiment_of("lazy_gan"), train=replace(TRAIN, optimiser=optimiser, keep=9))
    assert jgen.fit(experiment, tmp_path / "run") == "trained"
    assert runs.load_experiment(tmp_path / "run")[0] == experiment
    first, last = (jgen.load(tmp_path / "run", step=step, ema=False).params for step in (6, 10))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-20), first["disc"], last["disc"])
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(first["gen"]), jax.tree.leaves(last["gen"])))
    changed = replace(experiment, train=replace(experiment.train, optimiser=replace(optimiser, by_role=own[:1])))
    mistake(lambda: jgen.fit(changed, tmp_path / "run"), "train.optimiser.by_role was", "another configuration")
