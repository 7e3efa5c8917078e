"""Every family at the same budget: python -m jgen.compare --data digits --minutes 10 --seeds 3 --workdir runs/compare

Each system is measured (speed, operations, memory, at several sizes), trained for the steps that its speed puts into
the time on this machine (or, with --teraflops, its operations into as many), sampled and scored. What was done before
is kept: the same command goes on where it was stopped. A system that fails becomes a row with its error. The outcome,
written anew after every stage, is WORKDIR/comparison.md, .csv, .json and .html, grids.png and figures.png.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jgen import cli
from jgen.core.files import lock
from jgen.errors import UserError, require, require_positive

ROOT = Path(__file__).resolve().parents[2]
FEWEST = 50  # as jgen.metrics.quality.FEWEST: fewer samples could not be scored after hours of training


@dataclass(frozen=True)
class Arguments:
    """What is compared, and at which budget."""

    data: str = "digits"
    """Data set: the variant of every configuration that is trained."""
    minutes: float = 10.0
    """Training time of each system and seed on this machine, compiling apart."""
    teraflops: float = 0.0
    """Instead of the time: trillions of operations of training, by XLA's count; 0: the time."""
    seeds: int = 3
    """Trainings of each system, with seeds 0, 1, ..."""
    systems: str = "all"
    """Names such as ddpm,vae; all: every system that has this data set and makes images."""
    samples: int = 1000
    """Samples that are scored."""
    num: int = 0
    """Test images that samples are compared with; 0: all."""
    likelihood_images: int = 200
    """The first of them, at the most, whose likelihood is found; a bound of diffusion takes long."""
    inception: str = ""
    """File of the published Inception network's weights: distances are then FID, as with jgen.evaluate."""
    sizes: tuple[int, ...] = (8, 16, 32)
    """Heights and widths at which speed is measured."""
    workdir: str = "runs/compare"
    """Where runs and the outcome are."""


@dataclass(frozen=True)
class System:
    """A configuration, and that of its first stage, "" where it stands alone."""

    name: str
    config: str
    first_stage: str


def find_systems(data: str, wanted: str) -> list[System]:
    """The systems to compare, by their configurations.

    Raises:
      UserError: a data set that no configuration has, or a system that is unknown or lacks it.
    """
    from jgen.compare.program import first_stage_config

    found, stages, variants = {}, set(), set()
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        module = cli.import_config(path)
        variants |= set(module.VARIANTS)
        if data in module.VARIANTS:
            config = f"{path.relative_to(ROOT)}:{data}"
            first = first_stage_config(config, module.get_config(data))
            found[path.stem] = System(path.stem, config, first)
            stages.add(Path(first.partition(":")[0]).stem)
    require(bool(found), f"--data is {data}: configurations have {', '.join(sorted(variants))}")
    systems = {name: system for name, system in found.items() if name not in stages}
    if wanted == "all":
        return list(systems.values())
    for name in wanted.split(","):
        known = f"the systems with {data} are {', '.join(systems)}"
        require(name not in stages, f"{name} is the first stage of another system and makes no images itself: {known}")
        require(name in systems, f"there is no system {name!r}: {known}")
    return [systems[name] for name in dict.fromkeys(wanted.split(","))]


class Failed(Exception):
    """A stage of one system ended with an error."""


class Stopped(BaseException):
    """One of `SIGNALS` came; of no kind that a library would take for its own trouble."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


def stop(number: int, frame: Any) -> None:
    raise Stopped(number)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Within it, each of `SIGNALS` that is not ignored, as under nohup, raises `Stopped`."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment() -> dict[str, str]:
    """That of the programs: they import this jgen."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def run(words: list[str], log: Path) -> None:
    """A program of jgen's, its progress shown and its output kept. Raises `Failed` with its last line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # A session of its own: Ctrl-C reaches this program alone, which passes it on once, so that a training can save.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    last: deque[bytes] = deque(maxlen=400)
    process = None
    try:
        with log.open("ab", buffering=0) as file:
            process = subprocess.Popen([sys.executable, *words], env=environment(), **pipes)
            while piece := process.stdout.read1(4096):
                file.write(piece)
                last.append(piece)
                sys.stderr.buffer.write(piece)
                sys.stderr.flush()
        process.wait()
    except BaseException as error:  # also a full disk: nothing goes on unseen
        if process is not None and process.poll() is None:
            by_key = isinstance(error, Stopped) and error.number == signal.SIGINT
            process.send_signal(signal.SIGINT if by_key else signal.SIGTERM)
            sys.stderr.buffer.write(process.communicate()[0])
        raise
    if process.returncode:
        said = reason(b"".join(last).decode(errors="replace"))
        killed = f"killed by signal {-process.returncode}" if process.returncode < 0 else ""
        raise Failed(": ".join(filter(None, (killed, said))) or f"exit code {process.returncode}")


def reason(output: str) -> str:
    """Why a program failed, by what it printed: its error line, or the exception below a traceback."""
    lines = [line for line in output.splitlines() if line.strip()]
    said = [line for line in lines if re.match(r"error: |[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b", line)]
    return (said or lines or [""])[-1].removeprefix("error: ").strip()


def steps_for(cost: dict[str, Any], arguments: Arguments, share: float) -> int:
    """Training steps that the budget allows. Raises `Failed` when it is too short for one."""
    if arguments.teraflops:
        one = cost["flops_per_image"] * cost["batch_size"] / 1e12
        steps, said = share * arguments.teraflops / one, f"{arguments.teraflops} teraflops"
        needs = f"{one:.3g} teraflops"
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
    from jgen.compare.rows import read

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
        from jgen.compare.rows import read

        todo = self.to_measure(system)
        try:
            for config, path, sizes in todo:
                if has_sizes(path, sizes):
                    continue
                words = ["-m", "jgen.compare.measure", config, "--out", str(path), "--add", "--sizes", *sizes]
                self.changed = True
                run(words, path.with_name("measure.log"))
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
        from jgen.compare.rows import read
        from jgen.train.logs import best_of, validation_scores
        from jgen.train.run_directory import write_json

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
            run([str(ROOT / words[0]), *words[1:]], log)
        # On few images many systems fit what they have seen long before the time is up.
        _, best = best_of(validation_scores(path))
        chosen = ["--step", "best"] if best else []
        commands.append([*evaluation, *chosen, "--grid", str(path.with_suffix(".png")), "--out", str(outcome)])
        keep()
        run(commands[-1], log)

    def stage(self, system: System, what: str, *args: Any) -> None:
        """One stage; what goes wrong in it is kept for the table, and the others go on."""
        from jgen.compare.rows import read
        from jgen.train.run_directory import write_json

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


def command(args: list[str]) -> int:
    a = cli.parse(Arguments, args, "python -m jgen.compare", __doc__ or "")
    require_positive(**{"--minutes": a.minutes, "--seeds": a.seeds})
    by_time = a.minutes == Arguments.minutes or not a.teraflops
    require(by_time, f"--minutes is {a.minutes} and --teraflops {a.teraflops}: a budget is one or the other")
    require(a.samples >= FEWEST, f"--samples is {a.samples}: distances need at least {FEWEST}")
    require(a.num == 0 or a.num >= FEWEST, f"--num is {a.num}: it must be at least {FEWEST}, or 0 for all test images")
    require(a.likelihood_images >= 1, f"--likelihood-images is {a.likelihood_images}: it must be above zero")
    fits = 0 <= a.teraflops < math.inf
    require(fits, f"--teraflops is {a.teraflops}: it must be above zero and finite, or 0 for a budget of time")
    require(bool(a.sizes) and min(a.sizes) >= 1, f"--sizes is {a.sizes}: sizes must be above zero")
    systems = find_systems(a.data, a.systems)
    if a.inception:
        check_inception(a.inception)
    from jgen.compare import page

    page.pyplot()  # without matplotlib it would fail after hours
    fingerprint, there = look_at_data(a, systems[0])
    comparison = Comparison(a, systems, there)
    from jgen.compare.rows import markdown, quality_table

    with lock(comparison.workdir, "is comparing in", "wait for it, or choose another --workdir"):
        check_budget(comparison, fingerprint)
        try:
            with heard():
                comparison.run()
                rows = comparison.report()
        except Stopped as stopped:
            print("stopped; run the same command again to go on", file=sys.stderr)
            return 128 + stopped.number
    print(markdown(quality_table(rows)))
    print(comparison.workdir / "comparison.html")
    if not any(row["seeds"] for row in rows):
        raise UserError(f"no system could be trained and scored: {next(iter(rows[0]['errors'].values()), 'no reason')}")
    return 0


def look_at_data(a: Arguments, system: System) -> tuple[str, int]:
    """Hash of the data, and number of its test images.

    Raises:
      UserError: data that cannot be loaded, or that has fewer images than are asked for.
    """
    from jgen.data import dataset

    data = dataset.load(cli.load_config(system.config, ROOT)[0].data)
    there = data.splits["test"].num
    require(a.num <= there, f"--num is {a.num}: test of {data.name} has {there} images")
    return data.fingerprint, there


def check_inception(path: str) -> None:
    """Raises `UserError` for a file that cannot be read as Inception's weights: it would be found out after hours."""
    words = [sys.executable, "-m", "jgen.metrics.inception", path]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    require(done.returncode == 0, f"--inception: {reason(done.stderr)}")


def check_budget(comparison: Comparison, fingerprint: str) -> None:
    """Refuses a folder that was begun with another budget, data set, number of images, Inception network, or
    configuration: its rows would not compare.

    Args:
      fingerprint: of the data.
    """
    from jgen.compare.rows import read
    from jgen.experiment import flatten
    from jgen.train.run_directory import write_json

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
    write_json(path, now)


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", str(shutil.get_terminal_size((120, 40)).columns))
    cli.main(command)
