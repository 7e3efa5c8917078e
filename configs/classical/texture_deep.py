"""Deep textures by Gram matrices of a network (Gatys et al. 2015, arXiv 1505.07376), on pictures of a texture."""

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.classical.texture import Sampling
from jgen.models.classical.texture_deep import Config
from jgen.train.presets import TEXTURES, texture_training

VARIANTS = TEXTURES
FACTS = Facts(compared=False)  # of one picture, without a likelihood


def get_config(variant: str) -> Experiment:
    model, data = Config(), Data(name=f"texture:{variant}", size=256, validation=0.0)
    if variant == "tiny":
        model, data = Config(network="random", scales=1, filters=8, kernel=5, sampling=Sampling(steps=4)), Data()
    return Experiment(model, data, texture_training(variant))
