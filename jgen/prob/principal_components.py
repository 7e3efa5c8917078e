"""Vectors as sequences of discrete codes: principal components, each quantised in buckets of equal width.

    covariance   C = E x x^T - m m^T = U diag(s^2) U^T, s_1 >= s_2 >= ...
    components   y = U_K^T (x - m),  x ~ m + U_K y
    codes        of y_i / s_i in [-RANGE, RANGE], cut into `levels` buckets; a bucket is decoded to its middle

Moments are means over examples, so that they do not depend on how a batch is split over devices and microbatches.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

RANGE = 4.0  # standard deviations of a component that the buckets cover


class Components(NamedTuple):
    """mean: (D,). basis: (K, D), orthonormal rows. std: (K,), decreasing."""

    mean: jax.Array
    basis: jax.Array
    std: jax.Array


def principal_components(mean: jax.Array, second: jax.Array, number: int) -> tuple[Components, jax.Array]:
    """The first `number` components of vectors with the mean (D,) and the second moment E x x^T, (D, D), and the
    fraction of the variance that they explain. Each row's largest entry is positive."""
    variances, vectors = jnp.linalg.eigh(second - jnp.outer(mean, mean))  # increasing
    variances = jnp.maximum(variances[::-1], 0.0)
    basis = vectors[:, ::-1].T[:number]
    largest = jnp.take_along_axis(basis, jnp.argmax(jnp.abs(basis), axis=1)[:, None], axis=1)
    basis = basis * jnp.where(largest < 0, -1.0, 1.0)
    share = jnp.sum(variances[:number]) / jnp.maximum(jnp.sum(variances), 1e-12)
    return Components(mean, basis, jnp.sqrt(jnp.maximum(variances[:number], 1e-12))), share


def encode(components: Components, x: jax.Array, levels: int) -> jax.Array:
    """Codes, int32 (B, K), of vectors (B, D)."""
    y = (x - components.mean[None]) @ components.basis.T / components.std[None]
    return jnp.clip(jnp.floor((y / RANGE + 1.0) * (levels / 2)), 0, levels - 1).astype(jnp.int32)


def decode(components: Components, codes: jax.Array, levels: int) -> jax.Array:
    """Vectors, float32 (B, D), of codes (B, K)."""
    y = RANGE * ((codes + 0.5) * (2.0 / levels) - 1.0) * components.std[None]
    return y @ components.basis + components.mean[None]
