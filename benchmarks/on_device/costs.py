"""Peak rates of a device, operations and memory of a program, and where its time goes."""

from __future__ import annotations

import math
import platform
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def device(small: bool) -> dict[str, Any]:
    """The device, versions, and its measured peaks: TFLOP/s of matrix products by type, GB/s of copies."""
    from jgen import cli

    if cli.runs_on_cpu():
        cli.keep_memory()  # as train.py does
    import jax

    one = jax.devices()[0]
    kind = {"backend": jax.default_backend(), "device": one.device_kind, "count": jax.device_count()}
    versions = {"jax": jax.__version__, "python": platform.python_version()}
    size = 512 if small else 8192
    peaks = {name: matrix_rate(name, size) for name in ("float32", "tf32", "bfloat16")}
    return {**kind, "versions": versions, "peak_tflops": peaks, "copy_gb_per_second": copy_rate(small)}


def matrix_rate(precision: str, size: int, products: int = 8) -> float:
    """TFLOP/s of products of square random matrices, chained in one program; the best of five runs."""
    import jax
    import jax.numpy as jnp

    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    how = {"float32": "highest", "tf32": "default", "bfloat16": "default"}[precision]
    a = jax.random.normal(jax.random.key(0), (size, size), dtype) / math.sqrt(size)

    @jax.jit
    def chain(a: Any, x: Any) -> Any:
        for _ in range(products):
            x = jnp.matmul(a, x, precision=how)
        return x

    seconds = best_seconds(lambda: chain(a, a))
    return 2 * size**3 * products / seconds / 1e12


def copy_rate(small: bool) -> float:
    """GB/s of an elementwise copy, bytes read and written both counted: the best of five runs."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((1 << 22) if small else (1 << 29), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / best_seconds(lambda: copy(x)) / 1e9


def best_seconds(run: Callable[[], Any], runs: int = 5) -> float:
    import jax

    jax.block_until_ready(run())
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def matrix_flops(function: Callable[..., Any], *args: Any) -> float:
    """Operations of the matrix products and convolutions in one call of a function: 2 for each multiplication.

    Counted from the formulas: layers in their plain form, a loop's body as often as it runs, and for a convolution over
    an input with zeros between its pixels (the gradient of a strided convolution) only the products with nonzeros.

    Args:
      args: arrays or `jax.ShapeDtypeStruct`.
    """
    import jax

    from jgen.core.backend import plain_forms

    with plain_forms():
        return count(jax.make_jaxpr(function)(*args))


def count(program: Any) -> float:
    """Operations of the matrix products and convolutions of a jaxpr."""
    from jgen.compare.loops import inner_programs, open_jaxpr

    total = 0.0
    for equation in open_jaxpr(program).eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            numbers = equation.params["dimension_numbers"].rhs_spec  # (out features, in features, spatial ...)
            products = math.prod(kernel) / kernel[numbers[0]]
            spread = math.prod(equation.params["lhs_dilation"])
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * products / spread
        else:
            times = equation.params["length"] if name == "scan" else 1
            inner = [count(each) for _, each in inner_programs(equation)]
            total += max(inner, default=0.0) if name == "cond" else times * sum(inner)
    return total


def live_bytes(program: Any) -> int:
    """Peak bytes of the intermediate results of a jaxpr, each held from where it is computed to its last use.

    This is before XLA's fusion, which avoids storing many elementwise results, so it is an upper bound.
    """
    from jgen.compare.loops import inner_programs, open_jaxpr

    jaxpr = open_jaxpr(program)
    last = {v: i for i, equation in enumerate(jaxpr.eqns) for v in equation.invars if not hasattr(v, "val")}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not hasattr(v, "val")}
    held: dict[Any, int] = {}
    now = most = 0
    for i, equation in enumerate(jaxpr.eqns):
        results = {v: math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in equation.outvars}
        inner = max((live_bytes(each) for _, each in inner_programs(equation)), default=0)
        stacked = sum(results.values()) if equation.primitive.name == "scan" else 0
        most = max(most, now + max(sum(results.values()), inner + stacked))
        held |= {v: size for v, size in results.items() if v in last}
        now = now + sum(size for v, size in results.items() if v in last)
        for v in {v for v in equation.invars if not hasattr(v, "val")}:
            if last.get(v) == i:
                now -= held.pop(v, 0)
    return most


def program_memory(run: Callable[[], Any]) -> float | None:
    """GiB needed by the largest program that a call compiles: arguments, results and temporaries."""
    import jax

    live_executables = getattr(jax.devices()[0].client, "live_executables", list)  # not in every version
    held = list(live_executables())  # held, since a new one could get the address of a deleted one
    before = {id(each) for each in held}
    run()
    sizes = []
    for each in live_executables():
        if id(each) in before:
            continue
        try:
            stats = each.get_compiled_memory_stats()
        except Exception:  # a backend without this information
            continue
        used = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
        sizes.append(used - stats.alias_size_in_bytes)
    return max(sizes) / 2**30 if sizes else None


def traced_costs(run: Callable[[], Any], runs: int) -> dict[str, Any]:
    """The largest costs of a few runs of a compiled program, from the profiler's trace of the device.

    Returns:
      "costs": [{"name", "ms" per run, "share"}], the largest first; "busy": the share of the time in which the device
      computed. {"missing": reason} if the trace has no events of the device.
    """
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            run()
            wall = time.perf_counter() - start
        files = sorted(Path(folder).rglob("*.xplane.pb"))
        if not files:
            return {"missing": "the profiler wrote no trace"}
        data = jax.profiler.ProfileData.from_file(str(files[0]))
        return summary(data, runs, wall)


def summary(data: Any, runs: int, wall: float) -> dict[str, Any]:
    """`traced_costs` for a trace of the given duration in seconds."""
    by_name: dict[str, float] = defaultdict(float)
    on_device = [plane for plane in data.planes if plane.name.startswith(("/device:GPU", "/device:TPU"))]
    for plane in on_device:
        lines = list(plane.lines)
        streams = [line for line in lines if line.name.startswith("Stream")]
        for line in streams or [line for line in lines if line.name == "XLA Ops"]:
            for event in line.events:
                by_name[kind_of(event)] += event.duration_ns
    if not by_name:
        return {"missing": "the trace has no events of a GPU or TPU"}
    total = sum(by_name.values())
    largest = sorted(by_name.items(), key=lambda item: -item[1])[:12]
    costs = [{"name": name, "ms": ns / 1e6 / runs, "share": ns / total} for name, ns in largest]
    return {"costs": costs, "busy": min(1.0, total / 1e9 / wall / max(1, len(on_device)))}


def kind_of(event: Any) -> str:
    """The name of a device event: the program's operation that it belongs to, without numbers, and its kernel."""
    stats = {name: value for name, value in event.stats}
    kernel = re.sub(r"[_.]?\d+$", "", event.name.split("(")[0].split("<")[0])[:60]
    operation = re.sub(r"[._]\d+", "", str(stats.get("hlo_op", "")))[:60]
    return kernel if not operation or operation == kernel else f"{operation} [{kernel}]"


def median_seconds(run: Callable[[int], Any], seconds: float, rounds: int = 5) -> list[float]:
    """Seconds per run, for rounds of as many runs as together fill the time; run(n) runs n times and waits."""
    start = time.perf_counter()
    run(1)
    once = time.perf_counter() - start
    n = max(1, min(1000, int(seconds / rounds / max(once, 1e-6))))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run(n)
        times.append((time.perf_counter() - start) / n)
        if once > seconds:
            break
    return times


def median(times: list[float]) -> float:
    return statistics.median(times)


def distance(a: Any, b: Any) -> float:
    """Norm of the difference over the norm of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
