"""Group normalisation in both forms against its definition, and dropout."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core import keys as rng
from jgen.core.backend import plain_forms
from jgen.nn.dropout import dropout
from jgen.nn.normalization import group_norm


def by_definition(x, scale, bias, groups, silu):
    """Group normalisation as its definition reads, differentiated by JAX."""
    batch, height, width, channels = x.shape
    grouped = x.reshape(batch, height, width, groups, channels // groups)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    var = grouped.var((1, 2, 4), keepdims=True)
    y = ((grouped - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) * scale[None, None, None] + bias[None, None, None]
    return y * jax.nn.sigmoid(y) if silu else y


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("form", [nullcontext, plain_forms])
def test_group_norm_and_its_gradient(groups, silu, form):
    keys = jax.random.split(jax.random.key(0), 4)
    x = 0.5 + 2 * jax.random.normal(keys[0], (3, 6, 5, 8))
    scale, bias = 1 + jax.random.normal(keys[1], (8,)), jax.random.normal(keys[2], (8,))
    g = jax.random.normal(keys[3], x.shape)
    with form():
        y, pull = jax.vjp(lambda *args: group_norm(*args, groups, 1e-5, silu), x, scale, bias)
        gradients = pull(g)
    expected, pull = jax.vjp(lambda *args: by_definition(*args, groups, silu), x, scale, bias)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    for a, b in zip(gradients, pull(g)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("form", [nullcontext, plain_forms])
def test_group_norm_keeps_the_type_and_computes_in_float32(form):
    x = 100 + jax.random.normal(jax.random.key(0), (2, 8, 8, 4)).astype(jnp.bfloat16)
    with form():
        y = group_norm(x, jnp.ones(4), jnp.zeros(4), 2)
    assert y.dtype == jnp.bfloat16
    exact = by_definition(x.astype(jnp.float32), jnp.ones(4), jnp.zeros(4), 2, False)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.02)


def test_dropout_keeps_the_mean_and_belongs_to_an_example():
    keys = rng.image_keys(jax.random.key(0), jnp.arange(64))
    x = jnp.ones((64, 8, 8, 4))
    y = dropout(x, keys, 0.25)
    nonzero = np.asarray(y) > 0
    n = nonzero.size
    assert abs(nonzero.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / n)
    np.testing.assert_allclose(np.asarray(y)[nonzero], 1 / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(dropout(x[10:20], keys[10:20], 0.25), y[10:20])
    np.testing.assert_array_equal(dropout(x, None, 0.25), x)
