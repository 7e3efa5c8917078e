"""Kernel distance of features and the inception score.

Kernel distance (KID; Binkowski et al. 2018, arXiv 1801.01401): the squared maximum mean discrepancy with the kernel
(x y / D + 1)^3, unbiased, over all pairs. Inception score (Salimans et al. 2016, arXiv 1606.03498):
exp(E KL(p(y | x) || p(y))), for any classifier.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jgen.errors import require
from jgen.metrics.bootstrap import groups
from jgen.metrics.frechet import check_features

MOST = 10_000  # most real, and most generated images, over whose pairs the kernel is averaged


def kernel_means(a: np.ndarray, b: np.ndarray, rows: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """(means over b for each of a, means over a for each of b) of the kernel, computed in blocks of rows."""
    over_b, over_a = np.empty(len(a)), np.zeros(len(b))
    for start in range(0, len(a), rows):
        values = (a[start : start + rows] @ b.T / a.shape[1] + 1) ** 3
        over_b[start : start + rows] = values.mean(axis=1)
        over_a += values.sum(axis=0) / len(a)
    return over_b, over_a


def means_of_others(x: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Mean (n,) of the kernel between each of x (n, D) and the others.

    For independent draws it is the plain mean over all others. If the number of samples in each class (n,) was fixed,
    each class contributes in proportion to its number, and a row's own class by the mean over its other samples. The
    plain mean has too few pairs within a class, and would be biased by (K - 1) / (K (n - 1)) times the difference
    between the mean kernels within and between K classes.
    """
    itself, total = ((x * x).sum(axis=1) / x.shape[1] + 1) ** 3, np.zeros(len(x))
    for places in groups(classes, len(x)):
        num, means = len(places), kernel_means(x, x[places])[0]
        means[places] = (num * means[places] - itself[places]) / (num - 1)
        total += num / len(x) * means
    return total


def variance(values: np.ndarray, classes: np.ndarray | None) -> float:
    """n times the variance of the mean of `values` (n,); only the variance within `classes` (n,) if their numbers are
    fixed."""
    parts = groups(classes, len(values))
    return sum(len(places) * float(np.var(values[places], ddof=1)) for places in parts) / len(values)


def kernel_distance(
    fake: np.ndarray,
    real: np.ndarray,
    most: int = MOST,
    seed: int = 0,
    classes: np.ndarray | None = None,
) -> tuple[float, float]:
    """(KID, its standard error) of features (n, D) and (m, D).

    The mean over all pairs has the same expectation as a mean over blocks, with less noise. Its standard error is that
    of the per-image means (a U-statistic's projection; Hoeffding 1948), to first order in 1/n; if both distributions
    are equal, where that order vanishes, it is too large by a factor of 1.4.

    Args:
      most: the number of real or generated images to choose at random if there are more.
      classes: (n,) of `fake`, if the number of samples in each class was fixed.
    Raises:
      UserError: fewer than four real or generated images, or features of different widths.
    """
    x, y = check_features(fake, 4), check_features(real, 4)
    require(x.shape[1] == y.shape[1], f"features are {x.shape[1]} and {y.shape[1]} wide: they must be the same")
    rng = np.random.default_rng(seed)
    order, other = (rng.permutation(len(z))[:most] for z in (x, y))
    x, y, classes = x[order], y[other], None if classes is None else np.asarray(classes)[order]
    (between_x, between_y), spread = kernel_means(x, y), 0.0
    value = -2 * between_x.mean()
    for z, between, given in ((x, between_x, classes), (y, between_y, None)):
        within = means_of_others(z, given)
        value += within.mean()
        spread += 4 * variance(within - between, given) / len(z)
    return float(value), float(np.sqrt(spread))


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 0) -> dict[str, Any]:
    """The inception score from a classifier's logits (n, K), which are shuffled and split. It is at most K, and at most
    the number of images per split.

    Args:
      splits: the number of splits, reduced if a split would have fewer than 50 images.
    Returns:
      value, spread: mean and standard deviation over splits; splits: their number.
    Raises:
      UserError: fewer than two images.
    """
    x = check_features(logits, 2)
    splits = max(1, min(splits, len(x) // 50))
    x = x[np.random.default_rng(seed).permutation(len(x))]  # samples may be sorted by class
    x = x - x.max(axis=1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    scores = []
    for part in np.array_split(log_p, splits):
        p = np.exp(part)
        marginal = np.log(np.clip(p.mean(axis=0), 1e-300, None))
        scores.append(np.exp(np.mean(np.sum(p * (part - marginal), axis=1))))
    return {"value": float(np.mean(scores)), "spread": float(np.std(scores)), "splits": splits}
