"""Energy-based model by Langevin dynamics (Du & Mordatch 2019, arXiv 1903.08689) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.energy.igebm import Config, Sampling, Scoring
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import (
    RINGS,
    STANDARD,
    accelerator_training,
    choose,
    cosine,
    digits_training,
    mnist_training,
    plane_training,
)

VARIANTS = STANDARD | {**RINGS, "cifar10": "32x32 CIFAR-10 by class; for an accelerator"}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: FID 38.2 (37.9 with classes)")


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, rings=rings)


def digits() -> Experiment:
    # Dense layers: with convolutions, chains take twenty times as long on CPU.
    model = Config(channels=(256, 256), blocks=1, convolutional=False, steps=30, step_size=0.0225, noise=0.03)
    model = replace(model, alpha=0.05, buffer_size=1024, restart=0.03)
    model = replace(model, sampling=Sampling(steps=1000), scoring=Scoring(chains=16, steps=4000))
    train = digits_training(3000, cosine(1e-3, warmup_steps=100), validate_every=0, sample_every=0)
    return Experiment(model, Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    model = replace(
        digits.model, channels=(4, 4), convolutional=True, steps=2, buffer_size=32, sampling=Sampling(steps=2)
    )
    model = replace(model, scoring=Scoring(chains=2, steps=2))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(channels=(32, 64, 64), blocks=1, steps=30, step_size=0.045, noise=0.03, alpha=0.1)
    return Experiment(model, Data(name=name), mnist_training(6000, cosine(3e-4, warmup_steps=500), validate_every=0))


def rings() -> Experiment:
    # T = 0.1. Two inputs are so few that a network of slope 1 learns one bump (10.64 nats); with `input_scale` 40 it
    # learns both rings, 9.54 nats where their entropy is 9.15. With noise 0.02 chains do not cross from ring to ring.
    model = Config(channels=(128, 128), convolutional=False, input_scale=40.0, steps=20, step_size=0.008, noise=0.04)
    model = replace(model, alpha=0.0, restart=0.02, buffer_size=4096, class_conditional=False)
    model = replace(model, sampling=Sampling(steps=1000))
    train = plane_training(3000, cosine(1e-3, 100, clip_norm=10.0), validate_every=0)
    return Experiment(model, Data(name="density:rings"), train)


def cifar10() -> Experiment:
    # The authors' network, chains and regularisation: steps of 10 and noise 0.005 in images from 0 to 1.
    model = Config(step_size=40.0, noise=0.01)
    train = accelerator_training(200_000, Optimiser(learning_rate=3e-4, beta1=0.0), validate_every=0)
    return Experiment(model, Data(name="cifar10", validation=0.0), train)
