"""Sampling from an autoregressive network as plainly as it can be written: for every draw, the network over the whole
image. What `jgen.samplers.autoregressive` must equal, and what benchmarks/autoregressive.py times beside it.
"""

import jax
import jax.numpy as jnp

from jgen.samplers.autoregressive import draw, gumbel


def sample_naively(
    network, params, keys, label, shape, levels, temperature=1.0, images=None, mask=None, positions=None
):
    """int32 (B, H, W, C); positions: how many of the H W C draws are made, all if None."""
    height, width, channels = shape

    def one(position, x):
        i, j, c = position // (width * channels), position // channels % width, position % channels
        logits = network.apply({"params": params}, x, label)[:, i, j, c]
        value = draw(logits, gumbel(keys, position, levels), temperature)
        if mask is not None:
            value = jnp.where(mask[:, i, j], images[:, i, j, c].astype(jnp.int32), value)
        return x.at[:, i, j, c].set(value)

    start = jnp.zeros((keys.shape[0], *shape), jnp.int32)
    count = height * width * channels if positions is None else positions
    return jax.lax.fori_loop(0, count, one, start)
