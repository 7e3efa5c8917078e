"""Scores from nearest neighbours: precision and recall, density and coverage, memorisation.

Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991) use a ball around each image that reaches to its k-th
neighbour: precision is the fraction of samples inside any ball of a real image, recall the fraction of real images
inside any ball of a sample. Density and coverage (Naeem et al. 2020, arXiv 2002.09797) are the mean number of real
balls that a sample is in, divided by k, and the fraction of real balls that contain a sample; they are robust to single
outliers. All use equally many samples and real images, since balls shrink as their number grows: for perfect samples,
1,000 against 10,000 real images would have a coverage of 0.38, and 1,000 against 1,000 of 0.97.

Memorisation (Meehan, Chaudhuri & Dasgupta 2020, arXiv 2004.05675, without its cells): whether samples are nearer to the
training images than unseen images are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jgen.errors import require
from jgen.metrics.bootstrap import bootstrap
from jgen.metrics.frechet import check_features

AT_ONCE = 10_000_000  # most entries of a distance matrix
NEEDED = 6  # least images: with fewer, there is no fifth neighbour


class Scores(NamedTuple):
    """precise, inside (n,): for each sample, whether it is in a real ball, and in how many, divided by k.

    recalled, covered (m,): for each real image, whether it is in a sample's ball, and whether its ball has a sample.
    """

    precise: np.ndarray
    recalled: np.ndarray
    inside: np.ndarray
    covered: np.ndarray


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) between the rows of (n, D) and (m, D)."""
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre  # products of large numbers would lose precision for small distances
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.clip(squares, 0, None)


def blocks(n: int, m: int) -> list[slice]:
    """Slices of the rows 0 .. n - 1, such that a distance matrix with m columns has at most `AT_ONCE` entries."""
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
    """Scores of features (n, D) against (m, D), with `k` neighbours for precision and recall, and `k_density` for
    density and coverage.

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
    """Precision, recall, density (not negative, 1 for perfect samples) and coverage.

    Args:
      fake, real: features (n, D) and (m, D), of which min(n, m) each are chosen at random.
      classes: (n,) of `fake`, if the number of samples in each class was fixed (see `bootstrap`).
    Returns:
      neighbours_num: min(n, m); and {value, low, high} of each score, with an interval from resampling the images that
      are averaged over, with the balls fixed.
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
    """Random indices into n and into m images, min(n, m) of each."""
    rng, size = np.random.default_rng(seed), min(n, m)
    return [np.sort(rng.permutation(one)[:size]) for one in (n, m)]


def nearest_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance (n,) of each row of x (n, D) to the nearest row of y (m, D). Raises `UserError` if D differs."""
    a, b = check_features(x, 1), check_features(y, 1)
    require(a.shape[1] == b.shape[1], f"features are {a.shape[1]} and {b.shape[1]} wide: they must be the same")
    return np.sqrt(np.concatenate([squared_distances(a[rows], b).min(axis=1) for rows in blocks(len(a), len(b))]))


def below(x: np.ndarray, y: np.ndarray) -> float:
    """P(a < b) + P(a = b) / 2 for random entries a of x (n,) and b of y (m,)."""
    order = np.sort(y)
    places = np.searchsorted(order, x, "left") + np.searchsorted(order, x, "right")
    return float(1 - places.mean() / (2 * len(order)))


def memorisation(
    fake: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int = 0, classes: np.ndarray | None = None
) -> dict[str, Any]:
    """Whether samples are nearer to training images than unseen images are.

    Args:
      fake, train, test: features or pixels (n, D); at most as many of test as of fake are used.
      classes: (n,) of `fake`, if the number of samples in each class was fixed (see `bootstrap`).
    Returns:
      {value, low, high} of the probability that a sample is nearer to its nearest training image than a test image is
      to its own: one half for unseen images, 1 for copies, towards 0 for samples that are far from all images;
      samples, test: the median distances; train_num, test_num: the numbers of images.
    Raises:
      UserError: features of different widths, or that are not finite.
    """
    chosen = np.asarray(test)[np.random.default_rng(seed).permutation(len(test))[: len(fake)]]
    fake_distances, test_distances = nearest_distances(fake, train), nearest_distances(chosen, train)
    interval = bootstrap(below, fake_distances, test_distances, seed=seed, most=1.0, classes=classes)._asdict()
    medians = {"samples": float(np.median(fake_distances)), "test": float(np.median(test_distances))}
    return {**interval, **medians, "train_num": len(train), "test_num": len(chosen)}
