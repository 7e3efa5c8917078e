"""What nearest neighbours tell: precision and recall, density and coverage, memorisation.

Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991): the part of samples inside the union of balls around
real images that reach to their k-th neighbour, and the part of real images inside that of samples. Density and coverage
(Naeem et al. 2020, arXiv 2002.09797): how many real balls a sample is in, over k, and the part of real balls that have
a sample in them; a single outlier moves them little.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jgen.errors import require
from jgen.metrics.frechet import check_features

ROWS = 1000  # of a distance matrix at a time


class Coverage(NamedTuple):
    """precision, recall, coverage: 0 to 1; density: 0 upwards, 1 where samples lie like real images."""

    precision: float
    recall: float
    density: float
    coverage: float


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, D), (m, D) to (n, m)."""
    found = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.clip(found, 0, None)


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance (n,) of each row to its k-th neighbour among the others."""
    found = []
    for start in range(0, len(x), ROWS):
        d = squared_distances(x[start : start + ROWS], x)
        d[np.arange(len(d)), start + np.arange(len(d))] = -1.0  # itself, before any other
        found.append(np.partition(d, k, axis=1)[:, k])
    return np.concatenate(found)


def neighbour_scores(fake: np.ndarray, real: np.ndarray, k: int = 3, k_density: int = 5) -> Coverage:
    """Of features (n, D) and (m, D); `k` neighbours for precision and recall, `k_density` for density and coverage.

    Raises:
      UserError: k images of a kind or fewer, or features of different widths.
    """
    x, y = check_features(fake, max(k, k_density) + 1), check_features(real, max(k, k_density) + 1)
    require(x.shape[1] == y.shape[1], f"features are {x.shape[1]} and {y.shape[1]} wide: they must be the same")
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre  # products of large numbers lose the small distances
    of_real, of_fake, of_real_density = radii(y, k), radii(x, k), radii(y, k_density)
    precise, inside = np.zeros(len(x), bool), np.zeros(len(x))
    recalled, nearest = np.zeros(len(y), bool), np.full(len(y), np.inf)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        d = squared_distances(x[rows], y)
        precise[rows] = (d <= of_real).any(axis=1)
        inside[rows] = (d <= of_real_density).sum(axis=1)
        recalled |= (d <= of_fake[rows][:, None]).any(axis=0)
        nearest = np.minimum(nearest, d.min(axis=0))
    covered = nearest <= of_real_density
    return Coverage(*(float(np.mean(v)) for v in (precise, recalled, inside / k_density, covered)))


def nearest_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance (n,) of each row of x (n, D) to the nearest of y (m, D)."""
    a, b = check_features(x, 1), check_features(y, 1)
    parts = [squared_distances(a[start : start + ROWS], b).min(axis=1) for start in range(0, len(a), ROWS)]
    return np.sqrt(np.concatenate(parts))


def memorisation(fake: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Whether samples lie closer to training images than unseen images do.

    Args:
      fake, train, test: features or pixels (n, D). Of train as many as of test are taken, so that neither has the
        advantage of numbers.
    Returns:
      train, test: median distance of samples to the nearest of each; ratio: the part of samples nearer to train than to
      test, one half where nothing is memorised.
    """
    size = min(len(train), len(test))
    rng = np.random.default_rng(seed)
    chosen = [np.asarray(z)[rng.permutation(len(z))[:size]] for z in (train, test)]
    to_train, to_test = (nearest_distances(fake, z) for z in chosen)
    nearer = np.mean((to_train < to_test) + 0.5 * (to_train == to_test))
    return {"train": float(np.median(to_train)), "test": float(np.median(to_test)), "ratio": float(nearer)}
