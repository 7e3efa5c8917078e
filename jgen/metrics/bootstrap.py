"""Confidence intervals by resampling with replacement: the bootstrap (Efron 1979)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jgen.core.progress import progress_bar

PATIENCE = 2.0  # seconds after which progress is shown
OF_A_CLASS = 10  # least samples per class to resample within classes; for n of them the spread is 1 / (2 n) too small
Z = statistics.NormalDist().inv_cdf(0.975)


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def groups(classes: np.ndarray | None, num: int) -> list[np.ndarray]:
    """Indices 0 .. num - 1 by class, for resampling within classes; one group if a class has too few."""
    if classes is not None:
        by_class = [np.flatnonzero(classes == c) for c in np.unique(classes)]
        if min(map(len, by_class)) >= OF_A_CLASS:
            return by_class
    return [np.arange(num)]


def bootstrap(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    seed: int = 0,
    rounds: int = 200,
    most: float = np.inf,
    classes: np.ndarray | None = None,
) -> Interval:
    """A statistic of samples, each (n, ...), with a normal interval from its spread over resampled samples.

    The interval is centred on the statistic itself, since the resampled values are biased: resampling repeats images,
    which increases every distance.

    Args:
      most: the statistic's largest possible value; the smallest is 0.
      classes: (n,), of the first array of samples, if the number of samples in each class was fixed: they are then
        resampled within classes. (Otherwise the spread would include the variation of these numbers, which for good
        samples is most of it.)
    """
    rng, value = np.random.default_rng(seed), statistic(*samples)
    again = progress_bar(range(rounds), desc="bootstrap", unit="round", delay=PATIENCE, leave=False)
    parts = [groups(classes if i == 0 else None, len(x)) for i, x in enumerate(samples)]

    def drawn(x: np.ndarray, part: list[np.ndarray]) -> np.ndarray:
        return x[np.concatenate([places[rng.integers(0, len(places), len(places))] for places in part])]

    values = [statistic(*(drawn(x, part) for x, part in zip(samples, parts))) for _ in again]
    reach = Z * float(np.std(values, ddof=1))
    return Interval(float(value), max(0.0, float(value) - reach), min(most, float(value) + reach))
