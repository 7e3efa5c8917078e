"""Attention beside that of jax: values, gradients, lengths, types."""

import functools
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core.backend import plain_forms
from jgen.nn.attention import SelfAttention2D, attention

ANY_CALL = [
    jax.export.DisabledSafetyCheck.custom_call(name) for name in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
]


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


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "serves"),
    [
        ("9.0", jnp.bfloat16, 256, True),
        ("9.0", jnp.float16, 64, True),
        ("8.0", jnp.bfloat16, 128, True),
        ("8.0", jnp.bfloat16, 256, False),
        ("9.0", jnp.bfloat16, 12, False),
        ("9.0", jnp.float32, 64, False),
        ("7.5", jnp.bfloat16, 64, False),
        ("gfx942", jnp.bfloat16, 64, False),
    ],
)
def test_cudnn_is_asked_for_by_name_where_it_serves(monkeypatch, capability, dtype, width, serves):
    peer, asked = jax.nn.dot_product_attention, []

    def record(q, k, v, implementation):
        asked.append(implementation)
        return peer(q, k, v)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    q = jax.random.normal(jax.random.key(0), (2, 6, 2, width), dtype)
    np.testing.assert_array_equal(attention(q, q, q), peer(q, q, q))
    with plain_forms():  # around forward-mode derivatives, which cuDNN's lacks
        attention(q, q, q)
    assert asked == ["cudnn" if serves else "xla", "xla"]


def test_cudnns_attention_and_its_gradient_are_lowered_for_a_gpu(monkeypatch):
    """Lowered here for CUDA as on an H100; only what JAX asks of the device itself is answered by hand."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False, raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability="9.0")])
    layer = SelfAttention2D(head_dim=32, groups=4, dtype=jnp.bfloat16)
    x = jnp.ones((2, 8, 8, 64), jnp.bfloat16)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    step = jax.jit(jax.grad(lambda p: jnp.sum(layer.apply(p, x).astype(jnp.float32))))
    exported = jax.export.export(step, platforms=("cuda",), disabled_checks=ANY_CALL)(params)
    assert "fmha" in exported.mlir_module()
