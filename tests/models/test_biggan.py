"""BigGAN: its layers against plain formulas, orthogonality, truncation, standing statistics, what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from contract_cases import make_batch
from specs import data_of

from jgen.core import keys as rng
from jgen.core.generate import prepared, sample_images
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.models.gan import biggan
from jgen.nn.biggan import ConditionalBatchNorm, SelfAttention
from jgen.nn.spectral_norm import SpectralLayer

DATA = data_of(4, 4, 1, 256, num_classes=3)
SMALL = biggan.Config(channels=(8, 8), depth=1, attention=(4,), latent=6, embedding=3)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_spectral_layer_divides_by_the_largest_singular_value():
    layer, x = SpectralLayer(5, 3), draw(2, 4, 4, 3)
    variables = layer.init(jax.random.key(0), x, True)
    kernel = 3.0 * draw(3, 3, 3, 5)
    variables = {**variables, "params": {**variables["params"], "kernel": kernel}}
    step = jax.jit(lambda v, train: layer.apply(v, x, train, mutable=["batch_stats"]), static_argnums=1)
    assert step(variables, False)[1]["batch_stats"]["u"] is not None
    np.testing.assert_array_equal(step(variables, False)[1]["batch_stats"]["u"], variables["batch_stats"]["u"])
    for _ in range(60):
        y, new = step(variables, True)
        variables = {**variables, **new}
    sigma = np.linalg.svd(kernel.reshape(-1, 5))[1][0]
    wanted = jax.lax.conv_general_dilated(x, kernel / sigma, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(y, wanted, rtol=1e-3, atol=1e-4)


def test_conditional_batch_norm_by_hand():
    layer, h, c = ConditionalBatchNorm(0.75), 2.0 + 3.0 * draw(6, 3, 2, 4), draw(6, 5, seed=1)
    variables = layer.init(jax.random.key(0), h, c, True)
    y, new = layer.apply(variables, h, c, True, mutable=["batch_stats"])
    mean, var = h.mean(axis=(0, 1, 2)), h.var(axis=(0, 1, 2))
    weights = {}
    for name in ("scale", "bias"):  # orthogonal at the start: every singular value is 1
        weights[name] = variables["params"][name]["kernel"]
    scale, bias = (np.asarray(c @ weights[name])[:, None, None, :] for name in ("scale", "bias"))
    np.testing.assert_allclose(y, (h - mean) / np.sqrt(var + 1e-5) * (1 + scale) + bias, rtol=1e-3, atol=1e-4)
    stats = new["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.25 * mean, rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.75 + 0.25 * var, rtol=1e-4)
    running = {**variables, **new}
    y = layer.apply(running, h, c, False)
    normal = (h - 0.25 * mean) / np.sqrt(0.75 + 0.25 * var + 1e-5)
    np.testing.assert_allclose(y, normal * (1 + scale) + bias, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_self_attention_position_by_position():
    layer, x = SelfAttention(), draw(2, 4, 2, 8)
    variables = layer.init(jax.random.key(0), x, True)
    np.testing.assert_array_equal(layer.apply(variables, x, False), x)  # gamma is zero
    params = {**variables["params"], "gamma": jnp.float32(0.7)}
    theta, phi, g, out = (np.asarray(params[name]["kernel"][0, 0]) for name in ("theta", "phi", "g", "out"))
    wanted = np.array(x)
    for b in range(2):
        tiles = [(i, j) for i in (0, 2) for j in (0,)]
        keys = np.stack([(x[b, i : i + 2, j : j + 2] @ phi).max(axis=(0, 1)) for i, j in tiles])
        values = np.stack([(x[b, i : i + 2, j : j + 2] @ g).max(axis=(0, 1)) for i, j in tiles])
        for i, j in np.ndindex(4, 2):
            weights = np.exp(x[b, i, j] @ theta @ keys.T)
            wanted[b, i, j] += 0.7 * (weights / weights.sum()) @ values @ out
    y = layer.apply({**variables, "params": params}, x, False)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_orthogonality_counts_products_of_different_filters():
    gen = {"conv": {"kernel": jnp.asarray(draw(2, 2, 3, 4)), "bias": jnp.ones(4)}, "dense": {"kernel": draw(5, 2)}}
    expected = 0.0
    for kernel in (gen["conv"]["kernel"], gen["dense"]["kernel"]):
        filters = np.asarray(kernel).reshape(-1, kernel.shape[-1]).T
        expected += sum(np.dot(a, b) ** 2 for i, a in enumerate(filters) for j, b in enumerate(filters) if i != j)
    embedding = {"classes": {"kernel": jnp.ones((3, 3))}}
    np.testing.assert_allclose(biggan.orthogonality(0.5, {**gen, **embedding}), 0.5 * expected, rtol=1e-5)
    orthogonal = {"conv": {"kernel": 3.0 * jnp.linalg.qr(draw(12, 4))[0].reshape(2, 2, 3, 4)}}
    assert biggan.orthogonality(1.0, orthogonal) < 1e-8


def started(size=16):
    model = biggan.make(SMALL, DATA)
    batch = make_batch(model, size)
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    # As after some training: attention and residual branches that matter, and contrast.
    shaken = jax.tree.map(lambda p: p + 0.2 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    return model, shaken, Context(jnp.int32(0), ema=shaken, extra=extra), batch


def test_latents_are_those_of_a_truncated_normal_distribution():
    game = biggan.make(SMALL, DATA).phases[-1].loss.args[0]
    keys = rng.image_keys(jax.random.key(2), jnp.arange(2000))
    for t in (0.3, 1.0, 4.0):
        z = np.asarray(biggan.draw_truncated(game, keys, jnp.float32(t))).ravel()
        assert np.abs(z).max() <= t and len(np.unique(z)) > 10_000
        assert scipy.stats.kstest(z, scipy.stats.truncnorm(-t, t).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_truncation_and_standing_statistics_in_sampling():
    model, params, ctx, batch = started()
    key = jax.random.key(0)
    ready = prepared(model, params, ctx, jax.random.key(5), n=64)
    small, whole = (
        sample_images(model, params, ready, key, 48, cond={"label": 1}, truncation=t).astype(float) for t in (0.1, 4.0)
    )
    assert small.std(axis=0).mean() < 0.3 * whole.std(axis=0).mean()
    # Those of the first layer are the moments of what goes into it, of the latents that `prepare` drew.
    game = model.phases[-1].loss.args[0]
    keys = rng.image_keys(rng.stream(jax.random.key(5), rng.PREPARE), jnp.arange(64))
    z, label = biggan.draw_truncated(game, keys, 4.0), jax.nn.one_hot(jnp.arange(64) % 3, 3)
    gen, stats = jax.device_get((params["gen"], ctx.extra["gen"]["averaged"]))
    c = np.concatenate([label @ gen["classes"]["kernel"], z], axis=1)
    kernel, u = np.asarray(gen["dense"]["kernel"]), np.asarray(stats["dense"]["u"])
    v = kernel @ u / np.linalg.norm(kernel @ u)
    h = (c @ kernel / np.linalg.norm(v @ kernel) + gen["dense"]["bias"]).reshape(64, 2, 2, 8)
    norm = ready.extra["gen"]["averaged"]["block1_0"]["norm1"]["norm"]
    np.testing.assert_allclose(norm["mean"], h.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(norm["var"], h.var(axis=(0, 1, 2)), rtol=1e-3, atol=1e-4)
    assert np.any(sample_images(model, params, ctx, key, 48, cond={"label": 1}) != whole)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"channels": (8,)}, r"channels are \(8,\): there must be two at least"),
        ({"channels": (16, 8)}, r"channels are \(16, 8\): they must be in ascending order"),
        ({"channels": (8, 8, 8, 8)}, "images are 4x4: channels has 3 entries, each of which halves"),
        ({"attention": (8,)}, r"attention is \(8,\): the networks have it at heights \[4\]"),
        ({"channels": (4, 8)}, r"channels are \(4, 8\): attention, at height 4, needs 8 at least"),
        ({"orthogonality": -1.0}, "orthogonality is -1.0: it must be zero or above"),
        ({"norm_momentum": 1.0}, "norm_momentum is 1.0: it must be at least 0 and below 1"),
        ({"sampling": biggan.Sampling(-1.0)}, "truncation is -1.0: .* set --model.sampling.truncation"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        biggan.make(dataclasses.replace(SMALL, **changes), DATA)
