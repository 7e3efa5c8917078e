"""Sampling from an autoregressive network as plainly as it can be written, and parameters for tests of such networks.

The naive samplers are what those of `jgen.samplers.autoregressive`, `two_streams` and `sequence` must equal;
benchmarks/autoregressive.py times the first.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.prob.logistic_mixture import LogisticMixture
from jgen.samplers.autoregressive import Draw, draw, gumbel
from jgen.samplers.truncation import truncate


def sample_naively(
    network, params, keys, label, shape, levels, temperature=1.0, images=None, mask=None, positions=None, **truncation
):
    """For every draw, the network over the whole image: int32 (B, H, W, C).

    positions: how many of the H W C draws are made, all if None.
    """
    by_softmax = Draw(partial(gumbel, levels=levels), partial(draw, temperature=temperature, **truncation))
    return sample_by_draw_naively(network, params, keys, label, shape, by_softmax, images, mask, positions)


def sample_by_draw_naively(network, params, keys, label, shape, draw, images=None, mask=None, positions=None):
    """The same of a network whose outputs become levels by a `Draw`."""
    height, width, channels = shape

    def one(position, x):
        i, j, c = position // (width * channels), position // channels % width, position % channels
        outputs = network.apply({"params": params}, x, label)[:, i, j, c]
        value = draw.value(outputs, draw.noise(keys, position))
        if mask is not None:
            value = jnp.where(mask[:, i, j], images[:, i, j, c].astype(jnp.int32), value)
        return x.at[:, i, j, c].set(value)

    start = jnp.zeros((keys.shape[0], *shape), jnp.int32)
    count = height * width * channels if positions is None else positions
    return jax.lax.fori_loop(0, count, one, start)


def sample_mixtures_naively(network, params, keys, label, shape, levels, temperature=1.0, images=None, mask=None):
    """The same of a network that gives each pixel's `LogisticMixture`: for every pixel, the network over the image."""
    height, width, channels = shape

    def one(position, x):
        i, j = position // width, position % width
        parameters = network.apply({"params": params}, x, label)[:, i, j]
        pixel = LogisticMixture(parameters, channels, levels).sample(rng.fold_in(keys, position), temperature)
        pixel = pixel.astype(jnp.int32)
        if mask is not None:
            pixel = jnp.where(mask[:, i, j, None], images[:, i, j].astype(jnp.int32), pixel)
        return x.at[:, i, j].set(pixel)

    return jax.lax.fori_loop(0, height * width, one, jnp.zeros((keys.shape[0], *shape), jnp.int32))


def sample_sequence_naively(
    network, params, keys, cond, shape, levels, temperature=1.0, top_k=0, top_p=1.0, images=None, mask=None
):
    """The same of a network that takes conditions: for every sub-pixel, the network over the image."""
    height, width, channels = shape

    def one(position, x):
        i, j, c = position // (width * channels), position // channels % width, position % channels
        logits = truncate(network.apply({"params": params}, x, cond)[:, i, j, c], temperature, top_k, top_p)
        value = draw(logits, gumbel(keys, position, levels), 1.0)
        if mask is not None:
            value = jnp.where(mask[:, i, j], images[:, i, j, c].astype(jnp.int32), value)
        return x.at[:, i, j, c].set(value)

    return jax.lax.fori_loop(0, height * width * channels, one, jnp.zeros((keys.shape[0], *shape), jnp.int32))


def random_params(network, shape, label=None, seed=0):
    """Parameters of a network for images of that shape, away from any start."""
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape), jnp.int32), label)
    return normal_params(variables["params"], seed)


def normal_params(shapes, seed=0, gain=1.5, bias=0.3):
    """A tree of those shapes: kernels and embeddings normal, of variance gain^2 / inputs, and normal biases."""
    rng = np.random.default_rng(seed)

    def draw_leaf(leaf):
        scale = bias if leaf.ndim == 1 else gain / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw_leaf, shapes)
