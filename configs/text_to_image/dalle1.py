"""DALL-E (Ramesh et al. 2021, arXiv 2102.12092) on pictures with captions: the second of two runs.

First: python train.py configs/vae/dvae.py:VARIANT, which trains runs/dvae-VARIANT; or give the run of another
autoencoder with codes, --frozen.autoencoder RUN. To choose among candidates, sample with --frozen.clip RUN.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.experiment import Experiment
from jgen.models.text_to_image.dalle1 import Config
from jgen.train.config import tiny_training
from jgen.train.presets import SHAPES, TINY_SHAPES, cosine, digits_training

VARIANTS = {
    "shapes": "codes of 32x32 rendered shapes and their captions, held-out pairs of shape and colour; under 10 minutes"
    " on 2 CPU cores",
    "tiny": "the same, seconds to train; for tests",
}
FACTS = Facts(compared=False)
FROZEN = {"autoencoder": "configs/vae/dvae.py"}


def get_config(variant: str) -> Experiment:
    experiment = {"shapes": shapes, "tiny": tiny}[variant]()
    return replace(experiment, frozen={"autoencoder": f"runs/dvae-{variant}"})


def shapes() -> Experiment:
    model = Config(features=128, layers=4, heads=4, hidden=512)
    optimiser = cosine(2e-3, warmup_steps=100, clip_norm=1.0)
    return Experiment(
        model, SHAPES, digits_training(800, optimiser, batch_size=32, validation_images=512, ema_decay=0.99)
    )


def tiny() -> Experiment:
    base = shapes()
    model = replace(base.model, features=8, layers=2, heads=2, hidden=16, attention="strided", dropout=0.1)
    return replace(base, model=model, data=TINY_SHAPES, train=tiny_training(base.train))
