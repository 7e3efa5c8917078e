"""Kernel distance of features and the inception score.

Kernel distance (KID; Binkowski et al. 2018, arXiv 1801.01401): the squared maximum mean discrepancy with the kernel
(x y / D + 1)^3, unbiased, averaged over blocks, which give its standard error. Inception score (Salimans et al. 2016,
arXiv 1606.03498): exp(E KL(p(y | x) || p(y))), of any classifier.
"""

from __future__ import annotations

import numpy as np

from jgen.errors import require
from jgen.metrics.frechet import check_features


def unbiased_mmd2(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    """Unbiased squared discrepancy from kernel matrices (n, n), (m, m), (n, m); it may be below zero."""
    n, m = len(xx), len(yy)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def kernel_distance(
    fake: np.ndarray, real: np.ndarray, blocks: int = 50, block_size: int = 500, seed: int = 0
) -> tuple[float, float]:
    """(KID, its standard error) of features (n, D) and (m, D).

    The images are shuffled and dealt out into disjoint blocks of `block_size`, at most `blocks`, so that the blocks'
    values are independent. Where images are few the blocks are smaller, so that there are ten: an error of two or three
    values is none.

    Raises:
      UserError: fewer than four images of a kind, or features of different widths.
    """
    x, y = check_features(fake, 4), check_features(real, 4)
    require(x.shape[1] == y.shape[1], f"features are {x.shape[1]} and {y.shape[1]} wide: they must be the same")
    fewest = min(len(x), len(y))
    size = max(2, min(block_size, fewest // min(blocks, 10)))
    count = min(blocks, fewest // size)
    rng = np.random.default_rng(seed)
    x, y = x[rng.permutation(len(x))], y[rng.permutation(len(y))]
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    values = []
    for block in range(count):
        a, b = (z[block * size : (block + 1) * size] for z in (x, y))
        values.append(unbiased_mmd2(kernel(a, a), kernel(b, b), kernel(a, b)))
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(count))


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """(mean, standard deviation) over splits, from a classifier's logits (n, K): 1 to K.

    Raises:
      UserError: fewer images than splits.
    """
    x = check_features(logits, splits)
    x = x - x.max(axis=1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    scores = []
    for part in np.array_split(log_p, splits):
        p = np.exp(part)
        marginal = np.log(np.clip(p.mean(axis=0), 1e-300, None))
        scores.append(np.exp(np.mean(np.sum(p * (part - marginal), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))
