"""Runs of a model with conditions of every kind: a class, a text, a small image."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from PIL import Image
from toy_systems import TRAIN, experiment_of

import jgen
import sample
from jgen import evaluate
from jgen.data import dataset, sources
from jgen.data.config import Config as Data
from jgen.data.grids import make_grid
from jgen.data.transforms import shrink
from jgen.errors import NotSupported

KEY = jax.random.key(3)
COLOURS = ("black", "grey", "white")
SHAPES = ("square", "bar")
CAPTIONED = {"low_resolution": 2, "text_length": 20}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 8x8 pictures of three classes, the colours, with captions: red squares and bars, as it were."""
    folder, rng = tmp_path_factory.mktemp("pictures") / "shapes", np.random.default_rng(0)
    for label, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        for i in range(40):
            image = rng.integers(0, 40, (8, 8)).astype(np.uint8)
            height = 4 if i % 2 == 0 else 2
            image[2 : 2 + height, 2:6] += 100 * label
            Image.fromarray(image).save(folder / colour / f"{i}.png")
            (folder / colour / f"{i}.txt").write_text(f"a {colour} {SHAPES[i % 2]}\n")
    return folder


def captioned(pictures, **options):
    return experiment_of("conditional", data=Data(name=f"folder:{pictures}", **{**CAPTIONED, **options}))


@pytest.fixture(scope="module")
def captioned_run(cache, pictures, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "captioned"
    assert jgen.fit(captioned(pictures), run) == "trained"
    return run


@pytest.fixture(scope="module")
def gen(captioned_run):
    return jgen.load(captioned_run)


@pytest.fixture(scope="module")
def held_out(gen, captioned_run):
    """All test examples, as the model sees them."""
    config, opened = dataset.reopen(gen.config.data, fingerprint(captioned_run), captioned_run, gen.tokenizers)
    split = opened.splits["test"]
    batch = split.fetch(np.arange(split.num))
    return {**batch, "low_resolution": np.asarray(shrink(jnp.asarray(batch["image"]), 2))}


def fingerprint(run):
    return json.loads((run / "config.json").read_text())["data_fingerprint"]


SMALL = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 16
CAPTION = "a white square"
GIVEN = {"label": 1, "text": CAPTION, "low_resolution": SMALL}


def test_conditions_are_one_for_all_images_or_one_an_image(gen):
    assert gen.model.conditions == ("label", "text", "low_resolution") and set(gen.tokenizers) == {"text"}
    images = gen.sample(KEY, 4, **GIVEN)
    assert images.shape == (4, 8, 8, 1) and len(np.unique(images.reshape(4, -1), axis=0)) == 4
    tokens = gen.tokenizers["text"].encode(CAPTION)
    for given in (
        {"label": [1] * 4, "text": [CAPTION] * 4, "low_resolution": np.stack([SMALL] * 4)},
        {"label": np.int32(1), "text": tokens, "low_resolution": SMALL.tolist()},
        {"label": np.ones(4, np.int64), "text": (CAPTION,) * 4, "low_resolution": SMALL},
    ):
        np.testing.assert_array_equal(gen.sample(KEY, 4, **given), images)
    for name, value in (("label", 2), ("text", "a black bar"), ("low_resolution", SMALL[::-1])):
        others = gen.sample(KEY, 4, **{**GIVEN, name: value})
        assert np.all(np.any(others != images, axis=(1, 2, 3))), name
    mixed = gen.sample(KEY, 4, **{**GIVEN, "text": [CAPTION, "a black bar", CAPTION, "a black bar"]})
    np.testing.assert_array_equal(mixed[[0, 2]], images[[0, 2]])
    assert np.any(mixed[1] != images[1])
    in_turn = gen.sample(KEY, 4, text=CAPTION, low_resolution=SMALL)
    np.testing.assert_array_equal(in_turn, gen.sample(KEY, 4, **{**GIVEN, "label": [0, 1, 2, 0]}))
    cond = gen.conditions(4, 2, text=CAPTION, low_resolution=SMALL)
    assert {name: array.shape for name, array in cond.items()} == {
        "label": (4,),
        "text": (4, 20),
        "low_resolution": (4, 4, 4, 1),
    }
    assert cond["label"].tolist() == [2, 0, 1, 2]


def test_images_are_scored_and_classified_under_their_conditions(gen, held_out):
    images = held_out["image"]
    cond = {name: held_out[name] for name in gen.model.conditions}
    nats = gen.log_prob(KEY, images, **cond)
    assert nats.shape == (len(images),) and np.all(np.isfinite(nats))
    texts = [gen.tokenizers["text"].decode(ids) for ids in held_out["text"]]
    assert set(texts) <= {f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES} and len(set(texts)) > 2
    np.testing.assert_array_equal(gen.log_prob(KEY, images, **{**cond, "text": texts}), nats)
    del cond["label"]
    by_class = [gen.log_prob(KEY, images, label=label, **cond) for label in range(3)]
    classes = gen.classify(KEY, images, **cond)
    assert classes.dtype == np.int32
    np.testing.assert_array_equal(classes, np.argmax(by_class, axis=0))
    assert len(np.unique(by_class, axis=0)) == 3


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"text": None}, ["text is missing", "no default"]),
        ({"low_resolution": None}, ["low_resolution is missing"]),
        ({"label": 3}, ["label is 3", "0 to 2"]),
        ({"label": [0, 1, 2]}, ["label has shape (3,)", "one number or 4"]),
        ({"text": np.zeros(19, np.int32)}, ["text has shape (19,)", "(20,)"]),
        ({"text": np.full(20, 259)}, ["text is 259", "0 to 258"]),
        ({"text": np.zeros(20)}, ["text is [0.", "whole numbers"]),
        ({"text": [CAPTION] * 3}, ["text has shape (3, 20)", "or 4"]),
        ({"text": [CAPTION, 3]}, ["text"]),
        ({"text": 3}, ["text has shape ()"]),
        ({"low_resolution": SMALL[..., 0]}, ["low_resolution has shape (4, 4)", "(4, 4, 1)"]),
        ({"low_resolution": SMALL.astype(int) + 200}, ["low_resolution is 264", "0 to 255"]),
        ({"low_resolution": SMALL / 255}, ["low_resolution is", "whole numbers"]),
        ({"low_resolution": "small.png"}, ["low_resolution has shape ()"]),
        ({"caption": "a"}, ["unknown option 'caption'"]),
    ],
)
def test_conditions_that_cannot_be_met_are_one_line(gen, held_out, changes, words):
    mistake(lambda: gen.sample(KEY, 4, **{**GIVEN, **changes}), *words)


def test_of_given_images_every_condition_is_needed(gen, held_out):
    images = held_out["image"][:2]
    mistake(lambda: gen.log_prob(KEY, images, text=CAPTION, low_resolution=SMALL), "conditional", "needs label=")
    mistake(lambda: gen.log_prob(KEY, images, label=1, text=CAPTION), "needs low_resolution=")
    mistake(lambda: gen.classify(KEY, images, text=CAPTION), "needs low_resolution=")
    mistake(lambda: gen.encode(KEY, images), "cannot encode", "sample, log_prob, classify", kind=NotSupported)


def test_a_grid_is_a_row_a_held_out_example(gen, captioned_run):
    opened = dataset.load(gen.config.data, gen.tokenizers)
    batch = opened.splits["validation"].fetch(np.arange(10))
    cond = {"label": batch["label"], "text": batch["text"], "low_resolution": shrink(jnp.asarray(batch["image"]), 2)}
    images = gen.sample(jax.random.key(0), 10, batch_size=10, **cond)
    grid = np.asarray(Image.open(captioned_run / "samples" / "step_00000010.png"))
    names = [gen.classes[label] for label in batch["label"]]
    assert set(names) == set(gen.classes)
    np.testing.assert_array_equal(grid, make_grid(images, 1, names=names).squeeze())


def test_sampling_by_command_needs_the_run_alone(captioned_run, gen, tmp_path, pictures, monkeypatch):
    """Its tokenizer included: the pictures are gone, and the cache of another is empty."""
    away = pictures.rename(pictures.with_name("away"))
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "cache"))
    try:
        run = shutil.copytree(captioned_run, tmp_path / "run")
        assert set(json.loads((run / "tokenizers.json").read_text())) == {"text"}
        Image.fromarray(SMALL[..., 0]).save(tmp_path / "small.png")
        np.save(tmp_path / "small.npy", SMALL)
        np.save(tmp_path / "many.npy", np.stack([SMALL] * 4))
        wanted = gen.sample(KEY, 4, **GIVEN)
        words = [str(run), "--num", "4", "--seed", "3", "--label", "1", "--text", CAPTION, "--out"]
        files = [(name, f"--cond.{option}") for name in ("small.png", "small.npy") for option in ("low-resolution",)]
        for name, option in [*files, ("many.npy", "--cond.low_resolution")]:
            assert sample.command([*words, str(tmp_path / "x.npz"), option, str(tmp_path / name)]) == 0
            with np.load(tmp_path / "x.npz") as arrays:
                np.testing.assert_array_equal(arrays["images"], wanted)
                np.testing.assert_array_equal(arrays["labels"], [1] * 4)
    finally:
        away.rename(pictures)


@pytest.mark.parametrize(
    "options,words",
    [
        (["--text", CAPTION], ["low_resolution is missing"]),
        (["--cond.low-resolution", "small.npy"], ["text is missing"]),
        (["--text", CAPTION, "--cond.low-resolution", "none.npy"], ["there is no file", "none.npy"]),
        (["--text", CAPTION, "--cond.low-resolution", "small.jpg"], ["there is no file small.jpg"]),
        (["--text", CAPTION, "--cond.low-resolution", "broken.npy"], ["broken.npy cannot be read as an array"]),
        (["--text", CAPTION, "--cond.low-resolution", "broken.png"], ["broken.png does not open as an image"]),
        (["--text", CAPTION, "--cond.low-resolution", "large.png"], ["low_resolution has shape (8, 8, 1)"]),
        (["--label", "x"], ["label is 'x': it must be one of black, grey, white"]),
        (["--cond.mask", "x.npy"], ["--cond.mask"]),
    ],
)
def test_conditions_of_a_command_that_cannot_be_met(captioned_run, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    np.save("small.npy", SMALL)
    for name in ("broken.npy", "broken.png"):
        (tmp_path / name).write_bytes(b"none")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("large.png")
    mistake(lambda: sample.command([str(captioned_run), "--num", "4", *options]), *words)


@pytest.mark.slow
def test_a_text_conditional_model_is_scored_on_held_out_captions(captioned_run, held_out, tmp_path, monkeypatch):
    sample_images, drawn = jgen.Cascade.sample, []

    def spy(stages, key, num, **named):
        drawn.append({name: named[name] for name in ("label", "text", "low_resolution")})
        return sample_images(stages, key, num, **named)

    monkeypatch.setattr(jgen.Cascade, "sample", spy)
    out = tmp_path / "x.json"
    words = ["--samples", "60", "--batch-size", "60", "--no-memorisation", "--grid", str(tmp_path / "x.png")]
    assert evaluate.command([str(captioned_run), *words, "--out", str(out)]) == 0
    document, num = json.loads(out.read_text()), len(held_out["image"])
    assert document["likelihood"]["protocol"]["given"] == "class and text and low_resolution"
    assert document["likelihood"]["protocol"]["num"] == num == 12 and document["likelihood"]["kind"] == "estimate"
    assert document["quality"]["num"] == 60 and document["labels"]["num"] == 60
    rows = np.arange(60) % num
    for name, array in drawn[0].items():
        np.testing.assert_array_equal(array, held_out[name][rows], err_msg=name)


@pytest.mark.slow
def test_learned_tokens_are_those_that_the_run_keeps(pictures, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "cache"))
    run, experiment = tmp_path / "run", captioned(pictures, tokenizer="bpe", vocabulary=280)
    short = replace(experiment, train=replace(TRAIN, steps=4))
    assert jgen.fit(short, run) == "trained"
    before = (run / "tokenizers.json").read_text()
    tokenizer = jgen.load(run).tokenizers["text"]
    assert tokenizer.merges and tokenizer.decode(tokenizer.encode(CAPTION)) == CAPTION
    assert np.count_nonzero(tokenizer.encode(CAPTION)) < len(CAPTION)
    # Its own are used where those of the cache are gone, or others would be learned now.
    shutil.rmtree(sources.cache_dir())
    monkeypatch.setattr(dataset, "train_bpe", lambda *args: pytest.fail("learned again"))
    assert jgen.fit(experiment, run) == "trained" and (run / "tokenizers.json").read_text() == before
    gen = jgen.load(run)
    assert gen.step == 10 and gen.tokenizers["text"] == tokenizer
    assert gen.model.data.fields["text"].num_values == tokenizer.num_values
    words = [str(run), "--samples", "0", "--num", "5", "--out", str(tmp_path / "x.json")]
    assert evaluate.command(words) == 0
