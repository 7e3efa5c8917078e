"""Log-probabilities of images under a softmax for every channel of every pixel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jgen.prob.likelihoods import sum_image


def categorical_log_prob(logits: jax.Array, x: jax.Array) -> jax.Array:
    """The sum of log softmax(logits)[x] over each image, nats, float32 (B,).

    Args:
      logits: (..., levels); x: integers of the same leading shape (B, ...), 0 .. levels - 1.
    """
    logits = logits.astype(jnp.float32)
    is_chosen = jax.nn.one_hot(x, logits.shape[-1], dtype=bool)
    chosen = jnp.sum(jnp.where(is_chosen, logits, 0.0), axis=-1)  # the gradient of indexing would be a slow scatter
    return sum_image(chosen - jax.nn.logsumexp(logits, axis=-1))
