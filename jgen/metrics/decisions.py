"""How well scores separate two kinds of images (AUROC), and how well class probabilities are calibrated."""

from __future__ import annotations

import numpy as np

from jgen.errors import require


def auroc(own: np.ndarray, others: np.ndarray) -> float:
    """The area under the receiver operating characteristic: the probability that one of `others` has a higher score
    than one of `own`, with ties counted half."""
    require(len(own) > 0 and len(others) > 0, f"there are {len(own)} and {len(others)} scores: each must be some")
    values = np.concatenate([own, others])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # the mean for ties
    n = len(others)
    return float((ranks[len(own) :].sum() - n * (n + 1) / 2) / (n * len(own)))


def calibration_error(log_probs: np.ndarray, classes: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error (Guo et al. 2017, arXiv 1706.04599): the mean absolute difference between
    confidence and accuracy over bins of equal width in confidence.

    Args:
      log_probs: log-probabilities of the classes, (n, K); classes: the true classes, int (n,).
    """
    confidence = np.exp(log_probs.max(axis=1))
    right = log_probs.argmax(axis=1) == classes
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(float(np.sum(right[place == b]) - np.sum(confidence[place == b]))) for b in range(bins)]
    return sum(gaps) / len(classes)
