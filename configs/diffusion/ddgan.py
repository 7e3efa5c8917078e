"""Denoising diffusion GANs (Xiao, Kreis & Vahdat 2022, arXiv 2112.07804) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts, attention_at_height
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion.ddgan import Config
from jgen.nn import unet
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, digits_training, mnist_training

VARIANTS = STANDARD | {"cifar10": "32x32 CIFAR-10, unconditional, in 4 steps; for an accelerator"}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: FID 3.75 (4 evaluations)")
# The paper's, of CIFAR-10.
ADAM = Optimiser(
    learning_rate=1.6e-4, beta1=0.5, beta2=0.9, schedule="cosine", by_role=(("disc", "learning_rate", 1.25e-4),)
)
# With equal rates on little data, the discriminator lags behind a generator that it cannot tell from the data.
QUICK_DISC = replace(ADAM, learning_rate=4e-4, beta2=0.99, by_role=(("disc", "learning_rate", 1.2e-3),))

at_height = attention_at_height


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    network = replace(unet.DIGITS, attention=())
    small = Config(network=network, latent=32, mapping_width=64, mapping_layers=2, disc_channels=(32, 64))
    model = replace(small, beta_max=10.0, r1_weight=0.05, r1_every=1)
    return Experiment(model, Data(name="digits"), digits_training(2000, QUICK_DISC, ema_decay=0.995))


def tiny(digits: Experiment) -> Experiment:
    small = replace(digits.model, network=unet.TINY, latent=8, mapping_width=16, disc_channels=(8, 8))
    return replace(digits, model=replace(small, num_timesteps=2), train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    small = Config(network=unet.MNIST, latent=64, mapping_width=128, mapping_layers=3, disc_channels=(32, 64, 128))
    model = replace(small, r1_weight=0.05)
    return Experiment(model, Data(name=name), mnist_training(10_000, QUICK_DISC))


def cifar10() -> Experiment:
    # The authors' command: batches of 256, 1,800 epochs, EMA 0.9999, R1 of weight 0.02 in every 15th step.
    network = unet.Config(channels=(128, 256, 256, 256), dropout=0.0)
    model = Config(network=network, class_conditional=False)
    return Experiment(model, CIFAR10, accelerator_training(351_562, ADAM, batch_size=256))
