"""A Gaussian mixture over pixels (Richardson & Weiss 2018, arXiv 1805.12462) by stepwise EM, on several data sets."""

from dataclasses import replace

from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.classical.gaussian_mixture import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, digits_training, mnist_training

VARIANTS = STANDARD | {
    "digits": "8x8 digits of scikit-learn by class; seconds on 2 CPU cores",
    "mnist_binary": "binarised 28x28 MNIST by class",
}

NO_GRADIENTS = Optimiser()  # EM uses neither the optimiser nor averaged weights


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, mnist_binary=mnist_binary, cifar10=cifar10)


def digits() -> Experiment:
    train = digits_training(100, NO_GRADIENTS, batch_size=1350, validate_every=25, sample_every=0)
    # With only 1,350 images, more components or a smaller floor fit these better, but held-out images worse.
    return Experiment(Config(components=2, covariance="full", covariance_floor=0.1), Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    # Small batches need this floor: without it, rounding errors of sums grow a thousandfold within two EM steps.
    model = replace(digits.model, covariance="low_rank", rank=2, covariance_floor=0.2)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    train = mnist_training(600, NO_GRADIENTS, batch_size=1000, sample_every=0)
    return Experiment(Config(components=10, rank=10), Data(name=name), train)


def mnist_binary() -> Experiment:
    return replace(mnist("mnist"), data=Data(name="mnist", binarise="dynamic"))


def cifar10() -> Experiment:
    model = Config(components=100, rank=20, logit_alpha=0.05, class_conditional=False)
    train = accelerator_training(2000, NO_GRADIENTS, batch_size=1000, sample_every=0)
    return Experiment(model, Data(name="cifar10", validation=0.0), train)
