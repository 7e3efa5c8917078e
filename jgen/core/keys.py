"""Random numbers that belong to an example: every draw takes one key per example, shape (B,).

A batch drawn this way does not depend on how it is split over devices, accumulation steps or sampling batches.

`jax.random.split(key, n)[i]` is `jax.random.fold_in(key, i)`: two ways to derive keys from one key give equal keys. So
every purpose folds in a unique constant of at least 2^31, greater than any index or count: image i of a call has
the key `fold_in(key, i)`, and nothing else is derived from a key by a number that small.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Purposes of a key: see `stream`.
INIT = 0x80000001  # the start of the parameters, of the run's seed
RUN = 0x80000002  # all steps of a run
DATA = 0x80000003  # binarisation and augmentation, of a step or of held-out images
VALIDATION = 0x80000004  # validation scores
SCORE = 0x80000005  # likelihoods of held-out images
PREPARE = 0x80000006  # what is computed once before sampling
SHARED = 0x80000007  # the draw that the examples of a phase, or the images of a call, have in common
FROZEN = 0x80000008  # the shared draw of a frozen model
SPLIT = 0x80000009  # the parts of `split` and `split_key`
NETWORK = 0x8000000A  # what is random within a network, beside its inputs
NORMALISER = 0x8000000B  # the chains that estimate the normaliser of an energy
STYLE = 0x8000000C  # which other letters of its font an example shows
CASCADE = 0x80000100  # the first of a cascade's upsamplers, the numbers after it those of the others


def seed_key(seed: int) -> jax.Array:
    """The key of a seed, threefry's whatever JAX's default generator is."""
    return jax.random.key(seed, impl="threefry2x32")


def stream(key: jax.Array, purpose: int) -> jax.Array:
    """The key for one of the purposes above."""
    return jax.random.fold_in(key, purpose)


def phase_key(key: jax.Array, step: Any, phase: int, repeat: int) -> jax.Array:
    """The key of one repeat of one phase of a step, from which come those of its examples and the shared one.

    Args:
      phase: its number, or `DATA` for what is done to its batch.
    """
    for part in (step, phase, repeat):
        key = jax.random.fold_in(key, part)
    return key


def shared_key(key: jax.Array) -> jax.Array:
    """The key that all examples of a phase, or all images of a call, have in common: `Context.key`."""
    return stream(key, SHARED)


def split_key(key: jax.Array, num: int) -> tuple[jax.Array, ...]:
    """`num` keys from one, to be named: `key_encode, key_decode = split_key(key, 2)`."""
    return tuple(jax.random.split(stream(key, SPLIT), num))


def image_keys(key: jax.Array, index: Any) -> jax.Array:
    """Keys (B,): `fold_in(key, index[i])`. Image `i` of a sampler has the key of its index."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def split(keys: jax.Array, num: int) -> tuple[jax.Array, ...]:
    """`num` arrays of keys (B,), to be named: `key_t, key_eps = split(keys, 2)`. Use each once."""
    return tuple(jax.vmap(lambda key: jax.random.split(stream(key, SPLIT), num), out_axes=1)(keys))


def fold_in(keys: jax.Array, data: Any) -> jax.Array:
    """Keys (B,) with the same number folded into each."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def normal(keys: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Standard normal (B, *shape)."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def uniform(keys: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Uniform on [0, 1), (B, *shape)."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype))(keys)


def bernoulli(keys: jax.Array, p: Any, shape: tuple[int, ...] = ()) -> jax.Array:
    """Boolean (B, *shape), true with probability `p`."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, p, shape))(keys)


def randint(keys: jax.Array, low: int, high: int, shape: tuple[int, ...] = ()) -> jax.Array:
    """int32 (B, *shape), uniform on low .. high - 1."""
    return jax.vmap(lambda key: jax.random.randint(key, shape, low, high))(keys)
