"""FFJORD (Grathwohl et al. 2019, arXiv 1810.01367) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.flow.dequantised import LOGIT_ALPHA
from jgen.models.flow.ffjord import Config, Sampling, Scoring
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import (
    CIFAR10,
    RINGS,
    STANDARD,
    accelerator_training,
    choose,
    cosine,
    digits_training,
    mnist_training,
    plane_training,
)

VARIANTS = STANDARD | RINGS
FACTS = Facts(free_form_jacobian=True, published="MNIST: 0.99 bits/dim; CIFAR-10: 3.40 bits/dim")


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, rings=rings)


def digits() -> Experiment:
    # Dense layers: the gradient of a convolution inside a loop is slow on CPU.
    model = Config(widths=(256, 256, 256), convolutional=False, logit_alpha=LOGIT_ALPHA)
    model = replace(model, sampling=Sampling(temperature=0.8))
    return Experiment(model, Data(name="digits"), digits_training(3000, cosine(2e-3, warmup_steps=100, clip_norm=10.0)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, widths=(16,), steps=2, scoring=Scoring(tolerance=1e-2))
    model = replace(model, sampling=Sampling(tolerance=1e-2))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(widths=(512, 512), convolutional=False, logit_alpha=LOGIT_ALPHA)
    model = replace(model, sampling=Sampling(temperature=0.8))
    return Experiment(model, Data(name=name), mnist_training(6000, cosine(1e-3, warmup_steps=500, clip_norm=10.0)))


def rings() -> Experiment:
    model = Config(widths=(64, 64), convolutional=False, logit_alpha=LOGIT_ALPHA, class_conditional=False)
    model = replace(model, scoring=Scoring(probes=0))
    return Experiment(model, Data(name="density:rings"), plane_training(2000, cosine(5e-3, 100, clip_norm=10.0)))


def cifar10() -> Experiment:
    # The weights of the regularisation, and its steps, are those of Finlay et al. 2020.
    model = Config(widths=(64, 64, 64), class_conditional=False, logit_alpha=0.05)
    optimiser = Optimiser(learning_rate=1e-3, warmup_steps=1000, clip_norm=10.0)
    train = accelerator_training(100_000, optimiser, batch_size=200, keep_every=25_000)
    return Experiment(model, CIFAR10, train)
