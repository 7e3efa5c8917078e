"""Confidence intervals by drawing again with replacement (Efron 1979)."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

PATIENCE = 2.0  # seconds after which progress is shown
Z = statistics.NormalDist().inv_cdf(0.975)


class Interval(NamedTuple):
    """A value and its interval at 95 %."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    seed: int = 0,
    rounds: int = 200,
    most: float = np.inf,
) -> Interval:
    """The statistic of samples, each (n, ...), with a normal interval from its spread over samples drawn again.

    The interval lies around the value itself: samples drawn again repeat images, which moves every distance upwards, so
    that the middle of their own distribution is not where the value is.

    Args:
      most: the statistic's largest value; its smallest is 0.
    """
    from tqdm import tqdm

    rng, value = np.random.default_rng(seed), statistic(*samples)
    again: Any = tqdm(range(rounds), desc="bootstrap", unit="round", file=sys.stderr, delay=PATIENCE, leave=False)
    found = [statistic(*(x[rng.integers(0, len(x), len(x))] for x in samples)) for _ in again]
    reach = Z * float(np.std(found, ddof=1))
    return Interval(float(value), max(0.0, float(value) - reach), min(most, float(value) + reach))
