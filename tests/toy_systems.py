"""The toys as a system, under a name of jgen's, so that runs of them can be trained and loaded."""

import sys
from dataclasses import dataclass

import toys

from jgen.data.config import Config as Data
from jgen.errors import require
from jgen.experiment import Experiment
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser

DIGITS = Data(name="digits", levels=256)
TRAIN = Train(
    steps=10,
    batch_size=8,
    ema_decay=0.9,
    optimiser=Optimiser(learning_rate=0.01),
    log_every=3,
    validate_every=5,
    validation_images=16,
    sample_every=0,
    samples_per_class=1,
    checkpoint_every=6,
    keep=3,
)


@dataclass(frozen=True)
class Config:
    """A toy by its name."""

    toy: str
    """Key of `toys.TOYS`."""


def make(config, data, *, autoencoder=None, classifier=None):
    """A toy, of the digits or, if it is conditional, of any images of their size."""
    below = {"autoencoder": autoencoder, "classifier": classifier}
    below = {role: model for role, model in below.items() if model is not None}
    if config.toy == "conditional":
        return toys.conditional(data)
    require(data == toys.DATA, f"{config.toy} is of the digits with 256 levels")
    return toys.TOYS[config.toy].make(**below)


def experiment_of(toy, frozen=None, data=DIGITS, train=TRAIN, seed=0):
    return Experiment(Config(toy), data, train, {role: str(run) for role, run in (frozen or {}).items()}, seed)


# Of what config.json names, only modules under jgen are imported.
Config.__module__ = "jgen.toys"
sys.modules["jgen.toys"] = sys.modules[__name__]
