"""VDM (Kingma et al. 2021, arXiv 2107.00630) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts, attention_at_height
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion.vdm import Config
from jgen.nn import unet
from jgen.samplers.diffusion import Sampling
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: <= 2.65 bits/dim, FID 7.41")

ANCESTRAL = Sampling(sampler="ancestral", steps=100)

at_height = attention_at_height


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    # The few levels are told apart by slower waves than 256 levels, and at more noise.
    model = Config(network=unet.DIGITS, fourier=(2, 3), gamma_0=-9.0, sampling=replace(ANCESTRAL, guidance_scale=1.5))
    return Experiment(model, Data(name="digits"), digits_training(2000, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, network=unet.TINY, schedule_features=8, sampling=replace(ANCESTRAL, steps=4))
    model = replace(model, scoring=replace(model.scoring, times=4))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(network=unet.MNIST, sampling=replace(ANCESTRAL, guidance_scale=1.5))
    return Experiment(model, Data(name=name), mnist_training(10_000, cosine(5e-4, warmup_steps=200, clip_norm=1.0)))


def cifar10() -> Experiment:
    # The paper's appendix B, with a U-Net of less depth: AdamW at 2e-4, weight decay 0.01, EMA 0.9999, dropout 0.1.
    network = unet.Config(channels=(256, 256, 256), blocks=4, attention=(16,), head_dim=256)
    model = Config(network=network, class_conditional=False, sampling=replace(ANCESTRAL, steps=1000))
    optimiser = Optimiser(name="adamw", learning_rate=2e-4, beta2=0.99, weight_decay=0.01, warmup_steps=100)
    data = Data(name="cifar10", validation=0.0)
    return Experiment(model, data, accelerator_training(10_000_000, optimiser, keep_every=500_000))
