"""Flow contrastive estimation (Gao et al. 2020, arXiv 1912.00589): the second of two runs.

First: python train.py configs/flow/realnvp.py:VARIANT, which trains runs/realnvp-VARIANT; or give the run of another
flow, --frozen.flow RUN.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.energy.flow_contrastive import Config, Sampling
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import (
    CIFAR10,
    RINGS,
    STANDARD,
    accelerator_training,
    choose,
    digits_training,
    mnist_training,
    plane_training,
)

VARIANTS = STANDARD | RINGS
FACTS = Facts(free_form_jacobian=False, published="CIFAR-10: FID 37.3, 3.47 bits/dim of the flow")
FROZEN = {"flow": "configs/flow/realnvp.py"}
# The flow is already trained and is only fine-tuned.
ADAM = Optimiser(learning_rate=3e-4, beta1=0.5, schedule="cosine", by_role=(("flow", "learning_rate", 3e-5),))


def get_config(variant: str) -> Experiment:
    experiment = choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, rings=rings)
    return replace(experiment, frozen={"flow": f"runs/realnvp-{variant}"})


def digits() -> Experiment:
    model = Config(channels=(256, 256), blocks=1, convolutional=False, sampling=Sampling(temperature=0.8))
    return Experiment(model, Data(name="digits"), digits_training(400, replace(ADAM, clip_norm=10.0)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, channels=(4, 4), convolutional=True)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(channels=(32, 64, 64), blocks=1, sampling=Sampling(temperature=0.8))
    return Experiment(model, Data(name=name), mnist_training(2000, replace(ADAM, clip_norm=10.0)))


def rings() -> Experiment:
    model = Config(channels=(64, 64), blocks=1, convolutional=False)
    return Experiment(model, Data(name="density:rings"), plane_training(1000, replace(ADAM, clip_norm=10.0)))


def cifar10() -> Experiment:
    train = accelerator_training(100_000, replace(ADAM, clip_norm=10.0), batch_size=64)
    return Experiment(Config(sampling=Sampling(temperature=0.7)), CIFAR10, train)
