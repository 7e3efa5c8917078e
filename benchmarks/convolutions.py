"""Gradients of convolutions: XLA's form against the forms for CPU: python benchmarks/convolutions.py

Milliseconds per gradient, the fastest of several rounds, for four convolutions inside `lax.scan` and unrolled, and for
a convolution of stride 2 and its transpose. Compile time is not counted. Run on CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jgen.core.backend import plain_forms
from jgen.nn.conv import conv, conv_transpose


def stack_loss(kernels: Any, x: Any, in_scan: bool, cpu: str) -> Any:
    """Kernels (N, 3, 3, C, C), x (B, H, W, C)."""

    def layer(x: Any, kernel: Any) -> tuple[Any, None]:
        return jax.nn.relu(conv(x, kernel, cpu=cpu)), None

    if in_scan:
        return jnp.sum(jax.lax.scan(layer, x, kernels)[0] ** 2)
    for kernel in kernels:
        x, _ = layer(x, kernel)
    return jnp.sum(x**2)


def strided_loss(kernel: Any, x: Any, function: Callable[[Any, Any], Any]) -> Any:
    return jnp.sum(function(x, kernel) ** 2)


def milliseconds(loss: Callable[..., Any], *args: Any, rounds: int) -> float:
    gradient = jax.jit(jax.grad(loss)).lower(*args).compile()
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(gradient(*args))
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    draw = np.random.default_rng(0).standard_normal
    x, kernels = draw((16, 14, 14, 32), np.float32), 0.05 * draw((4, 3, 3, 32, 32), np.float32)
    for in_scan in (False, True):
        for cpu in ("plain", "scan"):
            taken = milliseconds(partial(stack_loss, in_scan=in_scan, cpu=cpu), kernels, x, rounds=rounds)
            print(f"four 3x3 convolutions {'in a scan' if in_scan else 'unrolled'}, cpu={cpu!r}: {taken:.2f} ms")
    kernel = draw((4, 4, 64, 128), np.float32)
    for name, function, shape in (
        ("4x4 convolution of stride 2", lambda x, kernel: conv(x, kernel, 2), (16, 16, 16, 64)),
        ("its transpose", conv_transpose, (16, 8, 8, 128)),
    ):
        x = draw(shape, np.float32)
        taken = milliseconds(partial(strided_loss, function=function), kernel, x, rounds=rounds)
        with plain_forms():
            plain = milliseconds(partial(strided_loss, function=function), kernel, x, rounds=rounds)
        print(f"{name}: plain {plain:.2f} ms, for CPU {taken:.2f} ms")


if __name__ == "__main__":
    main()
