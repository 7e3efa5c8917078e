"""GAN, fully connected (Goodfellow et al. 2014, arXiv 1406.2661) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.gan.gan import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import (
    CIFAR10,
    STANDARD,
    accelerator_training,
    choose,
    digits_training,
    mnist_training,
    plane_training,
)

VARIANTS = STANDARD | {
    "gaussians": "a mixture of 8 Gaussians in the plane, as images of two pixels",
}
FACTS = Facts(free_form_jacobian=True)
ADAM = Optimiser(learning_rate=2e-4, beta1=0.5)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, gaussians=gaussians)


def digits() -> Experiment:
    model = Config(latent=32, gen_widths=(256, 256), disc_widths=(128, 128), pieces=3)
    return Experiment(model, Data(name="digits"), digits_training(12_000, ADAM))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, latent=8, gen_widths=(16,), disc_widths=(8,), disc_steps=2)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    return Experiment(Config(latent=64), Data(name=name), mnist_training(30_000, ADAM))


def gaussians() -> Experiment:
    model = Config(latent=8, gen_widths=(128, 128), disc_widths=(64, 64), pieces=3, class_conditional=False)
    return Experiment(model, Data(name="density:gaussians"), plane_training(4000, replace(ADAM, learning_rate=1e-3)))


def cifar10() -> Experiment:
    # The paper's generator of 8,000 units on CIFAR-10, rounded.
    model = Config(gen_widths=(1024, 1024), disc_widths=(1024, 1024), pieces=2, class_conditional=False)
    return Experiment(model, CIFAR10, accelerator_training(100_000, ADAM))
