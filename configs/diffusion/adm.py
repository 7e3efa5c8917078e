"""ADM (Dhariwal & Nichol 2021, arXiv 2105.05233) on several data sets.

With guidance by a classifier, ADM-G: python train.py configs/diffusion/noisy_classifier.py:VARIANT, then
--frozen.classifier runs/noisy_classifier-VARIANT when this run is sampled.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion import adm, ddpm
from jgen.nn import unet
from jgen.samplers.diffusion import Sampling
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "cifar10": "32x32 CIFAR-10 by class; for an accelerator",
    "imagenet64": "64x64 ImageNet by class, the paper's 296M-parameter U-Net; for accelerators",
}
FACTS = Facts(free_form_jacobian=True, published="ImageNet 256: FID 10.94, with guidance and upsampling 3.94")
CHAIN = ddpm.Config(schedule="cosine", label_dropout=0.0, bound_variance="learned")
VELOCITY = replace(CHAIN, prediction="v")


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, imagenet64=imagenet64)


def sized(network: unet.Config, steps: int = 250, chain: ddpm.Config = CHAIN) -> adm.Config:
    sampling = Sampling(sampler="ancestral", steps=steps, variance="learned")
    return adm.Config(replace(chain, network=replace(network, architecture="adm"), sampling=sampling))


def digits() -> Experiment:
    return Experiment(sized(unet.DIGITS, 50, VELOCITY), Data(), digits_training(2000, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    model = sized(unet.TINY, 4, ddpm.Config(num_timesteps=10, bound_variance="learned"))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = sized(unet.MNIST, 50, VELOCITY)
    return Experiment(model, Data(name=name), mnist_training(10_000, cosine(5e-4, warmup_steps=200, clip_norm=1.0)))


def cifar10() -> Experiment:
    network = unet.Config(channels=(128, 256, 256), blocks=3, attention=(16, 8), dropout=0.3)
    training = accelerator_training(500_000, Optimiser(learning_rate=1e-4), keep_every=50_000)
    return Experiment(sized(network), CIFAR10, training)


def imagenet64() -> Experiment:
    # The paper's tables 11 and 12: batches of 2048, 540,000 steps.
    network = unet.Config(channels=(192, 384, 576, 768), blocks=3, attention=(32, 16, 8), dtype="bfloat16")
    training = accelerator_training(540_000, Optimiser(learning_rate=3e-4), batch_size=2048, keep_every=50_000)
    return Experiment(sized(network), Data(name="imagenet_resized/64x64", flip=True), training)
