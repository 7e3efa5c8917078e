"""DALL-E 2's prior: conditionals of Gaussians, what depends on what, the codes of embeddings enumerated, bad input."""

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract_cases import SGD, Case, make_case, make_run, step_batch
from naive_autoregressive import normal_params
from scipy.stats import chisquare
from sklearn.decomposition import PCA
from stub_clip import CLIP, CTX, DATA, LENGTH, TEXTS, WORDS, D, V
from stub_network import keys_of

from jgen.core import keys as rng
from jgen.core.generate import require_capability
from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.errors import NotSupported, UserError
from jgen.experiment import make_model
from jgen.models.text_to_image import dalle2_prior
from jgen.nn.cross_attention import Tokens
from jgen.nn.embedding_prior import DiffusionPrior, Text
from jgen.prob import principal_components
from jgen.samplers.autoregressive import draw, gumbel

CONFIG = dalle2_prior.Config(features=8, layers=2, heads=2, hidden=12)
CODES = replace(CONFIG, kind="autoregressive", components=2, levels=3, fit_steps=4)


def system(config=CONFIG):
    """What `make` binds to the functions."""
    return make_model(config, DATA, {"clip": CLIP}).functions["draw_embedding"].args[0]


def params_of(config, gain=2.0):
    """Parameters far from their start, and the state."""
    model = make_model(config, DATA, {"clip": CLIP})
    batch = {"image": np.zeros((1, 2, 2, 1), np.uint8), "text": TEXTS[:1]}
    params, _ = jax.eval_shape(model.init, jax.random.key(0), batch, CTX.frozen)
    return normal_params(params, gain=gain), model.init(jax.random.key(0), batch, CTX.frozen)[1]


A = np.array([[1.0, 0.3, 0.0], [-0.4, 0.8, 0.2], [0.1, 0.0, 1.2]])  # E[z | v] = A v
S = np.array([[0.20, 0.06, 0.0], [0.06, 0.10, -0.03], [0.0, -0.03, 0.05]])  # Cov[z | v]
VARIANCE_V = 0.3


class Exact:
    """E[z_0 | z_t, text] of jointly Gaussian embeddings of a text and its image, in the place of the network."""

    def apply(self, variables, z_t, t, text):
        alpha, sigma = jnp.cos(jnp.pi * t / 2)[:, None, None], jnp.sin(jnp.pi * t / 2)[:, None, None]
        mean = jnp.where(text.given[:, None], text.embedding @ jnp.asarray(A.T, jnp.float32), 0.0)
        own, marginal = (D * jnp.asarray(x, jnp.float32) for x in (S, S + VARIANCE_V * A @ A.T))
        covariance = jnp.where(text.given[:, None, None], own[None], marginal[None])
        gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(D)[None])
        return mean + jnp.einsum("bij,bj->bi", gain, z_t - alpha[..., 0] * mean)


EXACT = system()._replace(network=Exact())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_exact_denoiser_draws_the_gaussian_conditional(eta):
    """Mean and covariance of n draws, within five standard errors of each entry, and what DDIM's steps leave."""
    n = 6000
    o = {"candidates": 1, "steps": 200, "eta": eta}
    run = jax.jit(lambda keys, text: dalle2_prior.draw_embedding(EXACT, {"prior": {}}, CTX, keys, {"text": text}, **o))
    z = np.asarray(run(keys_of(n), np.tile(TEXTS[1], (n, 1))), np.float64)
    np.testing.assert_array_less(np.abs(z.mean(axis=0) - A @ V[4]), 5 * np.sqrt(np.diag(S) / n) + 0.002)
    std = np.sqrt((np.outer(np.diag(S), np.diag(S)) + S**2) / n)
    np.testing.assert_array_less(np.abs(np.cov(z.T) - S), 5 * std + 0.02 * np.sqrt(np.outer(np.diag(S), np.diag(S))))


def variance_left(C):
    """The mean over t of the trace of Cov[z_0 | z_t], per dimension, of z_0 of covariance C: by quadrature."""
    t = (np.arange(2000) + 0.5) / 2000
    alpha, sigma = np.cos(np.pi * t / 2)[:, None, None], np.sin(np.pi * t / 2)[:, None, None]
    left = C - alpha**2 * C @ np.linalg.inv(alpha**2 * C + sigma**2 * np.eye(len(C))) @ C
    return np.trace(left, axis1=1, axis2=2).mean() / len(C)


def test_the_loss_of_the_exact_denoiser_is_the_variance_that_is_left():
    n, wanted = 40_000, variance_left(D * S)
    v = np.random.default_rng(2).standard_normal((n, D)) * np.sqrt(VARIANCE_V)
    z = v @ A.T + np.random.default_rng(3).standard_normal((n, D)) @ np.linalg.cholesky(S).T
    text = Text(Tokens(jnp.zeros((n, 1, 1))), jnp.asarray(np.sqrt(D) * v, jnp.float32), jnp.ones(n, bool))
    errors = jax.jit(lambda keys, z: dalle2_prior.errors(EXACT, {"prior": {}}, keys, z, text))
    drawn = np.asarray(errors(keys_of(n), np.float32(z)))
    assert drawn.mean() == pytest.approx(wanted, abs=5 * drawn.std() / np.sqrt(n))


def test_guidance_is_the_line_through_both_predictions():
    """In one step from pure noise a prediction is the mean: of the text's Gaussian, and of all."""
    run = partial(dalle2_prior.draw_embedding, EXACT, {"prior": {}}, CTX, keys_of(3), {"text": TEXTS})
    for scale in (0.0, 1.0, 2.5):
        z = run(candidates=1, steps=1, guidance_scale=scale)
        np.testing.assert_allclose(z, scale * V[TEXTS[:, 1]] @ A.T, atol=2e-3)


def test_of_two_candidates_the_one_nearer_to_the_text_is_taken():
    n = 50
    keys, tokens = keys_of(n), np.tile(TEXTS[:1], (n, 1))
    text = dalle2_prior.text_of(EXACT, CTX, jnp.asarray(tokens), jnp.ones(n, bool))
    o = replace(CONFIG.sampling, steps=4)
    each = [dalle2_prior.draw_by_diffusion(EXACT, {"prior": {}}, CTX, rng.fold_in(keys, i), text, o) for i in range(2)]
    products = np.stack(each) @ V[3]
    z = dalle2_prior.draw_embedding(EXACT, {"prior": {}}, CTX, keys, {"text": tokens}, steps=4)
    best = products.argmax(axis=0)
    assert 0 < best.mean() < 1
    np.testing.assert_allclose(z, np.stack(each)[best, np.arange(n)], rtol=1e-5)


@pytest.mark.slow
def test_a_trained_transformer_recovers_the_conditional():
    """Of correlated pairs in the plane, from its own loss, and without the text the distribution of all. A further
    entry of both is 1, beside which normalisation of the sequence keeps the lengths of the others."""
    dimensions, batch = 3, 256
    slope, covariance = np.array([[0.5, 0.3], [-0.2, 0.6]]), np.array([[0.12, 0.04], [0.04, 0.06]])
    network = DiffusionPrior(dimensions, 1, 24, 2, 2, 48)
    prior = system()._replace(network=network, embedding=dimensions)
    root = jnp.asarray(np.linalg.cholesky(covariance).T, jnp.float32)

    def with_one(x):
        return jnp.pad(x, ((0, 0), (0, 1)), constant_values=1.0)

    def text_of(v, given):
        return Text(Tokens(jnp.zeros((len(v), 1, 1))), prior.scale * with_one(v), given)

    def loss(params, key):
        keys = rng.image_keys(key, jnp.arange(batch))
        key_v, key_z, key_drop, key_noise = rng.split(keys, 4)
        v = rng.normal(key_v, (2,))
        z = v @ jnp.asarray(slope.T, jnp.float32) + rng.normal(key_z, (2,)) @ root
        text = text_of(v, ~rng.bernoulli(key_drop, 0.2))
        return jnp.mean(dalle2_prior.errors(prior, {"prior": params}, key_noise, with_one(z), text))

    steps = 2500
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    start = text_of(jnp.zeros((1, 2)), jnp.ones(1, bool))
    params = network.init(jax.random.key(0), jnp.zeros((1, dimensions)), jnp.ones(1), start)["params"]

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), jax.random.split(jax.random.key(1), steps))[0][0]

    params, n = train(params), 4000
    o = replace(CONFIG.sampling, steps=40)
    run = jax.jit(lambda text: dalle2_prior.draw_by_diffusion(prior, {"prior": params}, CTX, keys_of(n), text, o))
    losses = jax.jit(lambda z, text: dalle2_prior.errors(prior, {"prior": params}, keys_of(n), z, text).mean())
    noise = np.random.default_rng(0).standard_normal((n, 2))
    for v, given in ((np.array([1.0, -0.5]), True), (np.array([-0.3, 1.2]), True), (np.zeros(2), False)):
        text = text_of(jnp.tile(jnp.asarray(v, jnp.float32), (n, 1)), jnp.full(n, given))
        wanted = covariance if given else covariance + slope @ slope.T
        z = with_one(jnp.asarray(slope @ v + noise @ np.linalg.cholesky(wanted).T, jnp.float32))
        least = variance_left(dimensions * wanted) * 2 / dimensions  # of the best denoiser: the third entry is known
        assert 0.96 * least < losses(z, text) < 1.05 * least
        drawn = np.asarray(run(text))[:, :2]
        np.testing.assert_allclose(drawn.mean(axis=0), slope @ v, atol=0.06)
        # What is left of the noise at the end has little weight in the loss: variances come out smaller by 0.02.
        np.testing.assert_allclose(np.cov(drawn.T), wanted, atol=0.035)


def sequence_of(prior, params, text):
    return prior.network.apply({"params": params["prior"]}, jnp.ones((1, D)), jnp.full(1, 0.4), text, method="sequence")


@pytest.mark.slow
def test_the_jacobian_of_the_diffusions_transformer_is_causal_and_the_query_sees_all():
    prior, (params, _) = system(), params_of(CONFIG)
    text = dalle2_prior.text_of(prior, CTX, jnp.asarray(TEXTS[1:2]), jnp.ones(1, bool))
    sequence = sequence_of(prior, params, text)
    assert sequence.shape == (1, LENGTH + 4, 8)  # text, its embedding, time, noised embedding, query

    def states(sequence):
        apply = partial(prior.network.apply, {"params": params["prior"]}, method="hidden_states")
        return jnp.tanh(apply(sequence[None])[0] * jnp.arange(1.0, 9.0)[None]).sum(axis=1)

    depends = np.any(np.asarray(jax.jit(jax.jacobian(states))(sequence[0])) != 0, axis=2)
    np.testing.assert_array_equal(depends, np.tri(LENGTH + 4, dtype=bool))

    def by_input(z_t, t, features, embedding, given):
        each = Text(Tokens(features, text.tokens.mask), embedding, given)
        return prior.network.apply({"params": params["prior"]}, z_t, t, each).sum()

    inputs = (jnp.ones((1, D)), jnp.full(1, 0.4), text.tokens.features, text.embedding)
    for given in (True, False):
        gradients = jax.grad(by_input, argnums=(0, 1, 2, 3))(*inputs, jnp.full(1, given))
        reached = [bool(np.any(np.asarray(g) != 0)) for g in gradients]
        assert reached == [True, True, given, given]


@pytest.mark.parametrize("config", [CONFIG, CODES], ids=["diffusion", "codes"])
def test_what_follows_the_end_of_a_text_has_no_part(config):
    prior, (params, _) = system(config), params_of(config)
    text = dalle2_prior.text_of(prior, CTX, jnp.asarray(TEXTS[:1]), jnp.ones(1, bool))
    assert text.tokens.mask.tolist() == [[True, True, True, False]]

    def answer(features):
        each = text._replace(tokens=text.tokens._replace(features=features))
        if config is CONFIG:
            return prior.network.apply({"params": params["prior"]}, jnp.ones((1, D)), jnp.full(1, 0.4), each).sum()
        cond = {"text": each, "product": jnp.zeros(1, jnp.int32)}
        logits = prior.network.apply({"params": params["prior"]}, jnp.ones((1, 1, 2, 1), jnp.int32), cond)
        return jnp.sum(jnp.sin(logits))

    gradient = np.asarray(jax.grad(answer)(text.tokens.features))[0]
    assert np.any(gradient != 0, axis=1).tolist() == [True, True, True, False]


GRIDS = np.array(list(itertools.product(range(3), repeat=2)))


def code_logits(prior, params, codes, cond):
    return prior.network.apply({"params": params["prior"]}, codes.reshape(-1, 1, 2, 1), cond)[:, 0, :, 0]


def conditions(prior, n, product=40, given=True):
    text = dalle2_prior.text_of(prior, CTX, jnp.tile(jnp.asarray(TEXTS[1:2]), (n, 1)), jnp.full(n, given))
    return {"text": text, "product": jnp.full(n, product, jnp.int32)}


def test_the_probabilities_of_all_codes_sum_to_one_and_depend_on_text_and_product():
    prior, (params, _) = system(CODES), params_of(CODES)

    def log_p(codes, cond):
        logits = jax.nn.log_softmax(code_logits(prior, params, codes, cond))
        return jnp.take_along_axis(logits, codes[..., None], axis=2)[..., 0].sum(axis=1)

    p = np.exp(np.asarray(log_p(jnp.asarray(GRIDS), conditions(prior, 9)), np.float64))
    assert p.sum() == pytest.approx(1.0, abs=1e-5) and np.ptp(p) > 0.02
    other = np.exp(np.asarray(log_p(jnp.asarray(GRIDS), conditions(prior, 9, product=50))))
    assert np.abs(other - p).max() > 1e-3
    without = [log_p(jnp.asarray(GRIDS), conditions(prior, 9, product, False)) for product in (40, 50)]
    np.testing.assert_array_equal(*without)  # a product is of a text
    later = code_logits(prior, params, jnp.asarray(GRIDS), conditions(prior, 9))[:, 0]
    np.testing.assert_allclose(later, np.broadcast_to(later[:1], later.shape), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_cached_codes_are_those_of_the_whole_sequence(scale):
    """Guided or not, the same as evaluating it anew for every code; with frequencies that are the probabilities."""
    prior, (params, extra), n = system(CODES), params_of(CODES), 3000
    ctx = CTX._replace(extra={**extra, "statistics": {**extra["statistics"], "products": jnp.eye(64)[40]}})
    keys, text = keys_of(n, 3), conditions(prior, n)["text"]
    o = replace(CODES.sampling, guidance_scale=scale)
    z = np.asarray(jax.jit(lambda: dalle2_prior.draw_by_codes(prior, params, ctx, keys, text, o))())
    own, codes = rng.split(keys, 2)[1], jnp.zeros((n, 2), jnp.int32)

    @jax.jit
    def guided(codes):
        both = [code_logits(prior, params, codes, conditions(prior, n, given=given)) for given in (True, False)]
        return both[1] + scale * (both[0] - both[1])

    for p in range(2):
        codes = codes.at[:, p].set(draw(guided(codes)[:, p], gumbel(own, p, 3), 1.0))
    components = principal_components.Components(**extra["components"])
    np.testing.assert_allclose(z, principal_components.decode(components, codes, 3), atol=1e-6)
    probability = np.asarray(jax.nn.softmax(guided(codes)[0, 0]), np.float64)
    counts = np.bincount(np.asarray(codes)[:, 0], minlength=3)
    assert chisquare(counts, n * probability / probability.sum()).pvalue > 1e-3


def test_products_are_of_the_upper_half_of_their_distribution():
    shares = np.array([0.1, 0.0, 0.25, 0.3, 0.2, 0.15], np.float32)
    u = (np.arange(20_000) + 0.5) / 20_000
    drawn = np.bincount(dalle2_prior.of_upper_half(jnp.asarray(shares), jnp.asarray(u, jnp.float32)), minlength=6)
    np.testing.assert_allclose(drawn / 20_000, 2 * np.array([0, 0, 0, 0.15, 0.2, 0.15]), atol=2e-4)


@pytest.mark.slow
def test_moments_are_those_of_all_batches_and_then_the_transformer_is_trained():
    """Phases that come and go: components of scikit-learn from the first steps' embeddings, parameters as they were."""
    clip = make_case("clip")
    experiment = replace(
        make_case("dalle2_prior").model.functions["draw_embedding"].args[0].config,
        kind="autoregressive",
        components=5,
        levels=16,
        fit_steps=2,
        sampling=dalle2_prior.Sampling(),
    )
    case = Case(make_model(experiment, clip.model.data, {"clip": clip.model}), make_case("dalle2_prior").frozen)
    state, step = make_run(case, optimiser=SGD)
    start, embeddings = jax.device_get(state.params), []
    embed = jax.jit(lambda x: clip.model.functions["embed_image"](case.frozen["clip"].params, CTX, x))
    shares = []
    for number in range(3):
        batch = step_batch(case.model, number)
        if number < 2:
            embeddings.append(np.asarray(embed(batch["image"] / np.float32(127.5) - 1)))
        state, metrics = step(state, case.frozen, batch)
        shares.append("variance_share" in metrics)
        moved = [np.any(a != b) for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(jax.device_get(state.params)))]
        assert np.any(moved) == (number == 2)
    assert shares == [False, True, False]
    theirs = PCA(5).fit(np.concatenate(embeddings))
    components = state.extra["components"]
    np.testing.assert_allclose(components["mean"], theirs.mean_, atol=1e-5)
    np.testing.assert_allclose(np.sum(components["basis"] * theirs.components_, axis=1) ** 2, 1.0, atol=1e-2)
    assert float(state.extra["statistics"]["products"].sum()) == pytest.approx(1.0, abs=1e-5)


SMALL = CLIP._replace(data=DataSpec(ImageSpec(4, 4, 1, 256), DATA.fields))
SHORT = CLIP._replace(data=DataSpec(DATA.image, {"text": ArraySpec((3,), "int32", WORDS)}))
MUTE = CLIP._replace(name="dvae", functions={})


@pytest.mark.parametrize("options,clip,words", [
    ({"text": "caption"}, CLIP, "text is 'caption': it must be a field of tokens; the data has text"),
    ({}, MUTE, "frozen.clip is a dvae: it must provide embed_image, embed_text and encode_text, as a clip does"),
    ({}, SMALL, r"frozen.clip was trained on ImageSpec\(height=4"),
    ({}, SHORT, r"frozen.clip was trained on text of ArraySpec\(shape=\(3,\)"),
    ({"features": 7}, CLIP, "features is 7: it must be divisible by the 2 heads"),
    ({"text_dropout": 1.0}, CLIP, "text_dropout is 1.0: it must be from 0 to below 1"),
    ({"components": 2}, CLIP, "components is 2: a prior that is diffusion does not read it"),
    ({"kind": "autoregressive", "components": 4}, CLIP, "components is 4: it must be from 0 .all. to 3"),
    ({"kind": "autoregressive", "levels": 1}, CLIP, "levels is 1: it must be 2 or more"),
    ({"kind": "autoregressive", "fit_steps": 0}, CLIP, "fit_steps is 0: it must be above zero"),
    ({"sampling": dalle2_prior.Sampling(candidates=0)}, CLIP, "candidates is 0.*set --model.sampling.candidates"),
    ({"sampling": dalle2_prior.Sampling(temperature=0.5)}, CLIP, "temperature is 0.5: a prior that is diffusion"),
    ({"sampling": dalle2_prior.Sampling(eta=2.0)}, CLIP, "eta is 2.0: it must be from 0"),
    ({"text_dropout": 0.0, "sampling": dalle2_prior.Sampling(guidance_scale=2.0)}, CLIP, "guidance_scale is 2.0"),
])  # fmt: skip
def test_what_cannot_serve_is_one_line(options, clip, words):
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make_model(replace(CONFIG, **options), DATA, {"clip": clip})
    assert caught.match(words)


def test_it_draws_no_images_and_says_who_does():
    model = make_model(CONFIG, DATA, {"clip": CLIP})
    with pytest.raises(
        NotSupported, match="^dalle2_prior cannot sample: it draws embeddings of images: a dalle2_decoder"
    ):
        require_capability(model, "sample")
