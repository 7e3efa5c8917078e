"""Images and texts compared by a CLIP: zero-shot classification and retrieval, by hand and by command."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from contract_cases import SYSTEMS

import jgen
from jgen import evaluate
from jgen.cli import import_config
from jgen.core.model import ArraySpec, Context, DataSpec, ImageSpec
from jgen.data.shapes import COLOURS, SHAPES, make_scenes, pair_names
from jgen.data.shapes_judge import pair_of
from jgen.data.text import Tokenizer
from jgen.errors import NotSupported
from jgen.generator import Generator
from jgen.metrics.retrieval import accuracy_by_class, recall
from jgen.models.text_to_image import clip

TOKENIZER = Tokenizer(16)
LABEL = ArraySpec((), "int32", 3, ("cat", "dog", "owl"))
DATA = DataSpec(ImageSpec(8, 8, 3, 256), {"text": ArraySpec((16,), "int32", TOKENIZER.num_values)})
SMALL = clip.Config(
    embedding=6, channels=(4, 8), blocks=1, groups=2, pool_heads=2, text_width=8, text_heads=2, text_layers=1
)
KEY, CLASSES, PROMPTS = jax.random.key(0), ("cat", "dog", "bird"), ("a {}", "{}, {}")


def generator(data):
    """A CLIP with parameters far from symmetric."""
    model = clip.make(SMALL, data)
    batch = {"image": np.zeros((1, 8, 8, 3), np.uint8), "text": np.zeros((1, 16), np.int32)}
    params, _ = jax.jit(model.init)(KEY, batch, {})
    params = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    params["temperature"]["log_scale"] = jnp.float32(1.5)
    config = SimpleNamespace(model=SMALL, seed=0)
    return Generator(model, params, Context(jnp.int32(0)), config, 1, tokenizers={"text": TOKENIZER})


@pytest.fixture(scope="module")
def gen(cache):
    return generator(DATA)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


def embedded_by_hand(gen, images, texts):
    """u and v one at a time, float64."""
    x = jnp.float32(images) * (2 / 255) - 1
    embed = {name: jax.jit(gen.model.functions[name]) for name in ("embed_image", "embed_text")}
    u = [embed["embed_image"](gen.params, gen.ctx, x[i : i + 1])[0] for i in range(len(x))]
    v = [embed["embed_text"](gen.params, gen.ctx, TOKENIZER.encode(text)[None])[0] for text in texts]
    return np.float64(u), np.float64(v)


@pytest.mark.slow
def test_classes_are_told_by_the_mean_of_their_prompts(gen, images):
    texts = [(f"a {name}", f"{name}, {name}") for name in CLASSES]
    u, v = embedded_by_hand(gen, images, sum(texts, ()))
    wanted = np.empty((5, 3))
    for i in range(5):
        for c in range(3):
            mean = (v[2 * c] + v[2 * c + 1]) / 2
            wanted[i, c] = np.exp(1.5) * (u[i] @ mean) / np.sqrt(mean @ mean)
    probabilities = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
    log_probs = gen.class_log_probs(KEY, images, classes=CLASSES, prompts=PROMPTS, batch_size=2)
    np.testing.assert_allclose(np.exp(log_probs), probabilities, atol=1e-4)
    assert np.ptp(probabilities) > 0.02
    np.testing.assert_array_equal(
        gen.classify(KEY, images, classes=CLASSES, prompts=PROMPTS), probabilities.argmax(axis=1)
    )
    prior = np.array([0.7, 0.2, 0.1])
    weighted = probabilities * prior
    given = gen.class_log_probs(KEY, images, classes=CLASSES, prompts=PROMPTS, prior=prior)
    np.testing.assert_allclose(np.exp(given), weighted / weighted.sum(axis=1, keepdims=True), atol=1e-4)


def test_classes_of_the_data_are_the_default(gen, images):
    named = generator(dataclasses.replace(DATA, fields={**DATA.fields, "label": LABEL}))
    own = named.class_log_probs(KEY, images)
    np.testing.assert_array_equal(own, gen.class_log_probs(KEY, images, classes=LABEL.names))


def test_the_nearest_images_are_retrieved(gen, images):
    texts = ["a cat", "two owls", "x"]
    u, v = embedded_by_hand(gen, images, texts)
    np.testing.assert_allclose(gen.embed_images(images, batch_size=2), u, atol=1e-5)
    np.testing.assert_allclose(gen.embed_texts(texts, batch_size=2), v, atol=1e-5)
    places = gen.retrieve(texts, images, 3)
    for text in range(3):
        order = sorted(range(5), key=lambda i: -(u[i] @ v[text]))
        assert places[text].tolist() == order[:3]


def test_recall_counts_by_hand():
    rng = np.random.default_rng(1)
    u, v = rng.normal(size=(2, 30, 4))
    groups = rng.integers(0, 12, 30)
    result = recall(u, v, groups, at=(1, 4, 50))
    for k in (1, 4):
        hits = []
        for i in range(30):
            near = sorted(range(30), key=lambda j: -(u[i] @ v[j]))[:k]
            hits.append(any(groups[j] == groups[i] for j in near))
        assert result[str(k)] == pytest.approx(np.mean(hits))
    assert set(result) == {"1", "4"} and result["1"] < result["4"]
    assert recall(u, u, np.arange(30), at=(1,)) == {"1": np.mean((u @ u.T).argmax(1) == np.arange(30))}


def test_accuracy_is_by_the_classes_that_occur():
    scores = np.array([[2.0, 1, 0], [0, 1, 2], [3, 0, 1], [0, 0, 1]])
    assert accuracy_by_class(scores, np.array([0, 0, 2, 2]), "abc") == {"a": 0.5, "c": 0.5}


def test_captions_of_lone_objects_name_a_pair():
    scenes, captions = make_scenes("test", np.arange(200))
    pairs, names = pair_of(captions), pair_names()
    assert len(names) == len(SHAPES) * len(COLOURS) and len(set(names)) == len(names)
    assert 20 < np.sum(pairs >= 0) < 80
    for number, shape, colour, pair in zip(scenes.number, scenes.shape[:, 0], scenes.colour[:, 0], pairs):
        assert pair == -1 if number > 1 else names[pair] == f"{COLOURS[colour][0]} {SHAPES[shape][0]}"


@pytest.mark.parametrize(
    "options,words",
    [
        ({}, ["classes are ()", "two names or more"]),
        ({"classes": "cat"}, ["classes are cat", "two names or more"]),
        ({"classes": ("cat",)}, ["two names or more"]),
        ({"classes": ("cat", "cat")}, ["one name is there twice"]),
        ({"classes": ("cat", " ")}, ["classes have ' '"]),
        ({"classes": CLASSES, "prompts": ("a photo",)}, ["prompts have 'a photo'", "{} in place of a class"]),
        ({"classes": CLASSES, "prompts": "a {}"}, ["prompts are a {}", "tuple"]),
        ({"classes": CLASSES, "prior": [0.5, 0.5]}, ["prior is", "3 probabilities"]),
        ({"classes": CLASSES, "by": "energy"}, ["clip compares images with texts: it takes classes and prompts"]),
    ],
)
def test_classes_that_cannot_be_asked_for(gen, images, options, words):
    mistake(lambda: gen.classify(KEY, images, **options), *words)


def test_what_cannot_be_retrieved(gen, images):
    mistake(lambda: gen.retrieve(["a"], images, 6), "num is 6", "from 1 to 5")
    mistake(lambda: gen.retrieve("a", images), "sequence of one text")
    mistake(lambda: gen.retrieve([""], images), "text is ''")
    mistake(lambda: gen.retrieve(["a"], images[..., :1]), "images have shape")


def test_other_models_do_not_embed(tiny_run, images):
    gen = jgen.load(tiny_run)
    mistake(lambda: gen.embed_texts(["a"]), "cannot embed_text", kind=NotSupported)
    mistake(lambda: gen.retrieve(["a"], images), "cannot", kind=NotSupported)


@pytest.mark.slow
def test_a_run_is_scored_by_retrieval_and_zero_shot(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jgen.data.shapes.NUM_TRAIN", 60)
    monkeypatch.setattr("jgen.data.shapes.NUM_TEST", 30)
    run = tmp_path / "run"
    jgen.fit(import_config(SYSTEMS["clip"]).get_config("tiny"), run)
    assert evaluate.command([str(run), "--samples", "0", "--batch-size", "10", "--prompts", "a {}"]) == 0
    document = json.loads((run / "evaluation.json").read_text())
    scenes, captions = make_scenes("test", np.arange(30))
    gen, images = jgen.load(run), pictures(captions)
    alone = np.flatnonzero(scenes.number == 1)
    asked = gen.classify(KEY, images[alone], classes=pair_names(), prompts=("a {}",))
    right = np.mean(asked == pair_of(captions)[alone])
    zero_shot, retrieval = document["zero_shot"], document["retrieval"]
    assert (zero_shot["num"], zero_shot["classes"], zero_shot["prompts"]) == (len(alone), 48, ["a {}"])
    assert zero_shot["accuracy"]["mean"] == pytest.approx(right)
    places = gen.retrieve(captions, images, 10)
    hits = [any(captions[j] == caption for j in row) for caption, row in zip(captions, places)]
    assert retrieval["num"] == 30 and retrieval["text_to_image"]["10"] == pytest.approx(np.mean(hits))
    assert "zero-shot: " in capsys.readouterr().out


def pictures(captions):
    """The images of the first captions of the test split."""
    from jgen.data import dataset
    from jgen.data.config import Config

    return dataset.load(Config(name="shapes", text_length=136)).splits["test"].fetch(np.arange(len(captions)))["image"]
