"""The variational lossy autoencoder: its bounds against quadrature over the latents, its two readings, its decoder."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from enumeration import all_images, pooled_chisquare
from naive_autoregressive import normal_params, random_params, sample_naively
from specs import data_of

from jgen.core import keys as rng
from jgen.core.model import Context, ImageSpec
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.vae import vlae
from jgen.models.vae.bounds import Scoring
from jgen.models.vae.vlae import Config, Sampling
from jgen.nn.local_pixelcnn import LocalPixelCNN
from jgen.prob.autoregressive import categorical_log_prob

CTX = Context(jnp.int32(0))
# Two latents above 2x2 binary images, whose pixels see their neighbours.
SMALL = Config(widths=(4,), latent=2, context=3, window=1, pixel_features=6, pixel_blocks=1, flow_units=3)
BINARY = data_of(2, 2, 1, 2, num_classes=2)
LABEL = 1
NODES = 60


def keys_of(n, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


@cache
def build(config=SMALL, data=BINARY, gain=0.8, seed=0):
    """(what `make` binds, the model, random parameters)."""
    model = make_model(config, data)
    batch = {"image": np.zeros((1, *data.image.shape), np.uint8), "label": np.zeros(1, np.int32)}
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), batch, {})
    return vlae.make_networks(config, data), model, normal_params(shapes, seed, gain)


CLASSES = replace(SMALL, class_conditional=True)


@cache
def integrated():
    """log p(x) and the ELBO of all images of one class, by Gauss-Hermite quadrature in eps and in q's noise."""
    bound_to, _, params = build(CLASSES)
    images = all_images(BINARY.image)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    noise = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2

    @jax.jit
    def run(x):
        cond = {"label": jnp.full(len(noise), LABEL)}
        x = jnp.broadcast_to(x[None], (len(noise), *x.shape))
        log_p = vlae.decoded_log_prob(bound_to, params, vlae.to_z(bound_to, params, noise, cond), x, cond)
        mu, logvar = vlae.posterior(bound_to, params, x, cond)
        z = mu + jnp.exp(0.5 * logvar) * noise
        return (
            log_p,
            vlae.decoded_log_prob(bound_to, params, z, x, cond),
            z,
            mu,
            logvar,
            *vlae.to_eps(bound_to, params, z, cond),
        )

    log_p, elbo = [], []
    for image in images:
        free, given, z, mu, logvar, eps, log_det = (np.asarray(a, np.float64) for a in run(image))
        log_p.append(np.log(np.exp(free) @ weights))
        log_q = scipy.stats.norm.logpdf(z, mu, np.exp(0.5 * logvar)).sum(axis=1)
        log_prior = scipy.stats.norm.logpdf(eps).sum(axis=1) + log_det
        elbo.append((given + log_prior - log_q) @ weights)
    return images, np.array(log_p), np.array(elbo)


def repeated_scores(num, **options):
    """`log_prob` of every image with `num` keys: (num, images)."""
    _, model, params = build(CLASSES)
    x = np.tile(integrated()[0], (num, 1, 1, 1))
    cond = {"label": jnp.full(len(x), LABEL)}
    score = jax.jit(lambda keys: model.log_prob(params, CTX, keys, x, cond, **options))
    return np.asarray(score(keys_of(len(x))), np.float64).reshape(num, -1)


@pytest.mark.slow
def test_probabilities_sum_to_one_and_the_elbo_is_that_of_quadrature():
    _, log_p, elbo = integrated()
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, atol=1e-5)
    assert np.all(elbo < log_p) and np.ptp(log_p) > 1
    draws = repeated_scores(2000)
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert error.max() > 1e-3
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - elbo), 5 * error + 1e-4)


@pytest.mark.slow
def test_bounds_rise_with_the_samples_to_the_likelihood():
    _, log_p, elbo = integrated()
    few, many = (repeated_scores(n, samples=k) for n, k in ((400, 5), (40, 500)))
    noise = 4 * few.mean(axis=1).std() / np.sqrt(len(few))
    assert elbo.mean() < few.mean() - noise < few.mean() + noise < log_p.mean()
    # exp of the bound is p(x) in the mean, whatever K is.
    p, error = np.exp(many), np.exp(many).std(axis=0) / np.sqrt(len(many))
    np.testing.assert_array_less(np.abs(p.mean(axis=0) - np.exp(log_p)), 5 * error)
    assert np.all(error < 0.1 * np.exp(log_p))


@pytest.mark.slow
def test_the_bound_does_not_depend_on_how_many_samples_are_decoded_at_once(monkeypatch):
    whole = repeated_scores(2, samples=5)
    monkeypatch.setattr(vlae, "AT_ONCE", 1)
    np.testing.assert_allclose(repeated_scores(2, samples=5), whole, rtol=1e-5)


def test_images_are_drawn_with_the_integrated_probabilities():
    _, model, params = build(CLASSES)
    cond = {"label": jnp.full(4000, LABEL)}
    drawn = np.asarray(jax.jit(lambda keys: model.sample(params, CTX, keys, cond))(keys_of(4000)))
    assert pooled_chisquare(drawn, 2, integrated()[1]) > 1e-3
    assert pooled_chisquare(drawn, 2, np.zeros(16)) < 1e-6  # the test can fail


@pytest.mark.slow
def test_the_class_reaches_the_prior_the_posterior_and_the_decoder():
    bound_to, _, params = build(CLASSES)
    z, x = np.ones((2, 2), np.float32), np.zeros((2, 2, 2, 1), np.uint8)
    cond = {"label": np.arange(2)}
    for out in (
        vlae.to_eps(bound_to, params, z, cond)[0],
        vlae.posterior(bound_to, params, x, cond)[0],
        vlae.decoder_features(bound_to, params, z, cond),
    ):
        assert np.abs(np.asarray(out[0] - out[1])).max() > 1e-2


def test_the_flow_as_a_prior_and_as_a_part_of_the_posterior_give_one_bound():
    """Section 3.2: the latent eps, with the prior N(0, I), the decoder p(x|f(eps)) and the density of q moved by f^-1,
    whose volume is here the determinant of the Jacobian of f by automatic differentiation."""
    bound_to, _, params = build()
    x, keys = all_images(BINARY.image), keys_of(16, 3)

    def f(eps):
        return vlae.to_z(bound_to, params, eps[None], {})[0]

    @jax.jit
    def run():
        mu, logvar = q = vlae.posterior(bound_to, params, x, {})
        z = mu + jnp.exp(0.5 * logvar) * rng.normal(keys, (2,))
        eps, _ = vlae.to_eps(bound_to, params, z, {})
        z_again = jax.vmap(f)(eps)
        log_p_x = vlae.decoded_log_prob(bound_to, params, z_again, x, {})
        terms = vlae.bound_terms(bound_to, params, keys, q, x, {})
        return *terms, log_p_x, mu, logvar, eps, z_again, jax.vmap(jax.jacobian(f))(eps)

    log_p_x, log_ratio, log_p_x_again, mu, logvar, eps, z, jacobian = (np.asarray(a, np.float64) for a in run())
    _, log_volume = np.linalg.slogdet(jacobian)
    assert np.abs(log_volume).max() > 0.1
    log_q_eps = scipy.stats.norm.logpdf(z, mu, np.exp(0.5 * logvar)).sum(axis=1) + log_volume
    log_prior = scipy.stats.norm.logpdf(eps).sum(axis=1)
    np.testing.assert_allclose(log_ratio, log_prior - log_q_eps, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(log_p_x, log_p_x_again, rtol=1e-3)


# The decoder.


@pytest.mark.parametrize("spec", [ImageSpec(2, 2, 1, 2), ImageSpec(2, 2, 1, 3), ImageSpec(1, 2, 3, 2)], ids=str)
def test_given_the_context_the_probabilities_of_all_images_sum_to_one(spec):
    network = LocalPixelCNN(spec.levels, spec.channels, 12, 2, 1)
    images = all_images(spec)
    context = jnp.asarray(np.random.default_rng(0).standard_normal((1, spec.height, spec.width, 3)), jnp.float32)
    params = random_params(network, spec.shape, context)
    everywhere = jnp.broadcast_to(context, (len(images), *context.shape[1:]))
    log_p = np.asarray(categorical_log_prob(jax.jit(network.apply)({"params": params}, images, everywhere), images))
    np.testing.assert_allclose(np.exp(log_p.astype(np.float64)).sum(), 1.0, atol=1e-5)
    assert np.ptp(log_p) > 1


@pytest.mark.slow
@pytest.mark.parametrize("data,pixel_temperature", [(data_of(4, 6, 1, 5), 1.0), (data_of(4, 4, 3, 3), 0.6)])
def test_samples_are_those_of_the_naive_sampler(data, pixel_temperature):
    """Bit for bit: the network over the whole image for every draw."""
    config = replace(SMALL, window=2, sampling=Sampling(temperature=0.7))
    bound_to, model, params = build(config, data)
    options = {"pixel_temperature": pixel_temperature}
    keys = keys_of(18)
    drawn = np.asarray(jax.jit(lambda keys: model.sample(params, CTX, keys, {}, **options))(keys))

    @jax.jit
    def naive(keys):
        key_eps, key_x = rng.split(keys, 2)
        z = vlae.to_z(bound_to, params, 0.7 * rng.normal(key_eps, (2,)), {})
        context = vlae.decoder_features(bound_to, params, z, {})
        spec = data.image
        arguments = (params["pixelcnn"], key_x, context, spec.shape, spec.levels)
        return sample_naively(bound_to.pixelcnn, *arguments, pixel_temperature)

    np.testing.assert_array_equal(drawn, naive(keys))
    assert len(np.unique(drawn)) == data.image.levels


# Latents, the loss, options.


@pytest.mark.slow
def test_latents_are_the_priors_noise_and_decoding_draws_given_them():
    bound_to, model, params = build(SMALL, data_of(4, 4, 1, 5))
    images = np.random.default_rng(0).integers(0, 5, (6, 4, 4, 1)).astype(np.uint8)
    latents = jax.jit(lambda: model.encode(params, CTX, keys_of(6), images, {}))()
    mu, _ = vlae.posterior(bound_to, params, images, {})
    np.testing.assert_allclose(vlae.to_z(bound_to, params, latents, {}), mu, rtol=1e-3, atol=1e-4)
    decode = jax.jit(lambda keys, latents: model.decode(params, CTX, keys, latents, {}))
    once = np.asarray(decode(keys_of(6), latents))
    np.testing.assert_array_equal(decode(keys_of(6), latents), once)
    assert np.any(np.asarray(decode(keys_of(6, 1), latents)) != once)
    # Without a temperature to speak of, the latents alone tell the image.
    cold = make_model(replace(SMALL, sampling=Sampling(pixel_temperature=1e-6)), data_of(4, 4, 1, 5))
    decode = jax.jit(lambda keys: cold.decode(params, CTX, keys, latents, {}))
    np.testing.assert_array_equal(decode(keys_of(6)), decode(keys_of(6, 1)))


def test_free_bits_are_the_least_that_an_image_pays_for_its_latents():
    images = np.random.default_rng(0).integers(0, 2, (8, 2, 2, 1)).astype(np.uint8)
    batch = {"image": images, "label": np.zeros(8, np.int32)}
    values = (0.0, 0.5, 100.0)

    @jax.jit
    def run():
        bound_to, _, params = build()
        key_z, _ = rng.split(keys_of(8), 2)
        q = vlae.posterior(bound_to, params, images, {})
        models = [build(replace(SMALL, free_bits=free_bits))[1] for free_bits in values]
        losses = [model.phases[0].loss(params, CTX, keys_of(8), batch) for model in models]
        return vlae.bound_terms(bound_to, params, key_z, q, images, {}), losses

    terms, losses = jax.device_get(run())
    kl = -terms.log_ratio
    assert kl.min() < 0.5 < kl.max()  # of one draw; it may be negative
    for free_bits, (loss, (metrics, _)) in zip(values, losses, strict=True):
        assert loss == pytest.approx(np.mean(np.maximum(kl, free_bits) - terms.log_p_x) / 4, rel=1e-5)
        assert metrics["kl"] == pytest.approx(kl.mean(), rel=1e-5)
        assert metrics["elbo"] == pytest.approx(metrics["reconstruction"] - metrics["kl"], rel=1e-5)
        assert metrics["bits_per_dim"] == pytest.approx(-metrics["elbo"] / (4 * np.log(2)), rel=1e-5)


def test_without_a_flow_the_prior_is_a_standard_normal():
    bound_to, model, params = build(replace(SMALL, flow_layers=0))
    assert not jax.tree.leaves(params["prior"])
    z = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    eps, log_det = vlae.to_eps(bound_to, params, z, {})
    np.testing.assert_array_equal(eps, z)
    np.testing.assert_array_equal(log_det, 0)


@pytest.mark.parametrize(
    "options,channels,words",
    [
        ({"latent": 0}, 1, "latent is 0"),
        ({"context": 0}, 1, "context is 0"),
        ({"window": 0}, 1, "window is 0"),
        ({"widths": (4, 4, 4)}, 1, "images are 4x4: 3 convolutional widths need sizes divisible by 8"),
        ({"hidden": (0,)}, 1, "hidden is (0,)"),
        ({"pixel_features": 8}, 3, "pixel_features is 8: it must be divisible by the images' 3 channels"),
        ({"pixel_blocks": -1}, 1, "pixel_blocks is -1"),
        ({"dropout": 1.0}, 1, "dropout is 1.0: it must be at least 0 and below 1"),
        ({"flow_layers": -1}, 1, "flow_layers is -1"),
        ({"flow_units": 0}, 1, "flow_units is 0"),
        ({"flow_depth": 0}, 1, "flow_depth is 0"),
        ({"free_bits": -0.5}, 1, "free_bits is -0.5"),
        ({"free_bits": float("inf")}, 1, "free_bits is inf"),
        ({"scoring": Scoring(samples=0)}, 1, "samples is 0: it must be above zero: set --model.scoring.samples"),
        ({"sampling": Sampling(temperature=0.0)}, 1, "temperature is 0.0: it must be above zero and finite"),
        ({"sampling": Sampling(pixel_temperature=-1.0)}, 1, "set --model.sampling.pixel-temperature"),
        ({"class_conditional": True}, 1, "class_conditional is True, but the data has no labels"),
    ],
)
def test_bad_options_are_one_line(options, channels, words):
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make_model(replace(SMALL, **options), data_of(4, 4, channels, 5))
    assert words in str(caught.value)


def test_bad_options_of_sampling_scoring_and_latents_are_one_line():
    _, model, params = build()
    for name, inputs, options, words in (
        ("sample", (), {"temperature": -1.0}, "temperature is -1.0"),
        ("sample", (), {"pixel_temperature": 0.0}, "pixel_temperature is 0.0: it must be above zero"),
        ("log_prob", (np.zeros((1, 2, 2, 1), np.uint8),), {"samples": 0}, "samples is 0"),
        ("decode", (np.zeros((1, 3), np.float32),), {}, r"latents have shape \(n, 3\): they must be \(n, 2\)"),
    ):
        with pytest.raises(UserError, match=words):
            getattr(model, name)(params, CTX, keys_of(1), *inputs, {}, **options)
