"""VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vq_vae import Config
from jgen.train.config import tiny_training
from jgen.train.presets import accelerator_training, choose, cosine, described, digits_training, mnist_training

VARIANTS = described("{} as {} codes", "4x4", "7x7", "8x8") | {
    "cifar10": "32x32 CIFAR-10 as 8x8 codes, the paper's codebook of 512; for an accelerator",
}
FACTS = Facts(free_form_jacobian=True, compared=False)  # without a prior over its codes it generates nothing


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(widths=(64,), blocks=2, num_codes=64, code_dim=16)
    return Experiment(model, Data(name="digits"), digits_training(3000, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, widths=(8,), blocks=1, num_codes=16, code_dim=4, decay=0.9)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(widths=(32, 64), blocks=2, num_codes=128, code_dim=32)
    return Experiment(model, Data(name=name), mnist_training(15_000, cosine(1e-3, warmup_steps=200)))


def cifar10() -> Experiment:
    # The paper's sizes: 256 channels, two residual blocks, a codebook of 512, Adam at 2e-4, batch 128; codes of 8x8,
    # where the paper has ten for each position. The rate falls, so that the averaged weights match the codebook in the
    # end.
    model = Config(widths=(256, 256), blocks=2, num_codes=512, code_dim=64)
    train = accelerator_training(250_000, cosine(2e-4, warmup_steps=0))
    return Experiment(model, Data(name="cifar10", validation=0.0), train)
