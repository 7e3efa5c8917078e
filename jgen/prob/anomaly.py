"""Anomaly scores: how unlike a model's training images an image is.

A model of one data set may give images of another data set a higher likelihood than its own, if those are smoother
(Nalisnick et al. 2019, arXiv 1810.09136). `Generator.anomaly_score` therefore corrects the likelihood:

    complexity  -log2 p(x) - L(x), L the length of x in bits by a lossless coder          (Serra et al. 2020, arXiv
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

from jgen.errors import require, require_choice

Kind = Literal["likelihood", "complexity", "typicality", "ratio"]
KINDS: tuple[str, ...] = get_args(Kind)


def score_of(
    kind: str,
    nats: np.ndarray,
    images: np.ndarray,
    reference: np.ndarray | None = None,
    background: np.ndarray | None = None,
) -> np.ndarray:
    """The score of a kind, float64 (n,), higher for images less like the data, from -log p of the images in nats, (n,).

    Args:
      images: uint8 (n, H, W, C), for complexity; reference: for typicality, -log p of images of the model's own data;
        background: for ratio, -log p of the same images by another model.
    Raises:
      UserError: an unknown kind, or one whose input is missing.
    """
    require_choice("kind", kind, KINDS)
    if kind == "complexity":
        return nats / np.log(2.0) - code_lengths(images)
    if kind == "typicality":
        require(reference is not None, "reference is missing: typicality compares with images of the model's data")
        assert reference is not None
        return np.abs(nats - reference.mean())
    if kind == "ratio":
        require(background is not None, "background is missing: ratio compares with another model")
        assert background is not None
        return nats - background
    return nats


def code_lengths(images: np.ndarray) -> np.ndarray:
    """The size in bits of each uint8 image (n, H, W, C), of 1 or 3 channels, as PNG: float64 (n,)."""
    from PIL import Image

    def bits(image: np.ndarray) -> int:
        stream = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(stream, "PNG", optimize=True)
        return 8 * stream.tell()

    channels = images.shape[3]
    require(channels in (1, 3), f"images have {channels} channels: complexity is of PNG, which takes 1 or 3")
    return np.array([bits(image) for image in images], np.float64)
