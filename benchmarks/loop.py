"""The training loop compared with the bare compiled step: the cost of logging, data, checkpoints and progress bar.

    python benchmarks/loop.py [--config configs/diffusion/ddpm.py:mnist] [--steps 200] [--out results/FILE.json]

The bare step runs on one batch of images; the loop runs as in train.py, from the data on disk, with metrics,
checkpoints and their hashes, in chunks that alternate with chunks of the bare step. Compile time is reported
separately.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/diffusion/ddpm.py:mnist")
    parser.add_argument("--steps", type=int, default=50, help="steps per chunk")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", help="JSON file for the results")
    args = parser.parse_args()

    from jgen import cli

    cli.set_up_process()
    import jax

    from jgen.data import dataset as datasets
    from jgen.train.run_directory import commit, processor, write_json

    experiment, name = cli.load_config(args.config, ROOT)
    bare_times, loop_times = measure(experiment, datasets.load(experiment.data), args.steps, args.rounds)
    bare, loop = statistics.median(bare_times), statistics.median(loop_times)
    print(f"{name}: bare step {bare * 1e3:.1f} ms, loop {loop * 1e3:.1f} ms: {bare / loop:.1%} of the bare rate")
    if args.out:
        document = {"command": " ".join(["python", *sys.argv]), "commit": commit(), "processor": processor()}
        document |= {"jax": jax.__version__, "python": platform.python_version(), "config": args.config}
        write_json(Path(args.out), {**document, "bare": bare_times, "loop": loop_times, "ratio": bare / loop})


def measure(experiment: Any, dataset: Any, steps: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds per step for each chunk of so many steps: of the bare step, and of the loop."""
    import jax
    import numpy as np

    from jgen import runs
    from jgen.core import parallel
    from jgen.train.loop import Training
    from jgen.train.run_directory import RunDirectory

    often = {"log_every": 10, "checkpoint_every": steps, "validate_every": 0, "sample_every": 0}
    train = dataclasses.replace(experiment.train, steps=steps * rounds + 1, **often)
    model = runs.model_of(experiment.model, dataset.spec, {})
    bare_times: list[float] = []
    loop_times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        runs.open_run(directory, experiment, dataset, {})
        training = Training(model, dataset, train, experiment.data, experiment.seed, directory, frozen={})
        training.sample = lambda step: None  # the grid at the end is not part of the rate
        held = [parallel.replicate(jax.device_get(training.state))]
        batch = dataset.splits["train"].fetch(np.arange(train.batch_size))
        after, clock = training.after, [0.0]

        def bare_chunk() -> None:
            start = time.perf_counter()
            for _ in range(steps):
                held[0], _ = training.step(held[0], training.frozen, batch)
            jax.block_until_ready(held[0])
            bare_times.append((time.perf_counter() - start) / steps)

        def timed_after(step: int) -> None:
            after(step)
            if step % steps == 1:  # the first step compiles; chunks end one step after a checkpoint began
                jax.block_until_ready(training.state)
                if step > 1:
                    loop_times.append((time.perf_counter() - clock[0]) / steps)
                bare_chunk()
                clock[0] = time.perf_counter()

        training.after = timed_after
        training.run()
    return bare_times, loop_times


if __name__ == "__main__":
    main()
