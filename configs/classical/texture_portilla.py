"""Parametric texture model of joint wavelet statistics (Portilla & Simoncelli 2000), on pictures of a texture."""

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.classical.texture_portilla import Config, Sampling
from jgen.train.presets import TEXTURES, texture_training

VARIANTS = TEXTURES
FACTS = Facts(compared=False)  # of one picture, without a likelihood


def get_config(variant: str) -> Experiment:
    model, data = Config(), Data(name=f"texture:{variant}", size=256, validation=0.0)
    if variant == "tiny":
        model, data = Config(scales=1, orientations=2, neighbourhood=3, sampling=Sampling(steps=4)), Data()
    return Experiment(model, data, texture_training(variant))
