"""Image generation in JAX: all families of generative models behind one interface.

gen = jgen.load("runs/vdm-digits")
images = gen.sample(jax.random.key(0), 16, label=7)      # uint8 (16, H, W, C)
"""

from jgen import errors
from jgen.api import fit, load, make
from jgen.cascade import Cascade
from jgen.experiment import Experiment
from jgen.generator import Generator

__version__ = "0.2.0"
__all__ = ["Cascade", "Experiment", "Generator", "errors", "fit", "load", "make"]
