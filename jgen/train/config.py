"""Options of training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from jgen.errors import require, require_choice, require_positive


@dataclass(frozen=True)
class Optimiser:
    """How gradients become updates."""

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    """Optimiser."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What follows warm-up: constant, or a fall to zero at train.steps."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    beta1: float = 0.9
    """Decay of the first moment (adam, adamw); for sgd the momentum."""
    beta2: float = 0.999
    """Decay of the second moment (adam, adamw, rmsprop)."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay (adamw only), of every parameter: biases and scales too."""
    scales: tuple[tuple[str, float], ...] = ()
    """Roles whose learning rate is a multiple of the one above, such as: disc 2.0."""
    clip_norm: float = 0.0
    """Clip a role's gradient to this global norm; 0 does not."""


@dataclass(frozen=True)
class Config:
    """Length, batch, average, logs and checkpoints of a run."""

    steps: int = 10_000
    """Training steps."""
    batch_size: int = 128
    """Global batch: examples a step, over all devices and accumulation steps."""
    accumulation: int = 1
    """Parts that a batch is computed in, one after another, to save memory; BatchNorm sees each part by itself."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the weights; 0 keeps none and samples with the weights themselves."""
    ema_warmup: bool = True
    """Cap the decay at (1 + step) / (10 + step), so that a short run's average is not its start."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    log_every: int = 100
    """Steps between lines of metrics, each the mean since the last."""
    validate_every: int = 1000
    """Steps between validation scores; 0: none."""
    validation_images: int = 1024
    """Validation images scored at most."""
    sample_every: int = 5000
    """Steps between sample grids; 0: only at the end."""
    samples_per_class: int = 10
    """Images of a class in a grid; without classes a grid has ten times as many."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is also written at the end and on interruption."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""


def tiny_training(config: Config) -> Config:
    """The same in forty small steps, with logs, scores and checkpoints between: for tests."""
    return replace(config, steps=40, batch_size=16, log_every=10, validate_every=20, checkpoint_every=20)


# Fields that a resumed run may be given anew: none changes the mathematics of the steps already taken. An entry that
# ends with a dot stands for all fields below it.
MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.validate_every",
    "train.validation_images",
    "train.sample_every",
    "train.samples_per_class",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_every",
    "model.sampling.",
    "model.scoring.",
    "data.dir",
    "first_stage",
)


def may_change(name: str) -> bool:
    """Whether a resumed run may be given another value of a field."""
    return any(name.startswith(field) if field.endswith(".") else name == field for field in MAY_CHANGE)


def check_config(config: Config, devices: int) -> None:
    """Raises `UserError` for options out of their range, or a batch that does not divide over devices and parts."""
    require_positive(
        **{f"train.{name}": getattr(config, name) for name in ("steps", "batch_size", "accumulation", "log_every")},
        **{f"train.{name}": getattr(config, name) for name in ("samples_per_class", "checkpoint_every", "keep")},
        **{"train.validation_images": config.validation_images},
        **{"train.optimiser.learning_rate": config.optimiser.learning_rate},
    )
    for name in ("validate_every", "sample_every", "keep_every"):
        require(getattr(config, name) >= 0, f"train.{name} is {getattr(config, name)}: it must be zero or above")
    parts = devices * config.accumulation
    require(
        config.batch_size % parts == 0,
        f"train.batch_size is {config.batch_size}: it must be divisible by {parts}"
        f" ({devices} devices x {config.accumulation} accumulation steps)",
    )
    require(0 <= config.ema_decay < 1, f"train.ema_decay is {config.ema_decay}: it must be at least 0 and below 1")
    optimiser = config.optimiser
    require_choice("train.optimiser.name", optimiser.name, ("adam", "adamw", "sgd", "rmsprop"))
    require_choice("train.optimiser.schedule", optimiser.schedule, ("constant", "cosine", "linear"))
    for name in ("warmup_steps", "weight_decay", "clip_norm", "eps"):
        value = getattr(optimiser, name)
        fits = 0 <= value < math.inf
        require(fits, f"train.optimiser.{name} is {value}: it must be zero or above, and finite")
    for role, scale in optimiser.scales:
        require(scale > 0, f"train.optimiser.scales has {role} {scale}: it must be above zero")
    for name in ("beta1", "beta2"):
        value = getattr(optimiser, name)
        require(0 <= value < 1, f"train.optimiser.{name} is {value}: it must be at least 0 and below 1")
    require(
        optimiser.weight_decay == 0 or optimiser.name == "adamw",
        f"train.optimiser.weight_decay is {optimiser.weight_decay}: only adamw has weight decay",
    )
