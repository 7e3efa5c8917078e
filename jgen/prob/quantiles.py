"""Quantile regression (Koenker & Bassett 1978): losses whose minimisers are the quantiles of a distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def huber_quantile_loss(y: jax.Array, q: jax.Array, tau: jax.Array, kappa: float) -> jax.Array:
    """rho of u = y - q, element by element (Dabney et al. 2018, arXiv 1710.10044, equations 9 and 10, over kappa):

        |tau - 1[u < 0]| u^2 / (2 kappa)     where |u| <= kappa
        |tau - 1[u < 0]| (|u| - kappa / 2)   elsewhere

    Its mean over draws of y is least where q is their quantile at tau: exactly with `kappa` = 0, when it is the pinball
    loss, and otherwise within about `kappa`, the loss then being smooth.

    Args:
      y, q, tau: draws, quantile values, and levels in [0, 1], of shapes that broadcast.
      kappa: the half-width of the quadratic part, in units of y; zero or above.
    """
    u = y - q
    size = jnp.abs(u)
    if kappa > 0:
        size = jnp.where(size <= kappa, u**2 / (2.0 * kappa), size - 0.5 * kappa)
    return jnp.abs(tau - (u < 0).astype(u.dtype)) * size
