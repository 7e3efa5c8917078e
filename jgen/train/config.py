"""Options of training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jgen.errors import require, require_positive


@dataclass(frozen=True)
class Optimiser:
    """Options of an optimiser."""

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    """Optimiser."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after warm-up: constant, or decaying to zero at train.steps."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    beta1: float = 0.9
    """Decay of the first moment (adam, adamw); for sgd the momentum."""
    beta2: float = 0.999
    """Decay of the second moment (adam, adamw, rmsprop)."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay (adamw only), applied to every parameter, including biases and scales."""
    clip_norm: float = 0.0
    """Clip a role's gradient to this global norm; 0: no clipping."""
    skip_norm: float = 0.0
    """Skip a step if a role's gradient, before clipping, has a larger global norm than this; 0: never."""
    by_role: tuple[tuple[str, str, float], ...] = ()
    """Options that differ for a role, as ROLE OPTION VALUE triples, such as: disc learning_rate 4e-4 disc beta1 0."""

    def of(self, role: str) -> Optimiser:
        """The options of a role."""
        own: dict[str, Any] = {option: value for name, option, value in self.by_role if name == role}
        if "warmup_steps" in own:
            own["warmup_steps"] = int(own["warmup_steps"])
        return replace(self, **own)


NUMBERS = ("learning_rate", "warmup_steps", "beta1", "beta2", "eps", "weight_decay", "clip_norm", "skip_norm")


@dataclass(frozen=True)
class Config:
    """Length, batch size, weight average, logs and checkpoints of a run."""

    steps: int = 10_000
    """Training steps."""
    batch_size: int = 128
    """Global batch: examples per step, over all devices and accumulation steps."""
    accumulation: int = 1
    """Number of microbatches per step (gradient accumulation), to save memory; BatchNorm uses the statistics of each
    microbatch."""
    steps_per_call: int = 1
    """Steps per compiled call, which does not change the results; faster for networks so small that dispatching a step
    takes as long as computing it."""
    data_workers: int = 0
    """Processes that decode images of a set that does not fit into memory; 0: threads, enough for a few cores."""
    ema_decay: float = 0.9999
    """Decay of the moving average (EMA) of the weights; 0: no average, samples use the weights themselves."""
    ema_warmup: bool = True
    """Cap the decay at (1 + step) / (10 + step), so that in a short run the initial weights do not dominate."""
    ema_half_life: float = 0.0
    """Half-life of the average in images, replaces ema_decay; 0: not used."""
    ema_power: float = 0.0
    """Exponent of the power-function average, decay (1 - 1 / step)^(power + 1), replaces ema_decay; 0: not used."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    log_every: int = 100
    """Steps between lines of metrics; each line has the means since the previous one."""
    validate_every: int = 1000
    """Steps between validation scores; 0: none."""
    validation_images: int = 1024
    """Maximum number of validation images to score."""
    sample_every: int = 5000
    """Steps between sample grids; 0: only at the end."""
    samples_per_class: int = 10
    """Images per class in a grid; without classes a grid has ten times as many. 0: no grids."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is also written at the end and on interruption."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""

    @staticmethod
    def upgrade(document: dict[str, Any]) -> dict[str, Any]:
        """Converts the JSON object of a `Config` to this version: up to 0.1, roles had learning rate multiples."""
        optimiser = dict(document.get("optimiser", {}))
        scales = optimiser.pop("scales", [])
        if scales:
            rate = optimiser.get("learning_rate", Optimiser.learning_rate)
            optimiser["by_role"] = [[role, "learning_rate", scale * rate] for role, scale in scales]
        return {**document, "optimiser": optimiser} if "optimiser" in document else document


def tiny_training(config: Config) -> Config:
    """The same with forty small steps, including logs, scores and checkpoints, for tests."""
    often: dict[str, Any] = {"log_every": 10, "validate_every": 20, "checkpoint_every": 20}
    return replace(config, steps=40, batch_size=16, steps_per_call=1, **often)


# Fields that may be changed when a run is resumed: none affects the steps already taken. An entry that ends with a dot
# stands for all fields below it.
MAY_CHANGE = (
    "train.steps",
    "train.steps_per_call",
    "train.data_workers",
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
    "model.objective.sampling.",
    "model.objective.scoring.",
    "data.dir",
    "frozen.",
)


def may_change(name: str) -> bool:
    """Whether a field may be changed when a run is resumed."""
    return any(name.startswith(field) if field.endswith(".") else name == field for field in MAY_CHANGE)


def check_config(config: Config, devices: int) -> None:
    """Raises `UserError` for options out of range, or a batch size that devices and microbatches do not divide."""
    names = (
        "steps",
        "steps_per_call",
        "batch_size",
        "accumulation",
        "log_every",
        "checkpoint_every",
        "keep",
    )
    require_positive(**{f"train.{name}": getattr(config, name) for name in (*names, "validation_images")})
    for name in ("validate_every", "sample_every", "samples_per_class", "keep_every", "data_workers"):
        require(getattr(config, name) >= 0, f"train.{name} is {getattr(config, name)}: it must be zero or above")
    parts = devices * config.accumulation
    require(
        config.batch_size % parts == 0,
        f"train.batch_size is {config.batch_size}: it must be divisible by {parts}"
        f" ({devices} devices x {config.accumulation} accumulation steps)",
    )
    check_average(config)
    check_optimiser(config.optimiser)
    for role, option, value in config.optimiser.by_role:
        place = f"train.optimiser.by_role has {role} {option} {value:g}"
        require(option in NUMBERS, f"{place}: an option of a role must be one of {', '.join(NUMBERS)}")
        check_optimiser(config.optimiser.of(role), f"train.optimiser.by_role: {role} ")


def check_average(config: Config) -> None:
    """Raises `UserError` for options of the moving average that are out of range or contradict each other."""
    require(0 <= config.ema_decay < 1, f"train.ema_decay is {config.ema_decay}: it must be at least 0 and below 1")
    for name in ("ema_half_life", "ema_power"):
        value = getattr(config, name)
        require(0 <= value < math.inf, f"train.{name} is {value}: it must be zero or above, and finite")
    both = config.ema_half_life > 0 and config.ema_power > 0
    require(not both, f"train.ema_half_life is {config.ema_half_life} and train.ema_power {config.ema_power}: set one")


def check_optimiser(optimiser: Optimiser, where: str = "train.optimiser.") -> None:
    """Raises `UserError` for options of an optimiser that are out of range."""
    require_positive(**{f"{where}learning_rate": optimiser.learning_rate})
    for name in ("warmup_steps", "weight_decay", "clip_norm", "skip_norm", "eps"):
        value = getattr(optimiser, name)
        require(0 <= value < math.inf, f"{where}{name} is {value}: it must be zero or above, and finite")
    for name in ("beta1", "beta2"):
        value = getattr(optimiser, name)
        require(0 <= value < 1, f"{where}{name} is {value}: it must be at least 0 and below 1")
    require(
        optimiser.weight_decay == 0 or optimiser.name == "adamw",
        f"{where}weight_decay is {optimiser.weight_decay}: only adamw has weight decay",
    )


def ema_enabled(config: Config) -> bool:
    """Whether a moving average of the weights is kept."""
    return config.ema_decay > 0 or config.ema_half_life > 0 or config.ema_power > 0
