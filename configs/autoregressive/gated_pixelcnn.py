"""Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328) on several data sets."""

from dataclasses import replace

from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.autoregressive.gated_pixelcnn import Config
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser, tiny_training

VARIANTS = {
    "digits": "8x8 digits of scikit-learn in 17 levels, by class; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST in 256 levels, by class",
    "fashion_mnist": "28x28 Fashion-MNIST in 256 levels, by class",
    "mnist_binary": "28x28 MNIST, dynamically binarised, unconditional; 84 nats in an hour on 2 CPU cores",
    "cifar10": "32x32 CIFAR-10, unconditional; for an accelerator",
    "tiny": "8x8 digits in 17 levels, seconds to train; for tests",
}


def get_config(variant: str) -> Experiment:
    if variant == "cifar10":
        return cifar10()
    if variant == "mnist_binary":
        return mnist_binary()
    if variant in ("mnist", "fashion_mnist"):
        return mnist(variant)
    digits = Experiment(
        model=Config(features=32, blocks=5, first_kernel=5, hidden=64, dropout=0.1),
        data=Data(name="digits"),
        train=Train(
            steps=2500,
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=2e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0),
            log_every=50,
            validate_every=250,
            validation_images=150,
            sample_every=1250,
            checkpoint_every=500,
        ),
    )
    return digits if variant == "digits" else tiny(digits)


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, features=8, blocks=1, hidden=8)
    train = tiny_training(digits.train)
    return replace(digits, model=model, train=train)


def mnist(name: str) -> Experiment:
    return Experiment(
        model=Config(features=32, blocks=8, hidden=64),
        data=Data(name=name),
        train=Train(
            steps=8000,
            batch_size=32,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=1e-3, schedule="cosine", warmup_steps=200, clip_norm=1.0),
            validate_every=1000,
            sample_every=1000,
            checkpoint_every=500,
        ),
    )


def mnist_binary() -> Experiment:
    # Two minutes with batches of 16 at 2e-3 end at 92.5 nats, with batches of 32 at 1e-3 at 96.
    base = mnist("mnist")
    optimiser = replace(base.train.optimiser, learning_rate=2e-3)
    return replace(
        base,
        model=Config(features=32, blocks=8, hidden=64, class_conditional=False),
        data=Data(name="mnist", binarise="dynamic"),
        train=replace(base.train, steps=24_000, batch_size=16, optimiser=optimiser, validate_every=2000),
    )


def cifar10() -> Experiment:
    return Experiment(
        model=Config(features=192, blocks=15, hidden=768, dropout=0.1, class_conditional=False),
        data=Data(name="cifar10", flip=True, validation=0.0),
        train=Train(
            steps=200_000,
            batch_size=128,
            ema_decay=0.9995,
            optimiser=Optimiser(learning_rate=4e-4, schedule="cosine", warmup_steps=1000, clip_norm=1.0),
            sample_every=20_000,
            checkpoint_every=2000,
        ),
    )
