"""DALL-E 2, the prior (Ramesh et al. 2022, arXiv 2204.06125) on pictures with captions: the second of three runs.

First: python train.py configs/text_to_image/clip.py:shapes, which trains runs/clip-shapes; or give the run of another
CLIP, --frozen.clip RUN. Then configs/text_to_image/dalle2_decoder.py draws images.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.experiment import Experiment
from jgen.models.text_to_image.dalle2_prior import Config, Sampling
from jgen.train.config import tiny_training
from jgen.train.presets import SHAPES, TINY_SHAPES, cosine, digits_training

VARIANTS = {
    "shapes": "CLIP embeddings of 32x32 rendered shapes given captions, by diffusion; some 10 minutes of CPU time",
    "shapes_autoregressive": "the same as codes of principal components, one after another",
    "tiny": "the diffusion, seconds to train; for tests",
}
FACTS = Facts(compared=False)
FROZEN = {"clip": "configs/text_to_image/clip.py"}


def get_config(variant: str) -> Experiment:
    experiment = {"shapes": shapes, "shapes_autoregressive": shapes_autoregressive, "tiny": tiny}[variant]()
    return replace(experiment, frozen={"clip": f"runs/clip-{'tiny' if variant == 'tiny' else 'shapes'}"})


def shapes() -> Experiment:
    model = Config(features=128, layers=4, heads=4, hidden=512)
    train = digits_training(
        1500, cosine(1e-3, warmup_steps=100, clip_norm=1.0), batch_size=128, validation_images=512, ema_decay=0.99
    )
    return Experiment(model, SHAPES, train)


def shapes_autoregressive() -> Experiment:
    base = shapes()
    model = replace(base.model, kind="autoregressive", components=48, levels=128)
    return replace(base, model=model)


def tiny() -> Experiment:
    base = shapes()
    sampling = Sampling(steps=3, guidance_scale=2.0)
    model = replace(base.model, features=8, layers=1, heads=2, hidden=16, sampling=sampling)
    return replace(base, model=model, data=TINY_SHAPES, train=tiny_training(base.train))
