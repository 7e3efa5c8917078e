"""Autoencoder (Hinton & Salakhutdinov 2006) on several data sets: linear, denoising and sparse ones among them."""

from dataclasses import replace
from typing import Any

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.autoencoder import Config
from jgen.train.config import tiny_training
from jgen.train.presets import CIFAR10, accelerator_training, choose, cosine, described, digits_training, mnist_training

VARIANTS = described("{} as {} numbers", "8", "16", "128") | {
    "digits": "8x8 digits of scikit-learn as 8 numbers, dense; under a minute on 2 CPU cores",
    "digits_linear": "8x8 digits as 4 numbers by a linear network: the subspace of PCA",
    "digits_denoising": "8x8 digits as 32 numbers, denoising: Gaussian noise on the encoder's input",
    "digits_sparse": "8x8 digits as 128 numbers with an L1 penalty, tied weights",
    "digits_kl": "8x8 digits as 128 activations whose means are drawn to 0.05, tied weights",
    "mnist_binary": "28x28 MNIST binarised anew in every epoch, cross-entropy",
    "mnist_denoising": "28x28 MNIST, denoising: half of the pixels masked",
}
FACTS = Facts(free_form_jacobian=True, compared=False)  # without a density of its codes it generates nothing

# 8x8 images are so small that dense layers fit them as well as convolutions do, in a tenth of the time.
DENSE = Config(network="dense", widths=(256, 128), blocks=0, latent=8)
CONV = Config(network="conv", widths=(32, 64), blocks=1, hidden=(256,), latent=16)
TINY = replace(CONV, widths=(8,), hidden=(8,), latent=4)
# Tied weights prevent the L1 penalty from shrinking the codes while the decoder's weights grow.
SPARSE = replace(DENSE, widths=(), latent=128, tied=True)


def get_config(variant: str) -> Experiment:
    return choose(
        variant,
        digits=lambda: on_digits(DENSE, steps=1500),
        mnist=mnist,
        tiny=lambda digits: replace(digits, model=TINY, train=tiny_training(digits.train)),
        # PCA's variances 4 and 5 are 0.41 and 0.28: a well-defined subspace; the 8th and 9th, 0.163 and 0.157, are not.
        digits_linear=lambda: on_digits(replace(DENSE, widths=(), latent=4), learning_rate=1e-2),
        digits_denoising=lambda: on_digits(replace(DENSE, latent=32, corruption="gaussian", corruption_level=0.3)),
        digits_sparse=lambda: on_digits(replace(SPARSE, activation="relu", sparsity="l1", sparsity_weight=0.1)),
        digits_kl=lambda: on_digits(replace(SPARSE, activation="sigmoid", sparsity="kl", sparsity_weight=1.0)),
        mnist_binary=lambda: replace(mnist("mnist", loss="cross_entropy"), data=Data("mnist", binarise="dynamic")),
        mnist_denoising=lambda: mnist("mnist", corruption="masking", corruption_level=0.5),
        cifar10=cifar10,
    )


def on_digits(model: Config, steps: int = 3000, learning_rate: float = 3e-3) -> Experiment:
    training = digits_training(steps, cosine(learning_rate, warmup_steps=100), steps_per_call=10)  # of 2 ms each
    return Experiment(model, Data(name="digits"), training)


def mnist(name: str, **changes: Any) -> Experiment:
    return Experiment(replace(CONV, **changes), Data(name), mnist_training(10_000, cosine(1e-3, warmup_steps=200)))


def cifar10() -> Experiment:
    model, optimiser = Config(widths=(128, 256, 256), blocks=2, latent=128), cosine(3e-4, warmup_steps=1000)
    return Experiment(model, CIFAR10, accelerator_training(100_000, optimiser))
