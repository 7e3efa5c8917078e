"""VQ-VAE-2, an autoencoder of two levels of codes (Razavi et al. 2019, arXiv 1906.00446): the first of three runs."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vq_vae2 import Config
from jgen.train.config import tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "digits": "8x8 digits of scikit-learn as 2x2 and 4x4 codes; under 2 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST as 7x7 and 14x14 codes",
    "fashion_mnist": "28x28 Fashion-MNIST as 7x7 and 14x14 codes",
    "cifar10": "32x32 CIFAR-10 as 4x4 and 8x8 codes, the paper's codebooks of 512; for an accelerator",
}
FACTS = Facts(free_form_jacobian=True, compared=False)  # without priors over its codes it generates nothing


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    # Codebooks of 64 reconstruct better, 25 dB instead of 22 on validation images; but samples at temperature 1 have FD
    # 96 and a class accuracy of 55 % (priors of 1,000 steps), where with 16 they have 68 and 60 % (of 800). 1,500 steps
    # reconstruct better too, but the bottom codes then take 2.88 bits each, where after 736 they took 2.53.
    model = Config(widths=(64,), top_widths=(64,), blocks=1, num_codes=16, code_dim=16)
    return Experiment(model, Data(name="digits"), digits_training(750, cosine(2e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, widths=(8,), top_widths=(8,), code_dim=4, decay=0.9)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(widths=(32,), top_widths=(64,), num_codes=128, code_dim=32)
    return Experiment(model, Data(name=name), mnist_training(15_000, cosine(1e-3, warmup_steps=200)))


def cifar10() -> Experiment:
    # A quarter and an eighth of the image's size, as the paper's 64x64 and 32x32 codes of 256x256 images; its 128
    # channels, two residual blocks, codebooks of 512 vectors of 64 dimensions, batches of 128.
    model = Config(widths=(128, 128), top_widths=(128,))
    train = accelerator_training(250_000, cosine(2e-4, warmup_steps=0))
    return Experiment(model, Data(name="cifar10", validation=0.0), train)
