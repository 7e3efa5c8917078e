"""Score-based modelling by SDEs (Song et al. 2021, arXiv 2011.13456) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts, attention_at_height
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion.score_sde import Config
from jgen.nn import unet
from jgen.samplers.diffusion import Sampling
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: 2.99 bits/dim, FID 2.20")

CORRECTED = Sampling(sampler="predictor_corrector", steps=100)

at_height = attention_at_height


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(network=unet.DIGITS, sampling=replace(CORRECTED, guidance_scale=1.5))
    return Experiment(model, Data(name="digits"), digits_training(2000, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, network=unet.TINY, sampling=replace(CORRECTED, steps=3))
    model = replace(model, scoring=replace(model.scoring, tolerance=1e-2))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(network=unet.MNIST, sampling=replace(CORRECTED, guidance_scale=1.5))
    return Experiment(model, Data(name=name), mnist_training(10_000, cosine(5e-4, warmup_steps=200, clip_norm=1.0)))


def cifar10() -> Experiment:
    # The paper's appendix H: 1.3 million steps of 128 images, EMA 0.9999, dropout 0.1, random flips.
    network = unet.Config(channels=(128, 256, 256, 256), blocks=4, attention=(16,))
    model = Config(network=network, class_conditional=False)
    optimiser = Optimiser(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0)
    return Experiment(model, CIFAR10, accelerator_training(1_300_000, optimiser, keep_every=100_000))
