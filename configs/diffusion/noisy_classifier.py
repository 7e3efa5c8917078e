"""Noise-conditional classifier (Dhariwal & Nichol 2021, arXiv 2105.05233), for guidance, on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion.noisy_classifier import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "cifar10": "32x32 CIFAR-10; for an accelerator",
    "imagenet64": "64x64 ImageNet, as the paper's classifier; for accelerators",
}
FACTS = Facts(compared=False)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, imagenet64=imagenet64)


def digits() -> Experiment:
    model = Config(channels=(32, 32), blocks=1, attention=(4,), head_dim=32, groups=8, dropout=0.1)
    return Experiment(model, Data(name="digits"), digits_training(1000, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    model = Config(channels=(8, 8), blocks=1, attention=(), head_dim=8, groups=4, dropout=0.1)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(channels=(32, 64, 64), blocks=1, attention=(7,), head_dim=32, groups=8, dropout=0.1)
    return Experiment(model, Data(name=name), mnist_training(3000, cosine(5e-4, warmup_steps=200, clip_norm=1.0)))


def cifar10() -> Experiment:
    training = accelerator_training(100_000, Optimiser("adamw", learning_rate=3e-4, weight_decay=0.05), batch_size=256)
    return Experiment(Config(), CIFAR10, training)


def imagenet64() -> Experiment:
    # The paper's tables 11 and 12: width 128, depth 4, batches of 1024, 300,000 steps.
    model = Config(channels=(128, 256, 384, 512), blocks=4, attention=(32, 16, 8), dropout=0.0, dtype="bfloat16")
    optimiser = Optimiser("adamw", learning_rate=6e-4, weight_decay=0.05)
    data = Data(name="imagenet_resized/64x64", flip=True)
    return Experiment(model, data, accelerator_training(300_000, optimiser, batch_size=1024))
