"""PixelCNN (van den Oord et al. 2016, arXiv 1601.06759) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.autoregressive.pixelcnn import Config
from jgen.train.config import tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "digits": "8x8 digits of scikit-learn by class, in 17 levels; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST by class, in 256 levels",
    "fashion_mnist": "28x28 Fashion-MNIST by class, in 256 levels",
    "mnist_binary": "28x28 MNIST, dynamically binarised, unconditional; an hour on 2 CPU cores",
    "cifar10": "32x32 CIFAR-10; for an accelerator",
    "tiny": "8x8 digits in 17 levels, seconds to train; for tests",
}
FACTS = Facts(free_form_jacobian=False, published="binarised MNIST: 81.3 nats; CIFAR-10: 3.14 bits/dim")


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, mnist_binary=mnist_binary, cifar10=cifar10)


def digits() -> Experiment:
    # Class-conditional, like the configurations beside it: FD 26 and 1.76 bits/dim, without classes 47 and 1.83.
    model = Config(features=16, blocks=5, first_kernel=5, hidden=64, dropout=0.1, class_conditional=True)
    optimiser = cosine(2e-3, warmup_steps=100, clip_norm=1.0)
    return Experiment(model, Data(name="digits"), digits_training(2500, optimiser))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, features=8, blocks=1, hidden=8)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(features=32, blocks=8, hidden=64, class_conditional=True)
    optimiser = cosine(1e-3, warmup_steps=200, clip_norm=1.0)
    return Experiment(model, Data(name=name), mnist_training(8000, optimiser, batch_size=32))


def mnist_binary() -> Experiment:
    by_class = mnist("mnist")
    model = replace(by_class.model, class_conditional=False)
    return replace(by_class, model=model, data=Data(name="mnist", binarise="dynamic"))


def cifar10() -> Experiment:
    model = Config(features=192, blocks=15, hidden=768, dropout=0.1)
    optimiser = cosine(4e-4, warmup_steps=1000, clip_norm=1.0)
    return Experiment(model, CIFAR10, accelerator_training(200_000, optimiser, ema_decay=0.9995))
