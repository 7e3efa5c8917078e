"""DDPM (Ho, Jain & Abbeel 2020, arXiv 2006.11239) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts, attention_at_height
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion.ddpm import Config
from jgen.nn import unet
from jgen.samplers.diffusion import Sampling
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "cifar10": "32x32 CIFAR-10, unconditional, the paper's 35.7M-parameter U-Net; for an accelerator",
}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: <= 3.75 bits/dim, FID 3.17")

at_height = attention_at_height


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    sampling = Sampling(steps=50, guidance_scale=2.0)
    model = Config(network=unet.DIGITS, schedule="cosine", prediction="v", sampling=sampling)
    return Experiment(model, Data(name="digits"), digits_training(2000, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, network=unet.TINY, num_timesteps=10, sampling=Sampling(steps=5))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    sampling = Sampling(steps=50, guidance_scale=1.5)
    model = Config(network=unet.MNIST, schedule="cosine", prediction="v", sampling=sampling)
    optimiser = cosine(5e-4, warmup_steps=200, clip_norm=1.0)
    return Experiment(model, Data(name=name), mnist_training(10_000, optimiser))


def cifar10() -> Experiment:
    # The paper's appendix B: one head over all 256 channels, dropout 0.1, random flips, Adam at 2e-4, EMA 0.9999.
    sampling = Sampling(sampler="ancestral", steps=1000, spacing="trailing", variance="beta")
    network = unet.Config(channels=(128, 256, 256, 256), attention=(16,), head_dim=256)
    model = Config(network=network, class_conditional=False, sampling=sampling)
    optimiser = Optimiser(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0)
    return Experiment(model, CIFAR10, accelerator_training(800_000, optimiser, keep_every=100_000))
