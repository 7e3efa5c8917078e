"""Concatenation of the small leaves of a tree, for optimisers and averages.

One operation on all small leaves compiles in a fraction of the time, while copying a large leaf would take longer than
its own operation. (`optax.flatten` concatenates all leaves.) Averages stay packed in the state: on CPU, each leaf that
is sliced out is a kernel of its own, which takes 5 ms to compile.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jgen.core.model import Roles, Tree

LARGE = 1 << 18  # elements from which a leaf is not packed
Packed = tuple[jax.Array, ...]


def pack(tree: Tree) -> Packed:
    """The leaves of fewer than `LARGE` elements concatenated to (n,) of their common dtype, then the other leaves."""
    leaves = jax.tree.leaves(tree)
    small = [x.ravel() for x in leaves if x.size < LARGE]
    together = [jax.lax.optimization_barrier(jnp.concatenate(small))] if small else []
    return (*together, *(x for x in leaves if x.size >= LARGE))


def unpack(packed: Packed, like: Tree) -> Tree:
    """The inverse of `pack`, for a tree of the shapes and types of `like`."""
    return cut(jax.lax.optimization_barrier(packed), like)


def unpack_on_host(packed: Packed, like: Tree) -> Tree:
    """`unpack` as NumPy arrays."""
    return cut(jax.device_get(packed), like)


def cut(packed: Any, like: Tree) -> Tree:
    """Slices the leaves of `like` out of packed arrays."""
    leaves, structure = jax.tree.flatten(like)
    rest = list(packed)
    together: Any = rest.pop(0) if any(x.size < LARGE for x in leaves) else None
    start, parts = 0, []
    for x in leaves:
        if x.size >= LARGE:
            parts.append(rest.pop(0))
        else:
            parts.append(together[start : start + x.size].reshape(x.shape).astype(x.dtype))
            start += x.size
    return jax.tree.unflatten(structure, parts)


def pack_roles(roles: Roles) -> dict[str, Packed]:
    return {role: pack(tree) for role, tree in roles.items()}


def unpack_roles(packed: dict[str, Packed], like: Roles) -> Roles:
    return {role: unpack(arrays, like[role]) for role, arrays in packed.items()}
