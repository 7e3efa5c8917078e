"""Measures of mode collapse on data with known modes (Srivastava et al. 2017, arXiv 1705.07761, section 4).

modes     the number of the K modes that have at least one sample
quality   the fraction of samples that belong to a mode: for Gaussians, those within 3 standard deviations of its centre
kl        KL of the samples' modes from the uniform distribution over all K, in nats: 0 to log K
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jgen.errors import require
from jgen.metrics.divergences import kl
from jgen.metrics.neighbours import squared_distances

NONE = -1  # for a sample that belongs to no mode


def nearest_modes(points: np.ndarray, centres: np.ndarray, std: float, within: float = 3.0) -> np.ndarray:
    """The mode of each point (n, D), int (n,): the nearest of the centres (K, D), or `NONE`.

    Args:
      within: the largest distance of a point, in standard deviations `std`.
    """
    require(std > 0, f"std is {std}: it must be above zero")
    x, y = np.asarray(points, np.float64), np.asarray(centres, np.float64)
    distances = squared_distances(x, y)
    return np.where(distances.min(axis=1) <= (within * std) ** 2, distances.argmin(axis=1), NONE)


def mode_scores(modes: np.ndarray, num: int) -> dict[str, Any]:
    """{"modes", "quality", "kl"} for samples with these modes, int (n,), out of `num`; kl is None if no sample has a
    mode.

    Raises:
      UserError: no samples, or a mode out of range.
    """
    require(len(modes) > 0, "there are no samples")
    require(modes.min() >= NONE and modes.max() < num, f"modes are {modes.min()} to {modes.max()}: there are {num}")
    counts = np.bincount(modes[modes != NONE], minlength=num)
    total = counts.sum()
    return {
        "modes": int(np.sum(counts > 0)),
        "quality": float(total / len(modes)),
        "kl": kl(counts / total, np.full(num, 1 / num)) if total else None,
    }
