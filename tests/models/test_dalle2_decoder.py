"""DALL-E 2's decoder: what it is conditioned on, latents there and back, interpolation, edits, its chain of runs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import make_batch, make_case
from stub_clip import CLIP, CTX, DATA, LENGTH, TEXTS, D, V
from stub_network import keys_of, stub_network

from jgen.core import keys as rng
from jgen.core.generate import resolve_conditions
from jgen.core.model import Context, FrozenModel, GenerativeModel
from jgen.errors import NotSupported, UserError
from jgen.experiment import Experiment, make_model
from jgen.generator import Generator
from jgen.models.diffusion import ddpm, edm, flow_matching
from jgen.models.text_to_image import dalle2_decoder
from jgen.nn import dit, unet
from jgen.prob.interpolation import slerp
from jgen.runs import FrozenRun, fingerprint_of, model_of
from jgen.samplers.diffusion import Sampling

IMAGES = DATA.image
NETWORK = dit.Config(patch=1, features=8, layers=1, heads=2)
SAMPLING = Sampling(steps=6, clip=False)
FLOW = flow_matching.Config(network=NETWORK, class_conditional=False, path="cosine", sampling=SAMPLING)
CONFIG = dalle2_decoder.Config(FLOW, tokens=2)
SEEN: dict = {}


def draw_embedding(params, ctx, keys, cond, guidance_scale, candidates):
    """The text's embedding, and a trace of the options."""
    return jnp.asarray(V)[cond["text"][:, 1]] * params["sign"] + 0.0 * guidance_scale * candidates


PRIOR = GenerativeModel(
    "dalle2_prior", DATA, None, (), conditions=("text",), functions={"draw_embedding": draw_embedding}
)
FROZEN = {
    "clip": FrozenModel({}, {}),
    "prior": FrozenModel({"sign": jnp.float32(1.0)}, {}, {"clip": FrozenModel({}, {})}),
}


def make(config=CONFIG, **frozen):
    return make_model(config, DATA, {"clip": CLIP, "prior": PRIOR, **frozen})


def trained(config=CONFIG):
    """The model, parameters moved from where the network answers 0, and the context."""
    model = make(config)
    batch = {**make_batch(model, 3), "text": TEXTS}
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, FROZEN)
    params = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    return model, params, Context(jnp.int32(0), jax.random.key(1), params, extra, FROZEN)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def some_images(n=3, seed=4):
    return np.random.default_rng(seed).integers(60, 200, (n, *IMAGES.shape)).astype(np.uint8)


def embedding_of(images):
    return (images.reshape(len(images), -1)[:, :D] / 127.5 - 1).astype(np.float32)


class Recorder:
    """In the place of a U-Net: what it is given; its answer is a number of the vector."""

    def apply(self, variables, x, t, label, key_drop, vector=None, context=None):
        SEEN.update(vector=vector, context=context)
        return jnp.zeros_like(x) + jnp.tanh(vector).sum(axis=-1)[:, None, None, None]


@pytest.fixture
def recorded(monkeypatch):
    """A decoder with the recorder for its network, its parameters and context."""
    stub_network(monkeypatch)
    monkeypatch.setattr(unet, "make_unet", lambda *args, **options: Recorder())
    network = replace(unet.TINY, channels=(8,))
    model = make(replace(CONFIG, objective=replace(FLOW, network=network, label_dropout=0.2), text_dropout=0.5))
    layer = model.init.args[0].layer.init(jax.random.key(0), jnp.ones((1, D)))["params"]
    params = {"unet": {}, "embedding": jax.tree.map(lambda x: x + 0.1, layer)}
    return model, params, Context(jnp.int32(0), jax.random.key(1), params, {}, FROZEN)


def test_it_is_given_the_embedding_twice_and_the_tokens_of_the_text(recorded):
    model, params, ctx = recorded
    images = some_images()
    model.validate(params, ctx, keys_of(3), {"image": images, "text": TEXTS, "index": np.arange(3)})
    z = np.sqrt(D) * unit(embedding_of(images))
    np.testing.assert_allclose(SEEN["vector"], z, atol=1e-5)
    own = z @ np.asarray(params["embedding"]["kernel"]) + np.asarray(params["embedding"]["bias"])
    tokens = CLIP.functions["encode_text"]({}, CTX, TEXTS)
    np.testing.assert_allclose(SEEN["context"].features[:, :2], own.reshape(3, 2, -1), atol=1e-5)
    np.testing.assert_allclose(SEEN["context"].features[:, 2:], tokens.features, atol=1e-6)
    assert SEEN["context"].mask.tolist() == [[True, True, *row] for row in tokens.mask.tolist()]


@pytest.mark.slow
def test_embeddings_and_texts_are_dropped_at_their_rates(recorded):
    model, params, ctx = recorded
    n = 3000
    batch = {"image": some_images(1).repeat(n, 0), "text": TEXTS[:1].repeat(n, 0), "index": np.arange(n)}
    model.phases[0].loss(params, ctx, keys_of(n), batch)
    no_embedding = np.all(np.asarray(SEEN["vector"]) == 0, axis=1)
    no_text = ~np.any(np.asarray(SEEN["context"].mask)[:, 2:], axis=1)
    assert abs(no_embedding.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / n)
    assert np.all(no_text[no_embedding])  # the null of guidance
    text_dropped = no_text[~no_embedding]
    assert abs(text_dropped.mean() - 0.5) < 5 * np.sqrt(0.25 / len(text_dropped))
    bias = np.asarray(params["embedding"]["bias"]).reshape(1, 2, -1)
    own = np.asarray(SEEN["context"].features)[no_embedding][:, :2]
    np.testing.assert_allclose(own, np.broadcast_to(bias, own.shape), atol=1e-6)


def test_samples_are_decoded_from_the_embeddings_that_the_prior_draws(recorded):
    """The velocity is a number of the vector, so that in one step a sample is known."""
    model, params, ctx = recorded
    options = {"times": (0.7,), "steps": 6}
    keys, t = keys_of(3), 0.7
    images = np.asarray(model.sample(params, ctx, keys, {"text": TEXTS}, **options)) / 127.5 - 1
    z = np.sqrt(D) * unit(V[TEXTS[:, 1]])
    np.testing.assert_allclose(SEEN["vector"], z, atol=1e-5)
    key_image = rng.split(keys, 2)[1]
    noise = np.asarray(rng.normal(rng.split(key_image, 2)[0], IMAGES.shape))
    shift = np.sin(np.pi * t / 2) / (np.pi / 2) * np.tanh(z).sum(axis=1)[:, None, None, None]
    wanted = np.cos(np.pi * t / 2) * noise - shift  # x_0 = alpha x_t - sigma velocity / (pi / 2)
    np.testing.assert_allclose(images, np.clip(wanted, -1, 1), atol=0.01)


@pytest.mark.slow
def test_inversion_leads_back_to_the_image_the_nearer_the_more_steps():
    model, params, ctx = trained()
    images = some_images()

    def there_and_back(steps):
        latents = model.invert(params, ctx, keys_of(3), images, {}, steps=steps)
        return latents, model.decode(params, ctx, keys_of(3, 9), latents, {}, steps=steps)

    errors = []
    for steps in (10, 40, 160):
        latents, back = jax.jit(there_and_back, static_argnums=0)(steps)
        errors.append(np.abs(np.asarray(back, np.float64) - images).mean())
    np.testing.assert_allclose(latents["embedding"], embedding_of(images), atol=1e-6)
    assert latents["noise"].shape == images.shape
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 2.5, errors  # DDIM is of first order
    moved = {**latents, "embedding": -latents["embedding"]}
    other = jax.jit(lambda x: model.decode(params, ctx, keys_of(3, 9), x, {}, steps=160))(moved)
    assert np.abs(np.asarray(other, np.float64) - images).mean() > 4 * errors[2]


def generator(config=CONFIG):
    model, params, ctx = trained(config)
    return Generator(model, params, ctx, Experiment(config), 1)


KEY = jax.random.key(0)


@pytest.mark.slow
def test_variations_share_latents_and_differ_by_noise():
    gen, image = generator(), some_images(1)
    latents = gen.invert(KEY, image, steps=20)
    many = jax.tree.map(lambda x: np.repeat(x, 6, axis=0), latents)
    same, varied = (gen.decode(KEY, many, steps=20, eta=eta) for eta in (0.0, 1.0))
    assert np.ptp(same, axis=0).max() == 0 and np.ptp(varied.astype(int), axis=0).max() > 5
    free = gen.decode(KEY, {"embedding": many["embedding"]}, steps=20)  # of new noise
    assert np.ptp(free.astype(int), axis=0).max() > 5
    np.testing.assert_array_equal(gen.edit(KEY, image.repeat(6, 0), steps=20, eta=1.0), varied)
    with pytest.raises(UserError, match="latents have noise: it must be embedding and noise"):
        gen.decode(KEY, {"noise": many["noise"]})
    with pytest.raises(UserError, match="latents have one array"):
        gen.decode(KEY, many["noise"])
    with pytest.raises(UserError, match=r"embeddings have shape .n, 2.: they must be .n, 3."):
        gen.decode(KEY, {"embedding": many["embedding"][:, :2]})


def test_interpolation_goes_along_both_great_circles():
    gen = generator()
    first, second = some_images(2), some_images(2, seed=5)
    way = gen.interpolate(KEY, first, second, 3, steps=200)
    assert way.shape == (2, 3, *IMAGES.shape)
    for end, images in ((0, first), (2, second)):
        assert np.abs(way[:, end].astype(np.float64) - images).mean() < 2
    a, b = gen.invert(KEY, first, steps=200), gen.invert(KEY, second, steps=200)
    middle = {name: slerp(a[name], b[name], np.full(2, 0.5, np.float32)) for name in a}
    decoded = gen.decode(KEY, middle, steps=200)
    assert np.abs(way[:, 1].astype(int) - decoded).max() <= 1
    assert np.abs(way[:, 1].astype(np.float64) - first).mean() > 4


@pytest.mark.slow
def test_a_diffusion_without_embeddings_interpolates_its_noise():
    case = make_case("ddpm")
    model = case.model
    params, extra = jax.jit(model.init)(jax.random.key(0), make_batch(model), {})
    gen = Generator(model, params, Context(jnp.int32(0), None, params, extra, {}), Experiment(None), 1)
    images = make_batch(model, 4)["image"]
    way = gen.interpolate(KEY, images[:2], images[2:], 4, label=3, steps=40)
    again = gen.decode(KEY, gen.invert(KEY, images[:2], label=3, steps=40), label=3, steps=40)
    np.testing.assert_array_equal(way[:, 0], again)
    assert np.any(way[:, 1] != way[:, 0])


def test_a_text_difference_moves_the_embedding_along_the_great_circle(monkeypatch):
    model, params, ctx = trained()
    images, now, then = some_images(), TEXTS, TEXTS[[1, 2, 0]]
    given = []
    original = dalle2_decoder.decode

    def decode(decoder, params, ctx, keys, latents, cond, **options):
        given.append((latents, cond, options))
        return original(decoder, params, ctx, keys, latents, cond, **options)

    monkeypatch.setattr(dalle2_decoder, "decode", decode)
    z = unit(embedding_of(images))
    for cond, target in (
        ({"text": then, "source_text": now}, V[then[:, 1]] - V[now[:, 1]]),
        ({"text": then}, V[then[:, 1]]),
    ):
        model.edit(params, ctx, keys_of(3), images, cond, strength=0.4, steps=3, eta=0.5)
        latents, rest, options = given[-1]
        wanted = slerp(z, unit(target), np.full(3, 0.4, np.float32))
        np.testing.assert_allclose(latents["embedding"], wanted, atol=1e-5)
        assert rest == {} and options == {"steps": 3, "guidance_scale": 1.0, "eta": 0.5}
        noise = model.invert(params, ctx, keys_of(3), images, {}, steps=3)["noise"]
        np.testing.assert_allclose(latents["noise"], noise, atol=1e-5)


def test_without_a_prior_it_decodes_embeddings_and_says_what_a_text_needs():
    model = make_model(CONFIG, DATA, {"clip": CLIP})
    _, params, ctx = trained()
    gen = Generator(model, params, ctx._replace(frozen={"clip": FROZEN["clip"]}), Experiment(CONFIG), 1)
    z = embedding_of(some_images())
    images = gen.decode(KEY, {"embedding": z}, steps=4)
    np.testing.assert_array_equal(images, generator().decode(KEY, {"embedding": z}, steps=4))
    with pytest.raises(NotSupported, match="^dalle2_decoder cannot sample: a prior gives .* --frozen.prior; decode"):
        gen.sample(KEY, 2, text=TEXTS[0])
    with pytest.raises(NotSupported, match="cannot log_prob: its bound is given the embedding of the image itself"):
        gen.log_prob(KEY, images)


def test_a_text_is_needed_to_sample_alone():
    model = make()
    assert resolve_conditions(model, {}, 2, name="decode") == {}
    with pytest.raises(UserError, match="text is missing: dalle2_decoder is conditioned on it"):
        resolve_conditions(model, {}, 2)
    cond = {"text": TEXTS, "source_text": TEXTS}
    with pytest.raises(UserError, match="source_text is given: sample takes none, only edit"):
        model.sample({}, CTX, keys_of(3), cond)
    with pytest.raises(UserError, match="source_text is given without text"):
        model.edit({}, CTX, keys_of(3), some_images(), {"source_text": TEXTS})


def test_a_prior_on_another_clip_is_refused():
    def run(model, arrays):
        return FrozenRun(model, arrays, fingerprint_of(arrays), {})

    own, other = (FrozenModel({"image": {"w": np.float32([x])}}, {}) for x in (1.0, 2.0))
    frozen = {"clip": run(CLIP, own), "prior": run(PRIOR, FrozenModel({}, {}, {"clip": own}))}
    assert model_of(CONFIG, DATA, frozen).name == "dalle2_decoder"
    frozen["prior"] = run(PRIOR, FrozenModel({}, {}, {"clip": other}))
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        model_of(CONFIG, DATA, frozen)
    theirs, ours = fingerprint_of(other)[:8], fingerprint_of(own)[:8]
    differs = f"frozen.prior depends on the clip {theirs}, and frozen.clip is {ours}: it must be the same run"
    assert caught.match(differs)


SMALL = {"network": replace(unet.TINY, channels=(8,)), "class_conditional": False}
AUGMENTED = edm.Config(**SMALL, augment=0.1, sampling=Sampling(steps=3))
LEARNED = ddpm.Config(**SMALL, bound_variance="learned")


@pytest.mark.parametrize("objective", [AUGMENTED, LEARNED], ids=["augmentation", "learned variances"])
def test_it_stands_beside_what_else_a_network_is_given(objective):
    model = make(replace(CONFIG, objective=objective))
    batch = {**make_batch(model, 3), "text": TEXTS}
    params, extra = jax.eval_shape(model.init, jax.random.key(0), batch, FROZEN)
    ctx = Context(jnp.int32(0), jax.random.key(1), params, extra, FROZEN)
    loss = jax.eval_shape(lambda p, c: model.phases[0].loss(p, c, keys_of(3), batch)[0], params, ctx)
    images = jax.eval_shape(lambda p, c: model.sample(p, c, keys_of(3), {"text": TEXTS}), params, ctx)
    assert loss.shape == () and images.shape == (3, *IMAGES.shape)
    assert model.phases[0].trains == ("unet", "embedding")


@pytest.mark.parametrize("attends_text", [True, False])
def test_the_text_is_attended_to_where_it_is_asked_for(attends_text):
    model, params, ctx = trained(replace(CONFIG, attends_text=attends_text))
    latents = {"embedding": embedding_of(some_images()), "noise": np.zeros((3, *IMAGES.shape), np.float32) + 0.3}
    run = jax.jit(lambda cond: model.decode(params, ctx, keys_of(3), latents, cond, steps=3))
    without, given = run({}), run({"text": TEXTS})
    assert np.any(without != given) == attends_text


LENT = {"embed_image": CLIP.functions["embed_image"], "embed_text": CLIP.functions["embed_text"]}
ODD = PRIOR._replace(conditions=("text", "label"))


@pytest.mark.parametrize("options,frozen,words", [
    ({"objective": unet.TINY}, {}, "objective is Config"),
    ({"text": "caption"}, {}, "text is 'caption': it must be a field of tokens; the data has text"),
    ({"tokens": 0}, {}, "tokens is 0: it must be above zero"),
    ({"text_dropout": 1.5}, {}, "text_dropout is 1.5: it must be from 0 to 1"),
    ({"attends_text": False, "text_dropout": 0.2}, {}, "text_dropout is 0.2: a decoder that does not attend"),
    ({"prior": dalle2_decoder.PriorSampling(candidates=0)}, {}, "candidates is 0.*set --model.prior.candidates"),
    ({}, {"clip": CLIP._replace(functions=LENT)}, "frozen.clip is a clip: it must provide .* and encode_text"),
    ({}, {"prior": CLIP}, "frozen.prior is a clip: it must provide draw_embedding, as a dalle2_prior does"),
    ({}, {"prior": ODD}, "frozen.prior is conditioned on text, label: it must be the text, text"),
])  # fmt: skip
def test_what_cannot_serve_is_one_line(options, frozen, words):
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make(replace(CONFIG, **options), **frozen)
    assert caught.match(words)


@pytest.mark.parametrize("options,words", [
    ({"strength": 1.5}, "strength is 1.5: it must be from 0 to 1"),
    ({"sampler": "heun"}, "sampler is heun: edit goes to noise and back by ddim"),
    ({"candidates": 4}, "candidates is 4: edit does not read it, only steps, guidance_scale, eta, strength"),
    ({"eta": -0.5}, "eta is -0.5"),
])  # fmt: skip
def test_options_that_editing_cannot_take(options, words):
    model = make()
    with pytest.raises(UserError, match=words):
        model.check_sampling(replace(model.editing, **options))
    model.check_sampling(model.editing)


def test_lengths():
    """A decoder that attends to the text has a context of its tokens and the text's."""
    decoder = make().init.args[0]
    assert decoder.model.data.fields["context"].shape == (2 + LENGTH, decoder.width)
    assert decoder.model.data.fields["vector"].shape == (D,)
