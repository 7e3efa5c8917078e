"""EDM (Karras et al. 2022, arXiv 2206.00364) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts, attention_at_height
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion.edm import HEUN, Config
from jgen.nn import unet
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {"cifar10": "32x32 CIFAR-10 by class, augmented; for an accelerator"}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: FID 1.79 (35 evaluations)")

at_height = attention_at_height


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(network=unet.DIGITS, sigma_data=0.75, sampling=replace(HEUN, guidance_scale=1.5))
    return Experiment(model, Data(name="digits"), digits_training(2000, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, network=unet.TINY, augment=0.12, sampling=replace(HEUN, steps=4, churn=2.0))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    sigma_data = {"mnist": 0.62, "fashion_mnist": 0.71}[name]
    model = Config(network=unet.MNIST, sigma_data=sigma_data, sampling=replace(HEUN, guidance_scale=1.5))
    return Experiment(model, Data(name=name), mnist_training(10_000, cosine(5e-4, warmup_steps=200, clip_norm=1.0)))


def cifar10() -> Experiment:
    # The paper's appendix F.2: DDPM++, 200 million images, EMA half-life 500,000 images, augmentation 0.12.
    sizes = unet.Config(channels=(256, 256, 256), blocks=4, attention=(16,), head_dim=256, dropout=0.13)
    network = replace(sizes, architecture="ddpmpp", base=128)
    model = Config(network=network, label_dropout=0.0, augment=0.12)
    optimiser = Optimiser(learning_rate=1e-3, warmup_steps=19_531)
    training = accelerator_training(390_625, optimiser, batch_size=512, ema_decay=0.0, ema_half_life=500_000.0)
    return Experiment(model, Data(name="cifar10", validation=0.0), replace(training, keep_every=50_000))
