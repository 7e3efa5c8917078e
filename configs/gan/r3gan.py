"""R3GAN, a modern baseline (Huang et al. 2024, arXiv 2501.05441), on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.gan.r3gan import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, digits_training, mnist_training

VARIANTS = STANDARD
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: FID 1.96")
ADAM = Optimiser(learning_rate=2e-4, schedule="cosine", beta1=0.0, beta2=0.99)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(channels=(16, 64), blocks=1, latent=32, embedding=32, gamma=0.1)
    train = digits_training(2500, replace(ADAM, learning_rate=1e-3), ema_decay=0.995)
    return Experiment(model, Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, channels=(4, 4), group=4, latent=4, embedding=4)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(channels=(32, 64, 128), blocks=1, gamma=0.5)
    return Experiment(model, Data(name=name), mnist_training(10_000, replace(ADAM, learning_rate=5e-4)))


def cifar10() -> Experiment:
    # The paper's widths, gamma and augmentation, unconditional, at the end of the authors' schedules.
    model = Config(channels=(768,) * 4, gamma=0.005, augmentation=0.55, class_conditional=False)
    data = Data(name="cifar10", validation=0.0)
    train = accelerator_training(200_000, ADAM, batch_size=512, ema_half_life=5_000_000.0)
    return Experiment(model, data, train)
