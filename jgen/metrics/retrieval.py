"""Retrieval: whether what belongs to a query is among the nearest, and zero-shot classification's accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AT = (1, 5, 10)
CHUNK = 500  # queries at a time


def recall(queries: np.ndarray, keys: np.ndarray, belongs: np.ndarray, at: Sequence[int] = AT) -> dict[str, float]:
    """The share of queries of which one of the k nearest keys, by the product, belongs to them: {"1": ..., "5": ...}.

    Args:
      queries, keys: float (n, D); belongs: int (n,), the group of entry i of both, whose members belong together.
      at: values of k, those above n left out.
    """
    most = min(max(at), len(keys))
    hits = np.zeros((len(queries), most), bool)
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, start + CHUNK)
        order = np.argsort(-(queries[rows].astype(np.float64) @ keys.T.astype(np.float64)), axis=1, kind="stable")
        hits[rows] = belongs[order[:, :most]] == belongs[rows, None]
    return {str(k): float(hits[:, :k].any(axis=1).mean()) for k in at if k <= len(keys)}


def accuracy_by_class(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The share of images (n,) whose greatest score (n, classes) is their class's, for each class that there is."""
    right = np.argmax(scores, axis=1) == labels
    return {names[c]: float(right[labels == c].mean()) for c in np.unique(labels)}
