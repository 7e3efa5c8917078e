"""Gated PixelCNN over the codes of a VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937): the second of two runs.

First: python train.py configs/vae/vq_vae.py:VARIANT, which trains runs/vq_vae-VARIANT; or give the run of another
autoencoder, --frozen.autoencoder RUN.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vq_prior import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import accelerator_training, choose, cosine, described, digits_training, mnist_training

VARIANTS = described("codes of {} by class")
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: <= 4.67 bits/dim (VQ-VAE, C)")
FROZEN = {"autoencoder": "configs/vae/vq_vae.py"}


def get_config(variant: str) -> Experiment:
    experiment = choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)
    return replace(experiment, frozen={"autoencoder": f"runs/vq_vae-{variant}"})


def digits() -> Experiment:
    # 1,300 images are few: the network is small with much dropout, since otherwise it memorises them in 500 steps.
    model = Config(features=32, blocks=2, first_kernel=3, hidden=64, embedding=16, dropout=0.5)
    optimiser = cosine(1e-3, warmup_steps=100, clip_norm=1.0)
    return Experiment(model, Data(name="digits"), digits_training(1000, optimiser))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, features=8, blocks=1, hidden=8, embedding=4, dropout=0.0)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(features=64, blocks=8, dropout=0.1)
    optimiser = cosine(1e-3, warmup_steps=200, clip_norm=1.0)
    return Experiment(model, Data(name=name), mnist_training(6000, optimiser))


def cifar10() -> Experiment:
    model = Config(features=256, blocks=12, hidden=512, embedding=64, dropout=0.1)
    optimiser = Optimiser(learning_rate=3e-4, warmup_steps=1000, clip_norm=1.0)
    return Experiment(model, Data(name="cifar10", validation=0.0), accelerator_training(250_000, optimiser))
