"""RealNVP (Dinh, Sohl-Dickstein & Bengio 2017, arXiv 1605.08803) on several data sets."""

from dataclasses import replace

from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.flow.dequantised import LOGIT_ALPHA
from jgen.models.flow.realnvp import Config, Sampling
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser, tiny_training

VARIANTS = {
    "digits": "8x8 digits of scikit-learn by class; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST by class; 1.17 bits/dim after 56 minutes on 2 CPU cores",
    "fashion_mnist": "28x28 Fashion-MNIST by class",
    "cifar10": "32x32 CIFAR-10, unconditional, networks of 8 residual blocks, 64 to 256 wide; for an accelerator",
    "tiny": "8x8 digits, seconds to train; for tests",
}


def get_config(variant: str) -> Experiment:
    if variant == "cifar10":
        return cifar10()
    if variant in ("mnist", "fashion_mnist"):
        return mnist(variant)
    digits = Experiment(
        model=Config(scales=2, width=16, blocks=2, logit_alpha=LOGIT_ALPHA, sampling=Sampling(temperature=0.8)),
        data=Data(name="digits"),
        train=Train(
            steps=1500,  # from about 1,000 on the likelihood of held-out digits falls
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=1e-3, schedule="cosine", warmup_steps=100, clip_norm=100.0),
            log_every=50,
            validate_every=500,
            validation_images=150,
            sample_every=500,
            checkpoint_every=500,
        ),
    )
    return digits if variant == "digits" else tiny(digits)


def tiny(digits: Experiment) -> Experiment:
    return replace(
        digits,
        model=replace(digits.model, couplings=1, width=8, blocks=1),
        train=tiny_training(digits.train),
    )


def mnist(name: str) -> Experiment:
    # An hour with the paper's logit, where black pixels are a spike, reaches less than ten minutes do with this.
    return Experiment(
        model=Config(scales=3, width=16, blocks=2, logit_alpha=LOGIT_ALPHA, sampling=Sampling(temperature=0.8)),
        data=Data(name=name),
        train=Train(
            steps=6_000,
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=1e-3, schedule="cosine", warmup_steps=500, clip_norm=100.0),
            log_every=100,
            validate_every=1000,
            sample_every=2500,
            checkpoint_every=500,
        ),
    )


def cifar10() -> Experiment:
    # The paper's section 4.1: batch 64 and Adam; its decay of weights is left out, its rate halved and warmed up.
    return Experiment(
        model=Config(scales=3, couplings=3, width=64, blocks=8, class_conditional=False),
        data=Data(name="cifar10", flip=True, validation=0.0),
        train=Train(
            steps=800_000,
            batch_size=64,
            optimiser=Optimiser(learning_rate=5e-4, warmup_steps=5000, clip_norm=100.0),
            sample_every=20_000,
            checkpoint_every=5000,
            keep_every=100_000,
        ),
    )
