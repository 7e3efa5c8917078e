import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.nn.attention import attention


@pytest.mark.parametrize("shape", [(3, 256, 2, 8), (2, 16, 4, 16), (1, 1, 1, 4), (5, 49, 3, 32)])
def test_attention_and_its_gradient_are_those_of_jax(shape):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (2.0 * jax.random.normal(key, shape) for key in keys)
    loss = lambda function: lambda q, k, v: jnp.sum(function(q, k, v) * g)
    np.testing.assert_allclose(attention(q, k, v), jax.nn.dot_product_attention(q, k, v), atol=2e-5)
    found = jax.grad(loss(attention), (0, 1, 2))(q, k, v)
    wanted = jax.grad(loss(jax.nn.dot_product_attention), (0, 1, 2))(q, k, v)
    for name, a, b in zip("qkv", found, wanted):
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)


def test_attention_over_another_length():
    q = jax.random.normal(jax.random.key(0), (2, 5, 2, 8))
    k, v = jax.random.normal(jax.random.key(1), (2, 2, 9, 2, 8))
    np.testing.assert_allclose(attention(q, k, v), jax.nn.dot_product_attention(q, k, v), atol=2e-5)
    gradient = jax.grad(lambda k: jnp.sum(jnp.sin(attention(q, k, v))))(k)
    wanted = jax.grad(lambda k: jnp.sum(jnp.sin(jax.nn.dot_product_attention(q, k, v))))(k)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_attention_in_bfloat16_keeps_its_type():
    q = jax.random.normal(jax.random.key(0), (2, 16, 2, 8), jnp.bfloat16)
    found = attention(q, q, q)
    assert found.dtype == jnp.bfloat16
    exact = jax.nn.dot_product_attention(*[q.astype(jnp.float32)] * 3)
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.05)
