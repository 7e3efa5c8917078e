"""Options of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jgen.errors import require, require_choice


@dataclass(frozen=True)
class Config:
    """Which images, and what is done to them."""

    name: str = "digits"
    """digits, any prepared TFDS image set (mnist, fashion_mnist, cifar10, ...), or folder:PATH."""
    dir: str = ""
    """Where TFDS sets are; default: the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    size: int = 0
    """Resize the shorter side to this and crop the centre square; 0 keeps the images as they are."""
    validation: float = 0.1
    """Part of train, from its end, kept for validation (sets with a validation split of their own use that)."""
    binarise: Literal["none", "threshold", "dynamic", "static"] = "none"
    """Binary pixels: x >= 128, drawn anew each time with probability x / 255, or drawn once per image."""
    levels: int = 0
    """Number of values that a pixel takes, 2 to 256, by cutting the range evenly; 0: all that the set has."""
    flip: bool = False
    """Mirror training images left to right at random."""


def check_config(config: Config) -> None:
    """Raises `UserError` for options out of their range."""
    require(
        config.levels == 0 or 2 <= config.levels <= 256,
        f"data.levels is {config.levels}: it must be from 2 to 256, or 0 for all that the set has",
    )
    require(0 <= config.validation < 1, f"data.validation is {config.validation}: it must be at least 0 and below 1")
    require(config.size >= 0, f"data.size is {config.size}: it must be above zero, or 0 to keep the size")
    require_choice("data.binarise", config.binarise, ("none", "threshold", "dynamic", "static"))
    require(
        config.binarise == "none" or config.levels in (0, 2),
        f"data.levels is {config.levels}: with data.binarise images have 2, and it must be 2 or 0",
    )
