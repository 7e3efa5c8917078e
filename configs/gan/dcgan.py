"""DCGAN (Radford, Metz & Chintala 2016, arXiv 1511.06434) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.gan.dcgan import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, digits_training, mnist_training

VARIANTS = STANDARD | {
    "mnist": "28x28 MNIST by class; 99.8 % of samples classified as their class, after 15 minutes on 2 CPU cores",
    "cifar10": "32x32 CIFAR-10, unconditional, the paper's network with three halvings; for an accelerator",
    "wgan": "8x8 digits with the Wasserstein loss and clipped weights (Arjovsky et al. 2017, arXiv 1701.07875)",
    "wgan_gp": "8x8 digits with the Wasserstein loss and gradient penalty (Gulrajani et al. 2017, arXiv 1704.00028)",
}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: FID 37.1 (C)")
ADAM = Optimiser(learning_rate=2e-4, beta1=0.5)  # the paper's


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, wgan=wgan, wgan_gp=wgan_gp)


def digits() -> Experiment:
    model = Config(channels=(32, 64), latent=32, loss="non_saturating", disc_norm="batch", norm_momentum=0.99)
    train = digits_training(6000, replace(ADAM, learning_rate=5e-4), ema_decay=0.995)
    return Experiment(model, Data(name="digits"), train)


def wasserstein(regulariser: str, optimiser: Optimiser, **options: float) -> Experiment:
    base = digits()
    model = replace(base.model, loss="wasserstein", disc_norm="none", regulariser=regulariser, disc_steps=5, **options)
    return replace(base, model=model, train=replace(base.train, optimiser=optimiser))


def wgan() -> Experiment:
    return wasserstein("clip", Optimiser(name="rmsprop", learning_rate=5e-4, beta2=0.99), clip=0.05)


def wgan_gp() -> Experiment:
    return wasserstein("gradient_penalty", replace(ADAM, learning_rate=5e-4, beta2=0.9))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, channels=(8, 16), latent=8, disc_steps=2)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(channels=(64, 128), latent=64, norm_momentum=0.99)
    return Experiment(model, Data(name=name), mnist_training(8000, ADAM))


def cifar10() -> Experiment:
    # The paper's batches of 128.
    model = Config(channels=(128, 256, 512), conditioning="none", norm_momentum=0.99)
    return Experiment(model, CIFAR10, accelerator_training(100_000, ADAM))
