"""Shifted convolutions against sums written out, and their one-row and one-pixel formulations against themselves."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core.backend import plain_forms
from jgen.nn.shifted_convolution import ShiftedConv, ShiftedConvTranspose

H, W = 5, 7
X = np.random.default_rng(0).standard_normal((2, H, W, 3)).astype(np.float32)
# size, above, left: the windows of PixelCNN++, three of which leave out rows or columns of the image.
WINDOWS = {
    "rows above and own": ((2, 3), 1, 1),
    "above and left": ((2, 2), 1, 1),
    "two rows above": ((2, 3), 2, 1),
    "one row above": ((1, 3), 1, 1),
    "the column to the left": ((2, 1), 1, 1),
}


def make(module, x, *rest):
    params = module.init(jax.random.key(0), jnp.asarray(x), *rest)["params"]
    return jax.tree.map(
        lambda p: np.asarray(p) + 0.1 * np.cos(np.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )


def apply(module, params, *args, method=None):
    return np.asarray(module.apply({"params": params}, *args, method=method))


def by_hand(params, x, size, above, left, stride):
    """Sums over the window, in float64."""
    height, width = -(-H // stride), -(-W // stride)
    out = np.tile(params["bias"].astype(np.float64), (len(x), height, width, 1))
    for i, j, a, b in np.ndindex(height, width, *size):
        k, m = stride * i - above + a, stride * j - left + b
        if 0 <= k < H and 0 <= m < W:
            out[:, i, j] += x[:, k, m].astype(np.float64) @ params["kernel"][a, b].astype(np.float64)
    return out


@pytest.mark.parametrize("forms", [nullcontext, plain_forms])
@pytest.mark.parametrize("name,stride", [*((name, 1) for name in WINDOWS), *((name, 2) for name in list(WINDOWS)[:2])])
def test_a_convolution_and_its_rows_and_pixels(name, stride, forms):
    size, above, left = WINDOWS[name]
    module = ShiftedConv(3, 4, size, above, left, stride)
    params = make(module, X)
    with forms():
        out = apply(module, params, X)
    np.testing.assert_allclose(out, by_hand(params, X, size, above, left, stride), rtol=1e-4, atol=1e-5)
    rows = np.pad(X.transpose(1, 2, 0, 3), ((above, size[0]), (0, 0), (0, 0), (0, 0)))  # (rows, W, B, C)
    padded = np.pad(X, ((0, 0), (above, size[0]), (left, size[1]), (0, 0)))
    for i in range(out.shape[1]):
        window = rows[stride * i : stride * i + size[0]]
        row = apply(module, params, window, method="row")
        np.testing.assert_allclose(row.transpose(1, 0, 2), out[:, i], rtol=1e-4, atol=1e-5)
        if size[0] < 2:
            continue
        context = apply(module, params, window[:-1], method="row")
        for j in range(out.shape[2]):
            k, m = stride * i + size[0] - 1, stride * j
            taps = tuple(padded[:, k, m + b] for b in range(size[1]))
            pixel = apply(module, params, taps, context[j], method="pixel")
            np.testing.assert_allclose(pixel, out[:, i, j], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("height,width", [(6, 8), (5, 7)])
@pytest.mark.parametrize("columns", [2, 3])
def test_a_transposed_convolution_and_its_rows_and_pixels(columns, height, width):
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 3)).astype(np.float32)
    module = ShiftedConvTranspose(3, 5, columns)
    params = make(module, x, height, width)
    out = apply(module, params, x, height, width)
    wanted = np.tile(params["bias"].astype(np.float64), (2, height, width, 1))
    for i, j, a, b in np.ndindex(3, 4, 2, columns):
        k, m = 2 * i + a, 2 * j + b - (columns == 3)
        if k < height and 0 <= m < width:
            wanted[:, k, m] += x[:, i, j].astype(np.float64) @ params["kernel"][a, b].astype(np.float64)
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)
    for i in range(height):
        row = apply(module, params, x[:, i // 2].transpose(1, 0, 2), i % 2, width, method="row")
        np.testing.assert_allclose(row.transpose(1, 0, 2), out[:, i], rtol=1e-4, atol=1e-5)
        for j in range(width if columns == 2 else 0):
            pixel = apply(module, params, x[:, i // 2, j // 2], i % 2, j % 2, method="pixel")
            np.testing.assert_allclose(pixel, out[:, i, j], rtol=1e-4, atol=1e-5)
