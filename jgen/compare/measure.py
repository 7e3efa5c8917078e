"""Cost and speed of one system on random images: python -m jgen.compare.measure CONFIG:VARIANT --out FILE.json

A process of its own, so that its peak memory is the system's. Compiled programs are not taken from the cache.
"""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jgen import cli
from jgen.errors import UserError, require, require_positive
from jgen.experiment import Experiment, make_model

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


def first_stage_config(config: str, experiment: Experiment) -> str:
    """The configuration that trains the first stage of an experiment, "" for one that stands alone.

    Raises:
      UserError: an experiment whose first stage no configuration trains.
    """
    if not experiment.first_stage:
        return ""
    system, _, variant = Path(experiment.first_stage).name.rpartition("-")
    found = sorted((ROOT / "configs").glob(f"*/{system}.py"))
    require(bool(found), f"{config} stands on {experiment.first_stage}: no configuration trains that")
    return f"{found[0].relative_to(ROOT)}:{variant}"


def at_height(experiment: Experiment, own: int, height: int) -> Experiment:
    """The experiment for images of another height than its own: attention stays at the levels where it stands.

    A model's `attention` names heights of feature maps, which scale with the images'.
    """
    heights = getattr(experiment.model, "attention", ())
    if not heights:
        return experiment
    scaled = tuple(max(1, round(there * height / own)) for there in heights)
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, attention=scaled))


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

    from jgen.compare.flops import program_flops
    from jgen.core import keys as rng
    from jgen.core import parallel
    from jgen.core.generate import sample_images
    from jgen.core.model import Context
    from jgen.data.transforms import make_transform
    from jgen.train.loop import role_optimisers
    from jgen.train.step import init_state, make_train_step, repeats_of

    before = peak_mib()
    config, key = experiment.train, jax.random.key(0)
    stage = make_model(first.model, images, None, None) if first else None
    model = make_model(experiment.model, images, parallel.AXIS, stage)
    optimisers = role_optimisers(model, config)
    num = config.batch_size * repeats_of(model)
    draw = np.random.default_rng(0)
    batch = {"image": draw.integers(0, 256, (num, *images.shape)).astype(np.uint8)}
    batch["label"] = (np.arange(num) % max(1, images.num_classes)).astype(np.int32)
    batch["index"] = np.arange(num, dtype=np.int32)
    transform = make_transform(experiment.data, images.levels, train=True)
    first_images = jax.tree.map(lambda x: x[: config.batch_size], batch)
    once = jax.jit(transform)(rng.image_keys(key, first_images["index"]), first_images)
    init = lambda b: init_state(model, optimisers, key, b, config.ema_decay > 0)
    state = jax.jit(init, compiler_options=parallel.compiler_options())(once)
    frozen = parallel.replicate({"first_stage": jax.jit(stage.init)(key, once)} if stage else {})
    state = parallel.replicate(state)
    step = make_train_step(model, optimisers, ema_decay=config.ema_decay, transform=transform)
    params, extra = parallel.replicate((state.params, state.extra))
    shapes = jax.eval_shape(lambda s: s, state)
    held, number = [state], [0]

    def train() -> None:
        held[0], _ = step(held[0], frozen, batch, number[0])
        number[0] += 1
        jax.block_until_ready(held[0])

    start = time.perf_counter()
    train()
    first_step = time.perf_counter() - start
    one_step = timed(train, seconds)
    # After the first step, whose tracing it would otherwise take away from the time of compiling.
    cycle = math.lcm(*(phase.every for phase in model.phases))
    flops = jax.local_device_count() * statistics.mean(  # the program is counted once, and each device runs it
        program_flops(lambda s, f, b, i=i: step(s, f, b, i), shapes, frozen, batch) for i in range(cycle)
    )
    ctx = Context(jnp.int32(0), params, extra, frozen)
    sample = lambda n: sample_images(model, params, ctx, key, n, batch_size=SAMPLED)
    start = time.perf_counter()
    sample(1)
    first_sample = time.perf_counter() - start
    sampled = timed(lambda: sample(SAMPLED), seconds)
    return {
        "batch_size": config.batch_size,
        "parameters": sum(x.size for x in jax.tree.leaves((params, frozen["first_stage"][0] if stage else {}))),
        "flops_per_image": flops / config.batch_size,
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


def measure_at(
    size: int, experiment: Experiment, first: Experiment | None, images: Any, seconds: float, own: dict[str, Any]
) -> dict[str, Any]:
    """Speed and operations at `size` x `size`, or the error of a model that cannot be made or run at that.

    Args:
      own: what was measured at the size of `images`.
    """
    at = dataclasses.replace(images, height=size, width=size)
    scaled, first = (e and at_height(e, images.height, size) for e in (experiment, first))
    try:
        one = own if at == images else measure(scaled, first, at, seconds)
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:  # such as a lack of memory: the other sizes stand
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    return {key: one[key] for key in ("images_per_second", "samples_per_second", "flops_per_image")}


def command(args: list[str]) -> int:
    require(bool(args) and not args[0].startswith("-"), "which configuration? python -m jgen.compare.measure CONFIG")
    name = args.pop(0)
    arguments = cli.parse(Arguments, args, "python -m jgen.compare.measure CONFIG:VARIANT", __doc__ or "")
    require_positive(**{"--seconds": arguments.seconds})
    cli.keep_memory()

    from jgen.data import dataset
    from jgen.train.run_directory import environment, write_json

    experiment, _ = cli.load_config(name, ROOT)
    before = first_stage_config(name, experiment)
    first = cli.load_config(before, ROOT)[0] if before else None
    images = dataset.load(experiment.data).images
    out = Path(arguments.out)
    found: dict[str, Any] = {"config": name, "first_stage": before, "environment": environment(), "sizes": {}}
    if arguments.add and out.is_file():
        found = json.loads(out.read_text())
        require(found["config"] == name, f"--out {out} is of {found['config']}: --add needs one of {name}")
    if "own" not in found:
        found["own"] = measure(experiment, first, images, 3 * arguments.seconds)  # by which a budget is counted out
        write_json(out, found)
    for size in arguments.sizes:
        if str(size) in found["sizes"]:
            continue
        print(f"{name}: at {size}x{size}", file=sys.stderr, flush=True)
        found["sizes"][str(size)] = measure_at(size, experiment, first, images, arguments.seconds, found["own"])
        write_json(out, found)
    return 0


if __name__ == "__main__":
    cli.main(command)
