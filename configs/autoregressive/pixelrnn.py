"""PixelRNN (van den Oord et al. 2016, arXiv 1601.06759), Row LSTM or Diagonal BiLSTM, on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.autoregressive.pixelrnn import Config
from jgen.train.config import tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "digits": "8x8 digits of scikit-learn by class, in 17 levels, by Row LSTMs; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST by class, in 256 levels",
    "fashion_mnist": "28x28 Fashion-MNIST by class, in 256 levels",
    "mnist_binary": "28x28 MNIST, dynamically binarised, unconditional; the paper's 7 Diagonal BiLSTMs of 16 features",
    "cifar10": "32x32 CIFAR-10, the paper's 12 Diagonal BiLSTMs of 128 features; for an accelerator",
    "tiny": "8x8 digits in 17 levels, seconds to train; for tests",
}
PUBLISHED = "binarised MNIST: 79.20 nats; CIFAR-10: 3.00 bits/dim, of Row LSTM 3.07"
FACTS = Facts(free_form_jacobian=False, published=PUBLISHED)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, mnist_binary=mnist_binary, cifar10=cifar10)


def digits() -> Experiment:
    # Validation ends at 1.674 bits/dim; with two Diagonal BiLSTMs, which take as long, and dropout 0.3, at 1.697.
    model = Config(layer="row", features=32, blocks=4, first_kernel=5, hidden=64, dropout=0.4, class_conditional=True)
    optimiser = cosine(2e-3, warmup_steps=100, clip_norm=1.0)
    return Experiment(model, Data(name="digits"), digits_training(2000, optimiser))


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, layer="diagonal", features=8, blocks=1, hidden=8)
    return replace(digits, model=model, train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    model = Config(features=32, blocks=4, hidden=64, class_conditional=True)
    optimiser = cosine(1e-3, warmup_steps=200, clip_norm=1.0)
    return Experiment(model, Data(name=name), mnist_training(4000, optimiser, batch_size=16))


def mnist_binary() -> Experiment:
    optimiser = cosine(1e-3, warmup_steps=200, clip_norm=1.0)
    model = Config(features=16, blocks=7, hidden=32)
    return Experiment(model, Data(name="mnist", binarise="dynamic"), mnist_training(8000, optimiser, batch_size=16))


def cifar10() -> Experiment:
    model = Config(features=129, blocks=12, hidden=1023)  # 128 in the paper, which is not divisible by the channels
    optimiser = cosine(4e-4, warmup_steps=1000, clip_norm=1.0)
    return Experiment(model, CIFAR10, accelerator_training(200_000, optimiser, batch_size=16, ema_decay=0.9995))
