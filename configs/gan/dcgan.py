"""Deep convolutional GAN (Radford, Metz & Chintala 2016, arXiv 1511.06434) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.gan.dcgan import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, digits_training, mnist_training

VARIANTS = STANDARD | {
    "mnist": "28x28 MNIST by class; 99.8 % of samples classified as their class, after 15 minutes on 2 CPU cores",
    "cifar10": "32x32 CIFAR-10, unconditional, the paper's network with three halvings; for an accelerator",
}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: FID 37.1 (C)")
ADAM = Optimiser(learning_rate=2e-4, beta1=0.5)  # the paper's


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(channels=(32, 64), latent=32, loss="non_saturating", disc_norm="batch", norm_momentum=0.99)
    train = digits_training(6000, replace(ADAM, learning_rate=5e-4), ema_decay=0.995)
    return Experiment(model, Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, channels=(8, 16), latent=8, disc_steps=2)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(channels=(64, 128), latent=64, norm_momentum=0.99)
    return Experiment(model, Data(name=name), mnist_training(8000, ADAM))


def cifar10() -> Experiment:
    # The paper's batches of 128.
    model = Config(channels=(128, 256, 512), conditioning="none", norm_momentum=0.99)
    data = Data(name="cifar10", flip=True, validation=0.0)
    return Experiment(model, data, accelerator_training(100_000, ADAM))
