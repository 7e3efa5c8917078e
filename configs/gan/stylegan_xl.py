"""StyleGAN-XL (Sauer et al. 2022, arXiv 2202.00273) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.gan.stylegan_xl import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, digits_training, mnist_training

VARIANTS = STANDARD | {"cifar10": "32x32 CIFAR-10 by class, grown from 16x16; for an accelerator"}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10 by class: FID 1.85")
ADAM = Optimiser(learning_rate=2.5e-3, beta1=0.0, beta2=0.99, by_role=(("disc", "learning_rate", 2e-3),))


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    # Frozen features at 32x32: at the paper's 224x224 a step would take fifty times as long.
    small = Config(max_channels=32, latent=32, style=32, disc_width=8, disc_embedding=32)
    model = replace(small, stages=(4,), margin=2, feature_size=32)
    train = digits_training(500, ADAM, batch_size=32, ema_decay=0.99)
    return Experiment(model, Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    small = replace(digits.model, max_channels=4, latent=4, style=4, disc_width=2, disc_embedding=8)
    model = replace(small, stages=(3,), margin=1, mapping_layers=1, features="random")
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    small = Config(max_channels=64, style=128, disc_width=16)
    model = replace(small, stages=(6, 4), stage_steps=3000, margin=4, feature_size=64)
    return Experiment(model, Data(name=name), mnist_training(8000, ADAM, ema_decay=0.998))


def cifar10() -> Experiment:
    model = Config(stages=(10, 7), stage_steps=50_000)
    train = accelerator_training(200_000, ADAM, batch_size=64, ema_half_life=500_000.0)
    return Experiment(model, CIFAR10, train)
