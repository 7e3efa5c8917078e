"""Scores of retrieval (recall at k) and of zero-shot classification (accuracy by class)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AT = (1, 5, 10)
CHUNK = 500  # queries at a time


def recall(queries: np.ndarray, keys: np.ndarray, belongs: np.ndarray, at: Sequence[int] = AT) -> dict[str, float]:
    """Recall at k, {"1": ..., "5": ...}: the fraction of queries with a matching key among the k of largest product.

    Args:
      queries, keys: float (n, D); belongs: int (n,), the group of entry i of both; entries of a group match.
      at: values of k; those above n are omitted.
    """
    most = min(max(at), len(keys))
    hits = np.zeros((len(queries), most), bool)
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, start + CHUNK)
        order = np.argsort(-(queries[rows].astype(np.float64) @ keys.T.astype(np.float64)), axis=1, kind="stable")
        hits[rows] = belongs[order[:, :most]] == belongs[rows, None]
    return {str(k): float(hits[:, :k].any(axis=1).mean()) for k in at if k <= len(keys)}


def accuracy_by_class(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """For each class that occurs, the fraction of its images whose largest score (n, classes) is that of the class."""
    right = np.argmax(scores, axis=1) == labels
    return {names[c]: float(right[labels == c].mean()) for c in np.unique(labels)}
