"""The training of a configuration as what is timed and counted: model, state and step, on random images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jgen.compare.config import ROOT
from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.model import GenerativeModel
from jgen.data.transforms import make_transform
from jgen.errors import require
from jgen.experiment import Experiment, make_model
from jgen.train.loop import role_optimisers
from jgen.train.step import init_state, make_train_step, repeats_of


class Program(NamedTuple):
    """A training, as the loop runs it, and a global batch of random images for it.

    stage: the model of its first stage, or None. init: `once`, a transformed global batch, to the state. step: as
    `make_train_step` gives it.
    """

    model: GenerativeModel
    stage: GenerativeModel | None
    init: Callable[..., Any]
    step: Callable[..., Any]
    batch: dict[str, np.ndarray]
    once: Any


def make_program(experiment: Experiment, first: Experiment | None, images: Any) -> Program:
    """The training of an experiment on images of the spec `images`.

    Args:
      first: the experiment of its first stage.
    Raises:
      UserError: images that the model cannot be made for.
    """
    config, key = experiment.train, jax.random.key(0)
    stage = make_model(first.model, images, None, None) if first else None
    model = make_model(experiment.model, images, parallel.AXIS, stage)
    optimisers = role_optimisers(model, config)
    num = config.batch_size * repeats_of(model)
    draw = np.random.default_rng(0)
    batch = {"image": draw.integers(0, 256, (num, *images.shape)).astype(np.uint8)}
    batch["label"] = (np.arange(num) % max(1, images.num_classes)).astype(np.int32)
    batch["index"] = np.arange(num, dtype=np.int32)
    transform = make_transform(experiment.data, images.levels, train=True)
    first_images = jax.tree.map(lambda x: x[: config.batch_size], batch)
    once = jax.jit(transform)(rng.image_keys(key, first_images["index"]), first_images)
    init = lambda b: init_state(model, optimisers, key, b, config.ema_decay > 0)
    options = {"ema_decay": config.ema_decay, "accumulation": config.accumulation, "transform": transform}
    return Program(model, stage, init, make_train_step(model, optimisers, **options), batch, once)


def first_stage_config(config: str, experiment: Experiment) -> str:
    """The configuration that trains the first stage of an experiment, "" for one that stands alone.

    Raises:
      UserError: an experiment whose first stage no configuration trains.
    """
    if not experiment.first_stage:
        return ""
    system, _, variant = Path(experiment.first_stage).name.rpartition("-")
    found = sorted((ROOT / "configs").glob(f"*/{system}.py"))
    require(bool(found), f"{config} stands on {experiment.first_stage}: no configuration trains that")
    return f"{found[0].relative_to(ROOT)}:{variant}"


def at_height(experiment: Experiment, own: int, height: int) -> Experiment:
    """The experiment for images of another height than its own: attention stays at the levels where it stands.

    A model's `attention` names heights of feature maps, which scale with the images'.
    """
    heights = getattr(experiment.model, "attention", ())
    if not heights:
        return experiment
    scaled = tuple(max(1, round(there * height / own)) for there in heights)
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, attention=scaled))
