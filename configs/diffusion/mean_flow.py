"""MeanFlow (Geng et al. 2025, arXiv 2505.13447) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts, attention_at_height
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion.mean_flow import Config, Sampling
from jgen.nn import unet
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: FID 2.92 in one step")

at_height = attention_at_height


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    model = Config(network=unet.DIGITS, guidance=1.5)
    return Experiment(model, Data(name="digits"), digits_training(2000, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, network=unet.TINY, loss_power=0.0, sampling=Sampling(steps=2))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(network=unet.MNIST, guidance=1.5)
    return Experiment(model, Data(name=name), mnist_training(10_000, cosine(5e-4, warmup_steps=200, clip_norm=1.0)))


def cifar10() -> Experiment:
    # Geng et al. 2025, appendix A: 800,000 steps of 1,024 images, EMA 0.99995, dropout 0.2.
    network = unet.Config(channels=(128, 256, 256, 256), blocks=4, attention=(16,), dropout=0.2)
    model = Config(
        network=network, class_conditional=False, unequal_times=0.75, p_mean=-2.0, p_std=2.0, loss_power=0.75
    )
    optimiser = Optimiser(learning_rate=6e-4, beta2=0.999, warmup_steps=10_000)
    training = accelerator_training(800_000, optimiser, keep_every=50_000, batch_size=1024, ema_decay=0.99995)
    return Experiment(model, Data(name="cifar10", validation=0.0), training)
