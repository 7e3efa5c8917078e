"""Structural similarity (Wang, Bovik, Sheikh & Simoncelli 2004, IEEE Transactions on Image Processing 13).

    SSIM(x, y) = (2 mu_x mu_y + C1) (2 sigma_xy + C2) / ((mu_x^2 + mu_y^2 + C1) (sigma_x^2 + sigma_y^2 + C2))   (eq. 13)
    C1 = (0.01 L)^2,  C2 = (0.03 L)^2,  L the range of pixels

Means, variances and the covariance are weighted by a circular Gaussian of 11x11 pixels with standard deviation 1.5 and
sum 1 (equations 14 to 16), at every position where it fits into the image. The similarity is the mean over these
positions: 1 for equal images, at least -1.
"""

from __future__ import annotations

import numpy as np

from jgen.errors import require

WINDOW, DEVIATION = 11, 1.5  # pixels
K1, K2 = 0.01, 0.03


def weights() -> np.ndarray:
    """The Gaussian along one axis, (11,)."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    values = np.exp(-0.5 * (offsets / DEVIATION) ** 2)
    return values / values.sum()


def weighted_means(x: np.ndarray) -> np.ndarray:
    """(n, H, W) to (n, H - 10, W - 10), the weighted mean at each position of the window."""
    for axis in (1, 2):
        x = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis=axis) @ weights()
    return x


def ssim(x: np.ndarray, y: np.ndarray, value_range: float = 255.0) -> np.ndarray:
    """SSIM of each pair of grey images x, y (n, H, W), float64 (n,).

    Raises:
      UserError: images of different shapes, or smaller than the window.
    """
    require(x.shape == y.shape, f"images have the shapes {x.shape} and {y.shape}: they must be the same")
    fits = min(x.shape[1:]) >= WINDOW
    require(fits, f"images are {x.shape[1]}x{x.shape[2]}: SSIM needs {WINDOW} pixels a side or more")
    x, y = x.astype(np.float64), y.astype(np.float64)
    mu_x, mu_y = weighted_means(x), weighted_means(y)
    var_x, var_y = weighted_means(x * x) - mu_x**2, weighted_means(y * y) - mu_y**2
    covariance = weighted_means(x * y) - mu_x * mu_y
    c1, c2 = (K1 * value_range) ** 2, (K2 * value_range) ** 2
    top = (2 * mu_x * mu_y + c1) * (2 * covariance + c2)
    similarity: np.ndarray = top / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(axis=(1, 2))
