"""Checks and times jgen on this machine's accelerator: one command, one table.

    python benchmarks/accelerator.py [--minutes 8] [--only right,unet_bfloat16] [--out FILE.json] [--small]

1. right   losses, gradients and samples of every system's `tiny` compared with the CPU's, in float32 and bfloat16;
           a second run gives the same bits; a resumed training ends in the same bits
2. fast    training steps and samplers compared with PyTorch on the same device (the same network, weights, batch,
           precision), with torch.compile; operations per second relative to the measured peak of matrix products;
           memory; compile time; where the time of training steps goes, from the profiler
3. loop    the rate of train.py's loop compared with that of the bare step

The record is written after every part. If its file already exists, for the same device and commit, new measurements
replace those in it. The command ends within --minutes; what there was no time for is listed and does not count as a
failure. Every part runs in its own processes, so a failure does not affect the other parts. It needs JAX, Flax, Optax,
Orbax and NumPy; without PyTorch it measures jgen alone; a system that needs another missing package, such as diffrax,
is skipped and named; tensorflow-datasets, grain and tyro are not used. --small uses small networks and some of the
systems: a minute or two on two CPU cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from on_device import report  # noqa: E402
from on_device.servers import Failed, Late, Missing, Server  # noqa: E402

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
QUICK = f"{DETERMINISTIC} --xla_gpu_autotune_level=0"  # what is right does not depend on which kernel is fastest
GROWING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share the device's memory


class Session:
    """A run of the benchmark: its time, its record, its processes."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder = args, folder
        self.started = time.monotonic()
        self.record: dict[str, Any] = {}
        self.servers: list[Server] = []
        self.lock = threading.Lock()

    def left(self, reserve: float = 0.0) -> float:
        """Seconds that are left."""
        return 60 * self.args.minutes - (time.monotonic() - self.started) - reserve

    def say(self, text: str) -> None:
        left = max(0, int(self.left()))
        print(f"[{time.monotonic() - self.started:4.0f} s, {left // 60}:{left % 60:02d} left] {text}", flush=True)

    def server(self, name: str, **environment: str) -> Server:
        """Starts a separate process for requests; its output goes to the folder."""
        server = Server(sys.executable, self.folder / f"{name}.log", environment)
        with self.lock:
            self.servers.append(server)
        return server

    def wants(self, *names: str) -> bool:
        return not self.args.only or any(name in self.args.only for name in names)

    def write(self) -> None:
        """Writes the record."""
        if self.args.out:
            from jgen.train.run_directory import write_json

            with self.lock:
                write_json(Path(self.args.out), self.record)


def begin(session: Session) -> Server:
    """Records the device and its peaks; continues the record of an earlier run on the same device."""
    import json

    from jgen.train.run_directory import commit, processor

    # Half of the device's memory: PyTorch's process has the other half.
    jax_server = session.server("jgen", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5")
    session.say("starting JAX; the peaks of the device")
    about = jax_server.ask("costs.device", session.left(), small=session.args.small)
    record = {"commit": commit(), "processor": processor(), "small": session.args.small, **about}
    record |= {"command": [], "right": {}, "resume": {}, "fast": {}, "loop": {}}
    if session.args.out and Path(session.args.out).is_file():
        earlier = json.loads(Path(session.args.out).read_text())
        if all(earlier.get(name) == record[name] for name in ("commit", "device", "small", "versions")):
            record = {**record, **{name: earlier[name] for name in ("command", "right", "resume", "fast", "loop")}}
    record["command"] = [*record["command"], " ".join(["python", *sys.argv])]
    session.record = record
    peaks = ", ".join(f"{name} {rate:.4g}" for name, rate in about["peak_tflops"].items())
    session.say(f"{about['device']}: TFLOP/s {peaks}; copies {about['copy_gb_per_second']:.4g} GB/s")
    session.write()
    return jax_server


def outcome_of(error: Failed) -> dict[str, Any]:
    """The record's entry for a request without a result: it failed, or the time was up, which is not an error."""
    return {"late" if isinstance(error, Late) else "failed": str(error)}


def check_right(session: Session, reserve: float) -> None:
    """Runs every system on the CPU, then on the device, several at a time."""
    pairs = max(1, min(7, (os.cpu_count() or 1) // 2))
    until = session.left(reserve)
    device = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()}
    device |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest", **GROWING}
    if session.record["backend"] == "cpu":
        device.pop("XLA_FLAGS")
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    first = session.server("right_cpu0", **cpu)
    try:
        waiting = deque(first.ask("right.systems", until, small=session.args.small))
    except Late as error:
        session.record["not_reached"] = ["all systems"]
        return session.say(f"right: {error}")
    except Failed as error:
        session.record["right"]["all float32"] = {"wrong": [str(error)], "failed": True}
        return session.say(f"right: {error}")
    stop = time.monotonic() + until

    def work(number: int) -> None:
        reference = first if number == 0 else session.server(f"right_cpu{number}", **cpu)
        tested = session.server(f"right_device{number}", **device)
        while time.monotonic() < stop:
            try:
                system, dtype = waiting.popleft()
            except IndexError:
                break
            where: dict[str, Any] = {"name": system, "dtype": dtype, "folder": str(session.folder)}
            try:
                reference.ask("right.reference", stop - time.monotonic(), **where)
                outcome = tested.ask("right.device", stop - time.monotonic(), **where)
            except Missing as error:
                outcome = {"wrong": [], "missing": str(error)}
                session.say(f"{system} {dtype}: passed over, {error} is not installed")
            except Late as error:
                waiting.append([system, dtype])
                session.say(f"{system} {dtype}: {error}")
                break
            except Failed as error:
                outcome = {"wrong": [str(error)], "failed": True}
            with session.lock:
                session.record["right"][f"{system} {dtype}"] = outcome
            if outcome["wrong"]:
                session.say(f"{system} {dtype}: {'; '.join(outcome['wrong'])}")
        for server in (reference, tested):
            server.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(pairs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = {name: outcome for name, outcome in session.record["right"].items() if "missing" not in outcome}
    good = sum(not outcome["wrong"] for outcome in done.values())
    session.say(f"right: {good} of {len(done)} as on the CPU{f'; {len(waiting)} not reached' * bool(waiting)}")
    session.record["not_reached"] = [" ".join(each) for each in waiting]
    session.write()


def check_resume(session: Session, reserve: float) -> None:
    """Compares an uninterrupted training with one that is stopped and resumed; each start is a separate process."""
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()}
    environment = {} if session.record["backend"] == "cpu" else flags
    hashes = []
    try:
        for run, steps in (("straight", 20), ("stopped", 10), ("stopped", 20)):
            # A shared cache of compiled programs, as users have: compiling again may choose other kernels.
            cache = {"JGEN_CACHE": str(session.folder / "fit_cache")}
            server = session.server(f"fit_{run}_{steps}", **environment, **cache, **GROWING)
            place = str(session.folder / run)
            hashes.append(server.ask("right.fit", session.left(reserve), run=place, steps=steps))
            server.close()
        same = hashes[0] == hashes[2]
        session.record["resume"] = {"same_bits": same, "hashes": hashes}
        session.say(f"resume: {'the same bits' if same else 'OTHER BITS than a training straight through'}")
    except Failed as error:
        session.record["resume"] = outcome_of(error)
        session.say(f"resume: {error}")
    session.write()


def time_cases(session: Session, jax_server: Server, reserve: float) -> None:
    """Every case of `on_device.cases`: jgen's side, then PyTorch's in each variant."""
    torch_server = None
    if importlib.util.find_spec("torch") is not None:
        torch_server = session.server("torch", TORCHINDUCTOR_CACHE_DIR=str(session.folder / "inductor"))
    else:
        session.say("PyTorch is not installed: jgen is timed alone")
    traced = False
    for row in jax_server.ask("fast.plan", session.left(reserve), small=session.args.small):
        if not session.wants("fast", row["name"], row["case"]):
            continue
        if session.left(reserve) < 15:
            session.say(f"{row['name']}: no time is left for it")
            continue
        where = {"case": row["case"], "precision": row["precision"], "small": session.args.small}
        where["folder"] = str(session.folder)
        entry: dict[str, Any] = {**row, "jgen": {}, "torch": {}}
        session.record["fast"][row["name"]] = entry
        budget = 1.0 if session.args.small else 4.0
        try:
            session.say(f"{row['name']}: {row['title']}, compiling")
            entry["jgen"] = prepare(session, jax_server, where, reserve)
            for task, facts in entry["jgen"]["tasks"].items():
                facts["seconds"] = jax_server.ask("fast.measure", session.left(reserve), task=task, seconds=budget)
                session.say(f"  jgen {task}: {report.line(facts)}")
            if not traced or (session.left(reserve) > 30 and not session.args.small):
                first = next(iter(entry["jgen"]["tasks"]))
                entry["trace"] = jax_server.ask("fast.trace", session.left(reserve), task=first, runs=3)
                traced = True
        except Failed as error:
            entry["jgen"] |= outcome_of(error)
            session.say(f"  jgen: {error}")
        session.write()
        measured = not {"failed", "late"} & entry["jgen"].keys()
        for variant in row["variants"] if torch_server is not None and measured else ():
            time_peer(session, torch_server, entry, where, variant, budget, reserve)
            session.write()
    jax_server.close()


def prepare(session: Session, server: Server, where: dict[str, Any], reserve: float) -> dict[str, Any]:
    """jgen's side of a case; if it fails on an accelerator, it is repeated without cuDNN's kernels."""
    try:
        return server.ask("fast.prepare", session.left(reserve), **where)
    except Failed as error:
        if session.record["backend"] == "cpu" or isinstance(error, Late) or session.left(reserve) < 30:
            raise
        session.say(f"  jgen: {error}; once more with the plain operations of XLA")
        server.ask("fast.use_plain_forms", session.left(reserve))
        return {**server.ask("fast.prepare", session.left(reserve), **where), "plain_after": str(error)}


def time_peer(
    session: Session,
    server: Server,
    entry: dict[str, Any],
    where: dict[str, Any],
    variant: str,
    budget: float,
    reserve: float,
) -> None:
    """One variant of PyTorch's side; "graphs" means CUDA graphs."""
    if variant == "graphs" and session.record["backend"] != "gpu":
        return
    try:
        facts = server.ask("fast.prepare_torch", max(1.0, session.left(reserve)), **where, variant=variant)
        entry["torch"][variant] = facts
        for task, one in facts["tasks"].items():
            times = server.ask("fast.measure", max(1.0, session.left(reserve)), task=task, seconds=budget)
            one["seconds"] = [one["times"] * seconds for seconds in times]
            ratio = statistics.median(entry["jgen"]["tasks"][task]["seconds"]) / statistics.median(one["seconds"])
            session.say(f"  PyTorch {variant} {task}: {report.line(one)}; jgen takes {ratio:.2f} of it")
    except Failed as error:
        entry["torch"].setdefault(variant, {"tasks": {}}).update(outcome_of(error))
        session.say(f"  PyTorch {variant}: {error}")


def check_loop(session: Session) -> None:
    """Times the loop of train.py against the bare step."""
    for name in ("ddpm", "vae"):
        if session.left() < 10:
            session.say(f"loop {name}: no time is left for it")
            return
        server = session.server(f"loop_{name}", JGEN_CACHE=str(session.folder / "cache"))
        try:
            outcome = server.ask("looped.measure", session.left(), name=name, small=session.args.small)
            session.say(f"loop {name}: {outcome['rate']:.1%} of the bare step's rate")
        except Failed as error:
            outcome = outcome_of(error)
            session.say(f"loop {name}: {error}")
        server.close()
        session.record["loop"][name] = outcome
        session.write()


def run(session: Session) -> None:
    jax_server = begin(session)
    small, total = session.args.small, 60 * session.args.minutes
    fast = not session.args.only or any(name not in ("right", "resume", "loop") for name in session.args.only)
    loop = session.wants("loop")
    reserve = 0.6 * total if fast and not small else 30.0 * loop
    # Both wait for the compiler more than for the device, so they run at the same time.
    parts = [check_right] if session.wants("right") else []
    parts += [check_resume] if session.wants("right", "resume") else []
    threads = [threading.Thread(target=part, args=(session, reserve)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if fast:
        time_cases(session, jax_server, reserve=min(45.0, 0.1 * total) * loop)
    if loop:
        check_loop(session)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit in minutes")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help="right, resume, fast, loop, or cases: vae,..."
    )
    parser.add_argument("--out", help="JSON file for the record")
    parser.add_argument("--small", action="store_true", help="use small networks, for CPUs")
    parser.add_argument("--logs", help="folder for the output of the processes")
    args = parser.parse_args()
    if args.only:
        from on_device.cases import CASES

        rows = [f"{name}_{p}" for name, case in CASES.items() for p in case.precisions]
        known = {"right", "resume", "fast", "loop", *CASES, *rows}
        if wrong := sorted(set(args.only) - known):
            parser.error(f"--only has {', '.join(wrong)}: it takes {', '.join(sorted(known))}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(args.logs) if args.logs else Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        session = Session(args, place)
        try:
            run(session)
        except Failed as error:
            session.say(str(error))
        finally:
            for server in session.servers:
                server.close()
        if session.record:
            print(report.table(session.record))
            return 1 if report.is_wrong(session.record) else 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
