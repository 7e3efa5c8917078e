"""Frechet distance between Gaussians fitted to features (Dowson & Landau 1982; Heusel et al. 2017, arXiv 1706.08500).

    d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)

It is called FID only if the features are those of the published Inception network; with spatial features it is sFID
(Nash et al. 2021, arXiv 2103.03841). It is biased upwards for few images, so the number of images is always reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jgen.errors import require


class Statistics(NamedTuple):
    """num: images; mean (D,), covariance (D, D) of their features, unbiased, float64."""

    num: int
    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: np.ndarray) -> Statistics:
    """The statistics of features (n, D).

    Raises:
      UserError: fewer than two images, another number of axes, or features that are not finite.
    """
    x = check_features(features, 2)
    mean = x.mean(axis=0)
    centred = x - mean
    return Statistics(len(x), mean, centred.T @ centred / (len(x) - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared distance, as usually reported. Covariances may be singular: matrix roots are taken by eigenvalues.

    Raises:
      UserError: features of different widths.
    """
    return distance_to(a)(b)


def distance_to(a: Statistics) -> Callable[[Statistics], float]:
    """The function `frechet_distance(a, .)`, which computes the root of a's covariance once."""
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T

    def distance(b: Statistics) -> float:
        wide = f"features are {a.mean.size} and {b.mean.size} wide"
        require(a.mean.shape == b.mean.shape, f"{wide}: they must be the same")
        cross = np.sum(np.sqrt(np.clip(np.linalg.eigvalsh(root @ b.covariance @ root), 0, None)))
        squared = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
        return float(max(squared, 0.0))

    return distance


def distance_of_features(a: Statistics) -> Callable[[np.ndarray], float]:
    """A function from features (n, D) to their distance from `a`, like `frechet_distance`; for n < D it uses n by n
    matrices.

    The non-zero eigenvalues of S1^1/2 S2 S1^1/2 are those of X S1 X^T / (n - 1), where X are the centred features whose
    covariance is S2.
    """
    whole = distance_to(a)

    def distance(features: np.ndarray) -> float:
        x = check_features(features, 2)
        n, width = x.shape
        if n >= width or width != a.mean.size:
            return whole(statistics(x))
        mean = x.mean(axis=0)
        centred = (x - mean) / np.sqrt(n - 1)
        cross = np.sum(np.sqrt(np.clip(np.linalg.eigvalsh(centred @ a.covariance @ centred.T), 0, None)))
        squared = np.sum((a.mean - mean) ** 2) + np.trace(a.covariance) + np.sum(centred**2) - 2 * cross
        return float(max(squared, 0.0))

    return distance


def check_features(features: np.ndarray, fewest: int, what: str = "images") -> np.ndarray:
    """Returns features (n, D) in float64.

    Args:
      what: their name in error messages.

    Raises:
      UserError: fewer images than needed, another number of axes, or features that are not finite.
    """
    x = np.asarray(features, np.float64)
    require(x.ndim == 2, f"features of {what} have shape {x.shape}: they must be (images, width)")
    require(len(x) >= fewest, f"there are {len(x)} {what}: this needs at least {fewest}")
    require(bool(np.isfinite(x).all()), f"features of {what} have values that are not finite")
    return x
