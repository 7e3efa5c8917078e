"""Consistency models (Song et al. 2023, arXiv 2303.01469; 2024, arXiv 2310.14189) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts, attention_at_height
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion.consistency import Config
from jgen.nn import unet
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: FID 2.83 in one step, 2.46 in two")

at_height = attention_at_height


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(network=unet.DIGITS, sigma_data=0.75, levels_last=160, double_every=500)
    return Experiment(model, Data(name="digits"), digits_training(2500, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, network=unet.TINY, double_every=1000)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    sigma_data = {"mnist": 0.62, "fashion_mnist": 0.71}[name]
    model = Config(network=unet.MNIST, sigma_data=sigma_data, levels_last=640, double_every=1500)
    return Experiment(model, Data(name=name), mnist_training(10_000, cosine(5e-4, warmup_steps=200, clip_norm=1.0)))


def cifar10() -> Experiment:
    # Song & Dhariwal 2024, appendix A: 400,000 steps of 1,024 images, EMA 0.99993, dropout 0.3.
    network = unet.Config(channels=(128, 256, 256, 256), blocks=4, attention=(16,), dropout=0.3)
    model = Config(network=network, class_conditional=False)
    optimiser = Optimiser(learning_rate=1e-4, warmup_steps=5000)
    training = accelerator_training(400_000, optimiser, keep_every=50_000, batch_size=1024, ema_decay=0.99993)
    return Experiment(model, CIFAR10, training)
