"""Log-probabilities of images under softmax outputs, one a channel of a pixel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jgen.prob.likelihoods import sum_image


def categorical_log_prob(logits: jax.Array, x: jax.Array) -> jax.Array:
    """Sum over an image of log softmax(logits)[x], nats, float32 (B,).

    Args:
      logits: (..., levels); x: integers of the same leading shape (B, ...), 0 .. levels - 1.
    """
    wide = logits.astype(jnp.float32)
    is_chosen = jax.nn.one_hot(x, wide.shape[-1], dtype=bool)
    chosen = jnp.sum(jnp.where(is_chosen, wide, 0.0), axis=-1)  # the gradient of an index would be a slow scatter
    return sum_image(chosen - jax.nn.logsumexp(wide, axis=-1))
