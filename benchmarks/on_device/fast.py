"""Requests that make and time the sides of `cases`. A process holds one side at a time."""

from __future__ import annotations

import contextlib
import gc
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from on_device import cases, costs

HELD: dict[str, Any] = {}
FORMS = contextlib.ExitStack()


def plan(small: bool) -> list[dict[str, Any]]:
    """The cases in the order in which they are timed, by precision."""
    rows = []
    for name, case in cases.CASES.items():
        for precision in case.precisions[-1:] if small else case.precisions:
            both = len(case.precisions) > 1
            variants = case.small_variants if small else case.variants
            goals = {what.removesuffix(f" {precision}"): goal for what, goal in case.goals.items()}
            row = {"name": f"{name}_{precision}" if both else name, "case": name, "precision": precision}
            row |= {
                "title": "small" if small else case.title,
                "variants": variants,
                "note": case.note,
                "sizes": case.sizes(small),
            }
            rows.append(row | {"goals": {w: g for w, g in goals.items() if " bfloat16" not in w}})
    return rows


def prepare(case: str, precision: str, small: bool, folder: str) -> dict[str, Any]:
    """Makes jgen's side: its tasks, seconds of the first run of each, which compiles, and memory."""
    from on_device import jgen_sides

    HELD.clear()
    gc.collect()
    side = jgen_sides.make(case, precision, small, Path(folder))
    np.save(Path(folder) / "output.npy", np.asarray(side.output, np.float64))
    HELD["tasks"] = side.tasks
    tasks = {}
    for name, task in side.tasks.items():
        start = time.perf_counter()
        memory = costs.program_memory(lambda task=task: task.run(1))
        first = time.perf_counter() - start
        tasks[name] = {"images": task.images, "flops": task.flops, "first_seconds": first, "program_gib": memory}
    return {"tasks": tasks, "parameters": side.parameters, "peak_gib": jax_peak()}


def use_plain_forms() -> None:
    """From now on the layers in this process use XLA's plain operations."""
    from jgen.core.backend import plain_forms

    HELD.clear()
    FORMS.enter_context(plain_forms())


def jax_peak() -> float | None:
    """Peak device memory of this process; on CPU, peak memory of the process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def prepare_torch(case: str, precision: str, small: bool, folder: str, variant: str) -> dict[str, Any]:
    """Makes PyTorch's side, and compares its output with jgen's."""
    import torch
    import torch._dynamo

    from on_device import torch_sides

    HELD.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch._dynamo.reset()
    side = torch_sides.make(case, precision, small, Path(folder), variant)
    ours, theirs = np.load(Path(folder) / "output.npy"), np.asarray(side.output, np.float64)
    apart = costs.distance(theirs, ours)
    if not apart <= cases.SAME[precision]:
        raise ValueError(f"its output is {apart:.1e} from jgen's, at most {cases.SAME[precision]:.0e}")
    HELD["tasks"] = side.tasks
    tasks = {}
    for name, task in side.tasks.items():
        start = time.perf_counter()
        task.run(1)
        tasks[name] = {"times": task.times, "first_seconds": time.perf_counter() - start}
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"tasks": tasks, "output_distance": apart, "peak_gib": peak, "torch": torch.__version__}


def measure(task: str, seconds: float) -> list[float]:
    """Seconds of one run of a task, several times."""
    return costs.median_seconds(HELD["tasks"][task].run, seconds)


def trace(task: str, runs: int) -> dict[str, Any]:
    """The largest costs of one of jgen's tasks."""
    run = HELD["tasks"][task].run
    return costs.traced_costs(lambda: run(runs), runs)
