"""StyleGAN2 with adaptive discriminator augmentation (Karras et al. 2020, arXiv 1912.04958 and 2006.06676)."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.gan.stylegan2 import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, digits_training, lazy_rates, mnist_training

VARIANTS = STANDARD | {"cifar10": "32x32 CIFAR-10 by class, the paper's settings; for an accelerator"}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10 by class: FID 2.42")
ADAM = Optimiser(learning_rate=2.5e-3, beta1=0.0, beta2=0.99)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    # As for CIFAR-10, and for the same reason: without mixing and path lengths, small images are more varied.
    small = Config(channels=(16, 32), latent=32, style=32, mapping_layers=2)
    model = replace(small, mixing=0.0, path_weight=0.0, group=8, r1_weight=0.01, ada_rate=1e-3)
    train = digits_training(4500, lazy_rates(ADAM, gen=1, disc=16), ema_decay=0.998)
    return Experiment(model, Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    small = replace(digits.model, channels=(4, 8), latent=4, style=4, mapping_layers=1, group=2)
    model = replace(small, mixing=0.5, path_weight=2.0, ada_rate=0.05)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(channels=(32, 64, 128), latent=128, style=128, mapping_layers=2, r1_weight=0.5)
    return Experiment(model, Data(name=name), mnist_training(10_000, lazy_rates(ADAM, gen=4, disc=16)))


def cifar10() -> Experiment:
    # Neither mixing nor path lengths, a small gamma and groups of 32: the authors' settings for CIFAR-10.
    model = Config(channels=(512,) * 4, mapping_layers=2, mixing=0.0, path_weight=0.0, group=32, r1_weight=0.01)
    data = Data(name="cifar10", validation=0.0)
    train = accelerator_training(400_000, lazy_rates(ADAM, gen=1, disc=16), batch_size=64, ema_half_life=500_000.0)
    return Experiment(model, data, train)
