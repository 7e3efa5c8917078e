"""VD-VAE (Child 2021, arXiv 2011.10650) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vd_vae import Config
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "mnist_binary": "28x28 MNIST binarised anew in every epoch, unconditional, Bernoulli decoder",
    "cifar10": "32x32 CIFAR-10, unconditional, the paper's network of 43 stochastic layers; for an accelerator",
}
FACTS = Facts(free_form_jacobian=True, published="CIFAR-10: <= 2.87 bits/dim")
SMALL = Config(width=64, bottleneck=0.5, latent=4, class_conditional=True)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, mnist_binary=mnist_binary, cifar10=cifar10)


def digits() -> Experiment:
    encoder, decoder = ((8, 2), (4, 2), (1, 1)), ((1, 1), (4, 2), (8, 3))
    model = replace(SMALL, encoder_blocks=encoder, decoder_blocks=decoder, mixtures=5)
    optimiser = replace(cosine(2e-3, warmup_steps=100, clip_norm=1.0), skip_norm=10.0)
    return Experiment(model, Data(name="digits"), digits_training(2000, optimiser))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, encoder_blocks=((8, 1), (4, 1)), decoder_blocks=((4, 1), (8, 1)), width=8, mixtures=2)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    encoder, decoder = ((28, 2), (14, 3), (7, 3), (1, 2)), ((1, 2), (7, 4), (14, 4), (28, 1))
    model = replace(SMALL, encoder_blocks=encoder, decoder_blocks=decoder)
    optimiser = replace(cosine(1e-3, warmup_steps=200, clip_norm=1.0), skip_norm=10.0)
    return Experiment(model, Data(name=name), mnist_training(8000, optimiser, batch_size=32))


def mnist_binary() -> Experiment:
    by_class = mnist("mnist")
    model = replace(by_class.model, class_conditional=False, decoder="bernoulli")
    return replace(by_class, model=model, data=Data(name="mnist", binarise="dynamic"))


def cifar10() -> Experiment:
    # The authors' optimiser, of gradients in nats per dimension.
    optimiser = Optimiser(name="adamw", learning_rate=2e-4, warmup_steps=100, beta2=0.9, weight_decay=0.01)
    optimiser = replace(optimiser, clip_norm=200.0, skip_norm=400.0)
    train = accelerator_training(1_000_000, optimiser, batch_size=32, keep_every=100_000)
    return Experiment(Config(), CIFAR10, train)
