"""Residual Flow (Chen et al. 2019, arXiv 1906.02735) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.flow.dequantised import LOGIT_ALPHA
from jgen.models.flow.residual_flow import Config, Sampling, Scoring
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
FACTS = Facts(
    free_form_jacobian=True,
    published="MNIST: 0.97 bits/dim; CIFAR-10: 3.28 bits/dim, FID 46.4",
)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, rings=rings)


def digits() -> Experiment:
    # Dense layers: the gradient of a convolution inside a loop is slow on CPU. With 64 dimensions the determinant can
    # be exact.
    model = Config(scales=1, blocks=16, widths=(128, 128), convolutional=False, logit_alpha=LOGIT_ALPHA)
    model = replace(model, sampling=Sampling(temperature=0.8), scoring=Scoring(probes=0))
    return Experiment(model, Data(name="digits"), digits_training(2000, cosine(2e-3, warmup_steps=100, clip_norm=10.0)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, blocks=2, widths=(16,), scoring=Scoring(terms=5))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(scales=1, blocks=12, widths=(512, 512), convolutional=False, logit_alpha=LOGIT_ALPHA)
    model = replace(model, sampling=Sampling(temperature=0.8))
    return Experiment(model, Data(name=name), mnist_training(6000, cosine(1e-3, warmup_steps=500, clip_norm=10.0)))


def rings() -> Experiment:
    model = Config(scales=1, blocks=16, widths=(32, 32), convolutional=False, log_det="exact", logit_alpha=LOGIT_ALPHA)
    model = replace(model, class_conditional=False, scoring=Scoring(probes=0))
    return Experiment(model, Data(name="density:rings"), plane_training(2000, cosine(3e-3, 100, clip_norm=10.0)))


def cifar10() -> Experiment:
    # The authors': 16 blocks in each of 3 scales, 512 features, Adam at 1e-3, batches of 64.
    model = Config(scales=3, blocks=16, widths=(512, 512), class_conditional=False, logit_alpha=0.05)
    optimiser = Optimiser(learning_rate=1e-3, warmup_steps=1000, clip_norm=10.0)
    train = accelerator_training(300_000, optimiser, batch_size=64, keep_every=50_000)
    return Experiment(model, CIFAR10, train)
