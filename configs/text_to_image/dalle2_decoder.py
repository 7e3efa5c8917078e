"""DALL-E 2, the decoder (Ramesh et al. 2022, arXiv 2204.06125) on pictures with captions: the last of three runs.

First: python train.py configs/text_to_image/clip.py:shapes and python train.py
configs/text_to_image/dalle2_prior.py:shapes; or give the runs of others, --frozen.clip RUN --frozen.prior RUN.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.experiment import Experiment
from jgen.models.diffusion import ddpm, edm
from jgen.models.text_to_image.dalle2_decoder import Config
from jgen.nn import dit
from jgen.samplers.diffusion import Sampling
from jgen.train.config import tiny_training
from jgen.train.presets import SHAPES, TINY_SHAPES, cosine, digits_training

VARIANTS = {
    "shapes": "32x32 rendered shapes given their CLIP embeddings; some 12 minutes of CPU time",
    "tiny": "the same, seconds to train; for tests",
}
FACTS = Facts(compared=False)
FROZEN = {"clip": "configs/text_to_image/clip.py", "prior": "configs/text_to_image/dalle2_prior.py"}

DDIM = Sampling(sampler="ddim", spacing="karras", low=0.005, steps=32, guidance_scale=2.0)


def get_config(variant: str) -> Experiment:
    experiment = {"shapes": shapes, "tiny": tiny}[variant]()
    return replace(experiment, frozen={"clip": f"runs/clip-{variant}", "prior": f"runs/dalle2_prior-{variant}"})


def shapes() -> Experiment:
    network = dit.Config(patch=4, features=96, layers=6, heads=3)
    # Most of a picture is grey; where objects are is decided at higher noise levels than their edges.
    noise = edm.Config(sigma_data=0.25, sigma_max=40.0, p_mean=-0.3, p_std=1.3)
    objective = replace(noise, network=network, class_conditional=False, sampling=DDIM)
    train = digits_training(2000, cosine(1.5e-3, warmup_steps=100, clip_norm=1.0), batch_size=32, validation_images=256)
    return Experiment(Config(objective), SHAPES, train)


def tiny() -> Experiment:
    base = shapes()
    network = dit.Config(patch=8, features=8, layers=1, heads=2)
    chain = ddpm.Config(num_timesteps=10, prediction="x0")  # more dimensions of noise
    sampling = Sampling(steps=3, guidance_scale=2.0)
    objective = replace(chain, network=network, class_conditional=False, sampling=sampling)
    return replace(base, model=Config(objective), data=TINY_SHAPES, train=tiny_training(base.train))
