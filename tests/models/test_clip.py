"""CLIP: its encoders against what their equations say, validation by hand, the bound of the temperature."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import SYSTEMS

import jgen
from jgen import sample_scores
from jgen.cli import import_config, model_hash
from jgen.core.generate import require_capability
from jgen.core.keys import image_keys
from jgen.core.model import ArraySpec, Context, DataSpec, ImageSpec
from jgen.errors import NotSupported, UserError
from jgen.models.text_to_image import clip
from jgen.nn.clip import AttentionPool

DATA = DataSpec(ImageSpec(8, 8, 3, 256), {"text": ArraySpec((6,), "int32", 12)})
SMALL = clip.Config(
    embedding=6, channels=(4, 8), blocks=1, groups=2, pool_heads=2, text_width=8, text_heads=2, text_layers=2
)
TOKENS = np.array([[1, 5, 6, 2, 0, 0], [1, 6, 5, 2, 0, 0], [1, 7, 2, 0, 0, 0], [1, 5, 6, 2, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def small():
    """The model, parameters far from symmetric, their context, and a batch of which two texts are the same."""
    model = clip.make(SMALL, DATA)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8), "text": TOKENS}
    params, _ = jax.jit(model.init)(jax.random.key(0), batch, {})
    assert np.exp(params["temperature"]["log_scale"]) == pytest.approx(clip.START_SCALE, rel=1e-6)
    params = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    params["temperature"]["log_scale"] = jnp.float32(1.0)
    functions = {name: jax.jit(function) for name, function in model.functions.items()}
    model = model._replace(functions=functions, validate=jax.jit(model.validate))
    return model, params, Context(jnp.int32(0)), batch


def test_pooling_is_attention_of_the_mean_to_itself_and_to_the_positions():
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 8))
    pool = AttentionPool(heads=2, outputs=5)
    params = jax.jit(pool.init)(jax.random.key(0), jnp.float32(x))["params"]
    params = jax.tree.map(lambda p: p + 0.3 * jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    p = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    wanted = []
    for image in x.reshape(2, 6, 8):
        h = np.concatenate([image.mean(0, keepdims=True), image]) + p["places"]
        q = h[0] @ p["query"]["kernel"] + p["query"]["bias"]
        keys, values = np.split(h @ p["key_value"]["kernel"] + p["key_value"]["bias"], 2, axis=1)
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            weights = np.exp(keys[:, part] @ q[part] / 2)  # sqrt of a head's width
            heads.append(weights / weights.sum() @ values[:, part])
        wanted.append(np.concatenate(heads) @ p["out"]["kernel"] + p["out"]["bias"])
    pooled = jax.jit(pool.apply)({"params": params}, jnp.float32(x))
    np.testing.assert_allclose(pooled, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_texts_embedding_is_of_what_stands_before_its_end(small):
    model, params, ctx, _ = small

    def embed(*tokens):
        return np.asarray(model.functions["embed_text"](params, ctx, np.array(tokens, np.int32)))

    one, other, changed, _ = embed([1, 5, 6, 2, 0, 0], [1, 5, 6, 2, 9, 2], [1, 4, 6, 2, 0, 0], [1, 2, 0, 0, 0, 0])
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert np.abs(changed - one).max() > 1e-3
    cut = embed([1, 5, 6, 7, 8, 9], [1, 5, 6, 7, 8, 10], *TOKENS[:2])  # without an end the last token is read
    assert np.abs(cut[0] - cut[1]).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_loss_and_validation_are_of_the_embeddings_by_hand(small):
    model, params, ctx, batch = small
    x = jnp.float32(batch["image"]) * (2 / 255) - 1
    u = np.asarray(model.functions["embed_image"](params, ctx, x), np.float64)
    v = np.asarray(model.functions["embed_text"](params, ctx, TOKENS), np.float64)
    s = np.e * u @ v.T
    nll = [
        -0.5 * (np.log(np.exp(s[i, i]) / np.exp(s[i]).sum()) + np.log(np.exp(s[i, i]) / np.exp(s[:, i]).sum()))
        for i in range(4)
    ]
    keys = image_keys(jax.random.key(0), jnp.arange(4))
    value, (metrics, _) = jax.jit(model.phases[0].loss)(params, ctx, keys, batch)
    assert float(value) == pytest.approx(np.mean(nll), rel=1e-4) and float(metrics["scale"]) == pytest.approx(np.e)
    scores = model.validate(params, ctx, keys, batch)
    np.testing.assert_allclose(scores["nll"], nll, rtol=1e-4)
    same = [[np.array_equal(a, b) for b in TOKENS] for a in TOKENS]  # texts 0 and 3
    expected = {"image_to_text": [same[i][s[i].argmax()] for i in range(4)]}
    expected["text_to_image"] = [same[i][s[:, i].argmax()] for i in range(4)]
    for name, wanted in expected.items():
        np.testing.assert_array_equal(scores[name], np.float32(wanted))
    # With the images' own embeddings in the texts' place all are right: text 3 counts at place 0 as well.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "embed_text", lambda *_: jnp.float32(u[[0, 1, 2, 0]]))
        scores = jax.jit(clip.make(SMALL, DATA).validate)(params, ctx, keys, batch)
    assert scores["image_to_text"].tolist()[:3] == [1, 1, 1] and scores["text_to_image"].tolist() == [1, 1, 1, 1]


def test_the_temperature_starts_and_ends_as_published(small):
    model, params, _, _ = small
    assert pytest.approx(1 / 0.07) == clip.START_SCALE
    project = model.phases[0].project
    for value, wanted in ((9.0, np.log(100)), (4.0, 4.0), (-2.0, -2.0)):
        moved = project({**params, "temperature": {"log_scale": jnp.float32(value)}})
        assert float(moved["temperature"]["log_scale"]) == pytest.approx(wanted, rel=1e-6)
        assert moved["image"] is params["image"] and moved["text"] is params["text"]


@pytest.mark.slow
def test_the_clip_score_is_of_the_cosine_of_an_image_and_its_text(small, monkeypatch):
    model, params, ctx, batch = small
    words = {"one": TOKENS[0], "two": TOKENS[1], "three": TOKENS[2]}
    tokenizers = {"text": SimpleNamespace(encode=words.__getitem__)}
    run = SimpleNamespace(model=model, params=params, ctx=ctx, tokenizers=tokenizers)
    run.config = SimpleNamespace(model=SMALL)
    data = SimpleNamespace(spec=DATA, tokenizers=tokenizers, judges={})
    monkeypatch.setattr(sample_scores, "CLIP_BATCH", 2)
    texts, images = ["two", "three", "one"], batch["image"][:3]
    ((name, scores),) = sample_scores.with_clip_score(data, run)["text"](texts, images).items()
    assert name == f"clip_score_{model_hash(run)[:8]}"
    u = np.asarray(model.functions["embed_image"](params, ctx, np.float32(images) / 127.5 - 1), np.float64)
    v = np.asarray(model.functions["embed_text"](params, ctx, TOKENS[[1, 2, 0]]), np.float64)
    np.testing.assert_allclose(scores, [100 * max(a @ b, 0) for a, b in zip(u, v)], atol=1e-3)
    beside = data.__dict__ | {"judges": {"text": lambda texts, images: {"aligned": np.ones(len(texts))}}}
    judges = sample_scores.with_clip_score(SimpleNamespace(**beside), run)
    assert judges["text"](texts, images).keys() == {"aligned", name}
    for changes, message in (
        (
            {"spec": replace_image(height=16)},
            r"clip is of images \(8, 8, 3\): they must be \(16, 8, 3\), as in the data",
        ),
        ({"tokenizers": {}}, "clip is of the field text: the data has no texts"),
    ):
        with pytest.raises(UserError, match=f"^{message}$"):
            sample_scores.with_clip_score(SimpleNamespace(**data.__dict__ | changes), run)


def replace_image(**sizes):
    return dataclasses.replace(DATA, image=dataclasses.replace(DATA.image, **sizes))


def test_it_draws_no_images():
    with pytest.raises(NotSupported, match="it compares images with texts: a text-to-image model draws them"):
        require_capability(clip.make(SMALL, DATA), "sample")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"text": "caption"}, "text is 'caption': it must be a field of tokens; the data has text"),
        ({"channels": (4, 7)}, "channels has 7: it must be a multiple of groups, 2"),
        ({"channels": ()}, r"channels is \(\): it must have a width for each level"),
        ({"pool_heads": 3}, "channels ends in 8: pool_heads, 3, must divide it"),
        ({"text_heads": 3}, "text_width is 8: text_heads, 3, must divide it"),
        ({"embedding": 0}, "embedding is 0: it must be above zero"),
        ({"channels": (4,) * 4}, "channels has 4 levels: images of 8 pixels cannot be halved as often"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        clip.make(dataclasses.replace(SMALL, **options), DATA)


def test_a_whole_batch_is_not_accumulated(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("jgen.data.shapes.NUM_TRAIN", 60)
    monkeypatch.setattr("jgen.data.shapes.NUM_TEST", 30)
    experiment = import_config(SYSTEMS["clip"]).get_config("tiny")
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, accumulation=2))
    with pytest.raises(UserError, match="^train.accumulation is 2: clip has a loss of whole batches, it must be 1$"):
        jgen.fit(experiment, tmp_path / "run")
