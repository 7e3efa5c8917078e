"""VQ-VAE-2's prior over its top codes (Razavi et al. 2019, arXiv 1906.00446): the second of three runs.

First: python train.py configs/vae/vq_vae2.py:VARIANT, which trains runs/vq_vae2-VARIANT; or give the run of another
autoencoder of two grids of codes, --frozen.autoencoder RUN.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vq_vae2_top import Config
from jgen.nn.code_pixelcnn import Config as Network
from jgen.train.config import tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "digits": "2x2 top codes of 8x8 digits by class; under a minute on 2 CPU cores",
    "mnist": "7x7 top codes of 28x28 MNIST by class",
    "fashion_mnist": "7x7 top codes of 28x28 Fashion-MNIST by class",
    "cifar10": "4x4 top codes of 32x32 CIFAR-10 by class; for an accelerator",
    "tiny": "top codes of 8x8 digits, seconds to train; for tests",
}
FACTS = Facts(free_form_jacobian=True, compared=False)  # without bottom codes it generates nothing
FROZEN = {"autoencoder": "configs/vae/vq_vae2.py"}


def get_config(variant: str) -> Experiment:
    experiment = choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)
    return replace(experiment, frozen={"autoencoder": f"runs/vq_vae2-{variant}"})


def digits() -> Experiment:
    network = Network(32, 2, first_kernel=3, attention=1, heads=2, hidden=64, embedding=16, dropout=0.5)
    train = digits_training(1200, cosine(1e-3, warmup_steps=100, clip_norm=1.0))
    return Experiment(Config(network), Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    network = replace(digits.model.network, features=8, blocks=1, hidden=8, embedding=4, dropout=0.0)
    return replace(digits, model=replace(digits.model, network=network), train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    network = Network(64, 8, attention=2, heads=4, output_blocks=2, dropout=0.1)
    train = mnist_training(6000, cosine(1e-3, warmup_steps=200, clip_norm=1.0))
    return Experiment(Config(network), Data(name=name), train)


def cifar10() -> Experiment:
    # As many layers as the paper's, with half of its 512 features: 20 gated, 4 of attention with 8 heads, 20 of output.
    network = Network(256, 20, attention=4, heads=8, output_blocks=20, hidden=512, embedding=64, dropout=0.5)
    train = accelerator_training(250_000, cosine(3e-4, warmup_steps=1000, clip_norm=1.0))
    return Experiment(Config(network), Data(name="cifar10", validation=0.0), train)
