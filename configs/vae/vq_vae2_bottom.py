"""VQ-VAE-2, sampled through the priors over both levels of codes (Razavi et al. 2019, arXiv 1906.00446).

The last of three runs. First: python train.py configs/vae/vq_vae2.py:VARIANT, then configs/vae/vq_vae2_top.py:VARIANT,
which trains runs/vq_vae2_top-VARIANT; or give the run of another prior of top codes, --frozen.top RUN.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vq_vae2_bottom import Config, Sampling
from jgen.nn.code_pixelcnn import Config as Network
from jgen.train.config import tiny_training
from jgen.train.presets import STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "digits": "4x4 bottom codes of 8x8 digits by class, given 2x2 top codes; under 2 minutes on 2 CPU cores",
    "mnist": "14x14 bottom codes of 28x28 MNIST by class, given 7x7 top codes",
    "fashion_mnist": "14x14 bottom codes of 28x28 Fashion-MNIST by class, given 7x7 top codes",
    "cifar10": "8x8 bottom codes of 32x32 CIFAR-10 by class, given 4x4 top codes; for an accelerator",
    "tiny": "bottom codes of 8x8 digits, seconds to train; for tests",
}
FACTS = Facts(free_form_jacobian=True)
FROZEN = {"top": "configs/vae/vq_vae2_top.py"}


def get_config(variant: str) -> Experiment:
    experiment = choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)
    return replace(experiment, frozen={"top": f"runs/vq_vae2_top-{variant}"})


def digits() -> Experiment:
    # With an autoencoder trained longer, the FD was 68 at temperatures of 1, and 46 at these; no others were tried.
    network = Network(32, 2, first_kernel=3, heads=2, hidden=64, embedding=16, dropout=0.5)
    train = digits_training(1200, cosine(1e-3, warmup_steps=100, clip_norm=1.0))
    model = Config(network, conditioning_blocks=1, sampling=Sampling(temperature_top=0.8, temperature_bottom=0.7))
    return Experiment(model, Data(name="digits"), train)


def tiny(digits: Experiment) -> Experiment:
    network = replace(digits.model.network, features=8, blocks=1, hidden=8, embedding=4, dropout=0.0)
    return replace(digits, model=replace(digits.model, network=network), train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    network = Network(64, 8, output_blocks=1, dropout=0.1)
    train = mnist_training(6000, cosine(1e-3, warmup_steps=200, clip_norm=1.0))
    return Experiment(Config(network), Data(name=name), train)


def cifar10() -> Experiment:
    # As many layers as the paper's, with half of its 512 features: 20 gated, a stack of 20 residual blocks.
    network = Network(256, 20, output_blocks=1, hidden=512, embedding=64, dropout=0.1)
    train = accelerator_training(250_000, cosine(3e-4, warmup_steps=1000, clip_norm=1.0))
    return Experiment(Config(network, conditioning_blocks=20), Data(name="cifar10", validation=0.0), train)
