"""PixelIQN: its quantile functions, what they depend on, and samples that have the distribution which these give."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import all_images, pooled_chisquare
from naive_autoregressive import normal_params, sample_by_draw_naively
from specs import data_of

from jgen.core import keys as rng
from jgen.core.generate import require_capability, sample_images
from jgen.core.model import Context
from jgen.errors import NotSupported, UserError
from jgen.experiment import make_model
from jgen.models.autoregressive import pixel_iqn
from jgen.nn.embeddings import cosine_embedding
from jgen.nn.quantile_head import QuantileHead
from jgen.prob.pixels import to_float
from jgen.samplers import autoregressive

CTX = Context(jnp.int32(0))
CLASSES = 2
SMALL = pixel_iqn.Config(features=6, blocks=1, hidden=6, quantile_features=8, cosines=8, class_conditional=True)
SIZES = {"3 levels 1x3": (1, 3, 1, 3), "RGB 1x1, 3 levels": (1, 1, 3, 3)}


def make(height, width, channels, levels, **options):
    """(system, model, parameters far from their start, whose quantile functions go through all levels)."""
    data, config = data_of(height, width, channels, levels, CLASSES), replace(SMALL, **options)
    model = make_model(config, data)
    batch = {"image": np.zeros((1, *data.image.shape), np.uint8), "label": np.zeros(1, np.int32)}
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), batch, {})
    system, params = model.sample.args[0], normal_params(shapes, gain=2.0)
    head, gen = params["pixelcnn"]["head"], np.random.default_rng(0)
    features, tau = (gen.normal(size=(200, config.quantile_features)), np.linspace(0, 1, 200))
    q = system.head.apply({"params": head}, features.astype(np.float32), tau.astype(np.float32))
    scale = 1 / float(jnp.std(q))
    last = head["value"]
    head["value"] = {"kernel": scale * last["kernel"], "bias": scale * (last["bias"] - jnp.mean(q))}
    return system, model, params


# The quantile function.


def test_the_embedding_is_of_cosines():
    tau = np.random.default_rng(0).uniform(size=(3, 4)).astype(np.float32)
    expected = np.cos(np.pi * tau[..., None] * np.arange(6))
    np.testing.assert_allclose(cosine_embedding(jnp.asarray(tau), 6), expected, atol=1e-5)
    np.testing.assert_array_equal(cosine_embedding(jnp.float32(1.0), 4), [1, -1, 1, -1])


def test_the_head_is_its_formula():
    head, gen = QuantileHead(features=5, layers=2, cosines=7), np.random.default_rng(0)
    features, tau = gen.normal(size=(3, 1, 5)).astype(np.float32), gen.uniform(size=(3, 4)).astype(np.float32)
    params = normal_params(jax.eval_shape(head.init, jax.random.key(0), features, tau)["params"])
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    phi = np.maximum(np.cos(np.pi * tau[..., None] * np.arange(7)) @ p["embed"]["kernel"] + p["embed"]["bias"], 0)
    h = features * phi
    for layer in ("hidden_0", "hidden_1"):
        h = np.maximum(h @ p[layer]["kernel"] + p[layer]["bias"], 0)
    expected = (h @ p["value"]["kernel"] + p["value"]["bias"])[..., 0]
    np.testing.assert_allclose(head.apply({"params": params}, features, tau), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_value_depends_on_the_sub_pixels_before_it_and_on_its_own_tau_alone(channels):
    shape = (3, 4, channels)
    system, _, params = make(*shape, 3, features=12, hidden=12)
    gen = np.random.default_rng(0)
    by_x, by_tau = False, False

    @jax.jit
    def jacobians(params, x, tau):
        def values(x, tau):
            return pixel_iqn.quantile_values(system, params, x[None], tau[None], {"label": jnp.zeros(1, jnp.int32)})[0]

        return jax.jacfwd(values, (0, 1))(x, tau)  # in reverse mode, JAX 0.10 compiles it to NaN on CPU

    for seed in range(3):  # a ReLU may hide a path in one draw
        x, tau = gen.uniform(0, 2, shape).astype(np.float32), gen.uniform(size=(*shape, 2)).astype(np.float32)
        x_jacobian, tau_jacobian = jacobians(normal_params(params, seed), x, tau)
        by_x, by_tau = by_x | (np.abs(x_jacobian).sum(3) > 0), by_tau | (np.asarray(tau_jacobian) != 0)
    size = 12 * channels
    np.testing.assert_array_equal(by_x.reshape(size, size), np.tri(size, k=-1, dtype=bool))
    np.testing.assert_array_equal(by_tau.reshape(2 * size, 2 * size), np.eye(2 * size, dtype=bool))


# Training.


def test_the_loss_is_the_mean_of_the_formula():
    system, model, params = make(1, 3, 1, 3, kappa=0.1)
    images = all_images(model.images)
    batch = {"image": images, "label": np.arange(len(images), dtype=np.int32) % CLASSES}
    keys = rng.image_keys(jax.random.key(0), jnp.arange(len(images)))
    key_tau, _ = rng.split(keys, 2)
    tau = rng.uniform(key_tau, (1, 3, 1, 4))

    @jax.jit
    def run(params):
        q = pixel_iqn.quantile_values(system, params, images, tau, {"label": batch["label"]})
        scores = model.validate(params, CTX, key_tau, batch)
        return q, scores["quantile_loss"], model.phases[0].loss(params, CTX, keys, batch)

    q, scores, (loss, (metrics, extra)) = run(params)
    u = images[..., None].astype(np.float64) - 1 - np.asarray(q)  # three levels: -1, 0, 1
    size = np.where(np.abs(u) <= 0.1, u**2 / 0.2, np.abs(u) - 0.05)
    expected = np.mean(np.where(u < 0, 1 - tau, tau) * size, axis=(1, 2, 3, 4))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-4)
    assert metrics == {} and extra == {} and model.best == ("quantile_loss", "min")


# Sampling.


def log_probabilities(system, params, label):
    """log of the probability of each image, in the order of `all_images`: of each of its values, the part of (0, 1) in
    which the quantile function given the values before it rounds to it."""
    spec = system.data.image
    tau = (np.arange(4000) + 0.5) / 4000
    images = all_images(spec)
    all_tau = jnp.broadcast_to(jnp.asarray(tau, jnp.float32), (len(images), *spec.shape, 4000))
    cond = {"label": jnp.full(len(images), label)}
    q = np.asarray(jax.jit(lambda p: pixel_iqn.quantile_values(system, p, images, all_tau, cond))(params))
    nearest = np.abs(q[..., None] - np.asarray(to_float(jnp.arange(spec.levels), spec.levels))).argmin(-1)
    with np.errstate(divide="ignore"):
        return np.log(np.mean(nearest == images[..., None], axis=-1)).sum((1, 2, 3))


@pytest.mark.parametrize("size", SIZES)
def test_frequencies_of_samples_are_those_of_the_quantile_functions(size):
    system, model, params = make(*SIZES[size])
    n, label = 4000, 1
    log_p = [log_probabilities(system, params, c) for c in range(CLASSES)]
    assert np.exp(log_p[label]).sum() == pytest.approx(1, abs=1e-6)
    images = sample_images(model, params, CTX, jax.random.key(3), n, cond={"label": label}, batch_size=n)
    assert pooled_chisquare(images, model.images.levels, log_p[label]) > 1e-3
    assert pooled_chisquare(images, model.images.levels, np.logaddexp(*log_p)) < 1e-6  # the test can fail


@pytest.mark.slow
@pytest.mark.parametrize("shape,levels,batch", [((4, 3, 3), 5, 19), ((5, 4, 1), 2, 4)])
def test_the_cached_sampler_draws_what_the_naive_one_draws(shape, levels, batch):
    system, model, params = make(*shape, levels)
    keys, cond = rng.image_keys(jax.random.key(1), jnp.arange(batch)), {"label": jnp.arange(batch) % CLASSES}
    trunk, draw = params["pixelcnn"]["trunk"], pixel_iqn.make_draw(system, params)

    def naive(images=None, mask=None):
        given = (keys, cond["label"], shape, draw, images, mask)
        return np.asarray(jax.jit(lambda p: sample_by_draw_naively(system.trunk, p, *given))(trunk))

    drawn = np.asarray(jax.jit(lambda p: model.sample(p, CTX, keys, cond))(params))
    np.testing.assert_array_equal(drawn, naive())
    assert drawn.dtype == np.uint8 and len(np.unique(drawn)) == levels
    # Completion: another prefix for each image, of the first nothing.
    height, width, _ = shape
    images = np.random.default_rng(3).integers(0, levels, (batch, *shape)).astype(np.uint8)
    count = np.arange(batch) * height * width // batch
    mask = np.arange(height * width).reshape(1, height, width) < count.reshape(-1, 1, 1)
    completed = np.asarray(jax.jit(lambda p: model.inpaint(p, CTX, keys, images, mask, cond))(params))
    np.testing.assert_array_equal(completed, naive(jnp.asarray(images), jnp.asarray(mask)))
    np.testing.assert_array_equal(completed[mask], images[mask])
    np.testing.assert_array_equal(completed[0], drawn[0])
    assert np.any(completed[~mask] != images[~mask])


def test_chunks_of_the_batch_do_not_change_an_image(monkeypatch):
    _, model, params = make(3, 3, 1, 5)
    keys, cond = rng.image_keys(jax.random.key(1), jnp.arange(19)), {"label": jnp.arange(19) % CLASSES}
    chunks = np.asarray(jax.jit(lambda p: model.sample(p, CTX, keys, cond))(params))
    monkeypatch.setattr(autoregressive, "CHUNK", 19)
    np.testing.assert_array_equal(jax.jit(lambda p: model.sample(p, CTX, keys, cond))(params), chunks)


# What it cannot do, and bad input.


def test_it_has_no_likelihood_and_says_why():
    _, model, _ = make(2, 2, 1, 2)
    assert model.likelihood == "none" and model.log_prob is None
    for name in ("log_prob", "classify"):
        with pytest.raises(NotSupported, match=f"pixel_iqn cannot {name}: .*quantile regression.*can sample, inpaint"):
            require_capability(model, name)
    with pytest.raises(UserError, match="mask keeps the pixel at row 1, column 0"):
        model.check_mask(np.array([[True, False], [True, True]]))


@pytest.mark.parametrize(
    "options,words",
    [
        ({"features": 7}, "features is 7: it must be divisible by the images' 3 channels"),
        ({"hidden": 8}, "hidden is 8: it must be divisible by the images' 3 channels"),
        ({"kernel": 4}, "kernel is 4: it must be odd and 3 or more"),
        ({"quantile_features": 0}, "quantile_features is 0: it must be above zero"),
        ({"quantile_layers": 0}, "quantile_layers is 0: it must be above zero"),
        ({"cosines": 0}, "cosines is 0: it must be above zero"),
        ({"quantiles": -1}, "quantiles is -1: it must be above zero"),
        ({"kappa": -0.1}, "kappa is -0.1: it must be zero or above, and finite"),
        ({"kappa": float("nan")}, "kappa is nan: it must be zero or above, and finite"),
        ({"dropout": 1.0}, "dropout is 1.0: it must be at least 0 and below 1"),
    ],
)
def test_configurations_that_no_model_can_be_made_of(options, words):
    with pytest.raises(UserError) as caught:
        make(2, 2, 3, 3, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="class_conditional is True, but the data has no labels"):
        make_model(SMALL, data_of(4, 4, 1, 2))
