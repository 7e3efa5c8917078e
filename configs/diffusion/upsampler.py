"""Upsampler, ADM-U (Dhariwal & Nichol 2021, arXiv 2105.05233): large images given small ones, on several data sets.

With a model of the small images, python train.py configs/diffusion/adm.py:VARIANT --data.size SMALL, it makes a
cascade: python sample.py BASE --cascade runs/upsampler-VARIANT
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion import ddpm
from jgen.models.diffusion.adm import Config
from jgen.nn import unet
from jgen.samplers.diffusion import Sampling
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import accelerator_training, choose, cosine, described, digits_training, mnist_training

VARIANTS = described("{} from {}, by class", "4x4", "14x14", "16x16") | {
    "imagenet256": "256x256 ImageNet from 64x64, the paper's 312M-parameter U-Net; for accelerators",
}
FACTS = Facts(free_form_jacobian=True, compared=False)  # it only makes images from smaller ones
CHAIN = ddpm.Config(label_dropout=0.0, bound_variance="learned")
VELOCITY = replace(CHAIN, schedule="cosine", prediction="v")


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, imagenet256=imagenet256)


def adm(network: unet.Config, steps: int, chain: ddpm.Config = CHAIN) -> Config:
    sampling = Sampling(sampler="ancestral", steps=steps, variance="learned")
    return Config(replace(chain, network=replace(network, architecture="adm"), sampling=sampling))


def digits() -> Experiment:
    return Experiment(adm(unet.DIGITS, 25, VELOCITY), Data(low_resolution=2), digits_training(2000, cosine(1e-3, 100)))


def tiny(digits: Experiment) -> Experiment:
    return replace(digits, model=adm(unet.TINY, 4, replace(CHAIN, num_timesteps=10)), train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model, optimiser = adm(unet.MNIST, 25, VELOCITY), cosine(5e-4, 200, clip_norm=1.0)
    return Experiment(model, Data(name=name, low_resolution=2), mnist_training(10_000, optimiser))


def cifar10() -> Experiment:
    model = adm(unet.Config(channels=(128, 128, 256), blocks=2, attention=(16, 8)), 250)
    training = accelerator_training(300_000, Optimiser(learning_rate=1e-4), batch_size=256, keep_every=50_000)
    return Experiment(model, Data(name="cifar10", flip=True, validation=0.0, low_resolution=2), training)


def imagenet256() -> Experiment:
    # The paper's table 11: width 192, two blocks, batches of 256, 500,000 steps.
    channels = (192, 192, 384, 384, 768, 768)
    network = unet.Config(channels=channels, blocks=2, attention=(32, 16, 8), dropout=0.0, dtype="bfloat16")
    training = accelerator_training(500_000, Optimiser(learning_rate=1e-4), batch_size=256, keep_every=50_000)
    return Experiment(adm(network, 250), Data(name="imagenet2012", size=256, low_resolution=4, flip=True), training)
