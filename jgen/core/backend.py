"""Selects how layers are computed: by formulations for CPU, by cuDNN kernels, or by XLA's plain operations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

CPUINFO = Path("/proc/cpuinfo")

# A JAX context variable, so that jitted functions that were traced before are retraced inside `plain_forms`.
_plain = jax.make_user_context(False)


def for_cpu() -> bool:
    """Whether layers use formulations that are faster on CPU: with fewer multiplications, or in cache-sized blocks.

    Evaluated at trace time. True on CPU, outside of `plain_forms`.
    """
    return jax.default_backend() == "cpu" and not _plain.value


def cuda_capability() -> tuple[int, int]:
    """The compute capability of this process's NVIDIA GPUs, such as (9, 0) for an H100, on which layers may use cuDNN
    kernels; (0, 0) on other devices and inside `plain_forms`.

    Evaluated at trace time.
    """
    if jax.default_backend() != "gpu" or _plain.value:
        return 0, 0
    text = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # for an AMD GPU, such as gfx90a
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def lacks_bfloat16() -> str:
    """The device's name, if it has no bfloat16 arithmetic and XLA computes in float32 and rounds: a CPU without such
    instructions, or an NVIDIA GPU before Ampere (capability 8.0). "" for others."""
    if jax.default_backend() == "cpu":
        return "" if "bf16" in processor_flags() else "this CPU"
    capability = cuda_capability()
    lacks = (0, 0) < capability < (8, 0)
    return f"{jax.local_devices()[0].device_kind}, of capability {capability[0]}.{capability[1]}," if lacks else ""


def processor_flags() -> str:
    """The processor's feature flags as Linux lists them; "bf16" if they cannot be read."""
    try:
        return next(line for line in CPUINFO.open() if line.startswith("flags"))
    except (OSError, StopIteration):
        return "bf16"


@contextmanager
def plain_forms() -> Iterator[None]:
    """Context manager: layers traced inside use XLA's plain operations, on every backend.

    The formulations for CPU and the cuDNN kernels have no forward-mode derivatives, and the former do not perform the
    number of operations that the formulas imply. Use it around `jax.jvp`, or to count operations:

        with plain_forms():
            value, tangent = jax.jvp(loss, (params,), (direction,))
    """
    with _plain(True):
        yield
