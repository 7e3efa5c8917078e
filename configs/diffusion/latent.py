"""Latent diffusion (Rombach et al. 2022, arXiv 2112.10752): the second of two runs, on several data sets.

First: python train.py configs/vae/autoencoder_kl.py:VARIANT; for another first stage, --frozen.autoencoder RUN.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion import ddpm, flow_matching, latent
from jgen.nn import dit, unet
from jgen.samplers.diffusion import Sampling
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, accelerator_training, choose, cosine, described, digits_training, mnist_training

VARIANTS = described("latents of {} by class") | {
    "imagenet256": "32x32 latents of 256x256 ImageNet by class, DiT-XL/2 of 675M parameters; for accelerators",
}
FACTS = Facts(free_form_jacobian=True, published="ImageNet 256: FID 3.60 (LDM-4, guided), 2.27 (DiT-XL/2, guided)")
FROZEN = {"autoencoder": "configs/vae/autoencoder_kl.py"}


def get_config(variant: str) -> Experiment:
    experiment = choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10, imagenet256=imagenet256)
    return replace(experiment, frozen={"autoencoder": f"runs/autoencoder_kl-{variant}"})


def flow(network: unet.Config) -> latent.Config:
    heun = Sampling(sampler="heun", steps=25, guidance_scale=1.5, clip=False)
    return latent.Config(flow_matching.Config(network=network, dequantise=False, sampling=heun))


def digits() -> Experiment:
    network = replace(unet.DIGITS, channels=(64, 64), attention=(2,))
    return Experiment(flow(network), Data(), digits_training(2000, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    objective = ddpm.Config(unet.TINY, num_timesteps=10, schedule="cosine", sampling=Sampling(steps=3, clip=False))
    return replace(digits, model=latent.Config(objective), train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    network = unet.Config(channels=(96,), blocks=2, attention=(7,), head_dim=32, groups=8, dropout=0.0)
    return Experiment(flow(network), Data(name=name), mnist_training(10_000, cosine(5e-4, 200, clip_norm=1.0)))


def cifar10() -> Experiment:
    training = accelerator_training(300_000, Optimiser(learning_rate=1e-4), batch_size=256, keep_every=50_000)
    return Experiment(flow(unet.Config(channels=(192, 384), attention=(8, 4))), CIFAR10, training)


def imagenet256() -> Experiment:
    # DiT-XL/2 as published: AdamW at 1e-4 without decay, batches of 256, learned variances, 3 of 4 channels guided.
    sampling = Sampling(sampler="ancestral", steps=250, variance="learned", clip=False, guidance_channels=3)
    network = dit.extra_large(patch=2, dtype="bfloat16", remat=True)
    objective = ddpm.Config(network=network, bound_variance="learned", sampling=replace(sampling, guidance_scale=1.5))
    training = accelerator_training(7_000_000, Optimiser(learning_rate=1e-4), batch_size=256, keep_every=100_000)
    return Experiment(latent.Config(objective), Data(name="imagenet2012", size=256, flip=True), training)
