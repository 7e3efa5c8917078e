"""Variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114) on several data sets."""

from dataclasses import replace

from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vae import Config, Sampling
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser, tiny_training

VARIANTS = {
    "digits": "8x8 digits of scikit-learn; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST, 8 bit, discretised logistic decoder",
    "fashion_mnist": "28x28 Fashion-MNIST, 8 bit, discretised logistic decoder",
    "mnist_binary": "28x28 MNIST binarised anew in every epoch, Bernoulli decoder; 89.4 nats in an hour on 2 CPU cores",
    "cifar10": "32x32 CIFAR-10, 8 bit; for an accelerator",
    "tiny": "8x8 digits, seconds to train; for tests",
}


# Of images of many levels the decoder's mean is shown, as in the papers' figures: a draw adds noise to each pixel.
MEANS = Sampling(mean=True)


def get_config(variant: str) -> Experiment:
    if variant in ("mnist", "fashion_mnist"):
        return mnist(variant)
    if variant == "mnist_binary":
        return mnist_binary()
    if variant == "cifar10":
        return cifar10()
    digits = Experiment(
        model=Config(network="conv", widths=(32, 64), blocks=1, latent=16, sampling=MEANS),
        data=Data(name="digits"),
        train=Train(
            steps=4000,
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=1e-3, schedule="cosine", warmup_steps=100),
            validate_every=1000,
            validation_images=150,
            sample_every=2000,
        ),
    )
    return digits if variant == "digits" else tiny(digits)


def tiny(digits: Experiment) -> Experiment:
    return replace(
        digits,
        model=replace(
            digits.model, widths=(8,), hidden=(8,), latent=4, kl_warmup_steps=20, free_bits=0.01, class_conditional=True
        ),
        train=tiny_training(digits.train),
    )


def mnist(name: str) -> Experiment:
    return Experiment(
        model=Config(network="conv", widths=(32, 64), blocks=1, latent=40, sampling=MEANS),
        data=Data(name=name),
        train=Train(
            steps=30_000,
            batch_size=128,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=1e-3, schedule="cosine", warmup_steps=200, clip_norm=200.0),
            validate_every=2000,
            sample_every=5000,
        ),
    )


def mnist_binary() -> Experiment:
    # Under an hour on two CPU cores, 71 epochs: residual convolutions see fewer images a second than dense layers of
    # the same cost, but fit test images as well as training images, where dense ones soon differ by nats. Small batches
    # at a high rate get further in that time than large ones at a low rate.
    experiment = mnist("mnist")
    optimiser = replace(experiment.train.optimiser, learning_rate=4e-3)
    return replace(
        experiment,
        model=replace(experiment.model, decoder="bernoulli", hidden=(256,), sampling=Sampling()),
        data=Data(name="mnist", binarise="dynamic"),
        train=replace(experiment.train, steps=60_000, batch_size=64, optimiser=optimiser, validate_every=5000),
    )


def cifar10() -> Experiment:
    return Experiment(
        model=Config(
            network="conv", widths=(128, 256, 256), blocks=2, latent=256, kl_warmup_steps=10_000, sampling=MEANS
        ),
        data=Data(name="cifar10", flip=True, validation=0.0),
        train=Train(
            steps=200_000,
            batch_size=128,
            optimiser=Optimiser(learning_rate=3e-4, schedule="cosine", warmup_steps=1000, clip_norm=500.0),
            sample_every=10_000,
            checkpoint_every=5000,
        ),
    )
