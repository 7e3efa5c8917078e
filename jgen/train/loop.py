"""The training loop: batches in, steps, metrics, validation, sample grids and checkpoints out; resumes to the bit."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.generate import run_over, sample_images
from jgen.core.model import Batch, Context, GenerativeModel, Roles
from jgen.data.batches import batch_positions, train_batches
from jgen.data.config import Config as DataConfig
from jgen.data.dataset import Dataset
from jgen.data.pictures import make_grid, to_display, write_png
from jgen.data.transforms import make_transform
from jgen.errors import UserError, require
from jgen.train import checkpoints
from jgen.train.config import Config
from jgen.train.logs import MetricsLog, Window, describe
from jgen.train.optimisers import make_optimiser
from jgen.train.run_directory import RunDirectory, read_config
from jgen.train.step import TrainState, averaged, init_state, make_train_step, repeats_of

MAX_SKIPPED = 20  # steps in a row that may be not finite before a run is stopped
SAMPLED_AT_ONCE = 128  # images of a grid
MOST_ROWS = 16  # classes in it
RUN_AHEAD = 8  # steps given to the device before their metrics are read


class Interrupted(Exception):
    """Training was stopped by a signal, after a checkpoint; `code` is the exit code that says so."""

    def __init__(self, step: int, code: int):
        super().__init__(f"stopped at step {step}")
        self.step, self.code = step, code


def starting_state(model: GenerativeModel, config: Config, data: DataConfig, dataset: Dataset, seed: int) -> TrainState:
    """The state before step 0, from the first batch of training data."""
    split = dataset.splits["train"]
    first = split.fetch(batch_positions(seed, 0, config.batch_size, split.num))
    optimisers = role_optimisers(model, config)
    key = jax.random.key(seed)
    transform = make_transform(data, model.images.levels, train=True)

    def init(batch: Batch) -> TrainState:
        keys = rng.example_keys(key, 0, rng.DATA, 0, jax.numpy.arange(config.batch_size))
        return init_state(model, optimisers, key, transform(keys, batch), config.ema_decay > 0)

    return jax.jit(init, compiler_options=parallel.compiler_options())(first)


def role_optimisers(model: GenerativeModel, config: Config) -> dict[str, Any]:
    """An optimiser for every role that the phases train. Raises `UserError` for options of a role there is not."""
    roles = sorted({role for phase in model.phases for role in phase.trains})
    for role, _ in config.optimiser.scales:
        require(role in roles, f"train.optimiser.scales names {role!r}: {model.name} trains {', '.join(roles)}")
    return {role: make_optimiser(config, dict(config.optimiser.scales).get(role, 1.0)) for role in roles}


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one of a kind acts at once.

    Only a program's main thread may: in another, signals stay the program's.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: Any) -> None:
        if number in received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Training:
    """A run to `config.steps`, from the newest good checkpoint of its directory or from the start.

    `frozen` holds the parameters of an earlier run, where the model stands on one.
    """

    def __init__(
        self,
        model: GenerativeModel,
        dataset: Dataset,
        config: Config,
        data: DataConfig,
        seed: int,
        directory: RunDirectory,
        frozen: Roles | None = None,
    ):
        self.started = time.monotonic()
        self.document = read_config(directory.path)
        self.model, self.dataset, self.config, self.seed, self.directory = model, dataset, config, seed, directory
        start = starting_state(model, config, data, dataset, seed)
        newest = checkpoints.newest_good(directory.checkpoints)
        self.window, self.seconds = Window(), 0.0
        if newest is not None:
            start, meta = checkpoints.read(directory.checkpoints, newest, start)
            self.window, self.seconds = Window(meta["window"]), meta["seconds"]
        self.first = int(start.step)
        self.state = parallel.replicate(start)
        self.frozen = parallel.replicate(frozen or {})
        self.validation_transform = jax.jit(make_transform(data, model.images.levels, train=False))
        self.step = make_train_step(
            model,
            role_optimisers(model, config),
            ema_decay=config.ema_decay,
            ema_warmup=config.ema_warmup,
            accumulation=config.accumulation,
            transform=make_transform(data, model.images.levels, train=True),
        )
        self.pending: deque[tuple[int, Any]] = deque()
        self.bar: Any = None

    def run(self) -> TrainState:
        """Trains to the end and returns the final state.

        Raises:
          Interrupted: after SIGTERM or SIGINT; the state is saved.
          UserError: 20 steps in a row that are not finite (`make_train_step`), or files that cannot be written.
        """
        config = self.config
        self.log = MetricsLog(self.directory.path, self.first)
        self.writer = checkpoints.Writer(self.directory.checkpoints, config.keep, config.keep_every)
        if self.first:
            print(f"resuming at step {self.first} of {config.steps}")
        batch = config.batch_size * repeats_of(self.model)
        batches = train_batches(self.dataset.splits["train"], self.seed, batch, self.first, config.steps)
        self.bar = tqdm(
            total=config.steps,
            initial=self.first,
            unit="step",
            desc=self.model.name,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )
        self.bar.set_postfix_str("compiling the first step")
        with deferred_signals() as received:  # until the last checkpoint is whole
            try:
                if self.first and self.due(self.first, config.sample_every):
                    if not self.directory.samples(self.first).is_file():
                        self.sample(self.first)  # it was killed between the checkpoint and the grid
                for step, examples in zip(range(self.first + 1, config.steps + 1), batches):
                    self.state, metrics = self.step(self.state, self.frozen, examples, step - 1)
                    self.pending.append((step, metrics))
                    self.read_metrics(RUN_AHEAD)
                    self.bar.update()
                    self.after(step)
                    if received and step < config.steps:
                        self.stop(step, received[0])
            finally:
                batches.close()
                self.bar.close()
                self.log.close()
                self.writer.close()
        return self.state

    def read_metrics(self, leave: int) -> None:
        """Reads the metrics of all but the newest `leave` steps, and writes the lines that come due."""
        while len(self.pending) > leave:
            step, metrics = self.pending.popleft()
            values = jax.device_get(metrics)
            if values["skipped_in_a_row"] >= MAX_SKIPPED:
                self.writer.wait()
                newest = checkpoints.newest_good(self.directory.checkpoints)
                last = "there is no checkpoint yet" if newest is None else f"the last good checkpoint is step {newest}"
                what = "loss, gradient or statistics were not finite"
                raise UserError(f"{what} in {MAX_SKIPPED} steps up to step {step}; {last}")
            self.window.add(values)
            if step % self.config.log_every == 0:
                line = self.window.line()
                self.log.write(step, "train", line)
                self.bar.set_postfix_str(describe(line, [name for name in line if name.startswith("loss")]))

    def due(self, step: int, every: int) -> bool:
        return step == self.config.steps or (every > 0 and step % every == 0)

    def after(self, step: int) -> None:
        """What is due after a step: validation, a sample grid, a checkpoint."""
        config = self.config
        validate = config.validate_every > 0 and "validation" in self.dataset.splits
        validate = validate and self.due(step, config.validate_every)
        sample = self.due(step, config.sample_every)
        save = self.due(step, config.checkpoint_every)
        if not (validate or sample or save):
            return
        self.read_metrics(0)
        seconds = self.spent()  # the last grid is no training
        try:
            if validate:
                self.validate(step)
        finally:  # a score or a picture that cannot be made costs no checkpoint
            if save:
                self.save(seconds)
        if sample:
            self.sample(step)

    def spent(self) -> float:
        """Seconds of training so far, those before the run was resumed and compiling included."""
        return self.seconds + time.monotonic() - self.started

    def save(self, seconds: float) -> None:
        """A checkpoint, with the run's configuration and the metrics since the last line."""
        meta = {"window": self.window.state, "seconds": seconds, "config": self.document}
        self.writer.save(self.state, meta)

    def stop(self, step: int, number: int) -> None:
        """Saves after an interruption and raises `Interrupted`."""
        self.read_metrics(0)
        self.save(self.spent())
        self.writer.wait()
        raise Interrupted(step, 128 + number)

    def context(self) -> tuple[Roles, Context]:
        """The parameters that samples and scores use, and their context."""
        params = parallel.replicate(averaged(self.state)) if self.state.ema else self.state.params
        return params, Context(self.state.step, params, self.state.extra, self.frozen, bool(self.state.ema))

    def validate(self, step: int) -> None:
        """Scores a fixed part of the validation split with fixed keys."""
        name = "validate" if self.model.validate is not None else "log_prob"
        if getattr(self.model, name) is None:
            return
        split = self.dataset.splits["validation"]
        batch = split.fetch(np.arange(min(split.num, self.config.validation_images)))
        params, ctx = self.context()
        key_data, key_score = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), rng.VALIDATION))
        batch = self.validation_transform(rng.image_keys(key_data, batch["index"]), batch)
        batch = {name: np.asarray(array) for name, array in batch.items()}
        at_once = self.config.batch_size // self.config.accumulation
        scores = run_over(self.model, name, params, ctx, key_score, batch, batch_size=at_once)
        scores = scores if isinstance(scores, dict) else {"log_prob": scores}
        means = {name: float(np.mean(values, dtype=np.float64)) for name, values in scores.items()}
        self.log.write(step, "validation", means)
        tqdm.write(f"step {step}: validation {describe(means)}", file=sys.stderr)

    def sample(self, step: int) -> Path:
        """Writes a sample grid: a row a class, of many classes some from first to last; ten rows without classes."""
        spec, columns = self.model.images, self.config.samples_per_class
        rows = min(spec.num_classes, MOST_ROWS) if self.model.conditional else 10
        classes = np.linspace(0, spec.num_classes - 1, rows).round().astype(np.int32)
        label = np.repeat(classes, columns) if self.model.conditional else None
        params, ctx = self.context()
        key = jax.random.key(self.seed)
        at_once = min(rows * columns, SAMPLED_AT_ONCE)
        images = sample_images(self.model, params, ctx, key, rows * columns, label=label, batch_size=at_once)
        path = self.directory.samples(step)
        write_png(path, make_grid(to_display(images, spec.levels), columns))
        return path
