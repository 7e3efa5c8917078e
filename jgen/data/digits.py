"""The 1,797 handwritten digits of scikit-learn (8x8, 17 grey levels) as a TFDS data set: no download.

From the test set of the UCI "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998). The last 297 are the
test split: their writers are almost disjoint from those of the first 1,500.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NUM_TRAIN = 1500


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits embedded in scikit-learn, grey levels 0 .. 16 spread over 0 .. 255."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        return {
            "train": self._generate_examples(images[:NUM_TRAIN], digits.target[:NUM_TRAIN]),
            "test": self._generate_examples(images[NUM_TRAIN:], digits.target[NUM_TRAIN:]),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels)):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            png.seek(0)
            yield i, {"image": png, "label": int(label)}
