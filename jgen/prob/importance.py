"""Means of importance weights: the bound on a log-likelihood (Burda, Grosse & Salakhutdinov 2016, arXiv 1509.00519),
the normaliser of an energy with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def importance_weighted_bound(log_weights: Callable[[jax.Array], jax.Array], samples: int, chunk: int) -> Any:
    """log (1 / K) sum_k w_k, w_k = p(x, z_k) / q(z_k | x): float32 (B,), computed in chunks of samples to bound memory.

    Its expectation rises with K from the ELBO (K = 1) to log p(x) (equation 8).

    Args:
      log_weights: sample numbers k, int32 (chunk,), to log w_k, float32 (chunk, B). Sample k must be drawn with keys
        that depend on k alone, so that the bound does not depend on `chunk`.
      samples: K, 1 or more.
      chunk: samples computed at once.
    """
    rounds = -(-samples // chunk)
    numbers = jnp.arange(rounds * chunk, dtype=jnp.int32).reshape(rounds, chunk)

    def add(carry: tuple[jax.Array, jax.Array], k: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        # A running log-sum-exp, top + log(rest), in which no weight overflows.
        top, rest = carry
        log_w = jnp.where((k < samples)[:, None], log_weights(k), -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(log_w, axis=0))
        rest = rest * jnp.exp(top - new_top) + jnp.sum(jnp.exp(log_w - new_top[None, :]), axis=0)
        return (new_top, rest), None

    size = jax.eval_shape(log_weights, numbers[0]).shape[1]
    start = (jnp.full(size, -1e30, jnp.float32), jnp.zeros(size, jnp.float32))
    (top, rest), _ = jax.lax.scan(add, start, numbers)
    return top + jnp.log(rest) - math.log(samples)


def log_mean(log_weights: jax.Array) -> jax.Array:
    """log (1 / N) sum_n w_n over the first axis of log w, (N, ...) to (...)."""
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])


def bootstrap_log_mean(log_weights: np.ndarray, seed: int = 0, resamples: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % bootstrap interval of `log_mean`, float64: (N, ...) to two arrays (...).

    It reflects only the scatter of the weights that were drawn: if a few of them dominate the mean, it is too narrow.
    """
    log_weights = np.asarray(log_weights, np.float64)
    top = log_weights.max(axis=0)
    weights = np.exp(log_weights - top)
    rows = np.random.default_rng(seed).integers(0, len(weights), (resamples, len(weights)))
    means = np.stack([weights[chosen].mean(axis=0) for chosen in rows])
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return top + np.log(low), top + np.log(high)
