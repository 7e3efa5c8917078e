"""Every mistake of a user gives one line that names it, exit code 2, and leaves what was saved as it was."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest
from conftest import ROOT, assert_user_mistake, mistake, snapshot
from PIL import Image

import jgen
import sample
import train
from jgen.cli import import_config
from jgen.core import parallel
from jgen.core.generate import resolve_conditions
from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.data import dataset as datasets
from jgen.data.config import Config as Data
from jgen.errors import NotSupported
from jgen.experiment import make_model

TINY = "configs/diffusion/ddpm.py:tiny"
TINY_RUN = [TINY, "--train.steps", "4", "--train.sample-every", "0", "--train.validate-every", "0"]


@pytest.fixture(scope="module")
def gen(tiny_run):
    return jgen.load(tiny_run)


# In processes of their own: one line on stderr, exit code 2.


@pytest.mark.parametrize(
    "args,words",
    [
        (["train.py", TINY, "--train.stps", "3", "--workdir", "RUN"], ["--train.stps", "did you mean --train.steps?"]),
        (["sample.py", "RUN", "--num", "0"], ["--num is 0"]),
        (["sample.py", "RUN", "--sampling.steps", "20"], ["no option --sampling.steps", "it is called --steps"]),
    ],
)
def test_commands_say_one_line(python, own, args, words):
    before = snapshot(own)
    assert_user_mistake(python(*(str(own) if arg == "RUN" else arg for arg in args), check=False), *words)
    assert snapshot(own) == before


@pytest.mark.parametrize(
    "args,words",
    [
        (["configs/diffusion/nothing.py"], ["configs/diffusion/nothing.py", "--list"]),
        ([f"{TINY}s"], ["'tinys'", "digits, mnist"]),
        ([TINY, "--train.steps", "many"], ["--train.steps", "'many'"]),
        ([TINY, "--model.schedule", "cosin"], ["--model.schedule", "'cosin'", "cosine"]),
        ([TINY, "--train.batch-size", "0"], ["train.batch_size is 0"]),
    ],
)
def test_trainings_that_cannot_be_asked_for(own, args, words):
    before = snapshot(own)
    mistake(lambda: train.command([*args, "--workdir", str(own)]), *words)
    assert snapshot(own) == before


@pytest.mark.parametrize("args,words", [([], ["which run?"]), (["RUN", "--stps", "3"], ["--stps", "mean --steps?"])])
def test_samples_that_cannot_be_asked_for(own, args, words):
    before = snapshot(own)
    mistake(lambda: sample.command([str(own) if arg == "RUN" else arg for arg in args]), *words)
    assert snapshot(own) == before


def test_a_batch_that_does_not_divide_over_devices(own, monkeypatch):
    before = snapshot(own)
    monkeypatch.setattr(parallel, "device_count", lambda: 2)
    args = [TINY, "--train.batch-size", "15", "--workdir", str(own)]
    mistake(lambda: train.command(args), "train.batch_size is 15", "divisible by 2", "2 devices")
    assert snapshot(own) == before


# Options of training.


@pytest.mark.parametrize(
    "options,words",
    [
        (["--train.steps", "0"], ["train.steps is 0"]),
        (["--train.steps", "-3"], ["train.steps is -3"]),
        (["--seed", "-1"], ["seed is -1", "4294967295"]),
        (["--seed", "4294967296"], ["seed is 4294967296"]),
        (["--train.optimiser.learning-rate", "inf"], ["learning_rate is inf", "finite"]),
        (["--train.batch-size", "-16"], ["train.batch_size is -16"]),
        (["--train.accumulation", "0"], ["train.accumulation is 0"]),
        (["--train.accumulation", "-1"], ["train.accumulation is -1"]),
        (["--train.accumulation", "3"], ["train.batch_size is 16", "divisible by 3", "accumulation"]),
        (["--train.log-every", "0"], ["train.log_every is 0"]),
        (["--train.keep", "0"], ["train.keep is 0"]),
        (["--train.ema-decay", "1"], ["train.ema_decay is 1.0"]),
        (["--train.ema-half-life", "-1"], ["train.ema_half_life is -1.0"]),
        (["--train.ema-power", "inf"], ["train.ema_power is inf"]),
        (["--train.ema-power", "6", "--train.ema-half-life", "9"], ["half_life is 9.0", "ema_power 6.0", "set one"]),
        (["--train.optimiser.by-role", "disc", "learning_rate", "2"], ["by_role names 'disc'", "trains unet"]),
        (["--train.optimiser.by-role", "unet", "rate", "2"], ["by_role has unet rate 2", "one of learning_rate"]),
        (["--train.optimiser.by-role", "unet", "beta1", "2"], ["by_role: unet beta1 is 2.0"]),
        (["--train.optimiser.skip-norm", "-1"], ["skip_norm is -1.0", "zero or above"]),
        (["--train.optimiser.by-role", "unet", "beta1", "x"], ["by-role", "'x'"]),
        (["--frozen", "autoencoder", "x"], ["frozen has 'autoencoder'", "this system takes classifier"]),
        (["--train.optimiser.learning-rate", "0"], ["learning_rate is 0"]),
        (["--train.optimiser.weight-decay", "0.1"], ["weight_decay is 0.1", "adamw"]),
        (["--model.network.channels", "0", "8"], ["channels is (0, 8)"]),
        (["--model.network.channels", "-8", "8"], ["channels is (-8, 8)"]),
        (["--model.network.blocks", "0"], ["blocks is 0"]),
        (["--model.network.blocks", "-1"], ["blocks is -1"]),
        (["--model.num-timesteps", "0"], ["num_timesteps is 0"]),
        (["--model.num-timesteps", "-10"], ["num_timesteps is -10"]),
        (
            ["--model.network.channels", "8", "8", "8", "8", "8", "--model.network.attention"],
            ["8x8", "5 U-Net levels", "16"],
        ),
        (["--model.network.groups", "3"], ["channels are (8, 8)", "groups = 3"]),
        (["--model.network.head-dim", "3"], ["head_dim = 3"]),
        (["--model.network.attention", "5"], ["height 5", "[8, 4]"]),
        (["--model.network.dropout", "1"], ["dropout is 1.0"]),
        (["--model.beta-1", "0", "--model.schedule", "linear"], ["beta_1 = 0.0"]),
        (
            ["--model.num-timesteps", "4", "--model.sampling.spacing", "trailing"],
            ["steps is 5", "1 to 4", "set --model.sampling.steps"],
        ),
        (["--model.sampling.steps", "0"], ["steps is 0", "set --model.sampling.steps"]),
        (["--model.sampling.times", "1.1", "0.3"], ["times are (1.1, 0.3)", "set --model.sampling.times"]),
        (["--model.sampling.eta", "1.5"], ["eta is 1.5", "set --model.sampling.eta"]),
        (["--model.sampling.guidance-scale", "inf"], ["guidance_scale is inf", "--model.sampling.guidance-scale"]),
        (["--model.sampling.guidance-scale", "2", "--model.label-dropout", "0"], ["scale is 2.0", "label_dropout"]),
        (["--data.levels", "1"], ["data.levels is 1"]),
        (["--data.levels", "300"], ["data.levels is 300"]),
        (["--data.binarise", "static", "--data.levels", "4"], ["data.levels is 4"]),
        (["--data.validation", "1"], ["data.validation is 1.0"]),
        (["--data.size", "-4"], ["data.size is -4"]),
        (["--seed", "1.5"], ["--seed", "1.5"]),
        (["--train.nothing", "1"], ["--train.nothing"]),
    ],
)
def test_options_of_training(own, options, words):
    before = snapshot(own)
    mistake(lambda: train.command([TINY, *options, "--workdir", str(own)]), *words)
    assert snapshot(own) == before
    fresh = own.parent / "fresh"
    mistake(lambda: train.command([TINY, *options, "--workdir", str(fresh)]), *words)
    assert not fresh.exists()


def test_a_file_that_is_no_configuration(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    mistake(lambda: train.command([str(tmp_path / "empty.py")]), "empty.py is no configuration", "VARIANTS")
    mistake(lambda: train.command(["README.md"]), "README.md is not a Python file")


def test_a_run_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("a file")
    mistake(lambda: train.command([*TINY_RUN, "--workdir", str(tmp_path / "file" / "run")]), "cannot write", "file/run")
    assert (tmp_path / "file").read_text() == "a file"


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(tmp_path, python):
    (tmp_path / "file").write_text("a file")
    args = ["train.py", *TINY_RUN, "--workdir", tmp_path / "run"]
    done = python(*args, check=False, JGEN_CACHE=str(tmp_path / "file" / "cache"))
    assert_user_mistake(done, "cannot write the cache folder", "JGEN_CACHE")
    assert not (tmp_path / "run").exists()


# Data.


def load_data(name, **options):
    return lambda: datasets.load(Data(name=name, **options))


def test_sets_that_are_not_there(tmp_path):
    folder = str(tmp_path)
    mistake(load_data("nothing", dir=folder), "'nothing' is unknown", "folder:PATH")
    mistake(load_data("", dir=folder), "data.name is empty")
    mistake(load_data("cifar10", dir=folder), "'cifar10' is not prepared", folder, "jgen.data.prepare cifar10")
    mistake(load_data(f"folder:{tmp_path / 'none'}"), str(tmp_path / "none"), "does not exist")
    mistake(load_data(f"folder:{tmp_path}"), "has no images")


def make_folder(path, shapes, classes=1):
    for i, (height, width) in enumerate(shapes):
        file = path / f"class{i % classes}" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)).save(file)
    return path


def test_folders_that_are_no_set(tmp_path, monkeypatch):
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "cache"))
    mixed = make_folder(tmp_path / "mixed", [(8, 8)] * 10 + [(8, 9)])
    mistake(load_data(f"folder:{mixed}"), "10.png is 9x8", "00.png is 8x8", "--data.size")
    few = make_folder(tmp_path / "few", [(8, 8)] * 3)
    mistake(load_data(f"folder:{few}"), "has 3 images", "at least 10")
    beside = make_folder(tmp_path / "beside", [(8, 8)] * 10)
    shutil.copy(beside / "class0" / "00.png", beside / "extra.png")
    mistake(load_data(f"folder:{beside}"), "beside its class folders")
    assert not (tmp_path / "cache" / "decoded").exists()


@pytest.mark.parametrize("how", ["garbage", "empty", "truncated", "body", "bomb"])
def test_a_damaged_picture_is_named(tmp_path, monkeypatch, how):
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "cache"))
    folder = make_folder(tmp_path / "set", [(32, 32)] * 12, classes=2)
    victim = folder / "class1" / "07.png"
    content = victim.read_bytes()
    if how == "bomb":  # a header that claims 4 gigapixels
        victim = victim.rename(victim.with_suffix(".ppm"))
        content = b"P6 65536 65536 255\n"
    damaged = {
        "garbage": b"this is no picture",
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "body": content[:200] + bytes(100) + content[300:],
        "bomb": content,
    }[how]
    victim.write_bytes(damaged)
    mistake(load_data(f"folder:{folder}", size=32), str(victim), "does not open as an image")
    assert not [p for p in (tmp_path / "cache" / "decoded").rglob("*") if p.is_file()]


def test_classes_without_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "cache"))
    folder = make_folder(tmp_path / "set", [(8, 8)] * 20)
    for file in (folder / "class0").iterdir():
        file.rename(folder / file.name)
    (folder / "class0").rmdir()
    args = [TINY, "--data.name", f"folder:{folder}", "--workdir", str(tmp_path / "run")]
    mistake(lambda: train.command(args), "class_conditional is True", "no labels")
    assert not (tmp_path / "run").exists()


# Sampling and scoring.


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"label": 10}, ["label is 10", "0 to 9"]),
        ({"label": -1}, ["label is -1"]),
        ({"label": [0, 11]}, ["label is 11"]),
        ({"label": [1, 2, 3]}, ["label has shape (3,)", "2"]),
        ({"label": 1.5}, ["label is 1.5", "whole"]),
        ({"nothing": 1}, ["'nothing'", "ddpm", "guidance_scale"]),
        ({"steps": 11, "spacing": "trailing"}, ["steps is 11", "1 to 10"]),
        ({"steps": 0}, ["steps is 0"]),
        ({"eta": 1.5}, ["eta is 1.5"]),
        ({"eta": -0.1}, ["eta is -0.1"]),
        ({"eta": float("nan")}, ["eta is nan"]),
        ({"times": (0.1, 0.3)}, ["times are (0.1, 0.3)", "decrease"]),
        ({"times": (1.1, 0.3)}, ["times are (1.1, 0.3)", "from 1 at most"]),
        ({"times": (0.5, 0.0)}, ["times are (0.5, 0.0)", "above 0"]),
        ({"sampler": "odd"}, ["sampler is 'odd'", "ancestral, ddim"]),
        ({"sampler": "ancestral", "variance": "big"}, ["variance is 'big'", "beta_tilde"]),
        ({"spacing": "odd"}, ["spacing is 'odd'", "trailing"]),
        ({"spacing": "shifted", "shift": 0.0}, ["shift is 0.0"]),
        ({"low": 0.0}, ["low is 0.0"]),
        ({"low": float("nan")}, ["low is nan"]),
        ({"churn": -1.0}, ["churn is -1.0"]),
        ({"churn_noise": float("inf")}, ["churn_noise is inf"]),
        ({"churn_range": (2.0, 1.0)}, ["churn_range is (2.0, 1.0)", "two numbers"]),
        ({"corrector_snr": 0.0}, ["corrector_snr is 0.0"]),
        ({"tolerance": 0.0}, ["tolerance is 0.0"]),
        ({"guidance_interval": (1.0,)}, ["guidance_interval is (1.0,)", "two numbers"]),
        ({"guidance_scale": -1.0}, ["guidance_scale is -1.0"]),
        ({"batch_size": 0}, ["batch_size is 0"]),
        ({"start": -1}, ["start is -1"]),
    ],
)
def test_options_of_sampling(gen, options, words):
    mistake(lambda: gen.sample(KEY, 2, **options), *words)


def test_the_number_of_images(gen):
    mistake(lambda: gen.sample(KEY, 0), "number of images is 0")
    mistake(lambda: gen.sample(KEY, -4), "number of images is -4")
    mistake(lambda: gen.sample(KEY, 2.5), "number of images is 2.5")
    mistake(lambda: gen.sample(KEY, "3"), "number of images is 3", "whole number")


def test_what_is_no_key(gen):
    for key in (0, None, np.zeros(2), jax.random.split(KEY)):
        mistake(functools.partial(gen.sample, key, 2), "key is ", "one PRNG key")
    mistake(lambda: gen.sample(jax.random.key(0, impl="rbg"), 2), "key is one of rbg", "threefry")
    images = gen.sample(KEY, 2)
    np.testing.assert_array_equal(gen.sample(jax.random.key_data(KEY), 2), images)  # as of older programs


def test_a_label_for_a_model_without_classes():
    experiment = import_config(ROOT / "configs/diffusion/ddpm.py").get_config("tiny")
    config = dataclasses.replace(experiment.model, class_conditional=False)
    data = DataSpec(ImageSpec(8, 8, 1, 256), {"label": ArraySpec((), "int32", 10)})
    model = jgen.make(dataclasses.replace(experiment, model=config), data)
    assert resolve_conditions(model, {}, 3) == resolve_conditions(model, {"label": None}, 3) == {}
    mistake(lambda: resolve_conditions(model, {"label": 3}, 2), "label is 3", "trained without it", "no conditions")


ZEROS = np.zeros((2, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    "images,words",
    [
        (ZEROS[0], ["shape (8, 8, 1)", "(n, 8, 8, 1)"]),
        (ZEROS[:, :7], ["shape (2, 7, 8, 1)"]),
        (ZEROS.repeat(3, -1), ["shape (2, 8, 8, 3)"]),
        (ZEROS[:0], ["shape (0, 8, 8, 1)"]),
        (ZEROS.astype(np.float32), ["float32", "uint8"]),
        (ZEROS.astype(np.int64), ["int64", "uint8"]),
    ],
)
def test_images_of_another_kind(gen, images, words):
    mistake(lambda: gen.log_prob(KEY, images, label=0), *words)
    mistake(lambda: gen.bits_per_dim(KEY, images, label=0), *words)


def test_images_out_of_range(gen):
    images = dataclasses.replace(gen.model.images, levels=17)
    model = jgen.make(gen.config, dataclasses.replace(gen.model.data, image=images))
    other = jgen.Generator(model, gen.params, gen.ctx, gen.config, gen.step)
    mistake(lambda: other.log_prob(KEY, ZEROS + np.uint8(17), label=0), "value 17", "0 to 16")
    mistake(lambda: gen.log_prob(KEY, ZEROS), "conditional", "label=")
    mistake(lambda: gen.log_prob(KEY, ZEROS, label=10), "label is 10")


def test_options_of_a_wrong_type(gen):
    mistake(lambda: gen.sample(KEY, 1, steps="a"), "steps is 'a'", "int")
    mistake(lambda: gen.sample(KEY, 1, steps=2.5), "steps is 2.5", "int")
    mistake(lambda: gen.sample(KEY, 1, sampler="odd"), "sampler is 'odd'", "ancestral, ddim")
    mistake(lambda: gen.sample(KEY, 1, nothing=1), "unknown option 'nothing'", "steps")
    mistake(lambda: gen.log_prob(KEY, ZEROS, label=0, samples=5), "unknown option 'samples'", "no options")
    mistake(lambda: gen.log_prob(KEY, ZEROS, label=0, batch_size=0), "batch_size is 0")
    mistake(lambda: gen.log_prob(KEY, [ZEROS[0], ZEROS[0, :4]], label=0), "unlike shapes")
    mistake(lambda: gen.sample(KEY, 50, label=np.full(50, 0.5)), "label is [0.5", "whole numbers")
    assert gen.sample(KEY, 1, times=np.array([0.3, 0.1])).shape == (1, 8, 8, 1)


PRIOR = "configs/vae/vq_prior.py"


def test_frozen_runs_that_are_none(gen, tiny_run, tmp_path):
    def start(**changes):
        jgen.fit(dataclasses.replace(gen.config, **changes), tmp_path / "run")

    prior = import_config(ROOT / PRIOR).get_config("tiny").model
    none = str(tmp_path / "none")
    mistake(
        lambda: start(model=prior, frozen={"autoencoder": none}),
        f"there is no run at {none}: train the autoencoder before, or give its --frozen.autoencoder",
    )
    mistake(lambda: start(model=prior, frozen={"autoencoder": ""}), "there is no run at (empty)")
    mistake(lambda: start(model=prior), "frozen.autoencoder is missing", "the run of a trained autoencoder")
    mistake(lambda: start(model=prior, frozen={"autoencoder": str(tiny_run)}), "ddpm")
    mistake(lambda: start(frozen={"teacher": none}), "frozen has 'teacher'", "takes classifier")
    mistake(lambda: start(frozen={"teacher": str(tiny_run)}), "frozen has 'teacher'", "takes classifier")
    mistake(lambda: make_model(gen.config.model, gen.model.data, {"x": gen.model}), "frozen has 'x'")
    mistake(lambda: make_model(prior, gen.model.data), "frozen.autoencoder is missing")
    mistake(lambda: jgen.load(tiny_run, frozen={"teacher": none}), "frozen has 'teacher'", "it takes classifier")
    words = [str(tiny_run), "--num", "2", "--frozen.autoencoder", none]
    mistake(lambda: sample.command(words), "--frozen.autoencoder")
    assert not (tmp_path / "run").exists()


def test_what_a_model_cannot_do_says_what_it_can(gen):
    mistake(lambda: gen.encode(KEY, ZEROS), "ddpm cannot encode", "sample, trajectory, log_prob", kind=NotSupported)
    mistake(lambda: gen.reconstruct(KEY, ZEROS), "ddpm cannot reconstruct", kind=NotSupported)
    with pytest.raises(AttributeError):
        gen.nothing  # noqa: B018
    without = jgen.Generator(gen.model._replace(log_prob=None, energy=None), gen.params, gen.ctx, gen.config, gen.step)
    mistake(lambda: without.log_prob(KEY, ZEROS, label=0), "cannot log_prob", "can sample", kind=NotSupported)
    mistake(lambda: without.classify(KEY, ZEROS), "cannot classify", "can sample", kind=NotSupported)


def test_a_text_for_a_model_without_one(gen, tiny_run):
    trained = "ddpm was trained without it, it takes label"
    mistake(lambda: gen.sample(KEY, 2, text="a cat"), f"text is a cat: {trained}")
    mistake(lambda: gen.sample(KEY, 2, text=["a cat", "a dog"]), "text is ", trained)
    mistake(lambda: gen.sample(KEY, 2, negative_text="a cat"), f"negative_text is a cat: {trained}")
    mistake(lambda: gen.classify(KEY, ZEROS, classes=("cat", "dog")), "ddpm classifies by the classes that it was")
    mistake(lambda: sample.command([str(tiny_run), "--text", "a cat"]), "--text")


def test_masks_and_measurements_that_cannot_serve(gen):
    mistake(lambda: gen.inpaint(KEY, ZEROS, np.ones((8, 8), bool), label=0), "mask is true everywhere")
    mistake(lambda: gen.inpaint(KEY, ZEROS, np.ones((4, 8), bool), label=0), "mask has shape", "(8, 8)")
    mistake(lambda: gen.inpaint(KEY, ZEROS, np.zeros((8, 8), bool), label=0, repeats=0), "repeats is 0")
    small = np.zeros((2, 4, 4, 1))
    mistake(lambda: gen.restore(KEY, small[:, :3], label=0), "measurements have shape (n, 3, 4, 1)", "(n, 4, 4, 1)")
    mistake(lambda: gen.restore(KEY, small + np.nan, label=0), "measurements have values that are not finite")
    mistake(lambda: gen.restore(KEY, small, label=0, factor=3), "factor is 3")
    mistake(lambda: gen.restore(KEY, small, label=0, problem="colourisation"), "images have 1 channel, it takes 3")
    mistake(lambda: gen.anomaly_score(KEY, ZEROS, "typicality", by="energy"), "reference is missing")


@pytest.mark.slow
def test_what_diffusion_completes_and_restores_agrees_with_what_it_is_given(gen):
    images = np.random.default_rng(0).integers(0, 17, (3, 8, 8, 1), np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    mistake(lambda: gen.inpaint(KEY, images, mask, label=1, method="paint"), "method is 'paint'")
    for method in ("replacement", "repaint", "dps"):
        made = gen.inpaint(KEY, images, mask, label=1, method=method, steps=3, repeats=2)
        np.testing.assert_array_equal(made[:, :4], images[:, :4])
        assert np.any(made[:, 4:] != images[:, 4:])
    small = images.reshape(3, 4, 2, 4, 2, 1).mean((2, 4))
    large = gen.restore(KEY, small, label=1, steps=3)
    assert large.shape == images.shape and large.dtype == np.uint8


def test_sample_py_on_options_that_are_wrong(own, tmp_path):
    before = snapshot(own)
    out = tmp_path / "out.png"
    for options, words in (
        (["--num", "0"], ["--num is 0"]),
        (["--num", "-1"], ["--num is -1"]),
        (["--num", "2", "--label", "10"], ["label is 10"]),
        (["--num", "2", "--steps", "0"], ["steps is 0"]),
        (["--num", "2", "--steps", "11", "--spacing", "trailing"], ["steps is 11"]),
        (["--num", "2", "--eta", "2"], ["eta is 2.0"]),
        (["--num", "2", "--step", "3"], ["no checkpoint of step 3", "4"]),
        (["--num", "2", "--columns", "-1"], ["--columns is -1"]),
        (["--num", "2", "--label", "x"], ["--label"]),
    ):
        mistake(functools.partial(sample.command, [str(own), *options, "--out", str(out)]), *words)
        assert not out.exists()
    assert snapshot(own) == before


def test_out_with_an_unknown_ending(own, tmp_path):
    args = [str(own), "--num", "2", "--steps", "1", "--out"]
    mistake(lambda: sample.command([*args, str(tmp_path / "grid.gif")]), "grid.gif", ".png or .npz")
    (tmp_path / "file").write_text("a file")
    mistake(lambda: sample.command([*args, str(tmp_path / "file" / "grid.png")]), "cannot write", "grid.png")
    assert not (tmp_path / "grid.gif").exists() and (tmp_path / "file").read_text() == "a file"
