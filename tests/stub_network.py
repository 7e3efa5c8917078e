"""A function whose answers are known in the place of a diffusion system's network."""

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.nn import unet

CTX = Context(jnp.int32(0), jax.random.key(5))
PARAMS = {"unet": {}}


class Stub:
    """`answer(x, t, label)` is what the network gives; `calls` has the arguments of each call."""

    def __init__(self):
        self.calls, self.answer = [], lambda x, t, label: jnp.zeros_like(x)

    def apply(self, variables, x, t, label, key_drop, vector=None):
        self.calls.append((x, t, label, key_drop, vector))
        return self.answer(x, t, label)


def stub_network(monkeypatch):
    stub = Stub()
    monkeypatch.setattr(unet, "make_unet", lambda *args, **options: stub)
    return stub


def keys_of(n, seed=1):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def column(t, like):
    return jnp.asarray(t).reshape((-1,) + (1,) * (like.ndim - 1))


def gaussian_images(n, spec, mean=0.1, std=0.4, seed=0):
    """uint8 images of independent Gaussian pixels, rounded to the levels, and what they are as floats."""
    x = np.random.default_rng(seed).normal(mean, std, (n, *spec.shape))
    levels = np.clip(np.round((x + 1) * (spec.levels - 1) / 2), 0, spec.levels - 1).astype(np.uint8)
    return levels, levels * (2 / (spec.levels - 1)) - 1
