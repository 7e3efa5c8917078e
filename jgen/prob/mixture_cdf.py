"""An increasing map of numbers from the distribution function of a mixture of logistics (Ho, Chen, Srinivas, Duan &
Abbeel 2019, arXiv 1902.00275, section 3.2).

    y = logit(F(x)),  F(x) = sum_k w_k sigmoid((x - mu_k) / s_k),  w = softmax(logits)

If all components are equal, it is affine, y = (x - mu) / s.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jgen.prob.bijectors import log_sigmoid

ITERATIONS = 40  # bisection alone would reach 1e-12 of the interval


class Mixture(NamedTuple):
    """Logits of the weights, means and log scales of K components for each number, all (..., K)."""

    logits: jax.Array
    means: jax.Array
    log_scales: jax.Array


def apply(mixture: Mixture, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """y and log dy/dx at each entry of x, (...)."""
    log_w = jax.nn.log_softmax(mixture.logits)
    u = (x[..., None] - mixture.means) * jnp.exp(-mixture.log_scales)
    below, above = log_sigmoid(u), log_sigmoid(-u)
    log_cdf, log_rest = (jax.nn.logsumexp(log_w + part, axis=-1) for part in (below, above))
    log_density = jax.nn.logsumexp(log_w - mixture.log_scales + below + above, axis=-1)
    return log_cdf - log_rest, log_density - log_cdf - log_rest


def invert(mixture: Mixture, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x with apply(x) = y, and log dx/dy, by Newton's method kept within an interval that shrinks around x.

    x lies between the smallest and the largest of mu_k + s_k y: there all F_k are below, or above, sigmoid(y).
    """
    ends = mixture.means + jnp.exp(mixture.log_scales) * y[..., None]
    low, high = ends.min(axis=-1), ends.max(axis=-1)

    def iterate(_: int, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        low, high, x = carry
        value, log_rate = apply(mixture, x)
        low, high = jnp.where(value < y, x, low), jnp.where(value < y, high, x)
        newton = x - (value - y) * jnp.exp(-log_rate)
        inside = (newton > low) & (newton < high)
        return low, high, jnp.where(inside, newton, (low + high) / 2)

    x = jax.lax.fori_loop(0, ITERATIONS, iterate, (low, high, (low + high) / 2))[2]
    return x, -apply(mixture, x)[1]
