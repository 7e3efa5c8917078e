"""PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.autoregressive.pixelcnn_pp import Config
from jgen.train.config import tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "digits": "8x8 digits of scikit-learn in 17 levels, by class; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST in 256 levels, by class",
    "fashion_mnist": "28x28 Fashion-MNIST in 256 levels, by class",
    "mnist_binary": "28x28 MNIST, dynamically binarised, unconditional",
    "cifar10": "32x32 CIFAR-10, unconditional, with the paper's network; for an accelerator",
    "tiny": "8x8 digits in 17 levels, seconds to train; for tests",
}
FACTS = Facts(free_form_jacobian=False, published="CIFAR-10: 2.92 bits/dim")


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, mnist_binary=mnist_binary, cifar10=cifar10)


def digits() -> Experiment:
    # With 32 features and a dropout of 0.3, validation ends at 1.69 bits/dim, after 1.66 at step 750; with 0.5 at 1.66.
    model = Config(features=24, blocks=1, scales=2, class_conditional=True)
    optimiser = cosine(2e-3, warmup_steps=100, clip_norm=1.0)
    return Experiment(model, Data(name="digits"), digits_training(1500, optimiser))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, features=8, mixtures=2, dropout=0.1)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(features=24, blocks=1, dropout=0.0, class_conditional=True)
    optimiser = cosine(1e-3, warmup_steps=200, clip_norm=1.0)
    return Experiment(model, Data(name=name), mnist_training(8000, optimiser, batch_size=32))


def mnist_binary() -> Experiment:
    by_class = mnist("mnist")
    model = replace(by_class.model, class_conditional=False, mixtures=1)  # one logistic gives any probability of 1
    return replace(by_class, model=model, data=Data(name="mnist", binarise="dynamic"))


def cifar10() -> Experiment:
    optimiser = cosine(4e-4, warmup_steps=1000, clip_norm=1.0)
    return Experiment(Config(), CIFAR10, accelerator_training(200_000, optimiser, ema_decay=0.9995))
