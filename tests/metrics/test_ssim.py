"""SSIM against its formula, summed pixel by pixel, against SciPy's Gaussian filter and where it is known."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jgen.errors import UserError
from jgen.metrics.ssim import ssim

C1, C2 = 2.55**2, 7.65**2


def images(size=14):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, size, size)).astype(np.uint8)
    return x, np.clip(x + rng.normal(0, 40, x.shape), 0, 255).astype(np.uint8)


def by_hand(x, y):
    """The mean over all places of a window that fits, each sum written out."""
    w = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, w))
    values = []
    for top in range(len(x) - 10):
        for left in range(len(x) - 10):
            cells = [(w[i][j] / total, float(x[top + i, left + j]), float(y[top + i, left + j]))
                     for i in range(11) for j in range(11)]  # fmt: skip
            mu_x, mu_y = sum(p * a for p, a, _ in cells), sum(p * b for p, _, b in cells)
            var_x, var_y = (sum(p * (c[k] - m) ** 2 for p, *c in cells) for k, m in ((0, mu_x), (1, mu_y)))
            cov = sum(p * (a - mu_x) * (b - mu_y) for p, a, b in cells)
            values.append((2 * mu_x * mu_y + C1) * (2 * cov + C2) / ((mu_x**2 + mu_y**2 + C1) * (var_x + var_y + C2)))
    return np.mean(values)


def test_it_is_the_formula():
    x, y = images()
    np.testing.assert_allclose(ssim(x, y), [by_hand(*pair) for pair in zip(x, y)], rtol=1e-10)


def test_windows_are_those_of_scipy():
    x, y = images(32)
    a, b = x[0].astype(float), y[0].astype(float)

    def mean(z):
        return gaussian_filter(z, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    mu_a, mu_b = mean(a), mean(b)
    top = (2 * mu_a * mu_b + C1) * (2 * (mean(a * b) - mu_a * mu_b) + C2)
    below = (mu_a**2 + mu_b**2 + C1) * (mean(a * a) - mu_a**2 + mean(b * b) - mu_b**2 + C2)
    assert ssim(x, y)[0] == pytest.approx((top / below).mean(), rel=1e-8)


def test_known_values_and_bad_input():
    x, y = images()
    np.testing.assert_allclose(ssim(x, x), 1.0)
    np.testing.assert_allclose(ssim(x, y), ssim(y, x))
    flat = ssim(np.full((1, 11, 11), 50, np.uint8), np.full((1, 11, 11), 200, np.uint8))
    assert flat[0] == pytest.approx((2 * 50 * 200 + C1) / (50**2 + 200**2 + C1))
    assert ssim(x, 255 - x)[0] < 0
    for pair, words in (
        ((x, y[:1]), "they must be the same"),
        ((x[:, :8], y[:, :8]), "images are 8x14: SSIM needs 11"),
    ):
        with pytest.raises(UserError, match=words):
            ssim(*pair)
