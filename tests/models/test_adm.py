"""ADM's parts against what is known: paper's sizes, learned variances, guidance by a known classifier, small images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import mistake
from gaussians import PROCESSES, keys_of
from specs import data_of
from stub_network import CTX, gaussian_images, stub_network

from jgen.core.model import ArraySpec, Context, DataSpec, FrozenModel, ImageSpec
from jgen.models.diffusion import adm, ddpm, edm, noisy_classifier
from jgen.nn import unet
from jgen.prob.diffusion_bound import interpolated, log_variances, posterior, prior_kl
from jgen.prob.pixels import to_float
from jgen.prob.process import per_image, scales
from jgen.samplers.diffusion import Sampling, draw
from jgen.samplers.guidance import by_classifier

# Dhariwal & Nichol 2021, table 4 and the U-Net of 512: width, its multiples by level, blocks a level, millions.
PAPERS = {
    64: (192, (1, 2, 3, 4), 3, 296),
    128: (256, (1, 1, 2, 3, 4), 2, 422),
    256: (256, (1, 1, 2, 2, 4, 4), 2, 554),
    512: (256, (0.5, 1, 1, 2, 2, 4, 4), 2, 559),
}
SIZES = dataclasses.replace(unet.TINY, architecture="adm", dropout=0.0)
T = 6


@pytest.mark.slow
@pytest.mark.parametrize("size", PAPERS)
def test_the_papers_sizes(size):
    width, multiples, blocks, millions = PAPERS[size]
    channels = tuple(int(width * m) for m in multiples)
    config = unet.Config(channels, blocks, (32, 16, 8), head_dim=64, architecture="adm", base=width)
    network = unet.make_unet(config, ImageSpec(size, size, 3, 256), 1000, 6)
    x = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.ones(1), jnp.zeros(1, jnp.int32), None)
    assert sum(x.size for x in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.51)


def variance_model(monkeypatch, answer, **options):
    network = stub_network(monkeypatch)
    network.answer = answer
    config = ddpm.Config(num_timesteps=T, bound_variance="learned", **options)
    return ddpm.make(config, data_of(2, 2, 1, 256, 3)), network


@pytest.mark.slow
def test_the_ends_of_a_learned_variance_are_those_of_the_chain(monkeypatch):
    """v = 1 and v = -1 give the bounds of fixed variances; in between, the logarithms are interpolated."""
    images, _ = gaussian_images(5, ImageSpec(2, 2, 1, 256))
    cond, keys = {"label": jnp.zeros(5, jnp.int32)}, keys_of(5)

    def bound(**options):
        model = ddpm.make(ddpm.Config(num_timesteps=T, **options), data_of(2, 2, 1, 256, 3))
        return np.asarray(jax.jit(model.log_prob)({"unet": {}}, CTX, keys, images, cond))

    for v, name in ((1.0, "beta"), (-1.0, "beta_tilde")):
        model, network = variance_model(
            monkeypatch, lambda x, t, label, v=v: jnp.concatenate([0.1 * x, jnp.full_like(x, v)], -1)
        )
        learned = np.asarray(jax.jit(model.log_prob)({"unet": {}}, CTX, keys, images, cond))
        network.answer = lambda x, t, label: 0.1 * x
        np.testing.assert_allclose(learned, bound(bound_variance=name), rtol=1e-5)
    assert interpolated(jnp.float32(0.5), 2.0, 1.0) == 1.75


@pytest.mark.slow
def test_the_hybrid_loss_trains_the_variance_alone_by_the_bound(monkeypatch):
    """Its gradient to the prediction is that of the plain loss, and to v that of lambda T L_t."""
    images, _ = gaussian_images(400, ImageSpec(2, 2, 1, 256))
    batch = {"image": images, "label": np.zeros(400, np.int32)}

    def losses(model, network, a, v, outputs):
        network.answer = lambda x, t, label: jnp.concatenate([a * x, jnp.full_like(x, v)][:outputs], -1)
        loss, (metrics, _) = model.phases[0].loss({"unet": {}}, CTX, keys_of(400), batch)
        return loss, metrics

    model, network = variance_model(monkeypatch, None)
    plain = ddpm.make(ddpm.Config(num_timesteps=T), data_of(2, 2, 1, 256, 3))

    @jax.jit
    def gradients(a, v):
        both = jax.grad(lambda a, v: losses(model, network, a, v, 2)[0], (0, 1))(a, v)
        plain_a = jax.grad(lambda a: losses(plain, network, a, 0.0, 1)[0])(a)
        return both, plain_a, jax.grad(lambda v: losses(model, network, a, v, 2)[1]["bound"])(v)

    (gradient_a, gradient_v), plain_a, bound = gradients(0.3, 0.2)
    np.testing.assert_allclose(gradient_a, plain_a, rtol=1e-4)
    np.testing.assert_allclose(gradient_v, ddpm.HYBRID * bound, rtol=1e-4)
    # E T L_t is the sum of L_1 .. L_T: log_prob without the prior's term, in bits a dimension.
    network.answer = lambda x, t, label: jnp.concatenate([0.3 * x, jnp.full_like(x, 0.2)], -1)
    expected = jax.jit(model.log_prob)({"unet": {}}, CTX, keys_of(400), images, {"label": batch["label"]})
    process = model.functions["process"]({}, CTX)
    bits = -(np.asarray(expected) + np.asarray(prior_kl(process, to_float(images, 256)))) / (4 * np.log(2))
    validate = jax.jit(model.validate)
    drawn = np.concatenate([validate({"unet": {}}, CTX, keys_of(400, seed), batch)["bound"] for seed in range(10)])
    assert abs(drawn.mean() - bits.mean()) < 5 * (drawn.std() / 4000**0.5 + bits.std() / 20)


def test_ancestral_samples_have_the_variance_that_the_network_says():
    """One step from known noise to an earlier time, against the normal distribution that v stands for."""
    process, n, v = PROCESSES["discrete"], 4000, 0.3
    times = (0.5, 0.4)

    def denoise(x_t, t, cond):
        return jnp.concatenate([0 * x_t, jnp.full_like(x_t, v)], -1)

    o = Sampling(sampler="ancestral", variance="learned", times=times, clip=False)
    noise = jax.random.normal(jax.random.key(0), (n, 1, 1, 1))
    seen = []

    def spy(x_t, t, cond):
        jax.debug.callback(lambda x, t: seen.append((np.asarray(t)[0], np.asarray(x))), x_t, t)
        return denoise(x_t, t, cond)

    jax.block_until_ready(draw(spy, {}, process, o, noise, keys_of(n)))
    jax.effects_barrier()
    x_s = next(x for t, x in seen if abs(t - 0.4) < 1e-6)
    c = posterior(process, np.array(times[:1]), np.array(times[1:]))
    start = float(np.sqrt(process.alpha(0.5) ** 2 + process.sigma(0.5) ** 2))
    log_beta, log_beta_tilde = np.log(c.beta), np.log(c.beta_tilde)
    variance = np.exp(0.65 * log_beta + 0.35 * log_beta_tilde)
    standard = (x_s - c.xt * start * np.asarray(noise)) / np.sqrt(variance)
    assert scipy.stats.kstest(standard.ravel(), "norm").pvalue > 1e-3
    decreasing = posterior(process, np.array([0.5, 0.4]), np.array([0.4, 0.0]))
    assert log_variances(decreasing)[1][1] == log_variances(decreasing)[1][0]  # of the step to clean data


@pytest.mark.parametrize("name", ["discrete", "edm", "linear"])
def test_a_known_classifier_tilts_a_known_gaussian(name):
    """Data N(0, 0.4^2), p(y = 1 | x_0) ~ exp(x_0 b): the guided density is N(s b 0.16, 0.4^2) at scale s."""
    process, std, b, scale, n = PROCESSES[name], 0.4, 1.5, 2.0, 3000

    def denoiser(x_t, t, cond):
        alpha, sigma = scales(process, t, x_t)
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x_t

    def logits(x, log_snr):
        """log E[exp(b x_0) | x_t] is linear in x_t; a second class, of exp(-20), leaves log p(y = 1) as it is."""
        ratio = per_image(jnp.exp(2 * log_snr), x)  # alpha^2 / sigma^2, of x = x_t / sqrt(alpha^2 + sigma^2)
        alpha = jnp.sqrt(ratio / (1 + ratio))
        mean = alpha * std**2 / (alpha**2 * std**2 + 1 - alpha**2) * x
        first = b * jnp.sum(mean, axis=(1, 2, 3)) - 30.0
        return jnp.stack([jnp.zeros_like(first), first], axis=1)

    def guided(x_t, t, cond):
        known = by_classifier(lambda x, t: denoiser(x, t, {}), logits, jnp.ones(n, jnp.int32), process, scale)
        return known(x_t, t)

    steps = "karras" if name == "edm" else "uniform"
    o = Sampling(sampler="heun", steps=40, spacing=steps, low=0.002, clip=False)
    noise = jax.random.normal(jax.random.key(0), (n, 1, 1, 1))
    x = np.asarray(jax.jit(lambda noise: draw(guided, {}, process, o, noise, keys_of(n))[0])(noise)).ravel()
    tolerance = 4 * std / n**0.5 + 0.01
    assert abs(x.mean() - scale * b * std**2) < tolerance and abs(x.std() - std) < tolerance


def classifier_case(num_classes=3, size=4):
    data = data_of(size, size, 1, 256, num_classes)
    config = noisy_classifier.Config((8, 8), 1, (size // 2,), head_dim=8, groups=4, dropout=0.0)
    model = noisy_classifier.make(config, data)
    batch = {"image": np.zeros((2, size, size, 1), np.uint8), "label": np.array([0, 1], np.int32)}
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    return model, FrozenModel(params, extra)


@pytest.mark.slow
def test_any_denoiser_takes_a_classifier_of_its_classes(monkeypatch):
    """An unconditional one becomes conditional; scale 0 is the model alone, to the bit."""
    stub_network(monkeypatch)
    classifier, frozen = classifier_case()
    data = data_of(4, 4, 1, 256, 3)
    plain = edm.make(edm.Config(class_conditional=False), data)
    guided = edm.make(edm.Config(class_conditional=False), data, classifier=classifier)
    assert plain.conditions == () and guided.conditions == ("label",)
    ctx = Context(jnp.int32(0), frozen={"classifier": frozen})
    cond = {"label": jnp.array([0, 1, 2])}
    sample = jax.jit(lambda scale: guided.sample({"unet": {}}, ctx, keys_of(3), cond, steps=3, classifier_scale=scale))
    alone = plain.sample({"unet": {}}, ctx, keys_of(3), {}, steps=3)
    np.testing.assert_array_equal(
        guided.sample({"unet": {}}, ctx, keys_of(3), cond, steps=3, classifier_scale=0.0), alone
    )
    assert np.any(np.asarray(sample(50.0)) != np.asarray(alone))
    mistake(lambda: edm.make(edm.Config(), data, classifier=classifier_case(2)[0]), "2 classes", "the data has 3")
    mistake(lambda: edm.make(edm.Config(), data, classifier=classifier_case(3, 8)[0]), "(8, 8, 1)", "(4, 4, 1)")
    mistake(lambda: edm.make(edm.Config(), data, classifier=plain), "classifier is a edm", "noisy_classifier")
    options = dataclasses.replace(plain.sampling, classifier_scale=2.0)
    mistake(lambda: plain.check_sampling(options), "classifier_scale is 2.0", "--frozen.classifier")
    learned = dataclasses.replace(plain.sampling, sampler="ancestral", variance="learned")
    mistake(lambda: plain.check_sampling(learned), "variance is learned")
    mistake(lambda: noisy_classifier.make(noisy_classifier.Config(), data_of(4, 4, 1, 256)), "needs data with classes")
    mistake(lambda: adm.make(adm.Config(ddpm.Config()), data), "architecture adm")


@pytest.mark.slow
def test_the_small_image_reaches_every_pixel_near_it():
    """An upsampler's output depends on the low-resolution image, enlarged by linear interpolation."""
    image = ImageSpec(4, 4, 1, 256)
    fields = {"label": ArraySpec((), "int32", 3), "low_resolution": ArraySpec((2, 2, 1), "uint8", 256)}
    model = adm.make(adm.Config(ddpm.Config(network=SIZES, num_timesteps=T)), DataSpec(image, fields))
    assert model.conditions == ("label", "low_resolution")
    small = np.array([[0, 255], [255, 0]], np.uint8).reshape(1, 2, 2, 1)
    batch = {"image": np.zeros((1, 4, 4, 1), np.uint8), "label": np.zeros(1, np.int32), "low_resolution": small}
    params, _ = jax.jit(model.init)(jax.random.key(0), batch, {})
    params = jax.tree.map(lambda x: x + 0.1 * np.cos(np.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    assert params["unet"]["conv_in"]["kernel"].shape[2] == 2

    @jax.jit
    def denoised(small):
        cond = {"label": jnp.zeros(1, jnp.int32), "low_resolution": small}
        return model.functions["denoise"](params, CTX, jnp.zeros((1, 4, 4, 1)), jnp.array([0.5]), cond)

    gradient = jax.jacobian(denoised)(small.astype(np.float32))
    assert np.all(np.any(np.asarray(gradient) != 0, axis=(5, 6, 7)))
