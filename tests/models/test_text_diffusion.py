"""Diffusion given texts: what it is conditioned on, guidance and negative texts by their formula, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from contract_cases import make_batch
from stub_network import keys_of, stub_network

from jgen.core.generate import resolve_conditions
from jgen.core.model import ArraySpec, Context, DataSpec, FrozenModel, ImageSpec
from jgen.data.text import Tokenizer
from jgen.generator import encode_text
from jgen.models.diffusion import ddpm, flow_matching
from jgen.models.text_to_image import clip, text_diffusion
from jgen.models.vae import autoencoder_kl
from jgen.nn import dit, first_stage, unet
from jgen.samplers.diffusion import Sampling

LENGTH = 6
DATA = DataSpec(ImageSpec(8, 8, 3, 256), {"text": ArraySpec((LENGTH,), "int32", 12)})
TEXT = np.array([[1, 5, 6, 2, 0, 0], [1, 7, 8, 9, 2, 0], [1, 4, 2, 0, 0, 0]], np.int32)
NEGATIVE = np.array([[1, 9, 2, 0, 0, 0]], np.int32).repeat(3, 0)
EMPTY = np.array([[1, 2, 0, 0, 0, 0]], np.int32).repeat(3, 0)
SAMPLING = Sampling(times=(0.7,), guidance_scale=2.5, clip=False)
NETWORK = dataclasses.replace(unet.TINY, attention=(4,), dropout=0.0)
FLOW = flow_matching.Config(network=NETWORK, class_conditional=False, path="cosine", sampling=SAMPLING)
CLIP = clip.Config(
    embedding=6, channels=(8, 8), blocks=1, groups=4, pool_heads=2, text_width=10, text_heads=2, text_layers=1
)
SMALL = {"text_width": 8, "text_heads": 2, "text_layers": 1}


def make(objective=FLOW, data=DATA, **frozen):
    return text_diffusion.make(text_diffusion.Config(objective, **SMALL), data, **frozen)


def frozen_run(module, config, data=DATA):
    """A model and its first weights, moved from where they are symmetric."""
    model = module.make(config, data)
    params, extra = jax.jit(model.init)(jax.random.key(3), make_batch(model), {})
    params = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    return model, FrozenModel(params, extra)


def test_an_empty_texts_tokens_are_those_of_the_tokenizer():
    np.testing.assert_array_equal(Tokenizer(LENGTH).encode(""), EMPTY[0])


class Answers:
    """In the place of a U-Net: for each text a number, made of the features of its tokens that count."""

    def apply(self, variables, x, t, label, key_drop, vector=None, context=None):
        values = jnp.where(context.mask, jnp.tanh(context.features).sum(-1), 0.0).sum(-1)
        return jnp.zeros_like(x) + jnp.tanh(values)[:, None, None, None]


@pytest.mark.slow
def test_guidance_and_negative_texts_are_the_formula_of_a_known_denoiser(monkeypatch):
    stub_network(monkeypatch)
    monkeypatch.setattr(unet, "make_unet", lambda *args, **options: Answers())
    model = make()
    encoder = model.init.args[0].encoder
    own = jax.jit(lambda key: encoder.init(key, TEXT, method="encode"))(jax.random.key(0))["params"]
    params, ctx = {"unet": {}, "text": jax.tree.map(lambda x: 5.0 * x, own)}, Context(jnp.int32(0), jax.random.key(1))

    encode = jax.jit(lambda tokens: encoder.apply({"params": params["text"]}, tokens, method="encode"))

    def velocity(tokens):
        features, mask, _ = encode(tokens)
        np.testing.assert_array_equal(mask, np.arange(LENGTH) <= (tokens == 2).argmax(1)[:, None])
        return np.tanh(np.where(mask, np.tanh(features).sum(-1), 0.0).sum(-1))[:, None, None, None]

    assert np.ptp(velocity(TEXT)) > 0.05
    assert np.all(np.abs(velocity(TEXT) - velocity(NEGATIVE)) > 1e-3)
    t, x_t = 0.7, np.linspace(-1, 1, 3 * 192, dtype=np.float32).reshape(3, 8, 8, 3)
    alpha, shift = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2) / (np.pi / 2)  # x_0 is alpha x_t - shift velocity
    x_0 = jax.jit(model.functions["denoise"])(params, ctx, x_t, jnp.full(3, t), {"text": TEXT})
    np.testing.assert_allclose(x_0, alpha * x_t - shift * velocity(TEXT), atol=1e-5)

    @jax.jit
    def sample(scale, cond):
        return model.sample(params, ctx, keys_of(3), cond, guidance_scale=scale)

    def sampled(scale, **cond):
        return np.asarray(sample(jnp.float32(scale), cond)) / 127.5 - 1.0

    start = sampled(1.0, text=EMPTY) + shift * velocity(EMPTY)  # alpha times the noise that every sample begins with
    inside = np.abs(start - shift * velocity(EMPTY)) < 0.99  # else it was clipped
    for scale in (0.0, 1.0, 1.6):
        for cond, null in (({}, EMPTY), ({"negative_text": NEGATIVE}, NEGATIVE)):
            guided = velocity(null) + scale * (velocity(TEXT) - velocity(null))
            expected = np.clip(start - shift * guided, -1.0, 1.0)
            np.testing.assert_allclose(sampled(scale, text=TEXT, **cond)[inside], expected[inside], atol=0.009)


@pytest.mark.slow
def test_stable_diffusions_shape_trains_the_network_alone_on_the_tokens_and_latents_of_frozen_runs():
    encoder, text_run = frozen_run(clip, CLIP)
    stage = first_stage.Config((4, 4), 1, 2, attention=False, groups=2)
    autoencoder, image_run = frozen_run(autoencoder_kl, autoencoder_kl.Config(stage))
    network = dit.Config(patch=2, features=8, layers=1, heads=2)
    model = make(dataclasses.replace(FLOW, network=network), text_encoder=encoder, autoencoder=autoencoder)
    frozen, batch = {"text_encoder": text_run, "autoencoder": image_run}, make_batch(model, 3)
    batch["text"] = TEXT
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, frozen)
    assert set(params) == {"dit"} == set(model.phases[0].trains)
    assert model.log_prob is None and model.conditions == ("text",)
    params = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    ctx = Context(jnp.int32(0), jax.random.key(1), params, extra, frozen)
    features = text_diffusion.encode(model.init.args[0], params, ctx, jnp.asarray(TEXT))
    provided = encoder.functions["encode_text"](text_run.params, Context(jnp.int32(0)), TEXT)
    jax.tree.map(np.testing.assert_array_equal, features, provided)
    assert features.features.shape == (3, LENGTH, 10)

    @jax.jit
    def run(tokens, mask):
        return model.inpaint(params, ctx, keys_of(3), batch["image"], mask, {"text": tokens})

    mask = np.zeros((3, 8, 8), bool)
    mask[:, :, :5] = True
    for function, inputs in ((model.sample, ()), (model.edit, (batch["image"],)), (model.invert, (batch["image"],))):
        shape = jax.eval_shape(lambda f=function, i=inputs: f(params, ctx, keys_of(3), *i, {"text": TEXT})).shape
        assert shape == ((3, 4, 4, 2) if function is model.invert else (3, 8, 8, 3))
    inpainted, other = run(TEXT, mask), run(NEGATIVE, mask)
    np.testing.assert_array_equal(inpainted[mask], batch["image"][mask])
    assert np.all(np.any(inpainted != other, axis=(1, 2, 3)))


def test_captions_are_dropped_at_their_rate(monkeypatch):
    stub_network(monkeypatch)
    monkeypatch.setattr(unet, "make_unet", lambda *args, **options: Answers())
    seen = []

    def record(self, variables, x, t, label, key_drop, vector=None, context=None):
        seen.append(context.mask)
        return jnp.zeros_like(x)

    monkeypatch.setattr(Answers, "apply", record)
    model, n = make(dataclasses.replace(FLOW, label_dropout=0.3)), 2000
    encoder = model.init.args[0].encoder
    batch = {"image": np.zeros((n, 8, 8, 3), np.uint8), "text": TEXT[:1].repeat(n, 0)}

    @jax.jit
    def masks(keys):
        params = {"unet": {}, "text": encoder.init(jax.random.key(0), TEXT, method="encode")["params"]}
        model.phases[0].loss(params, Context(jnp.int32(0)), keys, batch)
        model.validate(params, Context(jnp.int32(0)), keys, batch)
        return seen

    counts, validated = (np.asarray(mask).sum(1) for mask in masks(keys_of(n)))
    assert set(counts.tolist()) == {2, 4}
    assert abs(np.mean(counts == 2) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / n)
    assert np.all(validated == 4)


@pytest.mark.slow
def test_prompt_to_prompt_with_the_text_itself_is_sampling_and_with_another_is_not():
    network = dit.Config(patch=2, features=8, layers=1, heads=2)
    model = make(dataclasses.replace(FLOW, network=network))
    params, extra = jax.jit(model.init)(jax.random.key(0), {**make_batch(model, 3), "text": TEXT}, {})
    params = jax.tree.map(lambda x: x + 0.5 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    other = np.where(TEXT > 3, (TEXT + 3) % 8 + 4, TEXT)
    ctx = Context(jnp.int32(0), jax.random.key(1), params, extra)

    @jax.jit
    def run(text, source):
        return model.sample(params, ctx, keys_of(3), {"text": text, "source_text": source})

    alone = jax.jit(lambda text: model.sample(params, ctx, keys_of(3), {"text": text}))
    near = np.abs(np.int32(alone(TEXT)) - np.int32(run(TEXT, TEXT)))
    assert near.max() <= 1  # a rounding of the levels
    moved = np.abs(np.int32(run(other, TEXT)) - np.int32(alone(other)))
    assert moved.max() > 3


def test_bad_input(capsys):
    classes = DataSpec(DATA.image, {"label": ArraySpec((), "int32", 3)})
    mistake(lambda: make(data=classes), "text is 'text': it must be a field of tokens; the data has label")
    mistake(lambda: make(unet.TINY), "objective is Config(")
    song = dataclasses.replace(FLOW, network=dataclasses.replace(NETWORK, architecture="ddpmpp"))
    mistake(lambda: make(song), "architecture is 'ddpmpp': it attends to no text")
    odd = text_diffusion.Config(FLOW, text_width=6, text_heads=4)
    mistake(lambda: text_diffusion.make(odd, DATA), "text_width is 6: text_heads, 4, must divide it")
    ours = clip.make(CLIP, DATA)
    longer = DataSpec(DATA.image, {"text": ArraySpec((9,), "int32", 12)})
    mistake(
        lambda: make(data=longer, text_encoder=ours), "text_encoder reads other texts: it must have a field text of 9"
    )
    diffusion = make(ddpm.Config(network=NETWORK, class_conditional=False))
    mistake(lambda: make(text_encoder=diffusion), "text_encoder is a text_diffusion: it must be a model that provides")
    mistake(lambda: resolve_conditions(diffusion, {}, 2), "text is missing")
    unguided = {"text": TEXT, "negative_text": NEGATIVE}
    mistake(
        lambda: diffusion.sample({}, Context(jnp.int32(0)), keys_of(3), unguided, guidance_scale=1.0),
        "negative_text is given, and guidance_scale is 1",
    )
    mistake(lambda: resolve_conditions(ours, {"negative_text": TEXT[0]}, 2), "negative_text is", "trained without it")
    cond = {"text": TEXT, "source_text": TEXT}
    mistake(lambda: diffusion.trajectory({}, Context(jnp.int32(0)), keys_of(3), cond), "trajectory takes none")
    tokenizer = Tokenizer(LENGTH)
    mistake(lambda: encode_text(tokenizer, "text", "  "), "text is '  ': say what the image shows")
    np.testing.assert_array_equal(encode_text(tokenizer, "negative_text", ""), EMPTY[0])
    assert tokenizer.decode(encode_text(tokenizer, "text", "fits")) == "fits" and not capsys.readouterr().err
    assert tokenizer.decode(encode_text(tokenizer, "text", "too long")) == "too "
    assert "warning: text is 'too long': it is cut to the 6 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["text", "negative_text"])
def test_a_text_for_a_model_without_one(name):
    from contract_cases import make_case

    mistake(lambda: resolve_conditions(make_case("ddpm").model, {name: TEXT[0]}, 2), f"{name} is", "it takes label")
