"""Programs timed side by side: code shared by the benchmarks.

Each side runs in its own process and waits while the others work, so that JAX and PyTorch may come from different
Python environments and neither keeps threads on the other's cores. Rounds are interleaved; in each round, every side's
first run is not counted, since it finds the caches full of another side's data (unless it takes longer than 20 s; then
it is the only run). A ratio is jgen's median over that of the peer's fastest variant. First runs, which compile, are
reported separately. All sides allocate with huge pages. Memory is the peak so far of a side, including earlier tasks:
on a GPU the device's memory, else that of the process, including compilation. Before anything is timed, the outputs of
all sides must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]
LONG = 20.0  # seconds; longer runs are made once per round


@dataclass(frozen=True)
class Side:
    """One of the programs to be timed."""

    tasks: dict[str, Callable[[], Any]]
    """Functions that each run a task once and wait for its end."""
    output: np.ndarray
    """The output of its network, to be compared with the other sides'."""
    about: dict[str, Any]
    """Versions, device, threads; "runs" if the task is only 1/runs of the whole: its time is multiplied by "runs"."""


@dataclass(frozen=True)
class Benchmark:
    """Several programs that do the same work."""

    title: str
    case: str
    tasks: tuple[str, ...]
    peers: dict[str, tuple[str, ...]]
    """{peer: its variants}. Sides whose names begin with "jgen" run in this Python, the others in --peer-python.

    "other_jgen" is jgen with another JAX, timed only if --sides names it.
    """
    make_side: Callable[[str, Any, Path], Side]
    """Maps (side, setting, folder) to a Side. The side "jgen" is made first and saves its weights in the folder."""
    tolerance: float
    """The largest absolute difference of outputs."""
    settings: dict[str, Any] = field(default_factory=lambda: {"": None})
    """{name: the value passed to the sides}: one row of the table each."""
    long_after: dict[str, str] = field(default_factory=dict)
    """{long task: earlier task}: for the long task only each peer's fastest variant in the earlier task is timed."""


def save_weights(folder: Path, tree: Any) -> None:
    """Saves a tree of arrays for the other sides."""
    import jax

    flat = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    np.savez(folder / "weights.npz", **flat)


def load_weights(folder: Path) -> dict[str, Any]:
    """The tree that jgen's side saved, as nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, array in np.load(folder / "weights.npz").items():
        *parts, last = name.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = array
    return tree


def shaken(tree: Any, scale: float) -> Any:
    """A tree of arrays with normal noise added, so that no weight is zero."""
    import jax

    draw = np.random.default_rng(2)
    return jax.tree.map(lambda p: (np.asarray(p) + scale * draw.standard_normal(p.shape)).astype(np.float32), tree)


def about_jax(side: str = "jgen") -> dict[str, Any]:
    import jax

    return {"other jax" if side == "other_jgen" else "jax": jax.__version__, "device": jax.devices()[0].device_kind}


def about_torch(*packages: str) -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return about | {package: version(package) for package in packages}


def serve(benchmark: Benchmark, name: str, setting: str, folder: Path) -> None:
    """A worker: reads one task per line, runs it once, answers with its seconds. The first run of each compiles."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    if "jgen" in name:
        from jgen.cli import keep_memory

        keep_memory()  # as train.py does
    side = benchmark.make_side(name, benchmark.settings[setting], folder)
    np.save(folder / f"{name}.npy", np.asarray(side.output, np.float64))
    print(json.dumps(side.about), file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        side.tasks[line.strip()]()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_gib": peak_gib()}), file=answers, flush=True)


def peak_gib() -> float:
    """Peak memory of this side so far: of its GPU, else of its process."""
    jax, torch = (sys.modules.get(name) for name in ("jax", "torch"))
    if jax is not None and "peak_bytes_in_use" in (stats := jax.local_devices()[0].memory_stats() or {}):
        return stats["peak_bytes_in_use"] / 2**30
    if torch is not None and torch.cuda.is_available() and (held := torch.cuda.max_memory_allocated()):
        return held / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Worker:
    """A process that serves one side."""

    def __init__(self, python: str, side: str, setting: str, folder: str):
        command = [python, sys.argv[0], "--worker", side, "--settings", setting, "--folder", folder]
        environment = {**os.environ, "TQDM_DISABLE": "1"}
        if "jgen" not in side:  # huge pages, as jgen takes them itself: PyTorch is up to 10 % faster with them
            environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes, text=True, env=environment)
        self.side, self.peak_gib = side, 0.0
        self.about = self.read()
        self.runs = self.about.pop("runs", 1)

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the side {self.side} ended early")
        return json.loads(line)

    def run(self, task: str) -> float:
        """Seconds of one run of the task."""
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        answer = self.read()
        self.peak_gib = answer["peak_gib"]
        return answer["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def check_outputs(benchmark: Benchmark, folder: Path) -> float:
    """The largest difference between jgen's output and another's. Ends the program if it exceeds the tolerance."""
    ours = np.load(folder / "jgen.npy")
    others = [np.load(path) for path in folder.glob("*.npy") if path.name != "jgen.npy"]
    difference = max(float(np.abs(ours - other).max()) for other in others)
    print(f"outputs differ by at most {difference:.1e}", flush=True)
    if difference > benchmark.tolerance:
        raise SystemExit(f"the sides are not the same: more than {benchmark.tolerance:.0e} apart")
    return difference


def time_task(task: str, workers: dict[str, Worker], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every side's counted runs, and of its first run, which compiles."""
    first = {name: worker.run(task) for name, worker in workers.items()}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds):
        for name, worker in workers.items():
            runs = [worker.run(task)]
            if runs[0] < LONG:
                runs = [worker.run(task) for _ in range(2 if runs[0] > 1 else 5)]
            times[name] += [worker.runs * seconds for seconds in runs]
        print(f"  {task}: round {number + 1} of {rounds}", end="\r", file=sys.stderr, flush=True)
    return times, first


def compare(benchmark: Benchmark, args: argparse.Namespace, setting: str) -> list[dict[str, Any]]:
    """Rows, one per task and peer: medians of every side, the ratio, first runs, memory."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sides = ["jgen", *(variant for variants in benchmark.peers.values() for variant in variants)]
        sides = [side for side in sides if side == "jgen" or side in args.sides]
        pythons = {side: sys.executable if side.startswith("jgen") else args.peer_python for side in sides}
        workers = {side: Worker(pythons[side], side, setting, folder) for side in sides}
        difference = check_outputs(benchmark, Path(folder))
        fastest: dict[tuple[str, str], str] = {}
        for task in args.tasks:
            before = benchmark.long_after.get(task, "")
            timed = {fastest[peer, before] for peer in benchmark.peers if (peer, before) in fastest} or set(workers)
            times, first = time_task(task, {s: w for s, w in workers.items() if s in timed | {"jgen"}}, args.rounds)
            median = {side: statistics.median(runs) for side, runs in times.items()}
            for peer, variants in benchmark.peers.items():
                best = min((side for side in variants if side in median), key=median.get, default=None)
                if best is None:
                    continue
                fastest[peer, task] = best
                row = {"task": task, "setting": setting, "peer": peer, "best_variant": best}
                row |= {"ratio": median["jgen"] / median[best], "output_difference": difference}
                mine = {side: seconds for side, seconds in median.items() if side in ("jgen", *variants)}
                row |= {"seconds": mine, "all_seconds": {side: times[side] for side in mine}}
                row |= {"first_seconds": {side: first[side] for side in mine}}
                row |= {"peak_gib": {side: workers[side].peak_gib for side in mine}}
                rows.append(row | {"versions": {**workers[best].about, **workers["jgen"].about}})
                print_row(row)
        for worker in workers.values():
            worker.close()
    return rows


def print_row(row: dict[str, Any]) -> None:
    times = "  ".join(f"{side} {seconds:.4g}" for side, seconds in row["seconds"].items())
    best = row["best_variant"]
    first, peak = (f"{row[name]['jgen']:.1f} / {row[name][best]:.1f}" for name in ("first_seconds", "peak_gib"))
    print(
        f"{row['task']} {row['setting']}: seconds {times}  ratio {row['ratio']:.3f}"
        f"  first run {first} s  memory so far {peak} GiB",
        flush=True,
    )


def main(benchmark: Benchmark, doc: str) -> None:
    """The command line of a benchmark."""
    variants = [variant for peer in benchmark.peers.values() for variant in peer]
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has the peer's packages")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=benchmark.settings, default=list(benchmark.settings))
    parser.add_argument("--tasks", nargs="+", choices=benchmark.tasks, default=list(benchmark.tasks))
    plain = [variant for variant in variants if variant != "other_jgen"]
    parser.add_argument("--sides", nargs="+", choices=variants, default=plain, help="variants of the peers to time")
    parser.add_argument("--out", help="JSON file for the results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(benchmark, args.worker, args.settings[0], Path(args.folder))
    rows = [row for setting in args.settings for row in compare(benchmark, args, setting)]
    if args.out:
        from jgen.train.run_directory import commit, processor, write_json

        document = {"title": benchmark.title, "case": benchmark.case, "command": " ".join(["python", *sys.argv])}
        document |= {"processor": processor(), "platform": platform.platform(), "commit": commit()}
        write_json(Path(args.out), {**document, "rounds": args.rounds, "rows": rows})
