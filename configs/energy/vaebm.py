"""VAEBM, a VAE times an energy (Xiao et al. 2021, arXiv 2010.00654): the second of two runs.

First: python train.py configs/vae/vae.py:VARIANT, which trains runs/vae-VARIANT; or give the run of another VAE,
--frozen.vae RUN. On CPU, a VAE of dense layers makes the chains many times as fast: train it with
--model.network dense --model.widths 256 256 --model.blocks 0.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.energy.vaebm import Config, Sampling, Scoring
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import (
    RINGS,
    STANDARD,
    accelerator_training,
    choose,
    digits_training,
    mnist_training,
    plane_training,
)

VARIANTS = STANDARD | RINGS
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: FID 12.2")
FROZEN = {"vae": "configs/vae/vae.py"}
ADAM = Optimiser(learning_rate=1e-4, beta1=0.5, schedule="cosine", clip_norm=10.0)


def get_config(variant: str) -> Experiment:
    experiment = choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, rings=rings)
    return replace(experiment, frozen={"vae": f"runs/vae-{variant}"})


def digits() -> Experiment:
    model = Config(channels=(256, 256), blocks=1, convolutional=False, step_size=0.01, alpha=0.01, buffer_size=1024)
    train = digits_training(600, replace(ADAM, learning_rate=3e-4), validate_every=0, sample_every=0)
    return Experiment(model, Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    # Float32: the squared energies outweigh their difference, of which bfloat16 preserves little.
    model = replace(digits.model, channels=(4, 4), convolutional=True, steps=2, buffer_size=32, alpha=1.0)
    model = replace(model, sampling=Sampling(steps=2), scoring=Scoring(chains=2, steps=2))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(channels=(32, 64, 64), blocks=1, step_size=0.01, alpha=0.01)
    return Experiment(model, Data(name=name), mnist_training(2000, ADAM, validate_every=0))


def rings() -> Experiment:
    model = Config(channels=(64, 64), blocks=1, convolutional=False, step_size=0.01, buffer_size=4096)
    model = replace(model, sampling=Sampling(mean=False))
    return Experiment(model, Data(name="density:rings"), plane_training(1000, ADAM, validate_every=0))


def cifar10() -> Experiment:
    # The paper's chains: ten steps of 8e-5 / 2, and a buffer of 10,000.
    train = accelerator_training(25_000, replace(ADAM, learning_rate=4e-5), batch_size=32, validate_every=0)
    return Experiment(Config(step_size=4e-5), Data(name="cifar10", validation=0.0), train)
