"""The stages of a comparison: each runs programs, and leaves a file by which it is known to be done."""

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

from jgen import cli
from jgen.compare import processes
from jgen.compare.config import ROOT, Arguments, System
from jgen.compare.processes import Failed
from jgen.compare.rows import read
from jgen.errors import UserError, require
from jgen.experiment import flatten
from jgen.train.logs import best_of, validation_scores
from jgen.train.run_directory import write_json


def steps_for(cost: dict[str, Any], arguments: Arguments, share: float) -> int:
    """Training steps that the budget allows. Raises `Failed` when it is too short for one."""
    if arguments.teraflops:
        one = cost["flops_per_image"] * cost["batch_size"] / 1e12
        steps, said = share * arguments.teraflops / one, f"{arguments.teraflops} trillion operations"
        needs = f"{one:.3g} trillion"
    else:
        one = cost["step_seconds"]
        steps, said, needs = share * arguments.minutes * 60 / one, f"{arguments.minutes} minutes", f"{one:.3g} s"
    if steps < 1:
        raise Failed(f"a budget of {said} is too short for one step, which takes {needs}")
    return int(steps)


# What `train_words` and the seed of a run say in place of a configuration.
OWN = ("seed", "first_stage", "train.steps", "train.sample_every")
OWN += ("train.validate_every", "train.checkpoint_every", "train.keep_every")


def train_words(config: str, run_path: Path, steps: int, seed: int, first: Path | None) -> list[str]:
    """A training as a command of train.py, with a grid at the end only, and eight checkpoints to choose the best of.

    The learning rate rises for at most a tenth of the steps, whatever the configuration's own training needs.
    """
    part = str(-(-steps // 8))
    warmup = cli.load_config(config, ROOT)[0].train.optimiser.warmup_steps
    words = ["train.py", config, "--workdir", str(run_path), "--seed", str(seed), "--train.steps", str(steps)]
    words += ["--train.sample-every", "0", "--train.validate-every", part]
    words += ["--train.checkpoint-every", part, "--train.keep-every", part]
    words += ["--train.optimiser.warmup-steps", str(steps // 10)] if warmup > steps // 10 else []
    return words + (["--first-stage", str(first)] if first else [])


def steps_of(command: str) -> int:
    """The steps that a command of training asks for."""
    words = shlex.split(command)
    return int(words[words.index("--train.steps") + 1])


def has_sizes(path: Path, wanted: list[str]) -> bool:
    """Whether a file holds what was measured of a system at its own size and all that are wanted."""
    found = read(path) or {"sizes": {}}
    return "own" in found and all("error" not in found["sizes"].get(size, {"error": ""}) for size in wanted)


class Comparison:
    """The stages of a comparison, each of which leaves a file by which it is known to be done."""

    def __init__(self, arguments: Arguments, systems: list[System], test_images: int):
        self.arguments, self.systems, self.workdir = arguments, systems, Path(arguments.workdir)
        self.test_images = test_images  # that there are
        self.costs: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {}
        self.changed = False  # since the last report

    def measure(self, system: System) -> None:
        """measure.json of the system, and of its first stage."""
        todo = self.to_measure(system)
        try:
            for config, path, sizes in todo:
                if has_sizes(path, sizes):
                    continue
                words = ["-m", "jgen.compare.measure", config, "--out", str(path), "--add", "--sizes", *sizes]
                self.changed = True
                processes.run(words, path.with_name("measure.log"))
        finally:  # what was found before it went wrong at another size is enough to train
            found = [one["own"] for _, path, _ in todo if (one := read(path)) and "own" in one]
            if len(found) == len(todo):
                self.costs[system.name] = found[-1], found[0] if system.first_stage else None

    def to_measure(self, system: System) -> list[tuple[str, Path, list[str]]]:
        """(configuration, file, sizes beside its own) of the system, after that of its first stage."""
        folder = self.workdir / system.name
        first = [(system.first_stage, folder / "first_measure.json", [])] if system.first_stage else []
        return [*first, (system.config, folder / "measure.json", [str(size) for size in self.arguments.sizes])]

    def outcome(self, system: System, seed: int) -> Path:
        """The file by which a training is known to be scored."""
        return self.workdir / system.name / f"seed{seed}.evaluation.json"

    def train(self, system: System, seed: int) -> None:
        """A run, and its evaluation. A system of two stages divides the budget evenly."""
        folder = self.workdir / system.name
        cost, first_cost = self.costs[system.name]
        path, log = folder / f"seed{seed}", folder / f"seed{seed}.log"
        outcome = self.outcome(system, seed)
        if outcome.is_file():
            return
        self.changed = True
        said = folder / f"seed{seed}.commands.json"
        if before := read(said):  # the speed may be measured anew, but a run goes on as it was begun
            steps = [steps_of(line) for line in before if "--train.steps" in line]
        else:
            share = 0.5 if first_cost else 1.0
            steps = [steps_for(one, self.arguments, share) for one in (first_cost, cost) if one]
        first = folder / f"seed{seed}-first" if first_cost else None
        commands = [train_words(system.first_stage, first, steps[0], seed, None)] if first else []
        commands.append(train_words(system.config, path, steps[-1], seed, first))
        a = self.arguments
        evaluation = ["-m", "jgen.evaluate", str(path), "--samples", str(a.samples), "--seed", str(seed)]
        evaluation += ["--likelihood-images", str(min(a.likelihood_images, a.num or self.test_images))]
        evaluation += ["--num", str(a.num)] if a.num else []
        evaluation += ["--inception", a.inception] if a.inception else []
        keep = lambda: write_json(said, [shlex.join(["python", *words]) for words in commands])
        keep()
        for words in commands:
            processes.run([str(ROOT / words[0]), *words[1:]], log)
        # On few images many systems fit what they have seen long before the time is up.
        _, best = best_of(validation_scores(path))
        chosen = ["--step", "best"] if best else []
        commands.append([*evaluation, *chosen, "--grid", str(path.with_suffix(".png")), "--out", str(outcome)])
        keep()
        processes.run(commands[-1], log)

    def stage(self, system: System, what: str, *args: Any) -> None:
        """One stage; what goes wrong in it is kept for the table, and the others go on."""
        path = self.workdir / system.name / "errors.json"
        name = what if not args else f"seed {args[0]}"
        errors, wrong = {}, ""
        with contextlib.suppress(UserError):  # of a file that is damaged: it is written anew
            errors = read(path) or {}
        try:
            getattr(self, what)(system, *args)
        except (Failed, UserError) as failure:
            wrong = str(failure)
        except Exception as failure:  # a full disk, a file of another jgen: nothing of one system ends the others
            wrong = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        if wrong:
            print(f"{system.name}, {name}: {wrong}", file=sys.stderr, flush=True)
        rest = {stage: said for stage, said in errors.items() if stage != name}
        write_json(path, rest | ({name: wrong} if wrong else {}))

    def run(self) -> None:
        """All stages: measuring, then every system with seed 0, with seed 1, ..."""
        stages: list[tuple[System, str, tuple[int, ...]]] = [(system, "measure", ()) for system in self.systems]
        stages += [(system, "train", (seed,)) for seed in range(self.arguments.seeds) for system in self.systems]
        took, guessed = {"measure": 0.0, "train": 0.0}, {"measure": 0.0, "train": 0.0}
        for number, (system, what, args) in enumerate(stages):
            guesses = {"measure": 0.0, "train": 0.0}
            for stage in stages[number:]:
                guesses[stage[1]] += self.guess(*stage)
            ahead = sum(left * (took[kind] / guessed[kind] if guessed[kind] else 1.0) for kind, left in guesses.items())
            where = f"{number + 1} of {len(stages)}, about {ahead / 60:.0f} min left"
            seed = f" seed {args[0]}" if args else ""
            print(f"[{where}] {system.name}{seed}: {what}", file=sys.stderr, flush=True)
            if what == "train" and system.name not in self.costs:
                continue  # it could not be measured
            begun, guess = time.monotonic(), self.guess(system, what, args)
            self.stage(system, what, *args)
            if self.changed:
                if not self.guess(system, what, args):  # it is done
                    took[what] += time.monotonic() - begun
                    guessed[what] += guess
                self.report()
                self.changed = False

    def guess(self, system: System, what: str, args: tuple[int, ...]) -> float:
        """Seconds that a stage is going to take, 0 for one that is done, before it is known how far guesses hold."""
        try:
            if what == "measure":
                todo = [sizes for _, path, sizes in self.to_measure(system) if not has_sizes(path, sizes)]
                return sum(20.0 * (2 + len(sizes)) for sizes in todo)
        except UserError:  # damaged: it will be said
            return 0.0
        if self.outcome(system, *args).is_file():
            return 0.0
        if not self.arguments.teraflops:
            return 60.0 * self.arguments.minutes + 30.0
        found = [one for one in self.costs.get(system.name, ()) if one]
        rates = [one["step_seconds"] / (one["flops_per_image"] * one["batch_size"] / 1e12) for one in found]
        return self.arguments.teraflops * sum(rates) / max(1, len(rates)) + 30.0

    def report(self) -> list[dict[str, Any]]:
        """Writes the outcome as far as it stands; returns its rows."""
        from jgen.compare import report, rows

        found = rows.all_rows(self.workdir, [system.name for system in self.systems], self.arguments.seeds)
        report.write_report(self.workdir, self.arguments, found)
        return found


def check_budget(comparison: Comparison, fingerprint: str) -> None:
    """Refuses a folder that was begun with another budget, data set, number of images, Inception network, or
    configuration: its rows would not compare.

    Args:
      fingerprint: of the data.
    """
    path, may_change = comparison.workdir / "arguments.json", ("seeds", "systems", "sizes", "workdir")
    now = {k: v for k, v in dataclasses.asdict(comparison.arguments).items() if k not in may_change}
    now["hash of the data"] = fingerprint
    if comparison.arguments.inception:
        weights = Path(comparison.arguments.inception).read_bytes()
        now["hash of the file of --inception"] = hashlib.sha256(weights).hexdigest()
    for system in comparison.systems:
        for config in filter(None, (system.config, system.first_stage)):
            fields = flatten(cli.load_config(config, ROOT)[0])
            now |= {f"{name} of {config}": value for name, value in fields.items() if name not in OWN}
    now = json.loads(json.dumps(now))  # tuples as lists
    if found := read(path):
        plain = {k: v for k, v in dataclasses.asdict(Arguments()).items() if k in now}
        before = plain | found
        changed = [k for k, v in now.items() if before.get(k, v) != v]
        option = lambda k: f"--{k.replace('_', '-')}" if k in plain else k
        said = "; ".join(f"{option(k)} was {before[k]}, is {now[k]}" for k in changed)
        require(not changed, f"{comparison.workdir} was begun otherwise: {said} (use another --workdir)")
        now = before | now
    else:
        own = [comparison.workdir / system.name for system in comparison.systems]
        runs = [path.name for path in own if any(path.glob("seed*"))]
        said = f"{comparison.workdir} has runs that no comparison made, of {', '.join(runs)}: use another --workdir"
        require(not runs, said)
    write_json(path, now)
