"""The discrete VAE: its likelihood is a density, its loss by hand, its codes are what they decode from; bad options."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from specs import data_of

from jgen.core import keys as rng
from jgen.core.model import Context, ImageSpec
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.vae import dvae
from jgen.prob.relaxed import gumbel_softmax

DATA = data_of(8, 8, 1, 256)
CONFIG = dvae.Config(widths=(8,), blocks=1, num_codes=6, kl_warmup=10, temperature_steps=20)
N = 5


def make_parts(**options):
    config = replace(CONFIG, **options)
    model = dvae.make(config, DATA)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (N, 8, 8, 1)).astype(np.uint8)}
    params, _ = jax.jit(model.init)(jax.random.key(0), batch, {})
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    return config, model, params, batch, rng.image_keys(jax.random.key(1), jnp.arange(N))


@pytest.mark.parametrize("likelihood", ["laplace", "normal"])
def test_the_likelihood_is_a_density_of_the_squeezed_value(likelihood):
    """Over y from 0 to 1, of which images cover EPS to 1 - EPS: integrated by SciPy."""
    config = replace(CONFIG, likelihood=likelihood)

    def density(y):
        x = 2 * (y - dvae.EPS) / (1 - 2 * dvae.EPS) - 1
        return float(np.exp(dvae.log_likelihood(config, np.float64(x), 0.7, np.log(0.4))))

    with jax.default_device(jax.devices("cpu")[0]):
        total, _ = quad(density, 1e-4, 1 - 1e-4, limit=60, points=[1 / (1 + np.exp(-0.7))], epsabs=1e-3)
    assert total == pytest.approx(1.0, abs=3e-3)


@pytest.mark.slow
def test_the_loss_is_that_of_relaxed_codes_at_the_temperature_and_the_weight_of_the_step():
    config, model, params, batch, keys = make_parts(kl_weight=3.0)
    x = batch["image"] / 127.5 - 1.0
    for step, tau, beta in ((0, 1.0, 0.0), (10, 1 / 16 + 15 / 32, 3.0), (5, None, 1.5), (99, 1 / 16, 3.0)):
        loss, (metrics, _) = jax.jit(model.phases[0].loss)(params, Context(jnp.int32(step)), keys, batch)
        assert tau is None or float(metrics["temperature"]) == pytest.approx(tau, rel=1e-5)
        assert float(metrics["kl_weight"]) == pytest.approx(beta)
    logits = jax.jit(dvae.Encoder(config).apply)({"params": params["encoder"]}, jnp.asarray(x, jnp.float32))
    z = gumbel_softmax(keys, logits, 1 / 16)
    m, log_b = jax.jit(dvae.Decoder(config, 1).apply)({"params": params["decoder"]}, z)
    y = np.asarray(0.8 * (x + 1) / 2 + 0.1)
    nll = np.log(2) + log_b + np.abs(np.log(y / (1 - y)) - m) / np.exp(log_b) + np.log(y * (1 - y))
    q = np.asarray(jax.nn.softmax(logits), np.float64)
    kl = np.sum(q * np.log(np.maximum(q * 6, 1e-30)), axis=(1, 2, 3))
    wanted = np.mean(np.asarray(nll).sum((1, 2, 3)) + 3 * kl) / 64
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


def test_codes_decode_to_the_reconstruction_that_validation_scores():
    config, model, params, batch, keys = make_parts(scale=0.3)
    ctx = Context(jnp.int32(0))
    codes = jax.jit(lambda p: model.encode(p, ctx, keys, batch["image"], {}))(params)
    assert model.codes == (ImageSpec(4, 4, 1, 6),) and codes.shape == (N, 4, 4, 1) and codes.dtype == jnp.int32
    assert len(np.unique(codes)) > 2
    images = jax.jit(lambda p, codes: model.decode(p, ctx, keys, codes, {}))(params, codes)
    mse = np.mean(np.square((np.asarray(images) - batch["image"].astype(np.float64)) / 127.5), axis=(1, 2, 3))
    np.testing.assert_allclose(jax.jit(model.validate)(params, ctx, keys, batch)["mse"], mse, rtol=0.03)


def test_samples_are_images_of_uniform_codes():
    config, model, params, batch, _ = make_parts()
    keys = rng.image_keys(jax.random.key(3), jnp.arange(N))
    codes = rng.randint(keys, 0, 6, (4, 4))[..., None]
    assert len(np.unique(np.asarray(codes))) == 6
    images = jax.jit(lambda p: model.sample(p, Context(jnp.int32(0)), keys, {}))(params)
    decoded = jax.jit(lambda p: model.decode(p, Context(jnp.int32(0)), keys, codes, {}))(params)
    np.testing.assert_array_equal(images, decoded)


@pytest.mark.parametrize("options,words", [
    ({"widths": (8, 8, 8, 8)}, "4 convolutional widths need sizes divisible by 16"),
    ({"num_codes": 0}, "num_codes is 0"),
    ({"kl_weight": -1.0}, "kl_weight is -1.0: it must be zero or above"),
    ({"kl_warmup": -1}, "kl_warmup is -1"),
    ({"scale": float("inf")}, "scale is inf"),
    ({"temperature": 0.0}, "temperature is 0.0: it must be above 0 and at most 1"),
    ({"temperature_steps": 0}, "temperature_steps is 0"),
])  # fmt: skip
def test_bad_options_are_one_line(options, words):
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make_model(replace(CONFIG, **options), DATA)
    assert words in str(caught.value)
