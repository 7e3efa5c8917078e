"""Glow (Kingma & Dhariwal 2018, arXiv 1807.03039) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.flow.dequantised import LOGIT_ALPHA
from jgen.models.flow.glow import Config, Sampling
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "mnist": "28x28 MNIST by class; 1.13 bits/dim after 51 minutes on 2 CPU cores",
    "cifar10": "32x32 CIFAR-10, unconditional, the paper's 3 scales of 32 steps 512 wide; for an accelerator",
}
FACTS = Facts(
    free_form_jacobian=False,
    published="MNIST: 1.05 bits/dim (F); CIFAR-10: 3.35 bits/dim, FID 46.0 (C)",
)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(scales=2, depth=8, width=64, logit_alpha=LOGIT_ALPHA, sampling=Sampling(temperature=0.8))
    optimiser = cosine(1e-3, warmup_steps=100, clip_norm=100.0)
    # The likelihood of held-out digits falls from about step 1,000 on.
    return Experiment(model, Data(name="digits"), digits_training(1500, optimiser))


def tiny(digits: Experiment) -> Experiment:
    return replace(digits, model=replace(digits.model, depth=2, width=8), train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    # Four minutes with the logit get further than an hour without it.
    model = Config(scales=2, depth=16, width=128, logit_alpha=LOGIT_ALPHA, sampling=Sampling(temperature=0.8))
    optimiser = cosine(1e-3, warmup_steps=500, clip_norm=100.0)
    return Experiment(model, Data(name=name), mnist_training(6500, optimiser))


def cifar10() -> Experiment:
    # The authors' code: Adamax at 1e-3 with warm-up, batch 64; here Adam at half of it.
    model = Config(scales=3, depth=32, width=512, class_conditional=False, sampling=Sampling(temperature=0.7))
    optimiser = Optimiser(learning_rate=5e-4, warmup_steps=5000, clip_norm=100.0)
    train = accelerator_training(800_000, optimiser, batch_size=64, keep_every=100_000)
    return Experiment(model, CIFAR10, train)
