"""Options of training that configurations share: by the size of the data, each with what a system changes of them."""

from __future__ import annotations

from typing import Any

from jgen.train.config import Config, Optimiser


def cosine(learning_rate: float, warmup_steps: int, clip_norm: float = 0.0) -> Optimiser:
    """Adam with a linear warm-up and a cosine fall of the learning rate to zero at the last step."""
    return Optimiser(learning_rate=learning_rate, schedule="cosine", warmup_steps=warmup_steps, clip_norm=clip_norm)


def digits_training(steps: int, optimiser: Optimiser, **changes: Any) -> Config:
    """Training on the 8x8 digits, 1,350 images, in minutes on two CPU cores.

    Args:
      changes: fields of `Config` that differ from the preset.
    """
    preset: dict[str, Any] = {"batch_size": 64, "ema_decay": 0.999}
    preset |= {"log_every": 50, "validate_every": 250, "validation_images": 150}
    preset |= {"sample_every": 1000, "checkpoint_every": 500}
    return Config(steps=steps, optimiser=optimiser, **preset | changes)


def mnist_training(steps: int, optimiser: Optimiser, **changes: Any) -> Config:
    """Training on 28x28 images such as MNIST's, in an hour on two CPU cores.

    Args:
      changes: fields of `Config` that differ from the preset.
    """
    preset: dict[str, Any] = {"batch_size": 64, "ema_decay": 0.999}
    preset |= {"log_every": 100, "validate_every": 1000, "sample_every": 2500, "checkpoint_every": 500}
    return Config(steps=steps, optimiser=optimiser, **preset | changes)


def accelerator_training(steps: int, optimiser: Optimiser, **changes: Any) -> Config:
    """Long training on an accelerator, as the papers' on CIFAR-10.

    Args:
      changes: fields of `Config` that differ from the preset.
    """
    preset: dict[str, Any] = {"batch_size": 128, "ema_decay": 0.9999}
    preset |= {"log_every": 100, "validate_every": 1000, "sample_every": 10_000, "checkpoint_every": 5000}
    return Config(steps=steps, optimiser=optimiser, **preset | changes)
