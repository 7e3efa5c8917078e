"""The stages of a comparison: each runs programs and writes a file that marks it as done."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from jgen.compare import processes
from jgen.compare.config import ROOT, Arguments, describe_budget
from jgen.compare.processes import Failed
from jgen.compare.record import Record, with_grids
from jgen.compare.rows import Row, all_rows, by_distance, read
from jgen.compare.systems import System, Training, is_guided
from jgen.errors import UserError, require
from jgen.experiment import flatten
from jgen.train.logs import best_of, validation_scores
from jgen.train.run_directory import write_json

CHECKPOINTS = 8  # checkpoints per training, of which the best is scored
Stage = tuple[System, str, tuple[int, ...]]  # a system, "measure" or "train", and the seed of a training


def steps_for(cost: dict[str, Any], arguments: Arguments, share: float) -> int:
    """Training steps that a share of the budget allows. Raises `Failed` if it is too short for one."""
    if arguments.teraflops:
        one = cost["flops_per_image"] * cost["batch_size"] / 1e12
        steps, needs = share * arguments.teraflops / one, f"{one:.3g} trillion"
    else:
        one = cost["step_seconds"]
        steps, needs = share * arguments.minutes * 60 / one, f"{one:.3g} s"
    if steps < 1:
        raise Failed(f"a budget of {describe_budget(arguments)} is too short for one step, which takes {needs}")
    return int(steps)


# Options that `train_words` and the seed replace in a configuration.
OWN: tuple[str, ...] = ("seed", "train.steps", "train.log_every", "train.sample_every", "train.validation_images")
OWN += ("train.validate_every", "train.checkpoint_every", "train.keep_every")


def train_words(training: Training, run: Path, steps: int, seed: int, frozen: dict[str, Path]) -> list[str]:
    """A training as a command of train.py, with a grid at the end only, and checkpoints to choose the best from.

    The warm-up takes at most a tenth of the steps, even if the configuration's own training has a longer one.

    Args:
      frozen: {role: run directory} of the models that it depends on.
    """
    part = str(-(-steps // CHECKPOINTS))
    warmup = training.experiment.train.optimiser.warmup_steps
    words = ["train.py", training.config, "--workdir", str(run), "--seed", str(seed), "--train.steps", str(steps)]
    words += ["--train.sample-every", "0", "--train.validate-every", part]
    words += ["--train.checkpoint-every", part, "--train.keep-every", part]
    words += ["--train.optimiser.warmup-steps", str(steps // 10)] if warmup > steps // 10 else []
    return words + [word for role, path in frozen.items() for word in (f"--frozen.{role}", str(path))]


def steps_of(command: str) -> int:
    """The number of steps in a training command."""
    words = shlex.split(command)
    return int(words[words.index("--train.steps") + 1])


def has_sizes(path: Path, sizes: list[str]) -> bool:
    """Whether a file has the measurements of a configuration at its own size and at all of these sizes."""
    document = read(path) or {"sizes": {}}
    return "own" in document and all("error" not in document["sizes"].get(size, {"error": ""}) for size in sizes)


class Comparison:
    """The stages of a comparison, each of which writes a file that marks it as done.

    Args:
      test_images: the number of test images.
      record: the comparison that systems are added to, or None.
    """

    def __init__(self, arguments: Arguments, systems: list[System], test_images: int, record: Record | None = None):
        self.arguments, self.systems, self.workdir = arguments, systems, Path(arguments.workdir).expanduser()
        self.test_images, self.record = test_images, record
        self.costs: dict[str, list[dict[str, Any]]] = {}  # for each training of a system, in order
        self.changed = False  # since the last report

    def measure(self, system: System) -> None:
        """Measures each training of a system, and writes its file."""
        files = self.measurements(system)
        try:
            for training, path, sizes in files:
                if has_sizes(path, sizes):
                    continue
                words = ["-m", "jgen.compare.measure", training.config, "--out", str(path), "--add", "--sizes", *sizes]
                self.changed = True
                processes.run(words, path.with_name("measure.log"))
        finally:  # measurements before a failure at another size are enough to train
            measured = [document["own"] for _, path, _ in files if (document := read(path)) and "own" in document]
            if len(measured) == len(files):
                self.costs[system.name] = measured

    def measurements(self, system: System) -> list[tuple[Training, Path, list[str]]]:
        """(training, file, further sizes) for each training of a system, in order."""
        folder, sizes = self.workdir / system.name, [str(size) for size in self.arguments.sizes]
        *frozen, own = system.training.in_order()
        files = [(training, folder / f"measure-{training.name}.json", list[str]()) for training in frozen]
        return [*files, (own, folder / "measure.json", sizes)]

    def outcome(self, system: System, seed: int, unguided: bool = False) -> Path:
        """The file that marks a training as scored."""
        return self.workdir / system.name / f"seed{seed}.{'unguided' if unguided else 'evaluation'}.json"

    def is_scored(self, system: System, seed: int) -> bool:
        """Whether a training is scored, for guided samples also without guidance."""
        both = (False, True) if is_guided(system.training) else (False,)
        return all(self.outcome(system, seed, unguided).is_file() for unguided in both)

    def train(self, system: System, seed: int) -> None:
        """Trains the runs of a system, between which the budget is divided evenly, and evaluates the last one."""
        if self.is_scored(system, seed):
            return
        self.changed = True
        folder = self.workdir / system.name
        path, log = folder / f"seed{seed}", folder / f"seed{seed}.log"
        trainings = self.training_commands(system, seed)
        self.write_commands(system, seed, trainings)
        for words in trainings:
            processes.run([str(ROOT / words[0]), *words[1:]], log)
        # With few images, many systems overfit long before the time is up.
        best = best_of(validation_scores(path), system.model.best)
        evaluations = self.evaluation_commands(system, seed, ["--step", "best"] if best else [])
        self.write_commands(system, seed, [*trainings, *evaluations.values()])
        for unguided, words in evaluations.items():
            if not self.outcome(system, seed, unguided).is_file():
                processes.run(words, log)

    def commands_file(self, system: System, seed: int) -> Path:
        """The file with the commands of a seed's results."""
        return self.workdir / system.name / f"seed{seed}.commands.json"

    def write_commands(self, system: System, seed: int, commands: list[list[str]]) -> None:
        """Writes commands as typed in a shell."""
        write_json(self.commands_file(system, seed), [shlex.join(["python", *words]) for words in commands])

    def training_commands(self, system: System, seed: int) -> list[list[str]]:
        """The words of each training command of a system, in order."""
        folder, trainings = self.workdir / system.name, system.training.in_order()
        steps: list[int] = []
        if before := read(self.commands_file(system, seed)):  # even if the speed is remeasured, a run keeps its steps
            steps = [steps_of(command) for command in before if "--train.steps" in command]
        if len(steps) != len(trainings):
            share = 1 / len(trainings)
            steps = [steps_for(cost, self.arguments, share) for cost in self.costs[system.name]]
        runs = {training.config: folder / f"seed{seed}-{training.name}" for training in trainings}
        runs[system.training.config] = folder / f"seed{seed}"
        commands = []
        for training, number in zip(trainings, steps):
            frozen = {role: runs[inner.config] for role, inner in training.frozen.items()}
            commands.append(train_words(training, runs[training.config], number, seed, frozen))
        return commands

    def evaluation_commands(self, system: System, seed: int, checkpoint: list[str]) -> dict[bool, list[str]]:
        """The words of the evaluation command of a system's run, and, under True, of its samples without guidance."""
        a, path = self.arguments, self.workdir / system.name / f"seed{seed}"
        common = ["-m", "jgen.evaluate", str(path), "--samples", str(a.samples), "--seed", str(seed), *checkpoint]
        common += ["--num", str(a.num)] if a.num else []
        common += ["--inception", a.inception] if a.inception else []
        images = str(min(a.likelihood_images, a.num or self.test_images))
        grid, out = path.with_suffix(".png"), self.outcome(system, seed)
        words = {False: [*common, "--likelihood-images", images, "--grid", str(grid), "--out", str(out)]}
        if is_guided(system.training):
            plain = ["--sampling.guidance-scale", "1", "--likelihood-images", "1"]
            words[True] = [*common, *plain, "--out", str(self.outcome(system, seed, unguided=True))]
        return words

    def attempt(self, system: System, what: str, seeds: tuple[int, ...]) -> None:
        """Runs one stage; a failure is recorded for the table, and the other stages continue."""
        path = self.workdir / system.name / "errors.json"
        name = what if not seeds else f"seed {seeds[0]}"
        errors: dict[str, str] = {}
        wrong = ""
        with contextlib.suppress(UserError):  # a damaged file is rewritten
            errors = read(path) or {}
        try:
            getattr(self, what)(system, *seeds)
        except (Failed, UserError) as failure:
            wrong = str(failure)
        except Exception as failure:  # such as a full disk: one system must not stop the others
            wrong = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        if wrong:
            print(f"{system.name}, {name}: {wrong}", file=sys.stderr, flush=True)
        rest = {stage: error for stage, error in errors.items() if stage != name}
        write_json(path, rest | ({name: wrong} if wrong else {}))

    def run(self) -> None:
        """All stages: measuring, then every system with seed 0, with seed 1, ..."""
        stages: list[Stage] = [(system, "measure", ()) for system in self.systems]
        stages += [(system, "train", (seed,)) for seed in range(self.arguments.seeds) for system in self.systems]
        took, guessed = {"measure": 0.0, "train": 0.0}, {"measure": 0.0, "train": 0.0}
        for number, (system, what, seeds) in enumerate(stages):
            left = self.seconds_left(stages[number:], took, guessed)
            place = f"{number + 1} of {len(stages)}, about {left / 60:.0f} min left"
            seed = f" seed {seeds[0]}" if seeds else ""
            print(f"[{place}] {system.name}{seed}: {what}", file=sys.stderr, flush=True)
            if what == "train" and system.name not in self.costs:
                continue  # it could not be measured
            begun, guess = time.monotonic(), self.guess(system, what, seeds)
            self.attempt(system, what, seeds)
            if self.changed:
                if not self.guess(system, what, seeds):  # it is done
                    took[what] += time.monotonic() - begun
                    guessed[what] += guess
                self.report()
                self.changed = False

    def seconds_left(self, stages: list[Stage], took: dict[str, float], guessed: dict[str, float]) -> float:
        """Estimated seconds left: the guesses, corrected by the error of earlier guesses of the same kind."""
        guesses = {"measure": 0.0, "train": 0.0}
        for stage in stages:
            guesses[stage[1]] += self.guess(*stage)
        return sum(left * (took[kind] / guessed[kind] if guessed[kind] else 1.0) for kind, left in guesses.items())

    def guess(self, system: System, what: str, seeds: tuple[int, ...]) -> float:
        """Estimated seconds of a stage, 0 if it is done."""
        try:
            if what == "measure":
                todo = [sizes for _, path, sizes in self.measurements(system) if not has_sizes(path, sizes)]
                return sum(20.0 * (2 + len(sizes)) for sizes in todo)
        except UserError:  # damaged: the stage itself reports it
            return 0.0
        if self.is_scored(system, *seeds):
            return 0.0
        if not self.arguments.teraflops:
            return 60.0 * self.arguments.minutes + 30.0
        costs = self.costs.get(system.name, [])
        rates = [cost["step_seconds"] / (cost["flops_per_image"] * cost["batch_size"] / 1e12) for cost in costs]
        return self.arguments.teraflops * sum(rates) / max(1, len(rates)) + 30.0

    def report(self) -> list[Row]:
        """Writes the results so far; returns their rows."""
        from jgen.compare import report

        record, arguments, folder = self.record, self.arguments, self.workdir
        first = command = "python -m jgen.compare " + shlex.join(sys.argv[1:])
        wanted, earlier = None, []
        if record:
            wanted, earlier, folder = record.protocol(self.systems), record.other_rows(self.systems), record.folder
            sizes = tuple(sorted({*record.arguments.sizes, *arguments.sizes}))
            first, arguments = record.document["command"], dataclasses.replace(record.arguments, sizes=sizes)
        rows = all_rows(self.workdir, self.systems, self.arguments.seeds, wanted)
        earlier += record.replaced_rows(rows) if record else []
        rows = [row for row in rows if row["system"] not in {each["system"] for each in earlier}]
        rows = [row | {"workdir": str(self.workdir), "comparison": command} for row in rows]
        rows = by_distance([*with_grids(folder, rows, self.workdir), *with_grids(folder, earlier, folder)])
        report.write_report(folder, arguments, rows, first)
        return rows


def check_budget(comparison: Comparison, fingerprint: str) -> None:
    """Refuses a folder that was started with another budget, data set, number of images, Inception network or
    configuration: its rows would not be comparable.

    Args:
      fingerprint: the hash of the data.
    """
    path, may_change = (
        comparison.workdir / "arguments.json",
        ("seeds", "systems", "sizes", "workdir", "into", "replace"),
    )
    now = {k: v for k, v in dataclasses.asdict(comparison.arguments).items() if k not in may_change}
    now["hash of the data"] = fingerprint
    if comparison.arguments.inception:
        weights = Path(comparison.arguments.inception).read_bytes()
        now["hash of the file of --inception"] = hashlib.sha256(weights).hexdigest()
    for system in comparison.systems:
        for training in system.training.in_order():
            fields = {k: v for k, v in flatten(training.experiment).items() if k not in OWN}
            now |= {f"{k} of {training.config}": v for k, v in fields.items() if not k.startswith("frozen.")}
    now = json.loads(json.dumps(now))  # tuples as lists
    if saved := read(path):
        options = {k: v for k, v in dataclasses.asdict(Arguments()).items() if k in now}
        before = options | saved
        changed = [k for k, v in now.items() if before.get(k, v) != v]
        names = {k: f"--{k.replace('_', '-')}" if k in options else k for k in changed}
        changes = "; ".join(f"{names[k]} was {before[k]}, is {now[k]}" for k in changed)
        require(not changed, f"{comparison.workdir} was begun otherwise: {changes} (use another --workdir)")
        now = before | now
    else:
        folders = [comparison.workdir / system.name for system in comparison.systems]
        runs = ", ".join(folder.name for folder in folders if any(folder.glob("seed*")))
        message = f"{comparison.workdir} has runs that no comparison made, of {runs}: use another --workdir"
        require(not runs, message)
    write_json(path, now)
