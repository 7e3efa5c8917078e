"""Gaussian mixture over an autoencoder's codes (Ghosh et al. 2020, arXiv 1903.12436): the second of two runs.

First: python train.py configs/vae/autoencoder.py:VARIANT, which trains runs/autoencoder-VARIANT; or give the run of
another autoencoder, --frozen.autoencoder RUN.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.latent_density import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, digits_training, mnist_training

VARIANTS = STANDARD | {
    "digits": "codes of 8x8 digits by class; seconds on 2 CPU cores",
    "mnist": "codes of 28x28 MNIST by class",
    "fashion_mnist": "codes of 28x28 Fashion-MNIST by class",
    "mnist_binary": "codes of binarised 28x28 MNIST by class",
    "cifar10": "codes of 32x32 CIFAR-10; for an accelerator",
    "tiny": "codes of 8x8 digits, seconds to fit; for tests",
}
FACTS = Facts(free_form_jacobian=True)
FROZEN = {"autoencoder": "configs/vae/autoencoder.py"}

# Nothing is trained by gradients: neither the optimiser nor averaged weights are used.
NO_GRADIENTS = Optimiser()


def get_config(variant: str) -> Experiment:
    experiment = choose(variant, digits=digits, mnist=mnist, tiny=tiny, mnist_binary=mnist_binary, cifar10=cifar10)
    return replace(experiment, frozen={"autoencoder": f"runs/autoencoder-{variant}"})


def digits() -> Experiment:
    # With only 1,350 images, more components or a smaller floor fit training codes better, but held-out ones worse.
    train = digits_training(200, NO_GRADIENTS, batch_size=512, validate_every=50, sample_every=0)
    return Experiment(Config(components=30), Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    return replace(digits, model=replace(digits.model, components=3), train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    train = mnist_training(600, NO_GRADIENTS, batch_size=1000, sample_every=0)
    return Experiment(Config(components=100), Data(name=name), train)


def mnist_binary() -> Experiment:
    return replace(mnist("mnist"), data=Data(name="mnist", binarise="dynamic"))


def cifar10() -> Experiment:
    train = accelerator_training(600, NO_GRADIENTS, batch_size=1000, sample_every=0)
    return Experiment(Config(components=50, class_conditional=False), Data(name="cifar10", validation=0.0), train)
