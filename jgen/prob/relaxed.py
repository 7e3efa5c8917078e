"""Relaxed categorical samples (Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv 1611.00712).

    z = softmax((log pi + g) / tau),  g standard Gumbel noise

As tau -> 0, z becomes the one-hot vector of argmax (log pi + g), which is a sample of pi; for tau > 0 its gradient
reaches the logits.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def gumbel_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard Gumbel noise, float32 (B, *shape)."""
    return jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)


def gumbel_softmax(keys: jax.Array, logits: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """z (B, ..., K), points of the simplex, of logits (B, ..., K)."""
    return jax.nn.softmax((logits + gumbel_noise(keys, logits.shape[1:])) / temperature, axis=-1)


def kl_from_uniform(logits: jax.Array) -> jax.Array:
    """KL(softmax(logits) || uniform) over the last axis, nats: from 0 to log K."""
    log_q = jax.nn.log_softmax(logits, axis=-1)
    return math.log(logits.shape[-1]) + jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
