"""Denoising diffusion (Ho, Jain & Abbeel 2020, arXiv 2006.11239) on several data sets."""

from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion.ddpm import Config, Sampling
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser, tiny_training

VARIANTS = {
    "digits": "8x8 digits of scikit-learn by class; under 3 minutes on 2 CPU cores",
    "mnist": "28x28 MNIST by class",
    "fashion_mnist": "28x28 Fashion-MNIST by class",
    "cifar10": "32x32 CIFAR-10, unconditional, the paper's 35.7M-parameter U-Net; for an accelerator",
    "tiny": "8x8 digits, seconds to train; for tests",
}


def get_config(variant: str) -> Experiment:
    if variant == "cifar10":
        return cifar10()
    if variant in ("mnist", "fashion_mnist"):
        return mnist(variant)
    digits = Experiment(
        model=Config(
            channels=(32, 32),
            blocks=1,
            attention=(4,),
            head_dim=32,
            groups=8,
            dropout=0.0,
            schedule="cosine",
            prediction="v",
            sampling=Sampling(steps=50, guidance_scale=2.0),
        ),
        data=Data(name="digits"),
        train=Train(
            steps=2000,
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=1e-3, schedule="cosine", warmup_steps=100),
            log_every=50,
            validate_every=500,
            validation_images=150,
            sample_every=1000,
            checkpoint_every=500,
        ),
    )
    return digits if variant == "digits" else tiny(digits)


def tiny(digits: Experiment) -> Experiment:
    from dataclasses import replace

    model = replace(digits.model, channels=(8, 8), blocks=1, attention=(), head_dim=8, groups=4)
    model = replace(model, num_timesteps=10, dropout=0.1)
    return replace(
        digits,
        model=replace(model, sampling=Sampling(steps=5)),
        train=tiny_training(digits.train),
    )


def mnist(name: str) -> Experiment:
    return Experiment(
        model=Config(
            channels=(32, 64, 64),
            attention=(14, 7),
            head_dim=32,
            groups=8,
            dropout=0.0,
            schedule="cosine",
            prediction="v",
            sampling=Sampling(steps=50, guidance_scale=1.5),
        ),
        data=Data(name=name),
        train=Train(
            steps=10_000,
            batch_size=64,
            ema_decay=0.999,
            optimiser=Optimiser(learning_rate=5e-4, schedule="cosine", warmup_steps=200, clip_norm=1.0),
            log_every=100,
            validate_every=1000,
            sample_every=1000,
            checkpoint_every=500,
        ),
    )


def cifar10() -> Experiment:
    # The paper's appendix B: one head over all 256 channels, dropout 0.1, random flips, Adam at 2e-4, EMA 0.9999.
    return Experiment(
        model=Config(
            channels=(128, 256, 256, 256),
            attention=(16,),
            head_dim=256,
            class_conditional=False,
            sampling=Sampling(sampler="ancestral", steps=1000, variance="beta"),
        ),
        data=Data(name="cifar10", flip=True, validation=0.0),
        train=Train(
            steps=800_000,
            batch_size=128,
            optimiser=Optimiser(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
            sample_every=20_000,
            checkpoint_every=5000,
            keep_every=100_000,
        ),
    )
