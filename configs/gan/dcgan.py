"""Deep convolutional GAN (Radford, Metz & Chintala 2016, arXiv 1511.06434) on several data sets."""

from dataclasses import replace

from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.gan.dcgan import Config
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser, tiny_training

VARIANTS = {
    "digits": "8x8 digits of scikit-learn by class; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST by class; 99.8 % of samples read as asked after 15 minutes on 2 CPU cores",
    "fashion_mnist": "28x28 Fashion-MNIST by class",
    "cifar10": "32x32 CIFAR-10, unconditional, the paper's network with three halvings; for an accelerator",
    "tiny": "8x8 digits, seconds to train; for tests",
}


def get_config(variant: str) -> Experiment:
    if variant == "cifar10":
        return cifar10()
    if variant in ("mnist", "fashion_mnist"):
        return mnist(variant)
    digits = Experiment(
        model=Config(channels=(32, 64), latent=32, loss="non_saturating", disc_norm="batch", norm_momentum=0.99),
        data=Data(name="digits"),
        train=Train(
            steps=6000,
            batch_size=64,
            ema_decay=0.995,
            optimiser=Optimiser(learning_rate=5e-4, beta1=0.5),
            log_every=50,
            validate_every=1000,
            validation_images=150,
            sample_every=2000,
            checkpoint_every=1000,
        ),
    )
    return digits if variant == "digits" else tiny(digits)


def tiny(digits: Experiment) -> Experiment:
    model = replace(digits.model, channels=(8, 16), latent=8, disc_steps=2)
    train = tiny_training(digits.train)
    return replace(digits, model=model, train=train)


def mnist(name: str) -> Experiment:
    return Experiment(
        model=Config(channels=(64, 128), latent=64, norm_momentum=0.99),
        data=Data(name=name),
        train=Train(
            steps=8000,
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=2e-4, beta1=0.5),
            log_every=100,
            validate_every=1000,
            sample_every=1000,
            checkpoint_every=500,
        ),
    )


def cifar10() -> Experiment:
    # The paper's Adam: 2e-4, beta1 0.5, batches of 128.
    return Experiment(
        model=Config(channels=(128, 256, 512), conditioning="none", norm_momentum=0.99),
        data=Data(name="cifar10", flip=True, validation=0.0),
        train=Train(
            steps=100_000,
            batch_size=128,
            ema_decay=0.9999,
            optimiser=Optimiser(learning_rate=2e-4, beta1=0.5),
            sample_every=5000,
            checkpoint_every=5000,
        ),
    )
