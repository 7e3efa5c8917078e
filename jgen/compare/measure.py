"""Cost and speed of one system on random images: python -m jgen.compare.measure CONFIG:VARIANT --out FILE.json

Run as a separate process, so that its peak memory is that of the system, and without the compilation cache. Operations
are counted by `jgen.compare.flops`.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jgen import cli
from jgen.compare.systems import Training, data_spec, load_training
from jgen.core.files import check_writable
from jgen.core.model import Context, Frozen, frozen_parameters
from jgen.errors import UserError, require, require_positive
from jgen.train.run_directory import read_json

SAMPLED = 64  # images sampled at a time


@dataclass(frozen=True)
class Arguments:
    """What to measure, and for how long."""

    sizes: tuple[int, ...] = (8, 16, 32)
    """Heights and widths of images, in addition to those of the data, at which to time training and sampling."""
    seconds: float = 6.0
    """Time for each measurement, without compilation; at least one run. Three times as long at the data's own size."""
    out: str = "measure.json"
    """JSON file for the results."""
    add: bool = False
    """Keep the file's results, and measure only the missing sizes."""


def median_seconds(run: Callable[[], Any], seconds: float) -> float:
    """Median seconds of a run, over runs for about `seconds` after a warm-up run."""
    times: list[float] = []
    run()
    while sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_mib() -> float:
    """Peak memory so far in MiB: of the device if it reports it, else of this process."""
    import jax

    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is not None:
        return float(peak) / 2**20
    try:  # getrusage's value includes that of the parent process
        status = Path("/proc/self/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return resident / (2**20 if sys.platform == "darwin" else 2**10)


def measure(training: Training, size: int | None, seconds: float) -> dict[str, Any]:
    """Speed and memory of training and sampling; `parameters` includes those of frozen models.

    Args:
      size: height and width of the images; default: those of the data.
      seconds: time for each measurement.
    Raises:
      UserError: images that the model cannot be made for.
    """
    import jax

    from jgen.compare.program import initial_state, make_program
    from jgen.core import parallel
    from jgen.train.step import place_state

    before = peak_mib()
    program = make_program(training, size)
    model = program.part.model
    state, frozen = initial_state(program)
    frozen = parallel.replicate(frozen)
    params, extra = parallel.replicate((state.params, state.extra))
    num_parameters = sum(x.size for x in jax.tree.leaves((params, frozen_parameters(frozen))))
    figures = time_training(program, place_state(model, state), frozen, seconds)
    batch_size = training.experiment.train.batch_size
    figures |= {"batch_size": batch_size, "images_per_second": batch_size / figures["step_seconds"]}
    if model.sample is not None:
        figures |= time_sampling(program, params, extra, frozen, seconds)
    return {
        **figures,
        "parameters": num_parameters,
        "peak_mib": peak_mib() - before,
        "likelihood": model.likelihood,
        "levels": program.part.data.image.levels,
        "exact_density": model.likelihood == "exact" or model.log_density is not None,
    }


def time_training(program: Any, state: Any, frozen: Frozen, seconds: float) -> dict[str, float]:
    """Seconds per step, and of compilation.

    If not all phases run in every step, each set of phases that run together is timed separately, and the step time is
    their mean weighted by frequency.
    """
    import jax

    held, steps, first_steps = [state], {}, 0.0

    def train(number: int) -> Any:
        held[0], metrics = program.step(held[0], frozen, program.batch, number)
        return metrics

    for number, share in program.phase_sets.items():
        start = time.perf_counter()
        jax.block_until_ready(train(number))
        first_steps += time.perf_counter() - start
        steps[number] = step_seconds(partial(train, number), share * seconds)
    mean = sum(share * steps[number] for number, share in program.phase_sets.items())
    return {"compile_seconds": first_steps - sum(steps.values()), "step_seconds": mean}


def step_seconds(train: Callable[[], Any], seconds: float) -> float:
    """Mean seconds per step, over steps for about `seconds` after a warm-up step.

    Steps are dispatched without waiting for the previous one, as in the training loop.
    """
    import jax

    from jgen.train.loop import RUN_AHEAD

    jax.block_until_ready(train())
    pending: deque[Any] = deque()
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < seconds:
        pending.append(train())
        if len(pending) > RUN_AHEAD:
            jax.block_until_ready(pending.popleft())
        done += 1
    jax.block_until_ready(pending)
    return (time.perf_counter() - start) / done


def time_sampling(program: Any, params: Any, extra: Any, frozen: Frozen, seconds: float) -> dict[str, float]:
    """Seconds until the first sample, including compilation, and samples per second."""
    import jax
    import jax.numpy as jnp

    from jgen.compare.program import random_conditions
    from jgen.core.generate import prepared, sample_images

    model, key, cond = program.part.model, jax.random.key(0), random_conditions(program, SAMPLED)
    ctx = prepared(model, params, Context(jnp.int32(0), None, params, extra, frozen), key)

    def sample(num: int) -> Any:
        some = {name: value[:num] for name, value in cond.items()}
        return sample_images(model, params, ctx, key, num, cond=some, batch_size=SAMPLED)

    start = time.perf_counter()
    sample(1)
    first_sample = time.perf_counter() - start
    median = median_seconds(lambda: sample(SAMPLED), seconds)
    return {"first_sample_seconds": first_sample, "samples_per_second": SAMPLED / median}


def measure_at(size: int, training: Training, seconds: float, own: dict[str, Any]) -> dict[str, Any]:
    """Speed at `size` x `size`; or `unfit`, why the model cannot be made for this size; or `error`, why it failed.

    Args:
      own: the measurements at the data's own size.
    """
    image = data_spec(training).image
    try:
        figures = own if (size, size) == (image.height, image.width) else measure(training, size, seconds)
    except UserError as error:
        return {"unfit": str(error)}
    except Exception as error:  # such as out of memory: other sizes remain valid
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    return {key: figures[key] for key in ("images_per_second", "samples_per_second") if key in figures}


def command(args: list[str]) -> int:
    require(bool(args) and not args[0].startswith("-"), "which configuration? python -m jgen.compare.measure CONFIG")
    name = args.pop(0)
    arguments = cli.parse(Arguments, args, "python -m jgen.compare.measure CONFIG:VARIANT", __doc__ or "")
    require_positive(**{"--seconds": arguments.seconds})
    check_writable(Path(arguments.out))
    cli.keep_memory()
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # the environment may set one
    measure_system(load_training(name), arguments)
    return 0


def measure_system(training: Training, arguments: Arguments) -> None:
    """Measures a configuration at its own size and at the requested ones, and writes each result at once."""
    from jgen.compare.flops import count_in_process
    from jgen.train.run_directory import environment, write_json

    out, config = Path(arguments.out), training.config
    document: dict[str, Any] = {"config": config, "environment": environment(), "sizes": {}}
    if arguments.add and out.is_file():
        document = read_json(out)
        require(document["config"] == config, f"--out {out} is of {document['config']}: --add needs one of {config}")
    todo = [size for size in arguments.sizes if "error" in document["sizes"].get(str(size), {"error": ""})]
    flops = count_in_process(config, tuple(todo)) if todo or "own" not in document else {}
    image = data_spec(training).image
    if "own" not in document:
        print(f"{config}: at {image.height}x{image.width}", file=sys.stderr, flush=True)
        own = measure(training, None, 3 * arguments.seconds)  # determines the steps of a budget
        document["own"] = own | {"flops_per_image": flops[str(image.height)]}
        write_json(out, document)
    for size in todo:
        print(f"{config}: at {size}x{size}", file=sys.stderr, flush=True)
        figures = measure_at(size, training, arguments.seconds, document["own"])
        document["sizes"][str(size)] = figures | {"flops_per_image": flops[str(size)]}
        write_json(out, document)


if __name__ == "__main__":
    cli.main(command)
