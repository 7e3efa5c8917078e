"""DALL-E: all texts and codes of a tiny size enumerated, what depends on what, its cached samplers beside naive ones,
the choice among candidates."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import numbers
from naive_autoregressive import normal_params
from scipy.stats import chisquare

from jgen.core import keys as rng
from jgen.core.model import ArraySpec, Context, DataSpec, FrozenModel, GenerativeModel, ImageSpec
from jgen.core.tokens import END, PADDING, START
from jgen.data.text import Tokenizer
from jgen.errors import NotSupported, UserError
from jgen.experiment import Experiment, make_model
from jgen.generator import Generator
from jgen.models.text_to_image import dalle1
from jgen.samplers.autoregressive import draw, gumbel

LENGTH, WORDS, CODES = 5, 5, 3  # tokens of a text, ids of which two are words, codes
GRID = ImageSpec(2, 2, 1, CODES)
DATA = DataSpec(ImageSpec(2, 2, 1, 256), {"text": ArraySpec((LENGTH,), "int32", WORDS)})
CONFIG = dalle1.Config(features=8, layers=2, heads=2, hidden=12)
STRIDED = replace(CONFIG, attention="strided")
TEXTS = np.array(
    [
        [START, *words, END, *[PADDING] * (LENGTH - 2 - len(words))]
        for n in range(LENGTH - 1)
        for words in itertools.product((3, 4), repeat=n)
    ]
)


def encode(params, ctx, keys, x, cond):
    return (x // 100).astype(jnp.int32)


def decode(params, ctx, keys, codes, cond):
    return (codes * 100).astype(jnp.uint8)


AUTOENCODER = GenerativeModel("hundreds", DATA, None, (), encode=encode, decode=decode, codes=(GRID,))


def embed_image(params, ctx, x):
    """The first pixel's sign decides."""
    return jnp.stack([x[:, 0, 0, 0] * params["sign"], jnp.zeros(len(x))], axis=1)


def embed_text(params, ctx, tokens):
    return jnp.tile(jnp.array([[1.0, 0.0]]), (len(tokens), 1))


CLIP = GenerativeModel("clip", DATA, None, (), functions={"embed_image": embed_image, "embed_text": embed_text})


def make(config=CONFIG, **frozen):
    return make_model(config, DATA, {"autoencoder": AUTOENCODER, **frozen})


def system(config=CONFIG):
    """What `make` binds to the functions."""
    return make(config).functions["text_log_prob"].args[0]


def context(**frozen):
    return Context(jnp.int32(0), frozen={"autoencoder": FrozenModel({}, {}), **frozen})


def params_of(model):
    """Parameters far from their start, so that no probability is as any other."""
    batch = {"image": np.zeros((1, 2, 2, 1), np.uint8), "text": TEXTS[:1].astype(np.int32)}
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), batch, {})
    return normal_params(shapes, gain=2.0)


def keys_of(n, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, STRIDED], ids=["dense", "strided"])
def test_the_probabilities_of_all_texts_and_codes_sum_to_one(config):
    model = make(config)
    params = params_of(model)
    grids = np.array(list(itertools.product(range(CODES), repeat=4)), np.uint8).reshape(-1, 2, 2, 1) * 100
    tokens = np.repeat(TEXTS, len(grids), axis=0).astype(np.int32)
    batch = {"image": np.tile(grids, (len(TEXTS), 1, 1, 1)), "text": tokens}
    scores = jax.jit(model.validate)(params, context(), keys_of(len(tokens)), batch)
    nll = [np.asarray(scores[f"nll_{part}"], np.float64).reshape(len(TEXTS), -1) for part in ("text", "codes")]
    text_log_prob, codes_log_prob = -nll[0], -nll[1]
    assert np.ptp(text_log_prob, axis=1).max() < 1e-5  # a text does not depend on what comes after it
    np.testing.assert_allclose(np.exp(text_log_prob[:, 0]).sum(), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.exp(codes_log_prob).sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.exp(text_log_prob + codes_log_prob).sum(), 1.0, atol=1e-5)
    assert (
        np.ptp(text_log_prob[:, 0]) > 1 and np.abs(codes_log_prob - codes_log_prob[:1]).max() > 0.1
    )  # codes depend on the text
    np.testing.assert_allclose(
        jax.jit(model.functions["text_log_prob"])(params, context(), TEXTS.astype(np.int32)),
        text_log_prob[:, 0],
        rtol=1e-4,
    )


def test_the_loss_weighs_the_nats_of_a_place_and_of_a_code():
    model = make(replace(CONFIG, text_weight=0.25))
    params, n = params_of(model), len(TEXTS)
    batch = {"image": np.random.default_rng(0).integers(0, 3, (n, 2, 2, 1)).astype(np.uint8) * 100}
    batch["text"] = TEXTS.astype(np.int32)
    loss, scores = jax.jit(
        lambda p: (model.phases[0].loss(p, context(), keys_of(n), batch)[0], model.validate(p, context(), None, batch))
    )(params)
    wanted = 0.25 * np.mean(scores["nll_text"]) / (LENGTH - 1) + 0.75 * np.mean(scores["nll_codes"]) / 4
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(scores["bits_per_code"], scores["nll_codes"] / 4 / np.log(2), rtol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, STRIDED], ids=["dense", "strided"])
def test_the_jacobian_shows_the_mask_and_the_order(config):
    """Token i + 1 is predicted from those up to i, code j from the whole text and the codes before j."""
    dalle = system(config)
    params = params_of(make(config))["transformer"]
    text = np.array([[START, 3, 4, 4, END]], np.int32)

    def outputs(places, values):
        def run(network):
            h = network.hidden_states(values[None], {"text": text})[0]
            return jnp.concatenate([network.text_out(h[: LENGTH - 1]).sum(1), network.out(h[LENGTH:]).sum(1)])

        # A place of the text has an embedding of its own: what depends on it sees the token there.
        return dalle.network.apply({"params": {**params, "places": {"embedding": places}}}, method=run)

    values = np.random.default_rng(0).standard_normal((4, CONFIG.features)).astype(np.float32)
    places = params["places"]["embedding"]
    by_text, by_code = jax.jit(jax.jacobian(outputs, argnums=(0, 1)))(places, values)
    depends = np.concatenate([np.any(np.asarray(x) != 0, axis=2) for x in (by_text, by_code)], axis=1)
    wanted = np.zeros((LENGTH - 1 + 4, LENGTH + 4), bool)
    wanted[: LENGTH - 1, :LENGTH] = np.tri(LENGTH - 1, LENGTH, dtype=bool)
    wanted[LENGTH - 1 :, :LENGTH] = True
    wanted[LENGTH - 1 :, LENGTH:] = np.tri(4, k=-1, dtype=bool)
    np.testing.assert_array_equal(depends, wanted)


def sample_codes_naively(network, params, keys, tokens, temperature, top_k):
    """The network over the whole sequence for every code."""
    codes = jnp.zeros((len(tokens), *GRID.shape), jnp.int32)
    apply = jax.jit(lambda codes: network.apply({"params": params}, codes, {"text": tokens})[1])
    for p in range(GRID.size):
        logits = apply(codes)[:, p // 2, p % 2, 0]
        codes = codes.at[:, p // 2, p % 2, 0].set(draw(logits, gumbel(keys, p, CODES), temperature, top_k))
    return codes


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, STRIDED], ids=["dense", "strided"])
def test_cached_sampling_draws_what_naive_sampling_draws(config):
    """Codes after a text, and texts after their beginnings, the same to the bit."""
    model, dalle, n = make(config), system(config), len(TEXTS)
    params, keys, tokens = params_of(model), keys_of(n, 3), TEXTS.astype(np.int32)
    images = jax.jit(lambda p: model.sample(p, context(), keys, {"text": tokens}, temperature=0.8, top_k=2))(params)
    own = rng.fold_in(rng.split(keys, 2)[0], 0)
    naive = sample_codes_naively(dalle.network, params["transformer"], own, tokens, 0.8, 2)
    np.testing.assert_array_equal(images, naive * 100)
    assert len(np.unique(images)) > 1

    known = np.arange(n) % 3 + 1
    completed = jax.jit(model.functions["complete_text"])(params, context(), keys, tokens, known)
    text = jnp.where(jnp.arange(LENGTH)[None] < known[:, None], tokens, PADDING)
    codes = jnp.zeros((n, *GRID.shape), jnp.int32)
    apply = jax.jit(lambda t: dalle.network.apply({"params": params["transformer"]}, codes, {"text": t})[0])
    for p in range(LENGTH - 1):
        drawn = draw(apply(text)[:, p], gumbel(keys, p, WORDS), 1.0)
        text = text.at[:, p + 1].set(jnp.where(p + 1 < known, tokens[:, p + 1], drawn))
    np.testing.assert_array_equal(completed, text)
    assert {tuple(row) for row in np.asarray(completed)} <= {tuple(row) for row in TEXTS}  # each is a whole text


@pytest.mark.slow
def test_frequencies_of_completed_texts_and_of_codes_are_their_probabilities():
    model, n = make(), 4000
    params, keys = params_of(model), keys_of(n, 5)
    tokens = np.tile(np.array([START, 4, 3, END, PADDING], np.int32), (n, 1))
    completed = np.asarray(jax.jit(model.functions["complete_text"])(params, context(), keys, tokens, np.full(n, 2)))
    log_p = np.asarray(jax.jit(model.functions["text_log_prob"])(params, context(), TEXTS.astype(np.int32)), np.float64)
    starts = TEXTS[:, 1] == 4
    counts = np.array([np.sum(np.all(completed == text, axis=1)) for text in TEXTS[starts]])
    p = np.exp(log_p[starts])
    assert counts.sum() == n and chisquare(counts, n * p / p.sum()).pvalue > 1e-3

    images = np.asarray(jax.jit(lambda p: model.sample(p, context(), keys, {"text": tokens}))(params))
    grids = np.array(list(itertools.product(range(CODES), repeat=4)), np.uint8).reshape(-1, 2, 2, 1) * 100
    batch = {"image": grids, "text": tokens[: len(grids)]}
    nll = jax.jit(model.validate)(params, context(), keys_of(len(grids)), batch)["nll_codes"]
    p = np.exp(-np.asarray(nll, np.float64))
    counts, many = np.bincount(numbers(images // 100, CODES), minlength=len(p)), n * p > 5
    assert chisquare(counts[many], counts[many].sum() * p[many] / p[many].sum()).pvalue > 1e-3


@pytest.mark.slow
def test_of_several_candidates_the_clips_favourite_is_taken():
    model, keys, n = make(clip=CLIP), keys_of(20), 20
    params, tokens = params_of(model), np.tile(TEXTS[3:4], (20, 1)).astype(np.int32)
    network, key_codes = system().network, rng.split(keys, 2)[0]
    each = [rng.fold_in(key_codes, number) for number in range(4)]
    drawn = np.stack([sample_codes_naively(network, params["transformer"], own, tokens, 1.0, 0) for own in each]) * 100

    def choose(params, sign):
        ctx = context(clip=FrozenModel({"sign": sign}, {}))
        return model.sample(params, ctx, keys, {"text": tokens}, candidates=4)

    choose = jax.jit(choose)
    for sign in (1.0, -1.0):
        best = np.argmax(sign * drawn[:, :, 0, 0, 0], axis=0)
        np.testing.assert_array_equal(choose(params, sign), drawn[best, np.arange(n)])
    assert len(np.unique(best)) > 1


@pytest.mark.slow
def test_a_generator_continues_texts_and_tells_their_perplexity():
    """Of bytes: each text begins as asked, and the perplexity is that of all tokens."""
    tokenizer = Tokenizer(8)
    data = DataSpec(DATA.image, {"text": ArraySpec((8,), "int32", tokenizer.num_values)})
    autoencoder = AUTOENCODER._replace(data=data)
    model = make_model(CONFIG, data, {"autoencoder": autoencoder})
    batch = {"image": np.zeros((1, 2, 2, 1), np.uint8), "text": tokenizer.encode("a")[None]}
    params = normal_params(jax.eval_shape(model.init, jax.random.key(0), batch, {})[0], gain=2.0)
    gen = Generator(model, params, context(), Experiment(CONFIG), 1, tokenizers={"text": tokenizer})
    texts = gen.complete_text(jax.random.key(0), "ab ", 4, temperature=0.9)
    assert len(set(texts)) > 1 and all(text.startswith("ab") for text in texts)
    assert gen.complete_text(jax.random.key(0), "ab", 2, start=2, temperature=0.9) == texts[2:]
    scored = ["abc", "", "abcdef"]  # 4, 1 and 7 tokens, of which the last one is certain
    log_p = gen.text_log_prob(scored, batch_size=2)
    wanted = model.functions["text_log_prob"](params, context(), np.stack([tokenizer.encode(text) for text in scored]))
    np.testing.assert_allclose(log_p, wanted, rtol=1e-5)
    assert gen.perplexity(scored) == pytest.approx(np.exp(-log_p.sum() / 12), rel=1e-5)
    with pytest.raises(UserError, match="text has 7 tokens: dalle1 has texts of at most 6"):
        gen.complete_text(jax.random.key(0), "abcdefg")
    with pytest.raises(UserError, match="n is 0"):
        gen.complete_text(jax.random.key(0), "a", 0)
    with pytest.raises(UserError, match="top_k is 999"):
        gen.complete_text(jax.random.key(0), "a", top_k=999)
    with pytest.raises(NotSupported, match="hundreds cannot perplexity|hundreds cannot text_log_prob"):
        Generator(AUTOENCODER, {}, context(), Experiment(CONFIG), 1).perplexity(["a"])


BY_CLASS = AUTOENCODER._replace(conditions=("label",))
SMALL = CLIP._replace(data=DataSpec(ImageSpec(4, 4, 1, 256), DATA.fields))
SHORT = CLIP._replace(data=DataSpec(DATA.image, {"text": ArraySpec((3,), "int32", WORDS)}))


@pytest.mark.parametrize("options,frozen,words", [
    ({"text": "caption"}, {}, "text is 'caption': it must be a field of tokens; the data has text"),
    ({"features": 7}, {}, "features is 7: it must be divisible by the 2 heads"),
    ({"attention": "strided", "layers": 3}, {}, "layers is 3: it must be divisible by 2"),
    ({"text_weight": 1.5}, {}, "text_weight is 1.5: it must be from 0 to 1"),
    ({"sampling": dalle1.Sampling(temperature=0.0)}, {}, "temperature is 0.0.*set --model.sampling.temperature"),
    ({"sampling": dalle1.Sampling(candidates=0)}, {}, "candidates is 0.*set --model.sampling.candidates"),
    ({}, {"autoencoder": AUTOENCODER._replace(codes=())}, "a hundreds, which has no grids of .* as a dvae has"),
    ({}, {"autoencoder": AUTOENCODER._replace(data=SMALL.data)}, "frozen.autoencoder was trained on"),
    ({}, {"autoencoder": BY_CLASS}, "hundreds that needs label to decode, which no text gives"),
    ({}, {"clip": AUTOENCODER}, "frozen.clip is a hundreds: it must provide embed_image and embed_text"),
    ({}, {"clip": SMALL}, r"frozen.clip was trained on ImageSpec\(height=4"),
    ({}, {"clip": SHORT}, r"frozen.clip was trained on text of ArraySpec\(shape=\(3,\)"),
])  # fmt: skip
def test_what_cannot_serve_is_one_line(options, frozen, words):
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make_model(replace(CONFIG, **options), DATA, {"autoencoder": AUTOENCODER, **frozen})
    assert caught.match(words)


def test_candidates_need_a_clip():
    with pytest.raises(UserError, match="candidates is 4: a CLIP chooses among them, .* --frozen.clip"):
        make().check_sampling(dalle1.Sampling(candidates=4))
    make(clip=CLIP).check_sampling(dalle1.Sampling(candidates=4))
