"""The training loop: steps, metrics, validation, sample grids and checkpoints. A resumed run is bitwise identical."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.generate import prepared, run_over, sample_images
from jgen.core.model import Batch, Cond, Context, Frozen, GenerativeModel, Roles
from jgen.core.progress import progress_bar
from jgen.data.batches import batch_positions, train_batches
from jgen.data.config import Config as DataConfig
from jgen.data.dataset import Dataset, Split, require_labels_of
from jgen.data.grids import make_grid
from jgen.data.pictures import to_display, write_png
from jgen.data.transforms import make_transform
from jgen.errors import UserError, require
from jgen.train import checkpoints
from jgen.train.config import Config, ema_enabled
from jgen.train.logs import MetricsLog, Window, describe
from jgen.train.optimisers import RoleOptimiser, average_decay, make_optimiser
from jgen.train.run_directory import RunDirectory, read_config
from jgen.train.step import (
    TrainState,
    averaged,
    batches_per_step,
    gather_state,
    init_state,
    make_train_step,
    make_train_steps,
    metrics_by_step,
    place_state,
)

MAX_SKIPPED = 20  # consecutive skipped steps after which a run is stopped
SAMPLED_AT_ONCE = 128  # batch size of a sample grid
MOST_ROWS = 16  # most classes shown in it
RUN_AHEAD = 8  # steps dispatched before their metrics are read; at least one call


class Interrupted(Exception):
    """Training was stopped by a signal, and a checkpoint was written; `code` is the exit code for this signal."""

    def __init__(self, step: int, code: int):
        super().__init__(f"stopped at step {step}")
        self.step, self.code = step, code


def starting_state(
    model: GenerativeModel,
    config: Config,
    data: DataConfig,
    dataset: Dataset,
    seed: int,
    frozen: Frozen,
) -> TrainState:
    """The state before step 0, initialised with the first batch of training data."""
    split = dataset.splits["train"]
    first = with_position(split.fetch(batch_positions(seed, 0, config.batch_size, split.num)))
    optimisers = role_optimisers(model, config)
    key = rng.seed_key(seed)
    transform = make_transform(data, dataset.spec, train=True)

    def init(batch: Batch, frozen: Frozen) -> TrainState:
        first_step = rng.phase_key(rng.stream(key, rng.RUN), 0, rng.DATA, 0)  # as the first step will see them
        keys = rng.image_keys(first_step, jax.numpy.arange(config.batch_size))
        return init_state(model, optimisers, key, transform(keys, batch), ema_enabled(config), frozen)

    return jax.jit(init, compiler_options=parallel.compiler_options())(first, frozen)


def with_position(batch: Batch) -> Batch:
    """Adds the field "position", i / B for example i of the batch, float32 (B,)."""
    num = len(batch["index"])
    return {**batch, "position": np.arange(num, dtype=np.float32) / np.float32(num)}


def role_optimisers(model: GenerativeModel, config: Config) -> dict[str, RoleOptimiser]:
    """{role: optimiser} for every role that the phases train. Raises `UserError` for options of an unknown role."""
    roles = sorted({role for phase in model.phases for role in phase.trains})
    for role, _, _ in config.optimiser.by_role:
        trains = ", ".join(roles) or "no role"
        require(role in roles, f"train.optimiser.by_role names {role!r}: {model.name} trains {trains}")
    return {role: make_optimiser(config, role) for role in roles}


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of ending the process; a second signal of the same kind takes effect at once.

    In other threads than the main thread it does nothing.
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
    """Trains up to `config.steps`, from the checkpoint of step `newest` or from the start.

    `frozen` holds the arrays of the model's frozen models, on the host. With several processes, all train, and the
    first one scores, samples and writes the directory.
    """

    def __init__(
        self,
        model: GenerativeModel,
        dataset: Dataset,
        config: Config,
        data: DataConfig,
        seed: int,
        directory: RunDirectory,
        frozen: Frozen | None = None,
        newest: int | None = None,
    ):
        self.started = time.monotonic()
        require(
            config.accumulation == 1 or not model.whole_batch,
            f"train.accumulation is {config.accumulation}: {model.name} has a loss of whole batches, it must be 1",
        )
        if model.check_training is not None:
            model.check_training(config.steps)
        if "label" in model.conditions:
            scored = ["validation"] * (config.validate_every > 0 and "validation" in dataset.splits)
            for split in ("train", *scored):
                require_labels_of(dataset, split, f"{model.name} is conditioned on them")
        self.main = parallel.is_main_process()
        self.document = read_config(directory.path) if self.main else {}
        self.model, self.dataset, self.config, self.seed, self.directory = model, dataset, config, seed, directory
        self.frozen = parallel.replicate(dict(frozen or {}))
        start = starting_state(model, config, data, dataset, seed, self.frozen)
        self.window, self.seconds = Window(), 0.0
        if newest is not None:
            checkpoints.wait_until_seen(directory.checkpoints, newest)
            start, meta = checkpoints.read(directory.checkpoints, newest, start)
            self.window, self.seconds = Window(meta["window"]), meta["seconds"]
        self.first = int(start.step)
        self.state = place_state(model, start)
        self.validation_transform = jax.jit(make_transform(data, dataset.spec, train=False))
        self.optimisers = role_optimisers(model, config)
        options: dict[str, Any] = {"ema_decay": average_decay(config), "accumulation": config.accumulation}
        options["transform"] = make_transform(data, dataset.spec, train=True)
        self.step = make_train_step(model, self.optimisers, **options)
        self.steps = make_train_steps(model, self.optimisers, config.steps_per_call, **options)
        self.pending: deque[tuple[int, Any]] = deque()
        self.bar: Any = None

    def run(self) -> TrainState:
        """Trains to the end and returns the final state.

        Raises:
          Interrupted: after SIGTERM or SIGINT; the state is saved.
          UserError: 20 consecutive steps were skipped (see `make_train_step`), or files cannot be written.
        """
        config = self.config
        self.log = MetricsLog(self.directory.path, self.first) if self.main else None
        self.writer = None
        if self.main:
            self.writer = checkpoints.Writer(self.directory.checkpoints, config.keep, config.keep_every, self.first)
        if self.first and self.main:
            print(f"resuming at step {self.first} of {config.steps}")
        batches = self.batches()
        self.bar = progress_bar(
            total=config.steps,
            initial=self.first,
            unit="step",
            desc=self.model.name,
            dynamic_ncols=True,
        )
        self.bar.set_postfix_str("compiling the first step")
        with deferred_signals() as received:  # until the last checkpoint is complete
            try:
                self.draw_missing_grid()
                step = self.first
                while step < config.steps:
                    before, step = step, step + self.call_length(step)
                    self.call(before, [next(batches) for _ in range(before, step)])
                    self.read_metrics(max(1, RUN_AHEAD // config.steps_per_call))
                    self.bar.update(step - before)
                    self.after(step)
                    if self.stopped(before, step, received):
                        self.stop(step, received[0] if received else signal.SIGTERM)
            finally:
                batches.close()
                self.bar.close()
                for file in (self.log, self.writer):
                    if file is not None:
                        file.close()
        return self.state

    def batches(self) -> Generator[Batch, None, None]:
        """The batches of every step; of each, the rows that this process computes."""
        batch, repeats = self.config.batch_size, batches_per_step(self.model)
        local = parallel.local_rows(batch)
        rows = np.concatenate([np.arange(r * batch + local.start, r * batch + local.stop) for r in range(repeats)])
        split = self.dataset.splits["train"]
        first, stop, workers = self.first, self.config.steps, self.config.data_workers
        return train_batches(split, self.seed, batch * repeats, first, stop, rows=rows, workers=workers)

    def call_length(self, step: int) -> int:
        """Number of steps in the next compiled call, given `step` completed steps: `steps_per_call`, or 1 if a
        validation, sample grid or checkpoint is due within them. So at most two programs are compiled."""
        config, num = self.config, self.config.steps_per_call
        due = (config.validate_every, config.sample_every, config.checkpoint_every)
        ends = [config.steps, *((step // every + 1) * every for every in due if every > 0)]
        return num if step + num <= min(ends) else 1

    def call(self, before: int, batches: list[Batch]) -> None:
        """Runs the steps after step `before`, one per batch, in one compiled call."""
        metrics: Any
        if len(batches) == 1:
            self.state, metrics = self.step(self.state, self.frozen, batches[0], before)
        else:
            together = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
            self.state, metrics = self.steps(self.state, self.frozen, together, before)
        self.pending.append((before, metrics))

    def stopped(self, before: int, step: int, received: list[int]) -> bool:
        """Whether to stop early after `step` because of a signal; always false at the last step.

        Several processes agree on this only when a line of metrics is due, every `log_every` steps: agreement needs a
        blocking collective, which in every step would keep the host from running ahead.
        """
        no_line = step // self.config.log_every == before // self.config.log_every
        if step == self.config.steps or (jax.process_count() > 1 and no_line):
            return False
        return parallel.any_process(bool(received))

    def read_metrics(self, leave: int) -> None:
        """Reads the metrics of all but the newest `leave` calls, and writes the lines that are due."""
        while len(self.pending) > leave:
            before, metrics = self.pending.popleft()
            for step, values in enumerate(metrics_by_step(metrics), before + 1):
                self.note(step, values)

    def note(self, step: int, values: dict[str, Any]) -> None:
        """Adds a step's metrics to the next line, and writes the line if it is due."""
        if values["skipped_in_a_row"] >= MAX_SKIPPED:
            if self.writer is not None:
                self.writer.wait()
            newest = checkpoints.newest_good(self.directory.checkpoints)
            last = "there is no checkpoint yet" if newest is None else f"the last good checkpoint is step {newest}"
            what = "loss, gradient or statistics were not finite"
            if any(optimiser.skip_norm > 0 for optimiser in self.optimisers.values()):
                what += ", or a gradient's norm was above train.optimiser.skip_norm,"
            advice = f"; {self.model.if_not_finite}" if self.model.if_not_finite else ""
            raise UserError(f"{what} in {MAX_SKIPPED} steps up to step {step}; {last}{advice}")
        self.window.add(values)
        if self.due(step, self.config.log_every):
            line = self.window.line()
            if self.log is not None:
                self.log.write(step, "train", line)
            self.bar.set_postfix_str(describe(line, [name for name in line if name.startswith("loss")]))

    def due(self, step: int, every: int) -> bool:
        return step == self.config.steps or (every > 0 and step % every == 0)

    def after(self, step: int) -> None:
        """Does what is due after a step: validation, a sample grid, a checkpoint."""
        config = self.config
        validate = config.validate_every > 0 and "validation" in self.dataset.splits
        validate = validate and self.due(step, config.validate_every)
        sample = self.draws_grids() and self.due(step, config.sample_every)
        save = self.due(step, config.checkpoint_every)
        if not (validate or sample or save):
            return
        self.read_metrics(0)
        seconds = self.spent()  # without the last grid
        try:
            if validate and self.main:
                self.validate(step)
        finally:  # a failed score or grid must not prevent the checkpoint
            if save:
                self.save(seconds)
        if sample and self.main:
            self.sample(step)

    def spent(self) -> float:
        """Seconds of training so far, including compilation and the time before the run was resumed."""
        return self.seconds + time.monotonic() - self.started

    def save(self, seconds: float) -> None:
        """Writes a checkpoint, with the run's configuration and the metrics since the last line."""
        state = gather_state(self.model, self.state)
        if self.writer is not None:
            self.writer.save(state, {"window": self.window.state, "seconds": seconds, "config": self.document})

    def stop(self, step: int, number: int) -> None:
        """Saves after an interruption and raises `Interrupted`."""
        self.read_metrics(0)
        self.save(self.spent())
        if self.writer is not None:
            self.writer.wait()
        raise Interrupted(step, 128 + number)

    def context(self) -> tuple[Roles, Context]:
        """The parameters that samples and scores use, and their context."""
        params = parallel.replicate(averaged(self.state)) if self.state.ema else self.state.params
        extra = gather_state(self.model, self.state).extra if jax.process_count() == 1 else self.state.extra
        ctx = Context(self.state.step, None, params, extra, self.frozen, bool(self.state.ema))
        return params, ctx

    @parallel.alone()
    def validate(self, step: int) -> None:
        """Scores a fixed part of the validation split with fixed keys."""
        name = "validate" if self.model.validate is not None else "log_prob"
        if getattr(self.model, name) is None:
            return
        split = self.dataset.splits["validation"]
        key_data, key_score = rng.split_key(rng.stream(rng.seed_key(self.seed), rng.VALIDATION), 2)
        batch = self.held_out(split, min(split.num, self.config.validation_images), key_data)
        arrays = batch if name == "validate" else {**batch, "cond": self.model.condition(batch)}
        params, ctx = self.context()
        at_once = self.config.batch_size // self.config.accumulation
        scores = run_over(self.model, name, params, ctx, key_score, arrays, batch_size=at_once)
        scores = scores if isinstance(scores, dict) else {"log_prob": scores}
        means = {name: float(np.mean(values, dtype=np.float64)) for name, values in scores.items()}
        assert self.log is not None
        self.log.write(step, "validation", means)
        tqdm.write(f"step {step}: validation {describe(means)}", file=sys.stderr)

    def held_out(self, split: Split, num: int, key: jax.Array) -> Batch:
        """The first `num` examples of a split as the model sees them, on the host."""
        batch = with_position(split.fetch(np.arange(num)))
        batch = self.validation_transform(rng.image_keys(key, batch["index"]), batch)
        return {name: np.asarray(array) for name, array in batch.items()}

    def draws_grids(self) -> bool:
        return self.model.sample is not None and self.config.samples_per_class > 0

    def grid_conditions(self) -> tuple[int, Cond]:
        """Rows of a sample grid, and the conditions of its images.

        Class-conditional: a row per class, at most 16, evenly spaced. Other conditions: a row per held-out example.
        Unconditional: ten rows.
        """
        model, columns = self.model, self.config.samples_per_class
        if not model.conditions:
            return 10, {}
        if model.conditions == ("label",):
            rows = min(model.data.num_classes, MOST_ROWS)
            classes = np.linspace(0, model.data.num_classes - 1, rows).round().astype(np.int32)
            return rows, {"label": np.repeat(classes, columns)}
        split = self.dataset.splits.get("validation", self.dataset.splits["test"])
        rows = min(10, split.num)
        batch = self.held_out(split, rows, rng.stream(rng.seed_key(self.seed), rng.DATA))
        return rows, {name: np.repeat(array, columns, axis=0) for name, array in model.condition(batch).items()}

    def names(self, cond: Cond) -> list[str]:
        """The names of the images' classes; [] if classes have none."""
        names = self.model.data.label_names
        return [names[label] for label in cond["label"]] if names and "label" in cond else []

    @parallel.alone()
    def sample(self, step: int) -> Path:
        """Writes a sample grid."""
        spec, columns = self.model.images, self.config.samples_per_class
        rows, cond = self.grid_conditions()
        params, ctx = self.context()
        key = rng.seed_key(self.seed)
        ctx = prepared(self.model, params, ctx, key)
        at_once = min(rows * columns, SAMPLED_AT_ONCE)
        images = sample_images(self.model, params, ctx, key, rows * columns, cond=cond, batch_size=at_once)
        path = self.directory.samples(step)
        write_png(path, make_grid(to_display(images, spec.levels), columns, names=self.names(cond)))
        return path

    def draw_missing_grid(self) -> None:
        """Draws the grid of the step that the run resumes from, if it was killed between checkpoint and grid."""
        due = self.first > 0 and self.draws_grids() and self.due(self.first, self.config.sample_every)
        if due and self.main and not self.directory.samples(self.first).is_file():
            self.sample(self.first)
