"""Shared by studies: samples of a trained run under many settings, each scored once and written to a record."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jgen import cli, sample_scores
from jgen.core import keys as rng
from jgen.core.progress import progress_bar
from jgen.data import dataset
from jgen.data.config import Config
from jgen.data.pictures import to_display
from jgen.data.transforms import make_transform
from jgen.generator import Generator
from jgen.metrics.neighbours import nearest_distances
from jgen.studies.reporting import Row
from jgen.train.run_directory import environment, read_config, read_json, write_json


class Opened(NamedTuple):
    """A run whose samples are scored.

    compare: function from samples to their scores; see `sample_scores.make_comparison`.
    train, test: images as the model sees them, float (n, H W C) in 0 .. 1, with the classes of test, (n,), or None.
    """

    gen: Generator
    compare: Callable[..., dict[str, Any]]
    train: np.ndarray
    test: np.ndarray
    test_classes: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class ScoringProtocol:
    """How samples are scored; the fields of `jgen.evaluate` that `jgen.sample_scores` reads."""

    split: str = "test"
    num: int = 0
    seed: int = 0
    inception: str = ""
    efficientnet: str = ""
    memorisation: bool = True


def open_run(run: str, seed: int) -> Opened:
    """Loads a run and the data that it was trained on.

    Raises:
      UserError: no run, or data that is missing or has changed.
    """
    import jgen

    gen = jgen.load(run)
    config, data = dataset.reopen(gen.config.data, read_config(Path(run))["data_fingerprint"], run, gen.tokenizers)
    labelled = "label" in gen.model.conditions
    compare = sample_scores.make_comparison(data, config, ScoringProtocol(seed=seed), labelled)
    train, test = (pixels_of(data, config, name) for name in ("train", "test"))
    classes = data.splits["test"].fetch(np.arange(len(test)))["label"] if labelled else None
    return Opened(gen, compare, train, test, classes)


def pixels_of(data: dataset.Dataset, config: Config, split: str) -> np.ndarray:
    """The images of a split as the model sees them: float32 (n, H W C) in 0 .. 1."""
    batch = data.splits[split].fetch(np.arange(data.splits[split].num))
    keys = rng.image_keys(rng.stream(rng.seed_key(0), rng.DATA), batch["index"])
    images = jax.jit(make_transform(config, data.spec, train=False))(keys, batch)["image"]
    return as_pixels(np.asarray(images), data.spec.image.levels)


def as_pixels(images: np.ndarray, levels: int) -> np.ndarray:
    """uint8 images to float32 (n, H W C) in 0 .. 1."""
    return images.reshape(len(images), -1).astype(np.float32) / (levels - 1)


def score(opened: Opened, options: dict[str, Any], num: int, seed: int) -> Row:
    """Scores of samples drawn with these options, with the classes in turn.

    Returns:
      fd, precision, recall, class_accuracy: as in `jgen.evaluate`; class_accuracy is None without classes.
      diversity: the mean pixel distance of two samples of a class, divided by that of two test images.
      nearest: the median pixel distance of a sample to the nearest training image, divided by that of test images.
      copies: the fraction of samples nearer to a training image than 95 % of test images are; 0.05 for unseen images.
    """
    gen = opened.gen
    images = gen.sample(jax.random.key(seed), num, batch_size=250, **options)
    label = gen.conditions(num).get("label")
    shown = to_display(images, gen.model.images.levels)
    scores = opened.compare(lambda start, stop: shown[start:stop], num, label, asked_for=True)
    quality, accuracy = scores["quality"], scores["labels"]
    return {
        **{name: quality[name]["value"] for name in ("precision", "recall")},
        "fd": quality["frechet_distance"],
        "network": quality["network"],
        "reference": quality["reference"],
        "class_accuracy": accuracy and accuracy["accuracy"],
        **pixel_scores(opened, as_pixels(images, gen.model.images.levels), label),
    }


def pixel_scores(opened: Opened, pixels: np.ndarray, classes: np.ndarray | None) -> Row:
    """The scores `diversity`, `nearest` and `copies` of `score`, for images as returned by `as_pixels`."""
    test_distances, distances = (nearest_distances(x, opened.train) for x in (opened.test, pixels))
    return {
        "diversity": spread_within(pixels, classes) / spread_within(opened.test, opened.test_classes),
        "nearest": float(np.median(distances) / np.median(test_distances)),
        "copies": float(np.mean(distances < np.quantile(test_distances, 0.05))),
    }


def spread_within(x: np.ndarray, classes: np.ndarray | None) -> float:
    """The mean distance of two rows of x (n, D) of the same class, averaged over the classes."""
    groups = [x] if classes is None else [x[classes == each] for each in np.unique(classes)]
    means = []
    for group in groups:
        squares = (group**2).sum(1)
        distances = np.sqrt(np.clip(squares[:, None] + squares[None] - 2 * group @ group.T, 0, None))
        means.append(distances.sum() / max(1, len(group) * (len(group) - 1)))
    return float(np.mean(means))


def score_all(out: Path, settings: Iterable[Row], score_one: Callable[[Row], Row]) -> list[Row]:
    """The rows of a record; those of new settings are added as soon as each is scored, so that an interrupted command
    can be resumed.

    Args:
      out: the JSON file; settings: all that a row depends on, as JSON values; score_one: a setting to its scores.
    Returns:
      the rows of these settings, in their order.
    """
    document: Row = read_json(out) if out.exists() else {"rows": []}
    rows = document["rows"]
    settings = [json.loads(json.dumps(setting)) for setting in settings]
    present = [row["setting"] for row in rows]
    about = {"command": "python " + shlex.join(sys.orig_argv[1:]), "environment": environment()}
    todo = [setting for setting in settings if setting not in present]
    for setting in progress_bar(todo, desc=out.stem, unit="setting"):
        start = time.monotonic()
        row = {"setting": setting, **score_one(setting)}
        rows.append({**row, "seconds": round(time.monotonic() - start, 1), **about})
        write_json(out, document)
    return [next(row for row in rows if row["setting"] == setting) for setting in settings]


def identity_of(run: str, gen: Generator, num: int, seed: int) -> Row:
    """What every row of a run depends on in addition to its options."""
    return {
        "run": run,
        "system": gen.model.name,
        "step": gen.step,
        "model": cli.model_hash(gen),
        "samples": num,
        "seed": seed,
    }
