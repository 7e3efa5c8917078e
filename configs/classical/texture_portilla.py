"""Parametric texture model of joint wavelet statistics (Portilla & Simoncelli 2000), on pictures of a texture."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.classical.texture_portilla import Config, Sampling
from jgen.train.config import Config as Training
from jgen.train.config import tiny_training
from jgen.train.presets import TEXTURES

VARIANTS = TEXTURES
FACTS = Facts(compared=False)  # of one picture, without a likelihood


def get_config(variant: str) -> Experiment:
    return tiny() if variant == "tiny" else picture(f"texture:{variant}")


def picture(name: str) -> Experiment:
    # 512x512 pixels are three crops and one to test with: a step sees all three. A grid would take minutes.
    train = Training(steps=10, batch_size=3, log_every=1, samples_per_class=0)
    return Experiment(Config(), Data(name=name, size=256, validation=0.0), train)


def tiny() -> Experiment:
    model = Config(scales=1, orientations=2, neighbourhood=3, sampling=Sampling(steps=4))
    train = replace(tiny_training(Training()), samples_per_class=1, sample_every=0)
    return Experiment(model, Data(name="digits"), train)
