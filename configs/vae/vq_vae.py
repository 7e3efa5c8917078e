"""Vector-quantised autoencoder (van den Oord et al. 2017, arXiv 1711.00937) on several data sets."""

from dataclasses import replace

from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vq_vae import Config
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser, tiny_training

VARIANTS = {
    "digits": "8x8 digits of scikit-learn as 4x4 codes; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST as 7x7 codes",
    "fashion_mnist": "28x28 Fashion-MNIST as 7x7 codes",
    "cifar10": "32x32 CIFAR-10 as 8x8 codes, the paper's codebook of 512; for an accelerator",
    "tiny": "8x8 digits, seconds to train; for tests",
}


def get_config(variant: str) -> Experiment:
    if variant in ("mnist", "fashion_mnist"):
        return mnist(variant)
    if variant == "cifar10":
        return cifar10()
    digits = Experiment(
        model=Config(widths=(64,), blocks=2, num_codes=64, code_dim=16),
        data=Data(name="digits"),
        train=Train(
            steps=3000,
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=1e-3, schedule="cosine", warmup_steps=100),
            validate_every=1000,
            validation_images=150,
            sample_every=1500,
        ),
    )
    return digits if variant == "digits" else tiny(digits)


def tiny(digits: Experiment) -> Experiment:
    return replace(
        digits,
        model=replace(digits.model, widths=(8,), blocks=1, num_codes=16, code_dim=4, decay=0.9),
        train=tiny_training(digits.train),
    )


def mnist(name: str) -> Experiment:
    return Experiment(
        model=Config(widths=(32, 64), blocks=2, num_codes=128, code_dim=32),
        data=Data(name=name),
        train=Train(
            steps=15_000,
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=1e-3, schedule="cosine", warmup_steps=200),
            validate_every=1000,
            sample_every=5000,
        ),
    )


def cifar10() -> Experiment:
    # The paper's sizes: 256 channels, two residual blocks, a codebook of 512, Adam at 2e-4, batch 128; codes of 8x8,
    # where the paper has ten for each position. The rate falls, so that the averaged weights come to fit the codebook.
    return Experiment(
        model=Config(widths=(256, 256), blocks=2, num_codes=512, code_dim=64),
        data=Data(name="cifar10", validation=0.0),
        train=Train(
            steps=250_000,
            batch_size=128,
            optimiser=Optimiser(learning_rate=2e-4, schedule="cosine"),
            sample_every=10_000,
            checkpoint_every=5000,
        ),
    )
