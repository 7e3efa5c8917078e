"""BigGAN-deep (Brock, Donahue & Simonyan 2019, arXiv 1809.11096) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.gan.biggan import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, digits_training, mnist_training

VARIANTS = STANDARD | {"cifar10": "32x32 CIFAR-10 by class; for an accelerator"}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10 by class: FID 14.73")
ADAM = Optimiser(learning_rate=2e-4, beta1=0.0)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(channels=(32, 64), depth=1, attention=(8,), latent=32, embedding=32, disc_steps=2)
    # Two discriminator steps at four times the generator's rate keep the samples varied.
    rates = replace(ADAM, by_role=(("disc", "learning_rate", 8e-4),))
    train = digits_training(4000, rates, ema_decay=0.995)
    return Experiment(model, Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, channels=(8, 8), latent=8, embedding=4)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(channels=(32, 64, 128), attention=(14,), latent=64, embedding=64, norm_momentum=0.99)
    return Experiment(model, Data(name=name), mnist_training(8000, ADAM))


def cifar10() -> Experiment:
    # Widths and optimiser of the authors' PyTorch code for CIFAR-10: four discriminator steps, no attention.
    model = Config(channels=(256, 256, 256, 256), attention=(), disc_steps=4)
    return Experiment(model, CIFAR10, accelerator_training(125_000, ADAM, batch_size=50))
