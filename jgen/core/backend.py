"""Whether layers are computed by formulations for CPU, by kernels of cuDNN, or by the plain operations of XLA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

CPUINFO = Path("/proc/cpuinfo")

# A context of JAX's, so that functions under `jax.jit` that were traced before are traced again inside `plain_forms`.
_plain = jax.make_user_context(False)


def for_cpu() -> bool:
    """Whether layers use the formulations that CPUs run fastest: with fewer products, or in pieces that fit a cache.

    Asked while a program is traced. True on CPU, outside of `plain_forms`.
    """
    return jax.default_backend() == "cpu" and not _plain.value


def cuda_capability() -> tuple[int, int]:
    """The compute capability of this process's NVIDIA GPUs, such as (9, 0) of an H100, where layers may use kernels of
    cuDNN; (0, 0) on other devices and inside `plain_forms`.

    Asked while a program is traced.
    """
    if jax.default_backend() != "gpu" or _plain.value:
        return 0, 0
    text = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # of an AMD GPU: such as gfx90a
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def lacks_bfloat16() -> str:
    """What this process computes on, where it has no arithmetic in bfloat16 and XLA computes in float32 and rounds: a
    CPU without such instructions, an NVIDIA GPU before Ampere, capability 8.0. "" for others."""
    if jax.default_backend() == "cpu":
        return "" if "bf16" in processor_flags() else "this CPU"
    capability = cuda_capability()
    lacks = (0, 0) < capability < (8, 0)
    return f"{jax.local_devices()[0].device_kind}, of capability {capability[0]}.{capability[1]}," if lacks else ""


def processor_flags() -> str:
    """The instructions that Linux lists of the processor; "bf16" where it cannot be known."""
    try:
        return next(line for line in CPUINFO.open() if line.startswith("flags"))
    except (OSError, StopIteration):
        return "bf16"


@contextmanager
def plain_forms() -> Iterator[None]:
    """Makes layers use the plain operations of XLA on every backend, in what is traced inside.

    The formulations for CPU, and cuDNN's kernels, have no forward-mode derivatives, and those for CPU do other numbers
    of operations than the formulas say.
    Use it around `jax.jvp`, or where operations are counted:

        with plain_forms():
            value, tangent = jax.jvp(loss, (params,), (direction,))
    """
    with _plain(True):
        yield
