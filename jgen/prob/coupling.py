"""Couplings of a batch of noise to a batch of data (Tong et al. 2024, arXiv 2302.00482; Pooladian et al. 2023)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from optax.assignment import hungarian_algorithm

from jgen.core import parallel


def optimal_transport(noise: jax.Array, x: jax.Array) -> jax.Array:
    """The noise reordered so that the sum of |noise_i - x_i|^2 over the batch is least; both (B, ...).

    The batch is that of all devices; microbatches of an accumulated batch are treated separately, as in BatchNorm.
    """
    all_noise, all_x = parallel.all_gather(noise), parallel.all_gather(x)
    flat_noise, flat_x = all_noise.reshape(len(all_noise), -1), all_x.reshape(len(all_x), -1)
    cost = jnp.sum(flat_noise**2, axis=1)[None] + jnp.sum(flat_x**2, axis=1)[:, None] - 2.0 * flat_x @ flat_noise.T
    rows, columns = hungarian_algorithm(cost)
    order = jnp.zeros(len(all_x), jnp.int32).at[rows].set(columns)
    first = parallel.axis_index() * len(x)
    return all_noise[jax.lax.dynamic_slice_in_dim(order, first, len(x))]
