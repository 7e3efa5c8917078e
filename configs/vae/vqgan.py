"""VQGAN (Esser et al. 2021, arXiv 2012.09841) on several data sets.

A prior over its codes: python train.py configs/vae/vq_prior.py:VARIANT --frozen.autoencoder runs/vqgan-VARIANT
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.patch_adversary import Config as Adversary
from jgen.models.vae.vqgan import Config
from jgen.nn import first_stage
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, accelerator_training, choose, cosine, described, digits_training, mnist_training

VARIANTS = described("{} as {} codes", "4x4", "7x7", "8x8") | {
    "imagenet256": "256x256 ImageNet as 16x16 codes of 1024, as the paper's f16; for accelerators",
}
FACTS = Facts(compared=False)  # without a prior over its codes it generates nothing


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, imagenet256=imagenet256)


def digits() -> Experiment:
    network = first_stage.Config((32, 64), blocks=1, latent_channels=16, attention=False, groups=8)
    model = Config(network, num_codes=64, adversary=Adversary(weight=0.4, start=500, channels=(32, 64)))
    return Experiment(model, Data(), digits_training(1500, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    network = first_stage.Config((8, 8), blocks=1, latent_channels=4, attention=False, groups=4)
    model = Config(network, num_codes=4, decay=0.9, adversary=Adversary(weight=0.5, channels=(8,)))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    network = first_stage.Config((16, 32, 64), blocks=1, latent_channels=32, attention=False, groups=8)
    model = Config(network, num_codes=128, adversary=Adversary(weight=0.4, start=2000, channels=(32, 64)))
    return Experiment(model, Data(name=name), mnist_training(5000, cosine(1e-3, warmup_steps=200)))


def cifar10() -> Experiment:
    network = first_stage.Config((128, 256, 256), latent_channels=64)
    model = Config(network, num_codes=512, adversary=Adversary(weight=0.8, start=20_000))
    training = accelerator_training(200_000, Optimiser(learning_rate=1e-4, beta1=0.5), batch_size=64)
    return Experiment(model, CIFAR10, training)


def imagenet256() -> Experiment:
    network = first_stage.Config((128, 128, 256, 256, 512), latent_channels=256, attention_resolutions=(16,))
    adversary = Adversary(weight=0.8, start=250_001, channels=(64, 128, 256))
    model = Config(network, perceptual_weight=1.0, adversary=adversary)
    training = accelerator_training(1_000_000, Optimiser(learning_rate=5.4e-5, beta1=0.5), batch_size=12)
    return Experiment(model, Data(name="imagenet2012", size=256, flip=True), training)
