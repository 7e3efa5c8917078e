"""Image generation in JAX: every family of generator on one contract.

gen = jgen.load("runs/ddpm-digits")
images = gen.sample(jax.random.key(0), 16, label=7)      # uint8 (16, H, W, C)
"""

from jgen import errors
from jgen.api import Generator, fit, load, make
from jgen.experiment import Experiment

__version__ = "0.1.0"
__all__ = ["Experiment", "Generator", "errors", "fit", "load", "make"]
