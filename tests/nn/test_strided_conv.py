"""Strided convolutions, their transposes and weight gradients in both forms: against loops and finite differences."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jgen.nn import strided_conv, winograd
from jgen.nn.strided_conv import ConvDown, ConvUp, conv_down, conv_up, weight_gradient


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
    down, up = ConvDown(5), ConvUp(4, use_bias=False)
    params = down.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.arange(5.0)
    out = down.apply({"params": params}, x)
    np.testing.assert_allclose(out, looped(np.asarray(x), np.asarray(params["kernel"])) + np.arange(5.0), atol=1e-5)
    params = up.init(jax.random.key(0), out)["params"]
    assert set(params) == {"kernel"} and up.apply({"params": params}, out).shape == (2, 6, 6, 4)


def test_the_weight_gradient_of_the_transpose_is_not_slow_on_cpu():
    """Left to autodiff it takes 30 times as long as the convolution's."""
    x, kernel, y = (jnp.asarray(a, jnp.float32) for a in arrays(8, 8, 64, 128, 16))
    gradient = lambda f: jax.jit(jax.grad(lambda k, a: jnp.sum(f(a, k) ** 2)))

    def seconds(function, *args):
        jax.block_until_ready(function(*args))
        found = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            found.append(time.perf_counter() - start)
        return np.median(found)

    assert seconds(gradient(conv_up), kernel, y) < 6 * seconds(gradient(conv_down), kernel, x)


@pytest.mark.parametrize("height,width,channels,features", [(4, 6, 3, 2), (2, 8, 2, 5)])
def test_winograds_form_is_the_convolution_its_transpose_and_its_weight_gradient(height, width, channels, features):
    with jax.enable_x64(True):
        x, kernel, y = arrays(height, width, channels, features)
        np.testing.assert_allclose(winograd.conv_down(x, kernel), looped(x, kernel), rtol=1e-11, atol=1e-12)
        moves = lambda function, at: jax.vjp(function, at)[1](y)[0]
        plain = lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(plain(x, kernel), looped(x, kernel), rtol=1e-11, atol=1e-12)
        up = moves(lambda x: plain(x, kernel), x)
        np.testing.assert_allclose(winograd.conv_up(y, jnp.asarray(kernel)), up, rtol=1e-11, atol=1e-12)
        gradient = moves(lambda kernel: plain(x, kernel), kernel)
        np.testing.assert_allclose(winograd.weight_gradient(jnp.asarray(x), y), gradient, rtol=1e-11, atol=1e-12)


def test_winograds_form_loses_next_to_nothing_in_float32():
    x, kernel, _ = (jnp.asarray(a, jnp.float32) for a in arrays(4, 4, 64, 32))
    wanted = looped(np.asarray(x, np.float64), np.asarray(kernel, np.float64))
    error = lambda found: float(np.abs(found - wanted).max() / np.abs(wanted).max())
    assert error(winograd.conv_down(x, kernel)) < 2e-6


def test_winograds_form_serves_wide_layers_on_cpu_alone(monkeypatch):
    serves = lambda *sizes: winograd.serves(jnp.dtype("float32"), *sizes)
    assert serves(4, 6, 16, 32) and not winograd.serves(jnp.dtype("bfloat16"), 4, 6, 16, 32)
    assert not serves(7, 6, 16, 32) and not serves(4, 7, 16, 32) and not serves(4, 6, 3, 64) and not serves(4, 6, 64, 8)
    used = []
    for name in ("conv_down", "conv_up", "weight_gradient"):
        function = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *args, f=function, n=name: (used.append(n), f(*args))[1])
    x, kernel, y = (jnp.asarray(a, jnp.float32) for a in arrays(2, 2, 128, 16))
    found = strided_conv.conv_down(x, kernel), strided_conv.conv_up(y, kernel), strided_conv.weight_gradient(x, y)
    assert used == ["conv_down", "conv_up", "conv_down", "weight_gradient"]  # the transpose is that of the convolution
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    again = strided_conv.conv_down(x, kernel), strided_conv.conv_up(y, kernel), strided_conv.weight_gradient(x, y)
    assert len(used) == 4
    for a, b in zip(found, again):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
