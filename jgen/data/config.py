"""Options of the data."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from jgen.data.image_files import background_colour
from jgen.data.text import MIN_LENGTH, NUM_BYTES
from jgen.errors import require

OF_FILES = ("folder", "npz", "fonts", "emoji", "texture")  # prefixes of names with a path
WITH_TEST = ("folder", "npz")  # have an option for the test split's path
TEXTURES = ("brick", "grass", "gravel")  # pictures of scikit-image, all of them CC0 (public domain)


@dataclass(frozen=True)
class Config:
    """Which images to use, and how to process them."""

    name: str = "digits"
    """One of: digits (8x8); any prepared TFDS image set (mnist, fashion_mnist, cifar10, ...); folder:PATH (pictures,
    sub-folders as classes, captions as text files such as 1.txt for 1.png); npz:FILE (arrays `images` and `label`);
    shapes (32x32, or 64x64 with `size` 64, with captions); fonts (letters of installed fonts) or fonts:FOLDER; emoji
    (Noto Color Emoji, their names as captions) or emoji:FILE; texture:FILE (squares of one picture) or texture:brick,
    texture:grass, texture:gravel; density:NAME (points of the plane as images of two pixels: gaussians, rings, spirals,
    checkerboard)."""
    dir: str = ""
    """Folder of TFDS sets; default: the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    test: str = ""
    """The test split of folder:PATH or npz:FILE: another folder or file; default: the set's own test split, else a
    tenth of its images."""
    background: str = "white"
    """Colour behind transparent pixels of picture files, such as white, black or #8090a0."""
    size: int = 0
    """Resize the shorter side to this and crop the centre square; 0: keep the images as they are. For texture:FILE, the
    side of the squares that are cut from the picture; 0: about half of its shorter side."""
    validation: float = 0.1
    """Fraction of the training images held out for validation, the last ones; ignored if the set has a validation
    split."""
    binarise: Literal["none", "threshold", "dynamic", "static"] = "none"
    """Binary pixels. threshold: x >= 128; dynamic: Bernoulli(x / 255), drawn at every use; static: Bernoulli(x / 255),
    drawn once per image."""
    levels: int = 0
    """Number of values that a pixel takes, 2 to 256, quantised uniformly; 0: the set's own number."""
    flip: bool = False
    """Mirror training images left to right at random."""
    low_resolution: int = 0
    """Add the image shrunk by this factor, by area averaging, as field low_resolution; 0: none."""
    style: int = 0
    """Add between one and this many other letters of each example's font, drawn at random, as fields style and
    style_label (fonts only); 0: none."""
    fields: tuple[str, ...] = ()
    """Features of a TFDS set to use as fields in addition to its class label, such as caption or attributes.Smiling."""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    """Tokens of text fields: the bytes of UTF-8, or byte pairs merged by their frequency in the training split."""
    vocabulary: int = 1024
    """Largest number of tokens of bpe, including the 256 bytes and the three special tokens (padding, start, end)."""
    text_length: int = 64
    """Tokens per text, including start and end; longer texts are truncated, shorter ones padded."""


@dataclass(frozen=True)
class DataLocation:
    """Current location of a run's data, if it has moved since training."""

    name: str = ""
    """folder:PATH or npz:FILE with the same content as the training data."""
    dir: str = ""
    """Folder of TFDS sets."""
    test: str = ""
    """The test folder or file."""


def data_location(config: Config) -> DataLocation:
    """The current location of a run's data, from data options; "" means the run's own."""
    return DataLocation(config.name, config.dir, config.test)


def located(config: Config) -> Config:
    """The same with absolute paths, so that it does not depend on the working directory."""
    return replace(config, name=absolute(config.name), test=absolute_test(config.test), dir=absolute_path(config.dir))


def absolute(name: str) -> str:
    """A set's name with its path made absolute; names without a path are returned as they are."""
    kind, _, path = name.partition(":")
    is_path = kind in OF_FILES and path and not (kind == "texture" and path in TEXTURES)
    return f"{kind}:{absolute_path(path)}" if is_path else name


def absolute_test(name: str) -> str:
    """The absolute path of a test folder or file, without the prefix folder: or npz:."""
    kind, _, path = name.partition(":")
    return absolute_path(path if kind in OF_FILES and path else name)


def absolute_path(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def check_config(config: Config) -> None:
    """Raises `UserError` for options out of range."""
    require(
        config.levels == 0 or 2 <= config.levels <= 256,
        f"data.levels is {config.levels}: it must be from 2 to 256, or 0 for all that the set has",
    )
    takes_test = config.name.partition(":")[0] in WITH_TEST
    own = f"data.test is {config.test}: only folder:PATH and npz:FILE take one, and data.name is {config.name}"
    require(takes_test or not config.test, own)
    background_colour(config.background)
    require(0 <= config.validation < 1, f"data.validation is {config.validation}: it must be at least 0 and below 1")
    require(config.size >= 0, f"data.size is {config.size}: it must be above zero, or 0 to keep the size")
    require(
        config.low_resolution == 0 or config.low_resolution >= 2,
        f"data.low_resolution is {config.low_resolution}: it must be at least 2, or 0 for none",
    )
    has_styles = config.name.partition(":")[0] == "fonts"
    require(config.style >= 0, f"data.style is {config.style}: it must be above zero, or 0 for none")
    only = f"data.style is {config.style}: only fonts have other letters of a style, and data.name is {config.name}"
    require(has_styles or not config.style, only)
    require(
        config.vocabulary >= NUM_BYTES,
        f"data.vocabulary is {config.vocabulary}: it must be at least {NUM_BYTES}, the bytes and three special tokens",
    )
    require(
        config.text_length >= MIN_LENGTH,
        f"data.text_length is {config.text_length}: it must be at least {MIN_LENGTH}, for start, a token and end",
    )
    require(
        config.binarise == "none" or config.levels in (0, 2),
        f"data.levels is {config.levels}: with data.binarise images have 2, and it must be 2 or 0",
    )
