"""TarFlow: its cached sampler beside a naive one, causality, guidance, denoising; see test_flow.py for its density."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params
from specs import data_of

from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.flow import tarflow
from jgen.models.flow.dequantised import preprocess
from jgen.nn.dit import from_patches, to_patches
from jgen.prob.dequantisation import quantise

DATA = data_of(4, 6, 1, 16, num_classes=3)
CONFIG = tarflow.Config(blocks=2, layers=2, features=8, heads=2, hidden=12)
CTX = Context(jnp.int32(0))
N, LABEL = 6, np.arange(6, dtype=np.int32) % 3
KEYS = rng.image_keys(jax.random.key(4), jnp.arange(N))


def batch(seed=0):
    image = np.random.default_rng(seed).integers(0, 16, (N, *DATA.image.shape)).astype(np.uint8)
    return {"image": image, "label": LABEL}


def params_of(model, gain=0.4):
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), batch(), {})
    params = normal_params(shapes, gain=gain)
    attention = params["flow"]["blocks"]["transformer"]["blocks_0"]["query_key_value"]
    attention["kernel"] = 10 * attention["kernel"]  # attention far from even
    return params


def block(params, number):
    return {"params": jax.tree.map(lambda x: x[number], params["flow"]["blocks"])}


def with_temperature(variables, temperature):
    """Parameters of a block whose queries, and so the logits of its attention, are divided by the temperature."""
    queries = jnp.where(jnp.arange(3 * CONFIG.features) < CONFIG.features, 1 / temperature, 1.0)

    def scaled(path, x):
        is_query = "query_key_value" in jax.tree_util.keystr(path)
        return x * queries.reshape((1,) * (x.ndim - 1) + (-1,)) if is_query else x

    return jax.tree_util.tree_map_with_path(scaled, variables)


def invert_naively(config, params, z, label, o):
    """Images of latents: for every patch of every block, the network over all patches."""
    layer, p = tarflow.make_layer(config, DATA), config.patch
    x, null = z.reshape(N, -1, z.shape[-1]), None if label is None else jnp.full_like(label, DATA.num_classes)
    for number in reversed(range(config.blocks)):
        z, x = x[:, ::-1], jnp.zeros_like(x)

        def patch(i, x, z=z, number=number):
            w = (o.guidance_scale - 1) * (i / (layer.positions - 1) if o.increase_guidance else 1)
            own = block(params, number)
            strong = layer.apply(own, x, label, method="moments")
            weak = layer.apply(with_temperature(own, o.attention_temperature), x, null, method="moments")
            mu, alpha = (s[:, i] + w * (s[:, i] - u[:, i]) for s, u in zip(strong, weak))
            return x.at[:, i].set(mu + jnp.exp(alpha) * z[:, i])

        x = jax.lax.fori_loop(0, layer.positions, patch, x)
    x = from_patches(x, (DATA.image.height // p, DATA.image.width // p), p)
    actnorm = params["flow"]["actnorm"]
    return (x - actnorm["bias"].reshape(1, 1, 1, -1)) / jnp.exp(actnorm["log_scale"]).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("options", [
    {"guidance_scale": 2.5, "attention_temperature": 0.3},
    pytest.param(
        {"guidance_scale": 3.0, "increase_guidance": True, "temperature": 0.7, "denoise": False}, marks=pytest.mark.slow
    ),
])  # fmt: skip
def test_the_sampler_with_a_cache_draws_what_a_naive_one_does(options):
    model = make_model(CONFIG, DATA)
    params, o = params_of(model), tarflow.Sampling(**options)

    def naively(params):
        z = o.temperature * rng.normal(rng.split(KEYS, 1)[0], (2, 3, 4))
        x = invert_naively(CONFIG, params, z, LABEL, o)
        y, _ = preprocess(x, 16, 0.0, inverse=True)
        if o.denoise:  # sigma in levels is 0.05 of half the range
            log_p, gradient = jax.vjp(lambda y: model.log_density(params, CTX, None, y, {"label": LABEL}), y)
            y = y + (0.05 * 8) ** 2 * gradient(jnp.ones_like(log_p))[0]
        return quantise(y, 16)

    images = jax.jit(lambda params: model.sample(params, CTX, KEYS, {"label": LABEL}, **options))(params)
    np.testing.assert_array_equal(images, jax.jit(naively)(params))
    assert len(np.unique(images.reshape(N, -1), axis=0)) == N and np.ptp(images) > 4


@pytest.mark.slow
def test_an_unconditional_model_is_guided_by_the_temperature_of_its_attention():
    config = replace(CONFIG, class_conditional=False)
    model, o = make_model(config, DATA), tarflow.Sampling(guidance_scale=3.0, attention_temperature=0.2, denoise=False)
    params, z = params_of(model), rng.normal(rng.split(KEYS, 1)[0], (2, 3, 4))
    images = jax.jit(lambda params: model.sample(params, CTX, KEYS, {}, **vars(o)))(params)
    y, _ = preprocess(jax.jit(lambda params: invert_naively(config, params, z, None, o))(params), 16, 0.0, inverse=True)
    np.testing.assert_array_equal(images, quantise(y, 16))
    assert np.any(images != model.sample(params, CTX, KEYS, {}, **vars(replace(o, guidance_scale=1.0))))


@pytest.mark.slow
def test_moments_depend_on_earlier_patches_alone():
    layer = tarflow.make_layer(CONFIG, DATA)
    variables, x = block(params_of(make_model(CONFIG, DATA)), 0), to_patches(batch()["image"] / np.float32(16), 2)
    jacobian = jax.jacrev(lambda x: jnp.stack(layer.apply(variables, x[None], LABEL[:1], method="moments")))(x[0])
    depends = np.abs(jacobian).max(axis=(0, 1, 3, 5)) > 1e-9  # moments of patch i on patch j
    np.testing.assert_array_equal(depends, np.tril(np.ones((6, 6), bool), -1))


@pytest.mark.slow
def test_no_class_is_the_mean_of_all_classes_and_blocks_start_as_the_identity():
    model, layer = make_model(CONFIG, DATA), tarflow.make_layer(CONFIG, DATA)
    start, _ = jax.jit(model.init)(jax.random.key(0), batch(), {})
    x = to_patches(batch()["image"] / np.float32(16) - np.float32(0.5), 2)
    z, log_det = layer.apply(block(start, 0), x, LABEL)
    np.testing.assert_array_equal(z, x[:, ::-1])
    np.testing.assert_array_equal(log_det, 0)
    variables = block(params_of(model), 1)
    null = layer.apply(variables, jnp.array([3]), method="context")
    by_class = layer.apply(variables, jnp.arange(3), method="context")
    np.testing.assert_allclose(null[0], by_class.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_denoising_a_gaussian_is_its_posterior_mean():
    """With blocks at their start and no actnorm the flow is a standard normal of y / levels - 1/2: x is E[x | y] of the
    Gaussian x beneath it."""
    model = make_model(CONFIG, DATA)
    start, _ = jax.jit(model.init)(jax.random.key(0), batch(), {})
    start["flow"]["actnorm"] = jax.tree.map(jnp.zeros_like, start["flow"]["actnorm"])
    tar = tarflow.make_tarflow(CONFIG, DATA)
    y = np.random.default_rng(1).normal(8, 16, (N, *DATA.image.shape))
    denoised = tarflow.denoised(tar, start, CTX, jnp.asarray(y, jnp.float32), {"label": LABEL})
    std, total = 0.05 * 8, 16.0
    np.testing.assert_allclose(denoised, 8 + (total**2 - std**2) / total**2 * (y - 8), rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_noise_of_training_and_labels_that_are_dropped():
    """The loss is the mean over the noise of the density of noisy images, with and without their labels."""
    config = replace(CONFIG, label_dropout=0.5)
    model = make_model(config, DATA)
    params, image = params_of(model), batch()["image"][:1].repeat(4000, 0)
    params["flow"]["blocks"]["classes"] *= 20.0
    keys, label = rng.image_keys(jax.random.key(2), jnp.arange(4000)), jnp.ones(4000, jnp.int32)
    y = image + 0.5 + 0.4 * np.random.default_rng(3).standard_normal(image.shape)

    @jax.jit
    def both(params, y):
        loss, _ = model.phases[0].loss(params, CTX, keys, {"image": image, "label": label})
        return loss, [model.log_density(params, CTX, None, y, {"label": one}) for one in (label, label * 0 + 3)]

    loss, nats = both(params, jnp.asarray(y, jnp.float32))
    bits = -np.concatenate(nats) / (DATA.image.size * np.log(2))
    assert abs(loss - bits.mean()) < 4 * bits.std() * (2 / 4000) ** 0.5
    by_label = [-np.mean(one) / (DATA.image.size * np.log(2)) for one in nats]
    assert all(abs(loss - one) > 8 * bits.std() * (2 / 4000) ** 0.5 for one in by_label)


@pytest.mark.parametrize("options,words", [
    ({"patch": 4}, ["patch is 4", "4x6"]),
    ({"blocks": 0}, ["blocks is 0"]),
    ({"heads": 3}, ["features is 8", "3 heads"]),
    ({"noise": "odd"}, ["noise is 'odd'", "uniform"]),
    ({"noise_std": 0.0}, ["noise_std is 0.0"]),
    ({"logit_alpha": 1e-6}, ["logit_alpha is 1e-06", "noise is uniform"]),
    ({"label_dropout": 1.0}, ["label_dropout is 1.0"]),
    ({"sampling": tarflow.Sampling(guidance_scale=-1.0)}, ["guidance_scale is -1.0", "set --model.sampling.guidance"]),
    ({"sampling": tarflow.Sampling(guidance_scale=2.0), "label_dropout": 0.0}, ["guidance_scale is 2.0", "must be 1"]),
    ({"sampling": tarflow.Sampling(attention_temperature=0.0)}, ["attention_temperature is 0.0"]),
])  # fmt: skip
def test_configurations_that_no_flow_can_be_made_of(options, words):
    with pytest.raises(UserError) as error:
        make_model(replace(CONFIG, **options), DATA)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
