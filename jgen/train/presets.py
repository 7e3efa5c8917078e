"""Shared by configurations: the usual variants of a system, and training options by the size of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from jgen.data.config import Config as Data
from jgen.errors import require
from jgen.train.config import Config, Optimiser, tiny_training

T = TypeVar("T")  # jgen.experiment.Experiment, which this package must not import

# The usual entries of VARIANTS: STANDARD | {...} changes or adds some.
STANDARD = {
    "digits": "8x8 digits of scikit-learn by class; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST by class",
    "fashion_mnist": "28x28 Fashion-MNIST by class",
    "cifar10": "32x32 CIFAR-10, unconditional; for an accelerator",
    "tiny": "8x8 digits, seconds to train; for tests",
}

# A density of the plane: STANDARD | RINGS.
RINGS = {"rings": "points of two rings in the plane, as images of two pixels"}

# Data that several systems use.
CIFAR10 = Data(name="cifar10", flip=True, validation=0.0)  # all of the training images
SHAPES = Data(name="shapes", tokenizer="bpe", vocabulary=768, text_length=24)  # one token per word of the captions
TINY_SHAPES = Data(name="shapes", text_length=136)  # the bytes of the longest caption

# The VARIANTS of a texture model.
TEXTURES = {
    "brick": "crops of 256x256 of a brick wall, grey, of scikit-image",
    "grass": "crops of 256x256 of grass, grey, of scikit-image",
    "gravel": "crops of 256x256 of gravel, grey, of scikit-image",
    "tiny": "8x8 digits in the place of crops, seconds to train; for tests",
}


def described(line: str, *details: str) -> dict[str, str]:
    """The usual VARIANTS, each described by `line`, in which {} stands for the images, and a second {} for a detail.

    Args:
      details: for digits, for MNIST and Fashion-MNIST, and for CIFAR-10: "{} as {} codes", "4x4", "7x7", "8x8".
    """
    digits, mnist, cifar10 = details or ("", "", "")
    return STANDARD | {
        "digits": f"{line.format('8x8 digits of scikit-learn', digits)}; under 3 minutes on 2 CPU cores",
        "mnist": line.format("28x28 MNIST", mnist),
        "fashion_mnist": line.format("28x28 Fashion-MNIST", mnist),
        "cifar10": f"{line.format('32x32 CIFAR-10', cifar10)}; for an accelerator",
    }


def choose(
    variant: str,
    *,
    digits: Callable[[], T],
    mnist: Callable[[str], T],
    tiny: Callable[[T], T],
    **others: Callable[[], T],
) -> T:
    """The experiment of a variant.

    Args:
      mnist: makes the experiment of "mnist" or "fashion_mnist" from that name; tiny: shrinks the experiment of digits.
      others: {name: function} that make the experiments of further variants.
    """
    if variant in ("mnist", "fashion_mnist"):
        return mnist(variant)
    if variant == "tiny":
        return tiny(digits())
    require(variant in ("digits", *others), f"VARIANTS lists {variant}, but get_config gives `choose` no {variant}=")
    return digits() if variant == "digits" else others[variant]()


def cosine(learning_rate: float, warmup_steps: int, clip_norm: float = 0.0) -> Optimiser:
    """Adam with a linear warm-up and a cosine decay of the learning rate to zero at the last step."""
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


def plane_training(steps: int, optimiser: Optimiser, **changes: Any) -> Config:
    """Training on points of the plane, images of two pixels.

    Args:
      changes: fields of `Config` that differ from the preset.
    """
    preset: dict[str, Any] = {"batch_size": 256, "ema_decay": 0.995}
    preset |= {"log_every": 100, "validate_every": 500, "validation_images": 1000}
    preset |= {"sample_every": 0, "checkpoint_every": 500}
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
    """Long training on an accelerator, as in the papers' experiments on CIFAR-10.

    Args:
      changes: fields of `Config` that differ from the preset.
    """
    preset: dict[str, Any] = {"batch_size": 128, "ema_decay": 0.9999}
    preset |= {"log_every": 100, "validate_every": 1000, "sample_every": 10_000, "checkpoint_every": 5000}
    return Config(steps=steps, optimiser=optimiser, **preset | changes)


def texture_training(variant: str) -> Config:
    """Training on one 512x512 picture, cut into three training crops and a test crop: a step sees all three."""
    if variant == "tiny":
        return replace(tiny_training(Config()), samples_per_class=1, sample_every=0)
    return Config(steps=10, batch_size=3, log_every=1, samples_per_class=0)  # a grid would take minutes


def lazy_rates(optimiser: Optimiser, **every: int) -> Optimiser:
    """Adjusts Adam for lazy regularisation, in which a separate phase regularises a role in every n-th step only.

    Such a role has (n + 1) / n updates per step instead of one: with c = n / (n + 1), the learning rate times c and the
    decays beta^c move it equally far (Karras et al. 2020, arXiv 1912.04958, appendix B).

    Args:
      every: n of each role; a role with n = 1 keeps its options.
    """
    options = []
    for role, n in every.items():
        c = n / (n + 1) if n > 1 else 1.0
        rates = {"learning_rate": optimiser.learning_rate * c, "beta1": optimiser.beta1**c, "beta2": optimiser.beta2**c}
        options += [(role, name, value) for name, value in rates.items()]
    return replace(optimiser, by_role=(*optimiser.by_role, *options))
