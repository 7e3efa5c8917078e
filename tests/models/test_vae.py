"""The VAE against closed forms: a linear-Gaussian model whose likelihood is known, enumeration, frequencies."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from specs import data_of

from jgen.core import keys as rng
from jgen.core.generate import resolve_options
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.vae import vae
from jgen.prob.pixel_distribution import PixelDistribution

DATA = data_of(4, 4, 1, 256)
LINEAR = vae.Config(network="dense", widths=(), blocks=0, latent=2, decoder="gaussian", scale="fixed")
KEY = jax.random.key(0)
CTX = Context(jnp.int32(0))


def keys_of(n, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def linear_gaussian(logvar_shift=0.0, initial_scale=0.1):
    """(model, params, images, exact log p(x), exact posterior mean): x = W z + b + scale eps on [-1, 1].

    The encoder is the exact posterior, but its variance is exp(logvar_shift) times what it should be.
    """
    model = vae.make(replace(LINEAR, initial_scale=initial_scale), DATA)
    gen = np.random.default_rng(1)
    # Orthogonal columns, so that the exact posterior is diagonal.
    W = np.linalg.qr(gen.standard_normal((16, 2)))[0] * np.array([0.5, 0.3])
    b = gen.uniform(-0.1, 0.1, 16)
    precision = 1.0 + np.sum(W**2, axis=0) / initial_scale**2
    to_mu = W / initial_scale**2 / precision
    params = {
        "encoder": {"out": {"kernel": np.zeros((16, 4), np.float32), "bias": np.zeros(4, np.float32)}},
        "decoder": {"out": {"kernel": W.T.astype(np.float32), "bias": b.astype(np.float32)}},
    }
    params["decoder"]["layers"] = params["encoder"]["layers"] = {}
    params["encoder"]["out"]["kernel"][:, :2] = to_mu
    params["encoder"]["out"]["bias"][:2] = -b @ to_mu
    params["encoder"]["out"]["bias"][2:] = logvar_shift - np.log(precision)
    z = gen.standard_normal((64, 2))
    x = z @ W.T + b + initial_scale * gen.standard_normal((64, 16))
    level = np.clip(np.round((x + 1) * 127.5), 1, 254).astype(np.uint8)
    x = level / 127.5 - 1
    exact = scipy.stats.multivariate_normal(b, W @ W.T + initial_scale**2 * np.eye(16)).logpdf(x)
    # A level's bin is 2 / 255 wide: narrow beside the scale, so its mass is the density times the width.
    return model, params, level.reshape(64, 4, 4, 1), exact + 16 * np.log(2 / 255), (x - b) @ to_mu


def scorer(model, params, images, cond=None, **options):
    """seed -> bounds (n,), compiled once."""
    run = jax.jit(lambda keys: model.log_prob(params, CTX, keys, images, cond or {}, **options))
    return lambda seed: np.asarray(run(keys_of(len(images), seed)))


def score(*args, **options):
    return scorer(*args, **options)(0)


def test_the_linear_encoder_gives_the_exact_posterior_and_its_parameters_are_the_models():
    model, params, images, _, mean = linear_gaussian()
    made, _ = model.init(KEY, {"image": images}, {})
    assert jax.tree.map(jnp.shape, made) == {k: {"out": jax.tree.map(np.shape, v["out"])} for k, v in params.items()}
    np.testing.assert_allclose(model.encode(params, CTX, keys_of(64), images, {}), mean, atol=1e-4)


def test_with_the_exact_posterior_every_weight_is_the_likelihood():
    model, params, images, exact, _ = linear_gaussian()
    np.testing.assert_allclose(score(model, params, images, samples=3), exact, atol=0.02)
    # The ELBO differs by the noise of one draw alone; its mean is exact.
    elbo = scorer(model, params, images)
    draws = np.stack([elbo(seed).mean() for seed in range(100)])
    assert abs(draws.mean() - exact.mean()) < 5 * draws.std() / 10 + 0.01


@pytest.mark.slow
def test_bounds_rise_with_the_samples_to_the_exact_likelihood():
    model, params, images, exact, _ = linear_gaussian(logvar_shift=1.5)
    bounds = {k: score(model, params, images, samples=k) for k in (5, 50, 5000)}
    once = scorer(model, params, images)
    elbo = np.stack([once(seed) for seed in range(30)]).mean(0)
    assert elbo.mean() < bounds[5].mean() - 0.1 < bounds[50].mean() - 0.1
    assert bounds[50].mean() < exact.mean() + 0.05
    assert elbo.mean() < exact.mean() - 1.0  # without samples the bound is far from tight: there was something to gain
    np.testing.assert_allclose(bounds[5000], exact, atol=0.1)


@pytest.mark.parametrize("decoder,peer", [("gaussian", scipy.stats.norm), ("logistic", scipy.stats.logistic)])
@pytest.mark.parametrize("scale", ["fixed", "shared", "pixel"])
def test_the_model_scores_by_the_scale_that_it_names(decoder, peer, scale):
    """All images of 1x2 pixels of 3 levels, with a posterior that is the prior and a decoder that reads no latents."""
    initial, mean = 0.6, np.array([-0.4, 0.7], np.float32)
    log_scale = {"fixed": np.zeros(2), "shared": np.full(2, 0.4), "pixel": np.array([0.5, -0.3])}[scale]
    model = vae.make(replace(LINEAR, decoder=decoder, scale=scale, initial_scale=initial), data_of(1, 2, 1, 3))
    made = jax.eval_shape(model.init, KEY, {"image": np.zeros((1, 1, 2, 1), np.uint8)}, {})[0]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), made)
    bias = np.stack([mean, log_scale], axis=-1).ravel() if scale == "pixel" else mean
    params["decoder"]["out"]["bias"] = bias.astype(np.float32)
    if scale == "shared":
        params["decoder"]["log_scale"] = np.float32(0.4)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 2, indexing="ij"), -1).reshape(-1, 1, 2, 1).astype(np.uint8)
    log_p = score(model, params, grid)
    edges = np.array([-np.inf, -0.5, 0.5, np.inf])
    p = np.stack([np.diff(peer.cdf(edges, m, initial * np.exp(s))) for m, s in zip(mean, log_scale)])
    np.testing.assert_allclose(log_p, np.log(p[0][grid[:, 0, 0, 0]] * p[1][grid[:, 0, 1, 0]]), rtol=1e-5)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("decoder,levels", [("gaussian", 3), ("logistic", 3), ("bernoulli", 2)])
def test_the_decoder_is_a_distribution_and_draws_from_it(decoder, levels):
    """All images of 1x2 pixels: probabilities sum to 1, and frequencies of draws match them (chi-square)."""
    grid = np.stack(np.meshgrid(*[np.arange(levels)] * 2, indexing="ij"), -1).reshape(-1, 1, 2, 1).astype(np.uint8)

    def distribution(n):
        mean = jnp.broadcast_to(jnp.array([-0.4, 0.7]).reshape(1, 1, 2, 1), (n, 1, 2, 1))
        scale = jnp.broadcast_to(0.5 + jnp.arange(2.0).reshape(1, 1, 2, 1), (n, 1, 2, 1))
        return PixelDistribution(decoder, levels, mean, None if decoder == "bernoulli" else scale)

    p = np.exp(np.asarray(distribution(len(grid)).log_prob(grid), np.float64))
    np.testing.assert_allclose(p.sum(), 1.0, atol=1e-5)
    n = 20_000
    drawn = np.asarray(distribution(n).draw(keys_of(n)))
    counts = np.bincount(drawn[:, 0, 0, 0].astype(int) * levels + drawn[:, 0, 1, 0], minlength=levels**2)
    assert scipy.stats.chisquare(counts, p / p.sum() * n).pvalue > 1e-4


@pytest.mark.slow
def test_a_model_of_binary_images_sums_to_one():
    """log_prob with many samples over all 16 binary 2x2 images, and the frequencies of `sample`."""
    config = vae.Config(network="dense", widths=(8,), latent=2, decoder="bernoulli", class_conditional=True)
    model = vae.make(config, data_of(2, 2, 1, 2, num_classes=2))
    images = (np.arange(16)[:, None] >> np.arange(4) & 1).astype(np.uint8).reshape(16, 2, 2, 1)
    label = np.ones(16, np.int32)
    params, _ = model.init(KEY, {"image": images, "label": label}, {})

    def shake(x):
        return x + 0.5 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)

    # An encoder that returns the prior is far from the best, and sure to be wide enough.
    params = {
        "encoder": jax.tree.map(jnp.zeros_like, params["encoder"]),
        "decoder": jax.tree.map(shake, params["decoder"]),
    }
    p = np.exp(score(model, params, images, {"label": label}, samples=4000).astype(np.float64))
    np.testing.assert_allclose(p.sum(), 1.0, atol=0.02)
    n = 5000
    cond = {"label": jnp.ones(n, jnp.int32)}
    drawn = np.asarray(jax.jit(lambda k: model.sample(params, CTX, k, cond))(keys_of(n)))
    counts = np.bincount((drawn.reshape(n, 4) << np.arange(4)).sum(1), minlength=16)
    assert scipy.stats.chisquare(counts, p / p.sum() * n).pvalue > 1e-4
    # The other class is another distribution.
    other = np.exp(score(model, params, images, {"label": 0 * label}, samples=500))
    assert np.abs(other - p).sum() > 0.05


def make_loss(**options):
    config = replace(vae.Config(network="dense", widths=(8,), latent=3, decoder="gaussian", scale="shared"), **options)
    model = vae.make(config, DATA)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1)).astype(np.uint8)}
    params, _ = jax.jit(model.init)(KEY, batch, {})
    run = jax.jit(lambda step: model.phases[0].loss(params, Context(step), keys_of(8), batch))
    return model, params, batch, run


@pytest.mark.slow
def test_beta_warmup_and_free_bits_follow_their_formulas():
    _, params, _, run = make_loss()
    base, (metrics, _) = run(0)
    assert float(base) == pytest.approx(float(metrics["kl"] - metrics["reconstruction"]), rel=1e-6)
    warm = make_loss(beta=2.0, kl_warmup_steps=10)[3]
    losses = [float(warm(step)[0]) for step in (0, 4, 9, 100)]
    weighted = [float(weight * metrics["kl"] - metrics["reconstruction"]) for weight in (0.2, 1.0, 2.0, 2.0)]
    assert losses == pytest.approx(weighted, rel=1e-5)
    # So many free bits that every dimension has them all: the loss is flat in the KL divergence.
    free, (metrics, _) = make_loss(free_bits=100.0)[3](0)
    assert float(free) == pytest.approx(float(300.0 - metrics["reconstruction"]), rel=1e-5)


@pytest.mark.slow
def test_the_iwae_objective_is_the_bound_that_log_prob_gives():
    model, params, batch, run = make_loss(objective="iwae", num_samples=6)
    loss, (metrics, _) = run(0)
    bound = score(model, params, batch["image"], samples=6)
    assert float(loss) == pytest.approx(-bound.mean(), rel=1e-6)
    assert float(loss) < -float(metrics["elbo"])
    scores = jax.jit(lambda: model.validate(params, CTX, keys_of(8), batch))()
    np.testing.assert_allclose(scores["iwae"], bound, rtol=1e-5)
    np.testing.assert_allclose(scores["elbo"], scores["reconstruction"] - scores["kl"], rtol=1e-6)


@pytest.mark.slow
def test_temperature_and_mean():
    model, params, *_ = make_loss()

    def draw(**options):
        return np.asarray(model.sample(params, CTX, keys_of(200), {}, **options), np.float64)

    z = np.zeros((1, 3), np.float32)
    centre = np.asarray(model.decode(params, CTX, keys_of(1), z, {}), np.float64)
    cold, warm = (draw(temperature=t, mean=True) - centre for t in (1e-6, 1.0))
    assert np.abs(cold).max() <= 1 < np.abs(warm).max()  # one level: rounding
    # Draws scatter about the means by the decoder's scale, 0.1 on [-1, 1].
    np.testing.assert_allclose((draw(temperature=1e-6) - centre).std(), 0.1 * 127.5, rtol=0.05)


@pytest.mark.parametrize(
    "options,levels,words",
    [
        ({"latent": 0}, 256, "latent is 0"),
        ({"num_samples": 0}, 256, "num_samples is 0"),
        ({"scoring": vae.Scoring(samples=0)}, 256, "samples is 0: it must be above zero: set --model.scoring.samples"),
        ({"sampling": vae.Sampling(temperature=0.0)}, 256, "temperature is 0.0: it must be above zero and finite"),
        ({"sampling": vae.Sampling(temperature=float("inf"))}, 256, "temperature is inf: it must be above zero and"),
        ({"decoder": "bernoulli"}, 256, "decoder is bernoulli, but images have 256 levels"),
        ({"widths": (8, 8, 8)}, 256, "images are 4x4: 3 convolutional widths need sizes divisible by 8"),
        ({"widths": ()}, 256, "widths is ()"),
        ({"widths": (8, 0)}, 256, "widths is (8, 0)"),
        ({"network": "dense", "widths": (8, 0)}, 256, "widths is (8, 0)"),
        ({"hidden": (8, 0)}, 256, "hidden is (8, 0)"),
        ({"network": "dense", "hidden": (8,)}, 256, "hidden is (8,): it is for conv"),
        ({"blocks": -1}, 256, "blocks is -1"),
        ({"initial_scale": 0.0}, 256, "initial_scale is 0.0"),
        ({"beta": -1.0}, 256, "beta is -1.0"),
        ({"free_bits": 0.5, "objective": "iwae"}, 256, "free_bits is 0.5: the iwae objective"),
        ({"class_conditional": True}, 256, "class_conditional is True, but the data has no labels"),
    ],
)
def test_bad_options_are_one_line(options, levels, words):
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make_model(replace(vae.Config(widths=(8,)), **options), data_of(4, 4, 1, levels))
    assert words in str(caught.value)


def test_bad_options_of_sampling_and_scoring_are_one_line():
    model, params, images, *_ = linear_gaussian()
    for name, options, words in (
        ("sample", {"temperature": -1.0}, "temperature is -1.0"),
        ("sample", {"temperature": float("inf")}, "temperature is inf"),
        ("log_prob", {"samples": 0}, "samples is 0"),
    ):
        resolve_options(model, name, options)
        inputs = () if name == "sample" else (images,)
        with pytest.raises(UserError, match=words):
            getattr(model, name)(params, CTX, keys_of(64), *inputs, {}, **options)
    with pytest.raises(UserError, match="unknown option 'steps'"):
        resolve_options(model, "sample", {"steps": 3})


@pytest.mark.slow
@pytest.mark.parametrize("logvar_shift", [0.0, 0.7])
def test_completions_have_the_conditional_distribution(logvar_shift):
    """Of the linear-Gaussian model in closed form, also where the encoder is not its posterior."""
    model, params, images, *_ = linear_gaussian(logvar_shift)
    n, known = 2000, np.arange(16) < 8
    model = vae.make(replace(LINEAR, sampling=vae.Sampling(mean=False)), DATA)
    given = np.repeat(images[:1], n, axis=0)
    mask = np.broadcast_to(known.reshape(4, 4), (n, 4, 4))
    inpaint = jax.jit(lambda: model.inpaint(params, CTX, keys_of(n), given, mask, {}, steps=60, warmup_steps=5))
    made = np.asarray(inpaint()).reshape(n, 16)
    np.testing.assert_array_equal(made[:, known], given.reshape(n, 16)[:, known])
    W, b = (np.float64(params["decoder"]["out"][name]) for name in ("kernel", "bias"))
    S, x = W.T @ W + 0.01 * np.eye(16), images[0].ravel() / 127.5 - 1
    gain = S[~known][:, known] @ np.linalg.inv(S[known][:, known])
    mean, cov = b[~known] + gain @ (x - b)[known], S[~known][:, ~known] - gain @ S[known][:, ~known]
    drawn = made[:, ~known] / 127.5 - 1
    assert np.all(np.abs(drawn.mean(0) - mean) < 5 * np.sqrt(np.diag(cov) / n) + 1 / 255)
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=6 * np.diag(cov).max() * np.sqrt(2 / n))


def test_a_chain_of_warmup_alone_is_refused():
    model, params, images, *_ = linear_gaussian()
    mask = np.ones((64, 4, 4), bool)
    with pytest.raises(UserError, match="warmup_steps is 20: it must be from 0 and below steps"):
        model.inpaint(params, CTX, keys_of(64), images, mask, {}, steps=20)
