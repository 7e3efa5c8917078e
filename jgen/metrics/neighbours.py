"""What nearest neighbours tell: precision and recall, density and coverage, memorisation.

Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991): the part of samples inside the union of balls around
real images that reach to their k-th neighbour, and the part of real images inside that of samples. Density and coverage
(Naeem et al. 2020, arXiv 2002.09797): how many real balls a sample is in, over k, and the part of real balls that have
a sample in them; a single outlier moves them little. All of them are of as many samples as real images, since balls
shrink with numbers: of samples as good as real ones, 1,000 to 10,000 would have a coverage of 0.38, 1,000 to 1,000 of
0.97.

Memorisation (Meehan, Chaudhuri & Dasgupta 2020, arXiv 2004.05675, without its cells): whether samples lie nearer to the
training images than unseen images do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jgen.errors import require
from jgen.metrics.bootstrap import bootstrap
from jgen.metrics.frechet import check_features

AT_ONCE = 10_000_000  # entries of a distance matrix
NEEDED = 6  # images; with fewer, there is no fifth neighbour


class Scores(NamedTuple):
    """precise, inside (n,): of each sample, whether it is in a real ball, and in how many, over k.

    recalled, covered (m,): of each real image, whether it is in a sample's ball, and whether a sample is in its own.
    """

    precise: np.ndarray
    recalled: np.ndarray
    inside: np.ndarray
    covered: np.ndarray


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, D), (m, D) to (n, m)."""
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre  # products of large numbers lose the small distances
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.clip(squares, 0, None)


def blocks(n: int, m: int) -> list[slice]:
    """The rows 0 .. n - 1, as many at once as a distance matrix of m columns may have."""
    rows = max(1, AT_ONCE // m)
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance (n,) of each row to its k-th neighbour among the others."""
    distances = []
    for rows in blocks(len(x), len(x)):
        d = squared_distances(x[rows], x)
        d[np.arange(len(d)), rows.start + np.arange(len(d))] = -1.0  # itself, before any other
        distances.append(np.partition(d, k, axis=1)[:, k])
    return np.concatenate(distances)


def neighbours(fake: np.ndarray, real: np.ndarray, k: int = 3, k_density: int = 5) -> Scores:
    """Of features (n, D) and (m, D); `k` neighbours for precision and recall, `k_density` for density and coverage.

    Raises:
      UserError: k or fewer real or generated images, or features of different widths.
    """
    needed = max(k, k_density) + 1
    x, y = check_features(fake, needed, "samples"), check_features(real, needed, "real images")
    require(x.shape[1] == y.shape[1], f"features are {x.shape[1]} and {y.shape[1]} wide: they must be the same")
    real_radii, fake_radii, density_radii = radii(y, k), radii(x, k), radii(y, k_density)
    precise, inside = np.zeros(len(x), bool), np.zeros(len(x))
    recalled, nearest = np.zeros(len(y), bool), np.full(len(y), np.inf)
    for rows in blocks(len(x), len(y)):
        d = squared_distances(x[rows], y)
        precise[rows] = (d <= real_radii).any(axis=1)
        inside[rows] = (d <= density_radii).sum(axis=1) / k_density
        recalled |= (d <= fake_radii[rows][:, None]).any(axis=0)
        nearest = np.minimum(nearest, d.min(axis=0))
    return Scores(precise, recalled, inside, nearest <= density_radii)


def neighbour_scores(
    fake: np.ndarray, real: np.ndarray, seed: int = 0, classes: np.ndarray | None = None
) -> dict[str, Any]:
    """Precision, recall, density (0 upwards, 1 where samples lie like real images) and coverage.

    Args:
      fake, real: features (n, D) and (m, D), of which min(n, m) each are taken at random.
      classes: (n,) of `fake`, where the number of samples in each class was fixed (see `bootstrap`).
    Returns:
      neighbours_num: min(n, m); and {value, low, high} of each score, the interval by resampling the images that are
      counted, with the balls fixed.
    Raises:
      UserError: fewer than six real or generated images, or features of different widths.
    """
    fake_rows, real_rows = equal_numbers(len(fake), len(real), seed)
    scores = neighbours(np.asarray(fake)[fake_rows], np.asarray(real)[real_rows])
    fake_classes = None if classes is None else np.asarray(classes)[fake_rows]

    def interval(values: np.ndarray, most: float, classes: np.ndarray | None = None) -> dict[str, float]:
        return bootstrap(np.mean, values.astype(np.float64), seed=seed, most=most, classes=classes)._asdict()

    return {
        "neighbours_num": len(fake_rows),
        "precision": interval(scores.precise, 1.0, fake_classes),
        "recall": interval(scores.recalled, 1.0),
        "density": interval(scores.inside, np.inf, fake_classes),
        "coverage": interval(scores.covered, 1.0),
    }


def equal_numbers(n: int, m: int, seed: int) -> list[np.ndarray]:
    """Places among n and among m, as many of each as the smaller of them, taken at random."""
    rng, size = np.random.default_rng(seed), min(n, m)
    return [np.sort(rng.permutation(one)[:size]) for one in (n, m)]


def nearest_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance (n,) of each row of x (n, D) to the nearest of y (m, D). Raises `UserError` for other widths."""
    a, b = check_features(x, 1), check_features(y, 1)
    require(a.shape[1] == b.shape[1], f"features are {a.shape[1]} and {b.shape[1]} wide: they must be the same")
    return np.sqrt(np.concatenate([squared_distances(a[rows], b).min(axis=1) for rows in blocks(len(a), len(b))]))


def below(x: np.ndarray, y: np.ndarray) -> float:
    """P(a < b) + P(a = b) / 2 of a number a of x (n,) and one b of y (m,)."""
    order = np.sort(y)
    places = np.searchsorted(order, x, "left") + np.searchsorted(order, x, "right")
    return float(1 - places.mean() / (2 * len(order)))


def memorisation(
    fake: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int = 0, classes: np.ndarray | None = None
) -> dict[str, Any]:
    """Whether samples lie nearer to training images than unseen images do.

    Args:
      fake, train, test: features or pixels (n, D), of test as many as of fake at the most.
      classes: (n,) of `fake`, where the number of samples in each class was fixed (see `bootstrap`).
    Returns:
      {value, low, high} of the probability that a sample is nearer to its nearest training image than a test image is
      to its own: one half for unseen images, 1 for copies, towards 0 for samples that are far from all images;
      samples, test: the median distances; train_num, test_num: of how many images.
    Raises:
      UserError: features of different widths, or that are not finite.
    """
    chosen = np.asarray(test)[np.random.default_rng(seed).permutation(len(test))[: len(fake)]]
    fake_distances, test_distances = nearest_distances(fake, train), nearest_distances(chosen, train)
    interval = bootstrap(below, fake_distances, test_distances, seed=seed, most=1.0, classes=classes)._asdict()
    medians = {"samples": float(np.median(fake_distances)), "test": float(np.median(test_distances))}
    return {**interval, **medians, "train_num": len(train), "test_num": len(chosen)}
