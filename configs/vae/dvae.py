"""Discrete VAE with Gumbel-softmax codes (Ramesh et al. 2021, arXiv 2102.12092), on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.dvae import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import SHAPES, accelerator_training, choose, cosine, described, digits_training, mnist_training

VARIANTS = described("{} as {} codes", "4x4", "7x7", "8x8") | {
    "shapes": "32x32 rendered shapes as 8x8 codes, the first stage of dalle1; under 3 minutes on 2 CPU cores",
    "tiny": "32x32 rendered shapes as 4x4 codes, seconds to train; for tests",
}
FACTS = Facts(free_form_jacobian=True, compared=False)  # without a prior over its codes it generates nothing


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, shapes=shapes, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(widths=(64,), blocks=2, num_codes=64, likelihood="normal", scale=0.3, kl_warmup=300)
    model = replace(model, temperature_steps=1000)
    return Experiment(model, Data(name="digits"), digits_training(1500, cosine(2e-3, warmup_steps=100)))


def shapes() -> Experiment:
    model = Config(widths=(32, 64), blocks=1, num_codes=256, likelihood="normal", scale=0.2)
    model = replace(model, kl_warmup=300, temperature_steps=1000)
    optimiser = cosine(2e-3, warmup_steps=100, clip_norm=1.0)
    train = digits_training(1500, optimiser, batch_size=32, validation_images=512, ema_decay=0.998)
    return Experiment(model, SHAPES, train)


def tiny(digits: Experiment) -> Experiment:
    model = Config(widths=(4, 8, 8), blocks=1, num_codes=8, scale=0.3, kl_warmup=2, temperature_steps=10)
    data = Data(name="shapes", text_length=136)  # bytes of the longest caption
    return replace(digits, model=model, data=data, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(widths=(32, 64), blocks=2, num_codes=128, likelihood="normal", scale=0.3)
    model = replace(model, temperature_steps=8000)
    return Experiment(model, Data(name=name), mnist_training(15_000, cosine(1e-3, warmup_steps=200)))


def cifar10() -> Experiment:
    # The paper's weight of the divergence, with a codebook as large as the VQ-VAE's here.
    model = Config(widths=(256, 256), blocks=2, num_codes=512, kl_weight=6.6, kl_warmup=5000)
    model = replace(model, temperature_steps=150_000)
    optimiser = Optimiser(learning_rate=1e-4, schedule="cosine")
    return Experiment(model, Data(name="cifar10", validation=0.0), accelerator_training(250_000, optimiser))
