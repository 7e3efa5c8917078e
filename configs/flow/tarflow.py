"""TarFlow (Zhai et al. 2024, arXiv 2412.06329) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.flow.dequantised import LOGIT_ALPHA
from jgen.models.flow.tarflow import Config, Sampling
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

VARIANTS = STANDARD | {
    **RINGS,
    "cifar10": "32x32 CIFAR-10 by class, 8 blocks of 8 layers 512 wide; for an accelerator",
}
FACTS = Facts(
    free_form_jacobian=False,
    published="ImageNet 64x64: 2.99 bits/dim",
)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, rings=rings)


def digits() -> Experiment:
    model = Config(blocks=4, layers=2, features=64, heads=2, hidden=256, noise="uniform", logit_alpha=LOGIT_ALPHA)
    model = replace(model, sampling=Sampling(temperature=0.8))
    return Experiment(model, Data(name="digits"), digits_training(1200, cosine(2e-3, warmup_steps=100, clip_norm=10.0)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, blocks=2, layers=1, features=8, hidden=16, noise="gaussian", logit_alpha=0.0)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(patch=4, blocks=4, layers=2, features=128, heads=4, hidden=512, noise="uniform")
    model = replace(model, logit_alpha=LOGIT_ALPHA, sampling=Sampling(temperature=0.8))
    return Experiment(model, Data(name=name), mnist_training(6000, cosine(1e-3, warmup_steps=500, clip_norm=10.0)))


def rings() -> Experiment:
    model = Config(patch=1, blocks=6, layers=1, features=32, heads=2, hidden=64, noise="uniform")
    model = replace(model, logit_alpha=LOGIT_ALPHA, class_conditional=False)
    return Experiment(model, Data(name="density:rings"), plane_training(2000, cosine(3e-3, 100, clip_norm=10.0)))


def cifar10() -> Experiment:
    model = Config(
        patch=2, blocks=8, layers=8, features=512, heads=8, hidden=2048, sampling=Sampling(guidance_scale=2.0)
    )
    optimiser = Optimiser(learning_rate=1e-4, beta2=0.95, warmup_steps=5000, clip_norm=10.0)
    train = accelerator_training(400_000, optimiser, batch_size=256, keep_every=100_000)
    return Experiment(model, CIFAR10, train)
