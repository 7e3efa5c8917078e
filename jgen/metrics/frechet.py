"""Frechet distance between Gaussians fitted to features (Dowson & Landau 1982; Heusel et al. 2017, arXiv 1706.08500).

    d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)

It is called FID only where the features are the published Inception network's; of spatial features it is sFID
(Nash et al. 2021, arXiv 2103.03841). It is biased upwards by few images: its N stands beside it.
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
    """Of features (n, D).

    Raises:
      UserError: fewer than two images, another number of axes, or features that are not finite.
    """
    x = check_features(features, 2)
    mean = x.mean(axis=0)
    centred = x - mean
    return Statistics(len(x), mean, centred.T @ centred / (len(x) - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Squared distance, as it is published. Covariances may be singular: their roots are taken of eigenvalues.

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
    """The distance to `a` of features (n, D), the same as `frechet_distance`: where n < D from matrices of n by n.

    S1^1/2 S2 S1^1/2 has the eigenvalues other than 0 of X S1 X^T / (n - 1), X the centred features that S2 is of.
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
    """Features (n, D) in float64.

    Args:
      what: names them in errors.

    Raises:
      UserError: fewer images than needed, another number of axes, or features that are not finite.
    """
    x = np.asarray(features, np.float64)
    require(x.ndim == 2, f"features of {what} have shape {x.shape}: they must be (images, width)")
    require(len(x) >= fewest, f"there are {len(x)} {what}: this needs at least {fewest}")
    require(bool(np.isfinite(x).all()), f"features of {what} have values that are not finite")
    return x
