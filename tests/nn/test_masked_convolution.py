"""Masked convolutions against sums written out, and their one-row and one-pixel formulations against themselves."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core.backend import plain_forms
from jgen.nn.masked_convolution import HorizontalConv, MaskedConv, VerticalConv, group_mask

H, W = 5, 4
X = np.random.default_rng(0).standard_normal((2, H, W, 6)).astype(np.float32)


def make(module):
    params = module.init(jax.random.key(0), jnp.asarray(X))["params"]
    return jax.tree.map(
        lambda p: np.asarray(p) + 0.1 * np.cos(np.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )


def by_hand(x, taps):
    """Sum over (row offset, column offset, matrix) of x, zero outside of the image, times the matrix."""
    out = np.zeros((*x.shape[:-1], taps[0][2].shape[1]))
    for i in range(H):
        for j in range(W):
            for di, dj, matrix in taps:
                if 0 <= i + di < H and 0 <= j + dj < W:
                    out[:, i, j] += x[:, i + di, j + dj].astype(np.float64) @ np.asarray(matrix, np.float64)
    return out


def vertical_taps(kernel, size, mask):
    reach = size // 2
    rows = range(-reach, 1 if mask == "B" else 0)
    return [(di, dj, kernel[di + reach, dj + reach]) for di in rows for dj in range(-reach, reach + 1)]


def horizontal_taps(kernel, size, mask, groups, runs):
    reach = size // 2
    taps = [(0, dj, kernel[dj + reach]) for dj in range(-reach, 0)]
    if mask == "B" or groups > 1:
        own = np.array(kernel[reach])
        features = own.shape[1] // runs
        for a in range(own.shape[0]):
            for b in range(own.shape[1]):
                channel_in, channel_out = a * groups // own.shape[0], b % features * groups // features
                if not (channel_in < channel_out or (mask == "B" and channel_in == channel_out)):
                    own[a, b] = 0
        taps.append((0, 0, own))
    return taps


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("size", [3, 7])
def test_vertical(size, mask):
    conv = VerticalConv(6, 4, size, mask)
    params = make(conv)
    out = np.asarray(conv.apply({"params": params}, X))
    np.testing.assert_allclose(out, by_hand(X, vertical_taps(params["kernel"], size, mask)) + params["bias"], atol=1e-5)
    reach = size // 2
    padded = np.pad(X, ((0, 0), (reach, 0), (0, 0), (0, 0))).transpose(1, 2, 0, 3)
    for i in range(H):
        window = padded[i : i + reach + (mask == "B")]
        row = conv.apply({"params": params}, window, method="row")
        np.testing.assert_allclose(row.transpose(1, 0, 2), out[:, i], atol=1e-5)


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("size,groups,runs", [(3, 1, 1), (7, 3, 1), (3, 3, 2), (5, 2, 2)])
def test_horizontal(size, groups, runs, mask):
    conv = HorizontalConv(6, 12, size, mask, groups, runs)
    params = make(conv)
    out = np.asarray(conv.apply({"params": params}, X))
    taps = horizontal_taps(params["kernel"], size, mask, groups, runs)
    np.testing.assert_allclose(out, by_hand(X, taps) + params["bias"], atol=1e-5)
    padded = np.pad(X, ((0, 0), (0, 0), (size // 2, 0), (0, 0))).transpose(1, 2, 0, 3)
    for j in range(W):
        left, own = padded[2, j : j + size // 2], padded[2, j + size // 2]
        pixel = conv.apply({"params": params}, left, own, method="pixel")
        np.testing.assert_allclose(pixel, out[:, 2, j], atol=1e-5)


def test_one_by_one():
    conv = HorizontalConv(6, 9, 1, "B", 3)
    params = make(conv)
    out = conv.apply({"params": params}, X)
    np.testing.assert_allclose(
        out, by_hand(X, horizontal_taps(params["kernel"], 1, "B", 3, 1)) + params["bias"], atol=1e-5
    )
    np.testing.assert_allclose(
        conv.apply({"params": params}, None, X[:, 0, 0], method="pixel"), out[:, 0, 0], atol=1e-5
    )


@pytest.mark.parametrize("mask", ["A", "B"])
def test_both_parts_make_the_masked_convolution(mask):
    conv = MaskedConv(6, 9, 5, mask, 3)
    params = make(conv)
    taps = vertical_taps(params["above"]["kernel"], 5, "A") + horizontal_taps(params["left"]["kernel"], 5, mask, 3, 1)
    wanted = by_hand(X, taps) + params["above"]["bias"] + params["left"]["bias"]
    np.testing.assert_allclose(conv.apply({"params": params}, X), wanted, atol=1e-5)


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("inputs,groups", [(1, 1), (3, 3), (6, 1), (6, 3)])
def test_the_form_for_cpus_has_the_plain_forms_values_and_gradients(inputs, groups, mask):
    conv = MaskedConv(inputs, 9, 5, mask, groups)
    x = jnp.asarray(X[..., :inputs])
    params = conv.init(jax.random.key(1), x)["params"]
    # The trees hold the same names and shapes in both forms.
    with plain_forms():
        plain_params = conv.init(jax.random.key(1), x)["params"]
        wanted = jax.value_and_grad(scalar, 1)(conv, params, x)
    jax.tree.map(np.testing.assert_array_equal, params, plain_params)
    actual = jax.value_and_grad(scalar, 1)(conv, params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), actual, wanted)


@pytest.mark.parametrize("form", [nullcontext, plain_forms])
@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("inputs,groups", [(1, 1), (3, 3), (6, 1), (6, 3)])
@pytest.mark.parametrize("kind", [MaskedConv, VerticalConv, HorizontalConv])
def test_the_images_gradient_against_finite_differences(kind, inputs, groups, mask, form):
    """In both forms: of an image cut to x[:, :, :-1], XLA's own gradient is wrong on the CPU of JAX 0.10."""
    conv = kind(inputs, 9, 5, mask) if kind is VerticalConv else kind(inputs, 9, 5, mask, groups)
    x = jnp.asarray(X[..., :inputs])
    with form():
        params = conv.init(jax.random.key(1), x)["params"]
        direction = jax.random.normal(jax.random.key(2), x.shape)
        gradient = jax.grad(scalar, 2)(conv, params, x)
        slope = (scalar(conv, params, x + 1e-2 * direction) - scalar(conv, params, x - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=2e-2, atol=5e-2)


def scalar(conv, params, x):
    return jnp.sum(jnp.sin(conv.apply({"params": params}, x)))


def test_the_order_of_channels():
    np.testing.assert_array_equal(group_mask(3, 3, 3, "A"), [[0, 1, 1], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(group_mask(3, 3, 3, "B"), [[1, 1, 1], [0, 1, 1], [0, 0, 1]])
    gates = group_mask(2, 8, 2, "B", runs=2)
    np.testing.assert_array_equal(gates, [[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1]])
