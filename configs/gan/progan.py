"""Progressive growing of GANs (Karras et al. 2018, arXiv 1710.10196) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.gan.progan import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, digits_training, mnist_training

VARIANTS = STANDARD | {"cifar10": "32x32 CIFAR-10, unconditional, the paper's widths; for an accelerator"}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: FID 15.52 (C)")
ADAM = Optimiser(learning_rate=1e-3, beta1=0.0, beta2=0.99)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(channels=(32, 64), latent=32, grow_steps=400)
    train = digits_training(3000, replace(ADAM, learning_rate=2e-3), ema_decay=0.998)
    return Experiment(model, Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, channels=(4, 4), latent=4, grow_steps=1, group=2)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(channels=(32, 64, 128), latent=64, grow_steps=1000)
    return Experiment(model, Data(name=name), mnist_training(10_000, ADAM))


def cifar10() -> Experiment:
    model = Config(channels=(128, 256, 512, 512), latent=512, grow_steps=20_000, class_conditional=False)
    return Experiment(model, CIFAR10, accelerator_training(300_000, ADAM, batch_size=64))
