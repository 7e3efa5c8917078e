"""The only module that calls `pmap` and collectives.

Replicated arrays (the state, frozen parameters) have no device axis, neither as arguments nor as results; arrays with a
batch axis are split over the devices. Nothing else in jgen handles a device axis, and no model takes its name as an
argument: a function asks this module whether it is being traced for several devices.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgen.errors import UserError, require

AXIS = "devices"
LONGEST_ERROR = 1024  # most bytes of an error message sent to other processes
_inside_pmap: ContextVar[bool] = ContextVar("inside_pmap", default=False)
_together: ContextVar[bool] = ContextVar("together", default=False)


def device_count() -> int:
    """The number of devices that work together, over all processes."""
    return jax.device_count()


def local_device_count() -> int:
    """The number of devices of this process."""
    return jax.local_device_count()


@contextmanager
def together() -> Iterator[None]:
    """Context manager for work that the processes of a cluster share: training, sampling or scoring. All of them must
    call the same functions of this module in the same order."""
    token = _together.set(True)
    try:
        yield
    finally:
        _together.reset(token)


@contextmanager
def alone() -> Iterator[None]:
    """Context manager inside `together`, for work that one of the processes does by itself."""
    token = _together.set(False)
    try:
        yield
    finally:
        _together.reset(token)


def processes() -> tuple[int, int]:
    """(index, count) of the processes that work together; (0, 1) for a process that works alone, for which JAX is not
    started.
    """
    return (jax.process_index(), jax.process_count()) if _together.get() else (0, 1)


def is_main_process() -> bool:
    """Whether this process writes files: it works alone, or is the first of those that work together."""
    return processes()[0] == 0


def axis_name() -> str | None:
    """The name of the device axis inside `pmap`, for layers with such an argument (BatchNorm); None outside."""
    return AXIS if _inside_pmap.get() else None


def axis_index() -> Any:
    """The index of this device inside `pmap`, over all processes; 0 outside."""
    return jax.lax.axis_index(AXIS) if _inside_pmap.get() else 0


def axis_size() -> int:
    """The number of devices inside `pmap`, over all processes; 1 outside."""
    return jax.lax.axis_size(AXIS) if _inside_pmap.get() else 1


def pmin(x: jax.Array) -> jax.Array:
    """The minimum over all devices. Outside `pmap`: no change."""
    return jax.lax.pmin(x, AXIS) if axis_size() > 1 else x


def pmean(tree: Any) -> Any:
    """Mean over the devices; integer and key leaves, which must be equal on all, are unchanged. Outside `pmap`: no
    change."""
    if axis_size() == 1:  # XLA would make a copy on CPU
        return tree
    return jax.tree.map(lambda x: jax.lax.pmean(x, AXIS) if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)


def all_gather(x: jax.Array) -> jax.Array:
    """Gathers (B, ...) of every device to (devices * B, ...), in global batch order. Outside `pmap`: no change."""
    return jax.lax.all_gather(x, AXIS, tiled=True) if _inside_pmap.get() else x


@contextmanager
def _inside() -> Iterator[None]:
    token = _inside_pmap.set(True)
    try:
        yield
    finally:
        _inside_pmap.reset(token)


def pmap(
    fn: Callable[..., Any],
    split: tuple[int | None, ...],
    split_out: int | None | tuple[int | None, ...],
    donate: tuple[int, ...] = (),
    local: bool = False,
) -> Callable[..., Any]:
    """Maps `fn` over the devices. Inside it, `pmean`, `axis_name` and `axis_index` refer to these devices.

    Args:
      split: for each argument the axis that is divided over the devices, or None for a replicated argument. A divided
        axis has one entry per device of this process: see `shard`.
      split_out: the axis along which results are stacked, or None for a result that is equal on all devices; a tuple
        for a tuple of results.
      donate: the indices of the arguments that are donated.
      local: use only the devices of this process, even if there are several processes.
    """

    def traced(*args: Any) -> Any:
        with _inside():
            return fn(*args)

    several = jax.process_count() > 1
    devices = jax.local_devices() if local and several else None
    program = jax.pmap(
        traced, axis_name=AXIS, in_axes=split, out_axes=split_out, donate_argnums=donate, devices=devices
    )
    if several and not local:  # inside a jit of its own, a pmap would not see the other processes
        return program
    compiled = jax.jit(program, donate_argnums=donate, compiler_options=compiler_options())

    def run(*args: Any) -> Any:
        # Inside a caller's own jit or trace, compiler options are the caller's: newer JAX refuses them here.
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
        return (program if traced else compiled)(*args)

    return run


def compiler_options() -> dict[str, int]:
    """On CPU, lowers LLVM's optimisation level: programs compile in three quarters of the time and run as fast.

    Not with JAX before 0.12, where sampling would take 1.4 times as long. A level set in XLA_FLAGS takes precedence.
    """
    option = "xla_backend_optimization_level"
    by_user = option in os.environ.get("XLA_FLAGS", "")
    return {} if by_user or jax.default_backend() != "cpu" or jax.__version_info__ < (0, 12) else {option: 1}


def unrolls_loops() -> bool:
    """Whether to unroll loops over gradients: on CPU, convolutions are slow inside a compiled loop.

    On other backends a loop compiles its body only once, and holds the activations of one iteration only.
    """
    return jax.default_backend() == "cpu"


def replicate(tree: Any) -> Any:
    """Copies arrays to every device of this process, placed like results of `pmap(..., split_out=None)`.

    The copy matters: on CPU an array may share the memory of the NumPy array or the file buffer that it was made from,
    and donating it to a step would overwrite memory that others read or free.
    """
    placement, copy = _replication()
    return copy(jax.device_put(tree, placement))


@cache
def _replication() -> tuple[Any, Any]:
    """The sharding of a replicated array, as `pmap` returns it, and the program that copies to it."""
    each = jnp.zeros(local_device_count())
    total = jax.pmap(lambda x: jax.lax.psum(x, AXIS), axis_name=AXIS, out_axes=None, devices=jax.local_devices())
    placement = total(each).sharding
    return placement, jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=placement)


def shard(tree: Any, axis: int = 0) -> Any:
    """Splits a batch axis of size n into (devices of this process, n / devices); n must be divisible by devices."""
    devices = local_device_count()
    return jax.tree.map(
        lambda x: x.reshape(*x.shape[:axis], devices, x.shape[axis] // devices, *x.shape[axis + 1 :]), tree
    )


def place_split(tree: Any) -> Any:
    """Shards arrays (B, ...) of the global batch over the devices: (devices of this process, B / devices, ...)."""
    share = jax.tree.map(lambda x: np.asarray(x)[local_rows(x.shape[0])], tree)
    return _copy_split()(shard(share))


@cache
def _copy_split() -> Callable[[Any], Any]:
    """The program that places one shard on each device, like a result of `pmap(..., split_out=0)`."""
    return pmap(lambda tree: jax.tree.map(jnp.copy, tree), split=(0,), split_out=0)


def gather_split(tree: Any) -> Any:
    """The inverse of `place_split`, on the host; with several processes, all must call it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        tree = multihost_utils.process_allgather(jax.tree.map(np.asarray, tree))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), tree)
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch that the devices of this process compute."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def wait_for_all(what: str) -> None:
    """A barrier: returns when every process has reached this point."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def connect() -> None:
    """Opens the connections between processes that steps and gathered results use; all must call it.

    On CPU, a connection that is opened at its first use fails if one process reaches it 30 s before another, such as
    when the other compiles for longer. An open connection waits without a limit.
    """
    if processes()[1] == 1:
        return
    any_process(False)
    from_main(0)
    total = pmap(lambda x: jax.lax.psum(x, AXIS), split=(0,), split_out=None)
    jax.block_until_ready(total(np.zeros(local_device_count(), np.float32)))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any of the processes that work together; all must call it at the same point."""
    if processes()[1] == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def from_main(value: int) -> int:
    """The main process's value of an integer, in all processes; all must call it at the same point.

    Use it for values read from a shared file system, where processes may see updates at different times.
    """
    if processes()[1] == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def arrays_from_main(compute: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """Named arrays that the main process computes by itself, in all processes; if it raises a `UserError`, all raise
    it. All must call it at the same point."""
    if processes()[1] == 1:
        return compute()
    from jax.experimental import multihost_utils

    packed = np.zeros(0, np.uint8)
    with failing_together():
        if is_main_process():
            file = io.BytesIO()
            with alone():
                arrays: Any = compute()
            np.savez(file, **arrays)
            packed = np.frombuffer(file.getvalue(), np.uint8)
    size = from_main(len(packed))
    sent = packed if is_main_process() else np.zeros(size, np.uint8)
    whole = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    with np.load(io.BytesIO(whole.tobytes()), allow_pickle=False) as received:
        return {name: received[name] for name in received.files}


def gather_rows(tree: Any) -> Any:
    """Gathers arrays (b, ...) of each process to (processes * b, ...) in all of them, on the host, bit for bit. All
    must call it at the same point, with arrays of equal shapes and dtypes."""
    if processes()[1] == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    rows = len(leaves[0])
    # As bytes and in one transfer: JAX would narrow some dtypes, and would compile a program for each shape.
    parts = [np.ascontiguousarray(x).view(np.uint8).reshape(rows, -1) for x in (x.reshape(rows, -1) for x in leaves)]
    whole = np.asarray(multihost_utils.process_allgather(np.concatenate(parts, axis=1), tiled=True))
    ends = np.cumsum([part.shape[1] for part in parts])[:-1]
    arrays = [
        np.ascontiguousarray(part).view(x.dtype).reshape(-1, *x.shape[1:])
        for part, x in zip(np.split(whole, ends, axis=1), leaves)
    ]
    return jax.tree.unflatten(structure, arrays)


@contextmanager
def failing_together() -> Iterator[None]:
    """Context manager for work that only some processes do: if one of them raises a `UserError`, all raise it. All
    processes must enter it."""
    own: UserError | None = None
    try:
        yield
    except UserError as error:
        own = error
        if processes()[1] == 1:
            raise
    if processes()[1] == 1:
        return
    from jax.experimental import multihost_utils

    text = np.zeros(LONGEST_ERROR, np.uint8)
    words = np.frombuffer(str(own or "").encode()[:LONGEST_ERROR], np.uint8)
    text[: len(words)] = words
    every = np.asarray(multihost_utils.process_allgather(text)).reshape(-1, LONGEST_ERROR)
    if own is not None:
        raise own
    for number, each in enumerate(every):
        if message := bytes(each[each > 0]).decode(errors="replace"):
            raise UserError(f"process {number}: {message}")


def require_equal_devices() -> None:
    """Raises `UserError`, in every process, unless all have the same number of devices."""
    local, total, num = jax.local_device_count(), jax.device_count(), jax.process_count()
    own = f"process {jax.process_index()} has {local} of the {total} devices of {num} processes"
    require(local * num == total, f"{own}: all must have as many")


def require_same(values: Mapping[str, Any]) -> None:
    """Raises `UserError`, in every process, if a value {name: value} is not the same in all of them."""
    num = jax.process_count()
    if num == 1:
        return
    from jax.experimental import multihost_utils

    def gathered(words: list[str]) -> np.ndarray:
        """Hashes of the words of every process: (processes, words, 8)."""
        digests = b"".join(hashlib.sha256(word.encode()).digest()[:8] for word in words)
        own = np.frombuffer(digests, np.uint8).reshape(len(words), 8)
        return np.asarray(multihost_utils.process_allgather(own)).reshape(num, len(words), 8)

    first, *others = gathered([repr(list(values))])  # all must gather equally many words
    for number, other in enumerate(others, 1):
        require(np.array_equal(first, other), f"process {number} does something else than process 0")
    every = gathered([repr(value) for value in values.values()])
    for number, other in enumerate(every):
        names = [name for name, a, b in zip(values, every[0], other) if not np.array_equal(a, b)]
        there = f"; here, in process {jax.process_index()}: {', '.join(f'{n} {values[n]}' for n in names)}"
        require(not names, f"process {number} differs from process 0 in {', '.join(names)}{there[:200]}")


def require_averageable(tree: Any, name: str) -> None:
    """Raises `UserError` for a tree with integers or keys, which cannot be averaged over devices and microbatches."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        fits = jnp.issubdtype(leaf.dtype, jnp.inexact)
        where = f"{name}{jax.tree_util.keystr(path)}"
        require(bool(fits), f"{where} is {leaf.dtype}, which has no mean over examples: declare the role by_example")
