"""A replay buffer of Markov chains that outlive a training step (Du & Mordatch 2019, arXiv 1903.08689, section 3.2).

Example i of a batch owns row i of the buffer, a tree of arrays (B, slots, ...). In each step it takes the chain from
one of its slots, or with a small probability a new chain, and puts it back after it has moved.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.errors import require


def slots_of(buffer_size: int, batch_size: int) -> int:
    """Number of slots per example. Raises `UserError` for a buffer with fewer chains than examples."""
    require(
        buffer_size >= batch_size,
        f"buffer_size is {buffer_size}: it must be at least train.batch_size, {batch_size}, a chain for each example",
    )
    return buffer_size // batch_size


def take(buffer: Any, keys: jax.Array, new: Any, restart: float) -> tuple[Any, jax.Array]:
    """A chain for each example, a tree (B, ...), and the slot that it belongs to, int32 (B,).

    Args:
      new: chains that replace those from the buffer with the probability `restart`.
    """
    key_slot, key_restart = rng.split(keys, 2)
    slots = jax.tree.leaves(buffer)[0].shape[1]
    slot = rng.randint(key_slot, 0, slots)
    restarts = rng.bernoulli(key_restart, restart)

    def choose(old: jax.Array, new: jax.Array) -> jax.Array:
        old = old[jnp.arange(old.shape[0]), slot]
        return jnp.where(restarts.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, buffer, new), slot


def put(buffer: Any, slot: jax.Array, chains: Any) -> Any:
    """The buffer with the chains, a tree (B, ...), in their slots."""

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[jnp.arange(old.shape[0]), slot].set(jax.lax.stop_gradient(new))

    return jax.tree.map(write, buffer, chains)
