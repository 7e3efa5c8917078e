"""Per-example random numbers: every draw takes one key per example, shape (B,).

A batch drawn this way does not depend on how it is split over devices, accumulation steps or sampling batches.

Since `jax.random.split(key, n)[i]` equals `jax.random.fold_in(key, i)`, keys derived from one key in different ways can
collide. So every purpose folds in a unique constant of at least 2^31, greater than any index or count: image i of a
call has the key `fold_in(key, i)`, and smaller constants are used for nothing else.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Purposes of a key: see `stream`.
INIT = 0x80000001  # initialisation of the parameters, from the run's seed
RUN = 0x80000002  # all steps of a run
DATA = 0x80000003  # binarisation and augmentation, of a step or of held-out images
VALIDATION = 0x80000004  # validation scores
SCORE = 0x80000005  # likelihoods of held-out images
PREPARE = 0x80000006  # what is computed once before sampling
SHARED = 0x80000007  # draws that are shared by the examples of a phase, or the images of a call
FROZEN = 0x80000008  # the shared draw of a frozen model
SPLIT = 0x80000009  # the parts of `split` and `split_key`
NETWORK = 0x8000000A  # random draws inside a network
NORMALISER = 0x8000000B  # the chains that estimate the normaliser of an energy
STYLE = 0x8000000C  # the choice of other letters of the font that an example shows
CASCADE = 0x80000100  # the first upsampler of a cascade; the following constants are those of the others


def seed_key(seed: int) -> jax.Array:
    """The key of a seed, always of the threefry generator, whatever JAX's default is."""
    return jax.random.key(seed, impl="threefry2x32")


def stream(key: jax.Array, purpose: int) -> jax.Array:
    """The key for one of the purposes above."""
    return jax.random.fold_in(key, purpose)


def phase_key(key: jax.Array, step: Any, phase: int, repeat: int) -> jax.Array:
    """The key of one repeat of one phase of a step, from which its per-example keys and its shared key are derived.

    Args:
      phase: the index of the phase, or `DATA` for the transforms of its batch.
    """
    for part in (step, phase, repeat):
        key = jax.random.fold_in(key, part)
    return key


def shared_key(key: jax.Array) -> jax.Array:
    """The key that all examples of a phase, or all images of a call, have in common: `Context.key`."""
    return stream(key, SHARED)


def split_key(key: jax.Array, num: int) -> tuple[jax.Array, ...]:
    """`num` keys from one: `key_encode, key_decode = split_key(key, 2)`."""
    return tuple(jax.random.split(stream(key, SPLIT), num))


def image_keys(key: jax.Array, index: Any) -> jax.Array:
    """Keys (B,): `fold_in(key, index[i])`. A sampler's images have the keys of their indices."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def split(keys: jax.Array, num: int) -> tuple[jax.Array, ...]:
    """`num` arrays of keys (B,): `key_t, key_eps = split(keys, 2)`. Use each once."""
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
