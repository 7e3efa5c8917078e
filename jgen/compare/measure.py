"""Cost and speed of one system on random images: python -m jgen.compare.measure CONFIG:VARIANT --out FILE.json

A process of its own, so that its peak memory is the system's. Compiled programs are not taken from the cache.
Operations are counted by `jgen.compare.flops`.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jgen import cli
from jgen.core.files import check_writable
from jgen.errors import UserError, require, require_positive
from jgen.experiment import Experiment
from jgen.train.run_directory import read_json

ROOT = Path(__file__).resolve().parents[2]
SAMPLED = 64  # images sampled at once


@dataclass(frozen=True)
class Arguments:
    """What is measured, and for how long."""

    sizes: tuple[int, ...] = (8, 16, 32)
    """Heights and widths of images, beside those of the data, at which training and sampling are timed."""
    seconds: float = 6.0
    """Time for each figure, compiling apart; at least one run is made. Three times as long at the data's own size."""
    out: str = "measure.json"
    """JSON file for the outcome."""
    add: bool = False
    """Keep what the file holds, and measure only the sizes that it lacks."""


def timed(run: Callable[[], Any], seconds: float) -> float:
    """Median seconds of a run, runs being made for about that long after one that does not count."""
    times: list[float] = []
    run()
    while sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_mib() -> float:
    """Most memory taken so far: of the device where it says, else of this process."""
    import jax

    found = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if found is not None:
        return float(found) / 2**20
    try:  # getrusage's figure includes that of the program that started this one
        status = Path("/proc/self/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return resident / (2**20 if sys.platform == "darwin" else 2**10)


def measure(experiment: Experiment, first: Experiment | None, images: Any, seconds: float) -> dict[str, Any]:
    """Training and sampling of an experiment at the images' size; `parameters` are those of its first stage too.

    Args:
      first: the experiment of its first stage, which is measured with weights drawn at random.
    Raises:
      UserError: images that the model cannot be made for.
    """
    import jax
    import jax.numpy as jnp

    from jgen.compare.program import make_program
    from jgen.core import parallel
    from jgen.core.generate import sample_images
    from jgen.core.model import Context

    before = peak_mib()
    config, key = experiment.train, jax.random.key(0)
    model, stage, init, step, batch, once = make_program(experiment, first, images)
    state = jax.jit(init, compiler_options=parallel.compiler_options())(once)
    frozen = parallel.replicate({"first_stage": jax.jit(stage.init)(key, once)} if stage else {})
    state = parallel.replicate(state)
    params, extra = parallel.replicate((state.params, state.extra))
    held, number = [state], [0]

    def train() -> Any:
        held[0], metrics = step(held[0], frozen, batch, number[0])
        number[0] += 1
        return metrics

    cycle = math.lcm(*(phase.every for phase in model.phases))
    start = time.perf_counter()
    jax.block_until_ready(train())
    first_step = time.perf_counter() - start
    one_step = training_seconds(train, cycle, seconds)
    ctx = Context(jnp.int32(0), params, extra, frozen)
    sample = lambda n: sample_images(model, params, ctx, key, n, batch_size=SAMPLED)
    start = time.perf_counter()
    sample(1)
    first_sample = time.perf_counter() - start
    sampled = timed(lambda: sample(SAMPLED), seconds)
    return {
        "batch_size": config.batch_size,
        "parameters": sum(x.size for x in jax.tree.leaves((params, frozen["first_stage"][0] if stage else {}))),
        "compile_seconds": first_step - one_step,
        "step_seconds": one_step,
        "images_per_second": config.batch_size / one_step,
        "first_sample_seconds": first_sample,
        "samples_per_second": SAMPLED / sampled,
        "peak_mib": peak_mib() - before,
        "likelihood": model.likelihood,
        "levels": images.levels,
        "exact_density": model.likelihood == "exact" or model.log_density is not None,
        "free_form_jacobian": model.free_form_jacobian,
    }


def training_seconds(train: Callable[[], Any], cycle: int, seconds: float) -> float:
    """Mean seconds of a step, over whole cycles of `cycle` steps for about `seconds`, after one that does not count.

    Steps are given to the device ahead of their outcome, as the training loop does.
    """
    import jax

    from jgen.train.loop import RUN_AHEAD

    jax.block_until_ready([train() for _ in range(cycle)])
    pending: deque[Any] = deque()
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < seconds:
        for _ in range(cycle):
            pending.append(train())
            if len(pending) > RUN_AHEAD:
                jax.block_until_ready(pending.popleft())
        done += cycle
    jax.block_until_ready(pending)
    return (time.perf_counter() - start) / done


def measure_at(
    size: int, experiment: Experiment, first: Experiment | None, images: Any, seconds: float, own: dict[str, Any]
) -> dict[str, Any]:
    """Speed at `size` x `size`; `unfit`, why the model cannot be made for that; or `error`, what went wrong this time.

    Args:
      own: what was measured at the size of `images`.
    """
    from jgen.compare.program import at_height

    at = dataclasses.replace(images, height=size, width=size)
    scaled, first = (e and at_height(e, images.height, size) for e in (experiment, first))
    try:
        one = own if at == images else measure(scaled, first, at, seconds)
    except UserError as error:
        return {"unfit": str(error)}
    except Exception as error:  # such as a lack of memory: the other sizes stand
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    return {key: one[key] for key in ("images_per_second", "samples_per_second")}


def command(args: list[str]) -> int:
    require(bool(args) and not args[0].startswith("-"), "which configuration? python -m jgen.compare.measure CONFIG")
    name = args.pop(0)
    arguments = cli.parse(Arguments, args, "python -m jgen.compare.measure CONFIG:VARIANT", __doc__ or "")
    require_positive(**{"--seconds": arguments.seconds})
    out = Path(arguments.out)
    check_writable(out)
    cli.keep_memory()
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # the environment may name one
    from jgen.compare.flops import counted_apart
    from jgen.compare.program import first_stage_config
    from jgen.data import dataset
    from jgen.train.run_directory import environment, write_json

    experiment, _ = cli.load_config(name, ROOT)
    before = first_stage_config(name, experiment)
    first = cli.load_config(before, ROOT)[0] if before else None
    images = dataset.load(experiment.data).images
    found: dict[str, Any] = {"config": name, "first_stage": before, "environment": environment(), "sizes": {}}
    if arguments.add and out.is_file():
        found = read_json(out)
        require(found["config"] == name, f"--out {out} is of {found['config']}: --add needs one of {name}")
    todo = [size for size in arguments.sizes if "error" in found["sizes"].get(str(size), {"error": ""})]
    flops = counted_apart(name, tuple(todo)) if todo or "own" not in found else {}
    if "own" not in found:
        print(f"{name}: at {images.height}x{images.width}", file=sys.stderr, flush=True)
        found["own"] = measure(experiment, first, images, 3 * arguments.seconds)  # by which a budget is counted out
        found["own"]["flops_per_image"] = flops[str(images.height)]
        write_json(out, found)
    for size in todo:
        print(f"{name}: at {size}x{size}", file=sys.stderr, flush=True)
        one = measure_at(size, experiment, first, images, arguments.seconds, found["own"])
        found["sizes"][str(size)] = one | {"flops_per_image": flops[str(size)]}
        write_json(out, found)
    return 0


if __name__ == "__main__":
    cli.main(command)
