"""Sparse transformer (Child et al. 2019, arXiv 1904.10509), dense or sparse attention, on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.autoregressive.image_transformer import Config
from jgen.train.config import tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "digits": "8x8 digits of scikit-learn in 17 levels, by class; strided attention; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST in 256 levels, by class; strided attention",
    "fashion_mnist": "28x28 Fashion-MNIST in 256 levels, by class; strided attention",
    "mnist_binary": "28x28 MNIST, dynamically binarised, unconditional; strided attention",
    "cifar10": "32x32 CIFAR-10, unconditional, strided attention, the paper's 59M parameters; for an accelerator",
    "tiny": "8x8 digits in 17 levels, strided attention, seconds to train; for tests",
}
FACTS = Facts(free_form_jacobian=False, published="CIFAR-10: 2.80 bits/dim; with DistAug 2.56 (Jun et al. 2020)")


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, mnist_binary=mnist_binary, cifar10=cifar10)


def digits() -> Experiment:
    # Validation ends at 1.779 bits/dim, with dense attention at 1.866.
    model = Config(features=64, layers=4, heads=4, hidden=256, key_features=64, dropout=0.3)
    model = replace(model, attention="strided", stride=8)
    optimiser = cosine(2e-3, warmup_steps=100, clip_norm=1.0)
    return Experiment(model, Data(name="digits"), digits_training(1200, optimiser))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, features=16, layers=2, heads=2, hidden=16, key_features=16, dropout=0.1)
    model = replace(model, augmentation="flip")  # and the digits' strided attention
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(features=64, layers=4, heads=2, hidden=256, key_features=64, attention="strided", stride=28)
    optimiser = cosine(1e-3, warmup_steps=200, clip_norm=1.0)
    return Experiment(model, Data(name=name), mnist_training(4000, optimiser, batch_size=16))


def mnist_binary() -> Experiment:
    by_class = mnist("mnist")
    model = replace(by_class.model, class_conditional=False)
    return replace(by_class, model=model, data=Data(name="mnist", binarise="dynamic"))


def cifar10() -> Experiment:
    model = Config(features=256, layers=128, heads=2, hidden=512, key_features=128, attention="strided", stride=128)
    model = replace(model, dropout=0.25, class_conditional=False, remat=True, dtype="bfloat16")
    optimiser = cosine(3.5e-4, warmup_steps=5000, clip_norm=1.0)
    return Experiment(model, CIFAR10, accelerator_training(375_000, optimiser, batch_size=16, ema_decay=0.9995))
