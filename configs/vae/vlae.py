"""Variational lossy autoencoder (Chen et al. 2017, arXiv 1611.02731) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vlae import Config
from jgen.train.config import tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {"mnist_binary": "28x28 MNIST, dynamically binarised, unconditional"}
FACTS = Facts(free_form_jacobian=False, published="CIFAR-10: <= 2.95 bits/dim")


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, mnist_binary=mnist_binary, cifar10=cifar10)


def digits() -> Experiment:
    # Without dropout the bound of validation images is 1.71 bits/dim at best, instead of 1.68.
    model = Config(widths=(32, 64), latent=16, window=2, dropout=0.2, class_conditional=True)
    return Experiment(model, Data(name="digits"), digits_training(1500, cosine(2e-3, warmup_steps=100, clip_norm=1.0)))


def tiny(digits: Experiment) -> Experiment:
    small = {"widths": (8,), "hidden": (8,), "latent": 4, "context": 4, "pixel_features": 8, "pixel_blocks": 1}
    model = replace(digits.model, **small, flow_units=2, free_bits=0.1)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(widths=(32, 64), hidden=(256,), latent=32, window=3, free_bits=7.84, class_conditional=True)
    optimiser = cosine(1e-3, warmup_steps=200, clip_norm=1.0)
    return Experiment(model, Data(name=name), mnist_training(8000, optimiser))


def mnist_binary() -> Experiment:
    # The paper's window of six pixels, and its 0.01 free nats per dimension.
    model = Config(widths=(32, 64), hidden=(256,), latent=64, window=6, free_bits=7.84)
    optimiser = cosine(1e-3, warmup_steps=200, clip_norm=1.0)
    return Experiment(model, Data(name="mnist", binarise="dynamic"), mnist_training(15_000, optimiser))


def cifar10() -> Experiment:
    # 7 columns of 4 rows, including the own row: the largest window of the paper's lossy codes of CIFAR-10.
    model = Config(widths=(128, 256, 256), blocks=2, latent=256, context=96, window=3, pixel_features=192)
    model = replace(model, pixel_blocks=6, flow_units=8, free_bits=30.72)
    optimiser = cosine(3e-4, warmup_steps=1000, clip_norm=1.0)
    return Experiment(model, CIFAR10, accelerator_training(200_000, optimiser))
