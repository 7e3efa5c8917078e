"""The very deep VAE: its bounds against a likelihood integrated by quadrature, what a layer depends on, and latents."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from contract_cases import ROOT
from enumeration import all_images, numbers, pooled_chisquare
from naive_autoregressive import normal_params
from specs import data_of

from jgen.cli import load_config
from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.vae import vd_vae
from jgen.models.vae.vd_vae import Config, Sampling, Scoring, VdVae
from jgen.nn.resampling import average_pool
from jgen.nn.vd_vae import unpool

KEY = jax.random.key(0)
CTX = Context(jnp.int32(0))
SMALL = Config(width=4, bottleneck=0.5, latent=2, mixtures=2)
# Two stochastic layers of one number each, above a pixel of two channels of three levels.
PIXEL = replace(SMALL, encoder_blocks=((1, 1),), decoder_blocks=((1, 2),), latent=1)
PIXEL_DATA = data_of(1, 1, 2, 3)
# Four layers at two resolutions.
LAYERED = replace(SMALL, encoder_blocks=((4, 2), (2, 1)), decoder_blocks=((2, 2), (4, 2)))
LAYERED_DATA = data_of(4, 4, 1, 17)
NODES = 40


def keys_of(n, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def build(config, data, gain=1.0, seed=0):
    """(what `make` binds, the model, random parameters)."""
    model = make_model(config, data)
    shapes, _ = jax.eval_shape(model.init, KEY, first_batch(data), {})
    return VdVae(config, data, *vd_vae.make_networks(config, data)), model, normal_params(shapes, seed, gain)


def first_batch(data):
    batch = {"image": np.zeros((1, *data.image.shape), np.uint8)}
    return batch | {name: np.zeros(1, np.int32) for name in data.fields}


# The bounds of two layers of one latent each, integrated by Gauss-Hermite quadrature.


@cache
def integrated():
    """The model of a pixel: vae, model, params, images, log p(x), ELBO, KL of each layer; exact to rounding."""
    vae, model, params = build(PIXEL, PIXEL_DATA, gain=0.7, seed=1)
    images = all_images(PIXEL_DATA.image)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    eps = np.stack(np.meshgrid(nodes, nodes, indexing="ij")).reshape(2, -1, 1, 1, 1).astype(np.float32)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2

    def at_nodes(layer, prior, posterior):
        mean, logvar = prior if posterior is None else posterior
        return mean + jnp.exp(0.5 * logvar) * eps[layer]

    @jax.jit
    def run(x):
        x = jnp.broadcast_to(x[None], (NODES**2, *x.shape))
        free, _ = vd_vae.top_down(vae, params, NODES**2, None, {}, at_nodes)
        given, layers = vd_vae.top_down(vae, params, NODES**2, vd_vae.bottom_up(vae, params, x), {}, at_nodes)
        return free.log_prob(x), given.log_prob(x), layers

    log_p, elbo, kl = [], [], []
    for image in images:
        free, given, layers = jax.device_get(run(image))
        log_p.append(np.log(np.exp(free.astype(np.float64)) @ weights))

        def density(z, gaussian):
            mean, std = (a.astype(np.float64).ravel() for a in (gaussian.mean, np.exp(0.5 * gaussian.logvar)))
            return scipy.stats.norm.logpdf(z.astype(np.float64).ravel(), mean, std)

        kl.append([(density(z, posterior) - density(z, prior)) @ weights for z, prior, posterior in layers])
        elbo.append(given.astype(np.float64) @ weights - np.sum(kl[-1]))
    return vae, model, params, images, np.array(log_p), np.array(elbo), np.array(kl)


def repeated_scores(num, seed=0, **options):
    """`log_prob` of every image of the pixel with `num` keys: (num, images)."""
    _, model, params, images, *_ = integrated()
    x = np.tile(images, (num, 1, 1, 1))
    score = jax.jit(lambda keys: model.log_prob(params, CTX, keys, x, {}, **options))
    return np.asarray(score(keys_of(len(x), seed)), np.float64).reshape(num, -1)


@pytest.mark.slow
def test_the_elbo_and_each_layers_divergence_are_those_of_quadrature():
    vae, _, params, images, log_p, elbo, kl = integrated()
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, atol=1e-5)
    assert np.all(elbo < log_p) and (log_p - elbo).max() > 0.1  # there is a gap to close
    draws = repeated_scores(2000)
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert error.max() > 1e-3
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - elbo), 5 * error + 1e-5)

    x = np.tile(images, (2000, 1, 1, 1))
    features = vd_vae.bottom_up(vae, params, x)
    terms = jax.jit(lambda keys: vd_vae.bound_terms(vae, params, keys, features, x, {}))(keys_of(len(x)))
    by_layer = np.asarray(terms.kl, np.float64).reshape(2000, -1, 2)
    np.testing.assert_allclose(by_layer[0, :, 0], kl[:, 0], rtol=1e-4, atol=1e-5)  # the first layer's has no noise
    error = by_layer[..., 1].std(axis=0) / np.sqrt(2000)
    np.testing.assert_array_less(np.abs(by_layer[..., 1].mean(axis=0) - kl[:, 1]), 5 * error + 1e-5)


@pytest.mark.slow
def test_bounds_rise_with_the_samples_to_the_likelihood():
    *_, log_p, elbo, _ = integrated()
    few, more, many = (repeated_scores(n, samples=k) for n, k in ((500, 3), (100, 30), (20, 500)))
    means = [elbo.mean(), few.mean(), more.mean(), log_p.mean()]
    noise = 4 * few.mean(axis=1).std() / np.sqrt(500)
    assert means[0] < means[1] - noise < means[1] + noise < means[2] < means[3] + 0.01
    # exp of the bound is p(x) in the mean, whatever K is.
    p, error = np.exp(many), np.exp(many).std(axis=0) / np.sqrt(len(many))
    np.testing.assert_array_less(np.abs(p.mean(axis=0) - np.exp(log_p)), 5 * error)
    assert np.all(error < 0.05 * np.exp(log_p))


@pytest.mark.slow
def test_images_are_drawn_with_the_integrated_probabilities():
    _, model, params, _, log_p, *_ = integrated()
    drawn = np.asarray(jax.jit(lambda keys: model.sample(params, CTX, keys, {}))(keys_of(20_000)))
    assert pooled_chisquare(drawn, 3, log_p) > 1e-4


@pytest.mark.slow
def test_the_bound_does_not_depend_on_how_many_samples_are_decoded_at_once(monkeypatch):
    whole = repeated_scores(2, samples=5)
    monkeypatch.setattr(vd_vae, "AT_ONCE", 1)
    np.testing.assert_allclose(repeated_scores(2, samples=5), whole, rtol=1e-5)


@pytest.mark.slow
def test_binary_images_of_a_class_sum_to_one():
    """All 2x2 images, with posteriors that are the priors: the bound is then a mean over the prior."""
    blocks = {"encoder_blocks": ((2, 1), (1, 1)), "decoder_blocks": ((1, 1), (2, 1))}
    data = data_of(2, 2, 1, 2, num_classes=2)
    _, model, params = build(replace(SMALL, **blocks, decoder="bernoulli", class_conditional=True), data)

    def without_gaussians(path, leaf):
        return 0 * leaf if any(str(key).endswith("_out']") for key in path) else leaf

    params = jax.tree_util.tree_map_with_path(without_gaussians, params)
    images = all_images(data.image)

    @jax.jit
    def score(label):
        cond = {"label": jnp.full(16, label)}
        return model.log_prob(params, CTX, keys_of(16), images, cond, samples=2000)

    p = np.exp(np.asarray(score(1), np.float64))
    np.testing.assert_allclose(p.sum(), 1.0, atol=0.03)
    assert np.abs(np.exp(np.asarray(score(0))) - p).sum() > 0.05
    cond = {"label": jnp.ones(4000, jnp.int32)}
    drawn = np.asarray(jax.jit(lambda keys: model.sample(params, CTX, keys, cond))(keys_of(4000)))
    frequencies = np.bincount(numbers(drawn, 2), minlength=16) / 4000
    # Both have the noise of their draws: that of the bound is below the other's.
    error = np.sqrt(p / 4000) + 0.02 * p
    np.testing.assert_array_less(np.abs(frequencies - p), 5 * error + 1e-3)


# The network.


@pytest.mark.slow
def test_the_cifar10_network_has_the_papers_size():
    """39 million parameters (table 3), 43 stochastic layers (the authors' configuration)."""
    experiment, _ = load_config("configs/vae/vd_vae.py:cifar10", ROOT)
    model = make_model(experiment.model, data_of(32, 32, 3, 256))
    params, _ = jax.eval_shape(model.init, KEY, first_batch(model.data), {})
    assert sum(x.size for x in jax.tree.leaves(params)) == 39_144_932
    assert sum(number for _, number in experiment.model.decoder_blocks) == 43


def test_pooling_and_unpooling():
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype(np.float32)
    pooled = np.asarray(average_pool(x, 2, 2))
    for i in range(2):
        for j in range(2):
            np.testing.assert_allclose(
                pooled[:, i, j], x[:, 3 * i : 3 * i + 3, 2 * j : 2 * j + 2].mean((1, 2)), rtol=1e-5
            )
    np.testing.assert_array_equal(unpool(pooled, 6, 4), pooled.repeat(3, axis=1).repeat(2, axis=2))


@pytest.mark.slow
def test_the_start_of_the_weights():
    """Priors are N(0, 1); what enters a residual path of N blocks has 1 / N of the variance of other layers."""
    config = replace(LAYERED, width=64, bottleneck=0.5, latent=8)
    vae, model, _ = build(config, LAYERED_DATA)
    params, _ = jax.jit(model.init)(KEY, first_batch(LAYERED_DATA), {})

    @jax.jit
    def priors(params):
        _, layers = vd_vae.top_down(vae, params, 1, None, {}, lambda layer, prior, posterior: prior.mean)
        return [layer.prior for layer in layers]

    assert all(np.all(np.asarray(gaussian) == 0) for prior in priors(params) for gaussian in prior)
    encoder, decoder = params["vae"]["encoder"], params["vae"]["decoder"]
    block = decoder["level4_block1"]
    variances = {
        1: block["block"]["bottleneck"]["conv2"]["kernel"],
        3: encoder["level4_block0"]["out"]["kernel"],
        4: block["block"]["out"]["kernel"],
    }
    for blocks, kernel in variances.items():
        fan_in = np.prod(kernel.shape[:-1])
        assert float(np.var(kernel)) == pytest.approx(1 / (3 * fan_in * blocks), rel=0.1)
    assert float(np.var(block["posterior_out"]["kernel"])) == pytest.approx(1 / (3 * 32), rel=0.2)


def test_a_layer_depends_on_the_latents_above_alone():
    vae, _, params = build(LAYERED, LAYERED_DATA)

    @jax.jit
    def priors(moved, size):
        def choose(layer, prior, posterior):
            return jnp.where(layer == moved, size, 0.1) * jnp.ones_like(prior.mean)

        return [layer.prior.mean for layer in vd_vae.top_down(vae, params, 1, None, {}, choose)[1]]

    for moved in range(4):
        same = [bool(np.array_equal(a, b)) for a, b in zip(priors(moved, 0.1), priors(moved, 2.0))]
        assert same == [layer <= moved for layer in range(4)]


# Latents, options.


@pytest.mark.slow
def test_latents_decode_to_what_their_posterior_describes():
    vae, model, params = build(LAYERED, LAYERED_DATA)
    images = np.random.default_rng(0).integers(0, 17, (3, 4, 4, 1)).astype(np.uint8)
    keys = keys_of(3)
    latents = jax.jit(lambda: model.encode(params, CTX, keys, images, {}))()
    assert [z.shape for z in latents] == [(3, 2, 2, 2)] * 2 + [(3, 4, 4, 2)] * 2

    @jax.jit
    def described():
        features = vd_vae.bottom_up(vae, params, images)
        return vd_vae.pixel_means(vd_vae.top_down(vae, params, 3, features, {}, vd_vae.posterior_mean)[0])

    decode = jax.jit(lambda keys, latents: model.decode(params, CTX, keys, latents, {}))
    np.testing.assert_array_equal(decode(keys, latents), described())
    np.testing.assert_array_equal(decode(keys_of(3, 1), latents), decode(keys, latents))
    # The layers that are not given come from the prior, which without a temperature to speak of is its mean.
    assert np.any(decode(keys_of(3, 1), latents[:2]) != decode(keys, latents[:2]))
    cold = make_model(replace(LAYERED, sampling=Sampling(temperature=1e-6)), LAYERED_DATA)
    decode = jax.jit(lambda keys: cold.decode(params, CTX, keys, latents[:2], {}))
    one, other = (np.asarray(decode(keys_of(3, seed)), int) for seed in (0, 1))
    assert np.abs(one - other).max() <= 1  # rounding
    means = jax.jit(lambda t: model.sample(params, CTX, keys_of(8), {}, mean=True, temperature=t), static_argnums=0)
    assert np.ptp(np.asarray(means(1e-6), int), axis=0).max() <= 1 < np.ptp(np.asarray(means(1.0), int), axis=0).max()


@pytest.mark.slow
def test_the_loss_is_the_bound_and_its_metrics_add_up():
    _, model, params = build(LAYERED, LAYERED_DATA)
    images = np.random.default_rng(0).integers(0, 17, (6, 4, 4, 1)).astype(np.uint8)
    batch = {"image": images}
    loss, (metrics, _) = jax.jit(lambda: model.phases[0].loss(params, CTX, keys_of(6), batch))()
    bound = np.asarray(jax.jit(lambda: model.log_prob(params, CTX, keys_of(6), images, {}))())
    assert float(loss) == pytest.approx(-bound.mean() / 16, rel=1e-5)
    assert float(metrics["elbo"]) == pytest.approx(float(metrics["reconstruction"] - metrics["kl"]), rel=1e-5)
    assert float(metrics["kl"]) == pytest.approx(float(metrics["kl_2"] + metrics["kl_4"]), rel=1e-5)
    assert float(metrics["bits_per_dim"]) == pytest.approx(float(loss) / np.log(2), rel=1e-5)


@pytest.mark.parametrize(
    "options,shape,words",
    [
        ({"width": 0}, (4, 4), "width is 0"),
        ({"latent": 0}, (4, 4), "latent is 0"),
        ({"mixtures": 0}, (4, 4), "mixtures is 0"),
        ({"bottleneck": 0.1}, (4, 4), "bottleneck is 0.1"),
        ({"bias_height": -1}, (4, 4), "bias_height is -1"),
        ({"encoder_blocks": ()}, (4, 4), "encoder_blocks is ()"),
        ({"decoder_blocks": ((2, 1), (4, 0))}, (4, 4), "decoder_blocks is ((2, 1), (4, 0))"),
        ({}, (8, 8), "encoder_blocks is ((4, 2), (2, 1)): its largest height must be that of the images, 8"),
        ({"decoder_blocks": ((2, 1),)}, (4, 4), "decoder_blocks is ((2, 1),): its largest height"),
        ({"encoder_blocks": ((4, 1), (3, 1))}, (4, 4), "3 does not divide 4"),
        ({"encoder_blocks": ((4, 1), (4, 1))}, (4, 4), "4 does not divide 4"),
        ({"decoder_blocks": ((1, 1), (4, 1))}, (4, 4), "decoder_blocks has heights [1]"),
        ({}, (4, 5), "images of 4x5 cannot be pooled to a height of 2"),
        ({"decoder": "bernoulli"}, (4, 4), "decoder is bernoulli, but images have 17 levels"),
        ({"scoring": Scoring(samples=0)}, (4, 4), "samples is 0: it must be above zero: set --model.scoring.samples"),
        ({"sampling": Sampling(temperature=0.0)}, (4, 4), "temperature is 0.0: it must be above zero and finite"),
        ({"class_conditional": True}, (4, 4), "class_conditional is True, but the data has no labels"),
    ],
)
def test_bad_options_are_one_line(options, shape, words):
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make_model(replace(LAYERED, **options), data_of(*shape, 1, 17))
    assert words in str(caught.value)


@pytest.mark.slow
def test_bad_options_of_sampling_scoring_and_latents_are_one_line():
    _, model, params = build(LAYERED, LAYERED_DATA)
    images = np.zeros((1, 4, 4, 1), np.uint8)
    top = np.zeros((1, 2, 2, 2), np.float32)
    for name, inputs, options, words in (
        ("sample", (), {"temperature": -1.0}, "temperature is -1.0"),
        ("log_prob", (images,), {"samples": 0}, "samples is 0"),
        ("decode", (top,), {}, "latents are a ndarray: they must be a tuple of 1 to 4"),
        ("decode", ((),), {}, "latents are 0 arrays"),
        ("decode", ((top,) * 5,), {}, "latents are 5 arrays"),
        ("decode", ((top, top, top),), {}, r"latents\[2\] have shape \(n, 2, 2, 2\): they must be \(n, 4, 4, 2\)"),
    ):
        with pytest.raises(UserError, match=words):
            getattr(model, name)(params, CTX, keys_of(1), *inputs, {}, **options)
