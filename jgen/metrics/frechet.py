"""Frechet distance between Gaussians fitted to features (Dowson & Landau 1982; Heusel et al. 2017, arXiv 1706.08500).

    d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)

It is called FID only where the features are the published Inception network's; of spatial features it is sFID
(Nash et al. 2021, arXiv 2103.03841). It is biased upwards by few images: its N stands beside it.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from jgen.errors import require

PATIENCE = 2.0  # seconds after which progress is shown


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
    require(a.mean.shape == b.mean.shape, f"features are {a.mean.size} and {b.mean.size} wide: they must be the same")
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ b.covariance @ root)
    cross = np.sum(np.sqrt(np.clip(inner, 0, None)))
    found = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(max(found, 0.0))


def bootstrap_interval(
    features: np.ndarray, real: Statistics, seed: int = 0, rounds: int = 100, level: float = 0.95
) -> tuple[float, float]:
    """Percentiles of the distance of `features`, drawn again with replacement, to `real`, moved to its own value.

    Drawing again repeats images, which moves every distance upwards: the interval is shifted so that its middle is the
    distance of the features as they are. Progress is shown where it takes long, as with wide features.
    """
    from tqdm import tqdm

    rng = np.random.default_rng(seed)
    x = check_features(features, 2)
    again = tqdm(range(rounds), desc="bootstrap", unit="round", file=sys.stderr, delay=PATIENCE, leave=False)
    found = [frechet_distance(statistics(x[rng.integers(0, len(x), len(x))]), real) for _ in again]
    low, middle, high = np.quantile(found, [(1 - level) / 2, 0.5, (1 + level) / 2])
    centre = frechet_distance(statistics(x), real)
    return max(0.0, float(centre + low - middle)), float(centre + high - middle)


def check_features(features: np.ndarray, fewest: int) -> np.ndarray:
    """Features (n, D) in float64.

    Raises:
      UserError: fewer images than needed, another number of axes, or features that are not finite.
    """
    x = np.asarray(features, np.float64)
    require(x.ndim == 2, f"features have shape {x.shape}: they must be (images, width)")
    require(len(x) >= fewest, f"there are {len(x)} images: this needs at least {fewest}")
    require(bool(np.isfinite(x).all()), "features have values that are not finite")
    return x
