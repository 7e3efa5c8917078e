"""CLIP (Radford et al. 2021, arXiv 2103.00020) on pictures with captions."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.experiment import Experiment
from jgen.models.text_to_image.clip import Config
from jgen.train.config import tiny_training
from jgen.train.presets import SHAPES, TINY_SHAPES, cosine, digits_training

VARIANTS = {
    "shapes": "32x32 rendered shapes with captions, held-out pairs of shape and colour; under 3 minutes on 2 CPU cores",
    "tiny": "the same, seconds to train; for tests",
}
FACTS = Facts(compared=False)


def get_config(variant: str) -> Experiment:
    return {"shapes": shapes, "tiny": tiny}[variant]()


def shapes() -> Experiment:
    model = Config(
        embedding=64,
        channels=(24, 48, 96),
        blocks=1,
        groups=8,
        pool_heads=4,
        text_width=96,
        text_heads=4,
        text_layers=2,
    )
    train = digits_training(1000, cosine(1e-3, warmup_steps=100, clip_norm=1.0), batch_size=128, validation_images=512)
    return Experiment(model, SHAPES, train)


def tiny() -> Experiment:
    base = shapes()
    model = Config(
        embedding=16, channels=(8, 8), blocks=1, groups=4, pool_heads=2, text_width=16, text_heads=2, text_layers=1
    )
    return replace(base, model=model, data=TINY_SHAPES, train=tiny_training(base.train))
