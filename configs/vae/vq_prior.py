"""Gated PixelCNN over the codes of a VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937): the second of two runs.

First: python train.py configs/vae/vq_vae.py:VARIANT, which trains runs/vq_vae-VARIANT, or give another --first-stage.
"""

from dataclasses import replace

from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vq_prior import Config
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser, tiny_training

VARIANTS = {
    "digits": "codes of 8x8 digits by class; under 3 minutes on 2 CPU cores",
    "mnist": "codes of 28x28 MNIST by class",
    "fashion_mnist": "codes of 28x28 Fashion-MNIST by class",
    "cifar10": "codes of 32x32 CIFAR-10 by class; for an accelerator",
    "tiny": "codes of 8x8 digits, seconds to train; for tests",
}


def get_config(variant: str) -> Experiment:
    if variant in ("mnist", "fashion_mnist"):
        return mnist(variant)
    if variant == "cifar10":
        return cifar10()
    digits = Experiment(
        # 1,300 images are few: small and with much dropout, else it knows them by heart in 500 steps.
        model=Config(features=32, blocks=2, first_kernel=3, hidden=64, embedding=16, dropout=0.5),
        data=Data(name="digits"),
        train=Train(
            steps=1000,
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=1e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0),
            validate_every=250,
            validation_images=150,
            sample_every=500,
            checkpoint_every=500,
        ),
        frozen={"autoencoder": "runs/vq_vae-digits"},
    )
    return digits if variant == "digits" else tiny(digits)


def tiny(digits: Experiment) -> Experiment:
    return replace(
        digits,
        model=replace(digits.model, features=8, blocks=1, hidden=8, embedding=4, dropout=0.0),
        train=tiny_training(digits.train),
        frozen={"autoencoder": "runs/vq_vae-tiny"},
    )


def mnist(name: str) -> Experiment:
    return Experiment(
        model=Config(features=64, blocks=8, dropout=0.1),
        data=Data(name=name),
        train=Train(
            steps=6_000,
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=1e-3, schedule="cosine", warmup_steps=200, clip_norm=1.0),
            validate_every=1000,
            sample_every=5000,
        ),
        frozen={"autoencoder": f"runs/vq_vae-{name}"},
    )


def cifar10() -> Experiment:
    return Experiment(
        model=Config(features=256, blocks=12, hidden=512, embedding=64, dropout=0.1),
        data=Data(name="cifar10", validation=0.0),
        train=Train(
            steps=250_000,
            batch_size=128,
            optimiser=Optimiser(learning_rate=3e-4, warmup_steps=1000, clip_norm=1.0),
            sample_every=10_000,
            checkpoint_every=5000,
        ),
        frozen={"autoencoder": "runs/vq_vae-cifar10"},
    )
