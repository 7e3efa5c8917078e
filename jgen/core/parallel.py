"""The one place that knows of several devices.

Arrays that are the same everywhere (the state, frozen parameters) are passed whole and come back whole; arrays with a
batch axis are split over the local devices. Nothing else in jgen sees a device axis.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

AXIS = "devices"


def device_count() -> int:
    """The number of local devices that `pmap` runs on."""
    return jax.local_device_count()


def pmean(tree: Any, axis_name: str | None) -> Any:
    """Mean over the devices of an axis; integer and key leaves, equal on all of them, stay. No axis: no change."""
    if axis_name is None or jax.lax.axis_size(axis_name) == 1:  # of one, XLA would make a copy on CPU
        return tree
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis_name) if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)


def pmap(
    fn: Callable[..., Any],
    split: tuple[int | None, ...],
    split_out: int | None,
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """`fn` on every local device. Under it, `AXIS` is the name to reduce over.

    Args:
      split: for each argument the axis that is divided over the devices, or None for an argument that all share.
        A divided axis has one entry per device: see `shard`.
      split_out: the axis along which results are stacked, or None for a result that is equal on all devices.
      donate: the arguments whose memory the result may take over.
    """
    program = jax.pmap(fn, axis_name=AXIS, in_axes=split, out_axes=split_out, donate_argnums=donate)
    compiled = jax.jit(program, donate_argnums=donate, compiler_options=compiler_options())

    def run(*args: Any) -> Any:
        # Inside a caller's own jit or trace, options of compilation are the caller's: newer JAX refuses others.
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
        return (program if traced else compiled)(*args)

    return run


def compiler_options() -> dict[str, int]:
    """On CPU, LLVM is asked for little optimisation: programs compile in three quarters of the time and run as fast.

    With the JAX before 0.12 they would not: sampling takes 1.4 times as long. A level that is set in XLA_FLAGS stays.
    """
    option = "xla_backend_optimization_level"
    by_user = option in os.environ.get("XLA_FLAGS", "")
    return {} if by_user or jax.default_backend() != "cpu" or jax.__version_info__ < (0, 12) else {option: 1}


def unrolls_loops() -> bool:
    """Whether a loop over gradients is better written out: on CPU convolutions are slow inside a compiled loop.

    Elsewhere a loop compiles once what it repeats, and holds the activations of one turn only.
    """
    return jax.default_backend() == "cpu"


def replicate(tree: Any) -> Any:
    """The same arrays on every device, placed as results of `pmap(..., split_out=None)` are, in memory of their own.

    The copy matters: on CPU an array may share the memory of the NumPy array or the file buffer that it was made from,
    and a step that is given such an array to donate would compute in memory that others read or free.
    """
    placement, copy = _replication()
    return copy(jax.device_put(tree, placement))


@cache
def _replication() -> tuple[Any, Any]:
    """The placement of an array that is on all devices, as `pmap` gives it, and the program that copies to it."""
    each = jnp.zeros(device_count())
    placement = jax.pmap(lambda x: jax.lax.psum(x, AXIS), axis_name=AXIS, out_axes=None)(each).sharding
    return placement, jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=placement)


def shard(tree: Any, axis: int = 0) -> Any:
    """Splits a batch axis of size n into (devices, n / devices). The size must be a multiple of `device_count()`."""
    devices = device_count()
    return jax.tree.map(
        lambda x: x.reshape(*x.shape[:axis], devices, x.shape[axis] // devices, *x.shape[axis + 1 :]), tree
    )


def axis_index() -> Any:
    """Inside `pmap`: the number of this device."""
    return jax.lax.axis_index(AXIS)
