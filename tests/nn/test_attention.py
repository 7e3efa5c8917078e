"""Attention beside that of jax: values, gradients, lengths, types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core.backend import plain_forms
from jgen.nn.attention import attention


@pytest.mark.parametrize("shape", [(3, 256, 2, 8), (2, 16, 4, 16), (1, 1, 1, 4), (5, 49, 3, 32)])
def test_attention_and_its_gradient_are_those_of_jax(shape):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (2.0 * jax.random.normal(key, shape) for key in keys)

    @functools.partial(jax.jit, static_argnums=0)
    def run(function, q, k, v):
        gradients = jax.grad(lambda *x: jnp.sum(function(*x) * g), (0, 1, 2))(q, k, v)
        return function(q, k, v), gradients

    (value, ours), (peer, theirs) = (run(function, q, k, v) for function in (attention, jax.nn.dot_product_attention))
    np.testing.assert_allclose(value, peer, atol=2e-5)
    for name, a, b in zip("qkv", ours, theirs):
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)


def test_attention_over_another_length():
    q = jax.random.normal(jax.random.key(0), (2, 5, 2, 8))
    k, v = jax.random.normal(jax.random.key(1), (2, 2, 9, 2, 8))

    def run(function):
        gradient = jax.grad(lambda k: jnp.sum(jnp.sin(function(q, k, v))))
        return jax.jit(lambda k: (function(q, k, v), gradient(k)))(k)

    (value, ours), (peer, theirs) = run(attention), run(jax.nn.dot_product_attention)
    np.testing.assert_allclose(value, peer, atol=2e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_attention_in_bfloat16_keeps_its_type():
    q = jax.random.normal(jax.random.key(0), (2, 16, 2, 8), jnp.bfloat16)
    out = attention(q, q, q)
    assert out.dtype == jnp.bfloat16
    exact = jax.nn.dot_product_attention(*[q.astype(jnp.float32)] * 3)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.05)


def test_attention_on_other_backends_and_in_plain_forms_is_that_of_jax_to_the_bit(monkeypatch):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 6, 2, 8))
    peer = jax.nn.dot_product_attention(q, k, v)
    assert np.any(attention(q, k, v) != peer)
    with plain_forms():
        np.testing.assert_array_equal(attention(q, k, v), peer)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_array_equal(attention(q, k, v), peer)
