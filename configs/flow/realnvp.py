"""RealNVP (Dinh, Sohl-Dickstein & Bengio 2017, arXiv 1605.08803) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.flow.dequantised import LOGIT_ALPHA
from jgen.models.flow.realnvp import Config, Sampling
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
    "mnist": "28x28 MNIST by class; 1.17 bits/dim after 56 minutes on 2 CPU cores",
    "cifar10": "32x32 CIFAR-10, unconditional, networks of 8 residual blocks, 64 to 256 wide; for an accelerator",
}
FACTS = Facts(free_form_jacobian=False, published="MNIST: 1.06 bits/dim (F); CIFAR-10: 3.49 bits/dim")


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, rings=rings)


def digits() -> Experiment:
    model = Config(scales=2, width=16, blocks=2, logit_alpha=LOGIT_ALPHA, sampling=Sampling(temperature=0.8))
    optimiser = cosine(1e-3, warmup_steps=100, clip_norm=100.0)
    # The likelihood of held-out digits falls from about step 1,000 on.
    return Experiment(model, Data(name="digits"), digits_training(1500, optimiser))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, couplings=1, width=8, blocks=1)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    # Ten minutes with this logit get further than an hour with the paper's, where black pixels are a spike.
    model = Config(scales=3, width=16, blocks=2, logit_alpha=LOGIT_ALPHA, sampling=Sampling(temperature=0.8))
    optimiser = cosine(1e-3, warmup_steps=500, clip_norm=100.0)
    return Experiment(model, Data(name=name), mnist_training(6000, optimiser))


def rings() -> Experiment:
    model = Config(scales=1, couplings=7, width=32, blocks=1, logit_alpha=LOGIT_ALPHA, class_conditional=False)
    return Experiment(model, Data(name="density:rings"), plane_training(2000, cosine(3e-3, 100, clip_norm=10.0)))


def cifar10() -> Experiment:
    # The paper's section 4.1: batch 64 and Adam; its weight decay is left out, its rate halved and warmed up.
    model = Config(scales=3, couplings=3, width=64, blocks=8, class_conditional=False)
    optimiser = Optimiser(learning_rate=5e-4, warmup_steps=5000, clip_norm=100.0)
    train = accelerator_training(800_000, optimiser, batch_size=64, keep_every=100_000)
    return Experiment(model, CIFAR10, train)
