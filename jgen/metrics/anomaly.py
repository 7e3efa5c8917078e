"""Scores that tell images of another kind from those that a model was trained on, and how well they do.

A model of one data set may give images of another a higher likelihood than its own, where those are smoother (Nalisnick
et al. 2019, arXiv 1810.09136). What is done about it, by `Generator.anomaly_score`:

    complexity  -log2 p(x) - L(x), L the length of x in bits as a lossless coder has it   (Serra et al. 2020, arXiv
                1909.11480)
    typicality  | -log p(x) - mean of -log p over images of the model's own data |        (Nalisnick et al. 2019, arXiv
                1906.02994, of single images)
    ratio       log p_background(x) - log p(x), of another model                          (Ren et al. 2019, arXiv
                1906.02845)
"""

from __future__ import annotations

import io
from typing import Literal, get_args

import numpy as np

from jgen.errors import require

Kind = Literal["likelihood", "complexity", "typicality", "ratio"]
KINDS: tuple[str, ...] = get_args(Kind)


def code_lengths(images: np.ndarray) -> np.ndarray:
    """The bits of each uint8 image (n, H, W, C) as PNG, of 1 or 3 channels: float64 (n,)."""
    from PIL import Image

    def bits(image: np.ndarray) -> int:
        stream = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(stream, "PNG", optimize=True)
        return 8 * stream.tell()

    channels = images.shape[3]
    require(channels in (1, 3), f"images have {channels} channels: complexity is of PNG, which takes 1 or 3")
    return np.array([bits(image) for image in images], np.float64)


def auroc(own: np.ndarray, others: np.ndarray) -> float:
    """The probability that one of `others` has a higher score than one of `own`, ties counted half: the area under the
    receiver operating characteristic."""
    require(len(own) > 0 and len(others) > 0, f"there are {len(own)} and {len(others)} scores: each must be some")
    values = np.concatenate([own, others])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # of ties their mean
    n = len(others)
    return float((ranks[len(own) :].sum() - n * (n + 1) / 2) / (n * len(own)))


def calibration_error(log_probs: np.ndarray, classes: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error (Guo et al. 2017, arXiv 1706.04599): the mean difference of confidence and
    accuracy over bins of equal width in confidence.

    Args:
      log_probs: of the classes, (n, K); classes: the right ones, int (n,).
    """
    confidence = np.exp(log_probs.max(axis=1))
    right = log_probs.argmax(axis=1) == classes
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(float(np.sum(right[place == b]) - np.sum(confidence[place == b]))) for b in range(bins)]
    return sum(gaps) / len(classes)
