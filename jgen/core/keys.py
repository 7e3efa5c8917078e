"""Random numbers that belong to an example: every draw takes one key an example, shape (B,).

A batch drawn this way does not depend on how it is split over devices, accumulation steps or sampling batches.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

VALIDATION = 0x5C04E  # the stream of validation scores, of the run's seed
DATA = 0x0DA7A  # the stream of binarisation and augmentation; phases have the streams 0, 1, 2, ...
SHARED = 0x80005A4E  # what is folded into a key for `Context.key`: no index of an image, which are below 2^31
FROZEN = 0x8000F402  # the same for the shared key of a frozen model
PREPARE = 0x80004EA5  # the stream of `GenerativeModel.prepare`, of the run's seed


def phase_key(key: jax.Array, step: Any, stream: int, repeat: int) -> jax.Array:
    """The key of one repeat of one phase of a step, from which come those of its examples and the shared one."""
    for part in (step, stream, repeat):
        key = jax.random.fold_in(key, part)
    return key


def shared_key(key: jax.Array) -> jax.Array:
    """The key that all examples of a phase, or all images of a call, have in common: `Context.key`."""
    return jax.random.fold_in(key, SHARED)


def image_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """Keys (B,): `fold_in(key, index[i])`. Image `i` of a sampler has the key of its index."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def split(keys: jax.Array, num: int) -> tuple[jax.Array, ...]:
    """`num` arrays of keys (B,), to be named: `key_t, key_eps = split(keys, 2)`. Use each once."""
    return tuple(jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys))


def fold_in(keys: jax.Array, data: Any) -> jax.Array:
    """Keys (B,) with the same number folded into each."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def normal(keys: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal (B, *shape)."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def uniform(keys: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform on [0, 1), (B, *shape)."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype))(keys)


def bernoulli(keys: jax.Array, p: Any, shape: tuple[int, ...] = ()) -> jax.Array:
    """Boolean (B, *shape), true with probability `p`."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, p, shape))(keys)


def randint(keys: jax.Array, low: int, high: int, shape: tuple[int, ...] = ()) -> jax.Array:
    """int32 (B, *shape), uniform on low .. high - 1."""
    return jax.vmap(lambda key: jax.random.randint(key, shape, low, high))(keys)
