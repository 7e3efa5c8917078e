"""Strided convolutions, their transposes and weight gradients in both forms: against loops and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from programs import PLAIN_LAYOUT, conv_layouts

from jgen.core.backend import plain_forms
from jgen.nn.conv import Conv, ConvTranspose, conv, conv_transpose
from jgen.nn.cpu import strided
from jgen.nn.cpu import winograd4x4 as winograd
from jgen.nn.cpu.strided import conv_down, conv_up, weight_gradient


def arrays(height=4, width=6, channels=2, features=3, batch=2):
    draw = np.random.default_rng(0).standard_normal
    x = draw((batch, 2 * height, 2 * width, channels))
    return x, draw((4, 4, channels, features)), draw((batch, height, width, features))


def looped(x, kernel):
    """The convolution by its definition."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((len(x), x.shape[1] // 2, x.shape[2] // 2, kernel.shape[-1]))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = np.einsum("badc,adco->bo", padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4], kernel)
    return out


def test_the_three_are_derivatives_of_one_form():
    with jax.enable_x64(True):
        x, kernel, y = arrays()
        np.testing.assert_allclose(conv_down(x, kernel), looped(x, kernel), rtol=1e-12)
        form = np.sum(looped(x, kernel) * y)
        np.testing.assert_allclose(np.sum(conv_up(y, kernel) * x), form, rtol=1e-12)
        np.testing.assert_allclose(np.sum(weight_gradient(x, y) * kernel), form, rtol=1e-12)
        # The form is linear in each argument: moving one entry by 1 moves it by the derivative there.
        one = np.zeros_like(x)
        one[1, 3, 5, 1] = 1.0
        np.testing.assert_allclose(np.sum(looped(one, kernel) * y), conv_up(y, kernel)[1, 3, 5, 1], rtol=1e-12)
        one = np.zeros_like(kernel)
        one[2, 1, 0, 2] = 1.0
        np.testing.assert_allclose(np.sum(looped(x, one) * y), weight_gradient(x, y)[2, 1, 0, 2], rtol=1e-12)


@pytest.mark.parametrize("function", [conv_down, conv_up, weight_gradient])
def test_gradients_of_first_and_second_order(function):
    with jax.enable_x64(True):
        x, kernel, y = arrays(2, 2, 1, 2, 1)
        inputs = {conv_down: (x, kernel), conv_up: (y, kernel), weight_gradient: (x, y)}[function]
        check_grads(lambda *args: jnp.tanh(0.1 * function(*args)), inputs, order=2, modes=["rev"], eps=1e-4)


def test_layers_double_and_halve_and_add_their_bias():
    x = jnp.ones((2, 6, 6, 3))
    down, up = Conv(5, 4, 2), ConvTranspose(4, use_bias=False)
    params = down.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.arange(5.0)
    out = down.apply({"params": params}, x)
    np.testing.assert_allclose(out, looped(np.asarray(x), np.asarray(params["kernel"])) + np.arange(5.0), atol=1e-5)
    params = up.init(jax.random.key(0), out)["params"]
    assert set(params) == {"kernel"} and params["kernel"].shape == (4, 4, 4, 5)
    expected = conv_up(out, params["kernel"])
    np.testing.assert_allclose(up.apply({"params": params}, out), expected, atol=1e-5)


def test_gradients_of_the_transpose_are_plain_convolutions():
    """Left to autodiff, that of the kernel is of another layout, and 30 times as slow: benchmarks/convolutions.py."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 6, 6, 8), (4, 4, 4, 8))]

    def gradients(order):
        function = conv_transpose
        for _ in range(order):
            function = jax.grad(lambda *args, inner=function: total(inner(*args)), (0, 1))
        return function

    def total(tree):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))

    for order in (1, 2):
        assert set(conv_layouts(gradients(order), *shapes)) == {PLAIN_LAYOUT}
        with plain_forms():
            assert set(conv_layouts(gradients(order), *shapes)) > {PLAIN_LAYOUT}


@pytest.mark.slow
@pytest.mark.parametrize("height,width,channels,features", [(4, 6, 3, 2), (2, 8, 2, 5)])
def test_winograds_form_is_the_convolution_its_transpose_and_its_weight_gradient(height, width, channels, features):
    with jax.enable_x64(True):
        x, kernel, y = arrays(height, width, channels, features)
        np.testing.assert_allclose(winograd.conv_down(x, kernel), looped(x, kernel), rtol=1e-11, atol=1e-12)
        with plain_forms():
            down, pull = jax.vjp(lambda x, kernel: conv(x, kernel, 2), x, kernel)
        up, gradient = pull(y)
        np.testing.assert_allclose(down, looped(x, kernel), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(winograd.conv_up(y, jnp.asarray(kernel)), up, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(winograd.weight_gradient(jnp.asarray(x), y), gradient, rtol=1e-11, atol=1e-12)


def test_winograds_form_loses_next_to_nothing_in_float32():
    x, kernel, _ = (jnp.asarray(a, jnp.float32) for a in arrays(4, 4, 64, 32))
    exact = looped(np.asarray(x, np.float64), np.asarray(kernel, np.float64))
    assert np.abs(winograd.conv_down(x, kernel) - exact).max() < 2e-6 * np.abs(exact).max()


@pytest.mark.slow
def test_winograds_form_serves_wide_layers(monkeypatch):
    def serves(*sizes, dtype="float32"):
        return winograd.is_faster(jnp.dtype(dtype), *sizes)

    assert serves(4, 6, 16, 32) and not serves(4, 6, 16, 32, dtype="bfloat16")
    assert not serves(7, 6, 16, 32) and not serves(4, 7, 16, 32) and not serves(4, 6, 3, 64) and not serves(4, 6, 64, 8)
    used = []

    def recorded(name, function):
        return lambda *args: (used.append(name), function(*args))[1]

    for name in ("conv_down", "conv_up", "weight_gradient"):
        monkeypatch.setattr(winograd, name, recorded(name, getattr(winograd, name)))
    x, kernel, y = (jnp.asarray(a, jnp.float32) for a in arrays(2, 2, 128, 16))
    outputs = strided.conv_down(x, kernel), strided.conv_up(y, kernel), strided.weight_gradient(x, y)
    assert used == ["conv_down", "conv_up", "conv_down", "weight_gradient"]  # the transpose is that of the convolution
    monkeypatch.setattr(winograd, "is_faster", lambda *sizes: False)
    direct = strided.conv_down(x, kernel), strided.conv_up(y, kernel), strided.weight_gradient(x, y)
    assert len(used) == 4
    for a, b in zip(outputs, direct):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
