"""KL autoencoder, the first stage of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.autoencoder_kl import Config
from jgen.models.vae.patch_adversary import Config as Adversary
from jgen.nn import first_stage
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import SHAPES, accelerator_training, choose, cosine, described, digits_training, mnist_training

VARIANTS = described("{} as {} latents of 4 channels", "4x4", "7x7", "8x8") | {
    "shapes": "32x32 rendered shapes as 8x8 latents of 4 channels",
    "imagenet256": "256x256 ImageNet as 32x32 latents, the published KL-f8 of 84M parameters; for accelerators",
}
FACTS = Facts(compared=False)  # without a diffusion over its latents it generates nothing


def get_config(variant: str) -> Experiment:
    others = {"shapes": shapes, "cifar10": cifar10, "imagenet256": imagenet256}
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, **others)


def digits() -> Experiment:
    network = first_stage.Config(channels=(32, 64), blocks=1, attention=False, groups=8)
    return Experiment(Config(network, kl_weight=1e-4), Data(), digits_training(1500, cosine(1e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    network = first_stage.Config(channels=(8, 8), blocks=1, latent_channels=2, attention=False, groups=4)
    model = Config(network, adversary=Adversary(weight=0.5, channels=(8,)))
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    network = first_stage.Config(channels=(16, 32, 64), blocks=1, attention=False, groups=8)
    model = Config(network, kl_weight=1e-4, adversary=Adversary(weight=0.5, start=2000, channels=(32, 64)))
    return Experiment(model, Data(name=name), mnist_training(5000, cosine(1e-3, warmup_steps=200)))


def shapes() -> Experiment:
    network = first_stage.Config(channels=(16, 32, 64), blocks=1, attention=False, groups=8)
    return Experiment(Config(network, kl_weight=1e-4), SHAPES, digits_training(2000, cosine(1e-3, warmup_steps=100)))


def cifar10() -> Experiment:
    network = first_stage.Config(channels=(128, 256, 256))
    model = Config(network, adversary=Adversary(weight=0.5, start=20_000))
    training = accelerator_training(200_000, Optimiser(learning_rate=1e-4, beta1=0.5), batch_size=64)
    return Experiment(model, Data(name="cifar10", flip=True, validation=0.0), training)


def imagenet256() -> Experiment:
    # The published configuration: batches of 12 on one device, discriminator from step 50,001.
    model = Config(perceptual_weight=1.0, adversary=Adversary(weight=0.5, start=50_001, channels=(64, 128, 256)))
    training = accelerator_training(400_000, Optimiser(learning_rate=5.4e-5, beta1=0.5), batch_size=12)
    return Experiment(model, Data(name="imagenet2012", size=256, flip=True), training)
