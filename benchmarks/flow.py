"""jgen's Glow beside normflows': the same layers, weights and images, timed in one run.

    python benchmarks/flow.py [--peer-python PYTHON] [--rounds 5] [--out results/FILE.json]

A training step is uniform dequantisation, the density, its gradient, Adam and the moving average. Each side runs in a
process of its own and waits while the other works. Rounds are interleaved, a round being three runs of each side, of
which the first is not counted: it finds the caches full of the other's data. Ratios are jgen's median over that of the
peer's fastest variant. Compile time stands apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]
SHAPE, BATCH, SCALES, DEPTH, WIDTH = (32, 32, 3), 32, 3, 8, 128
TASKS = ("train", "log_prob", "sample")
VARIANTS = ("eager", "channels_last", "compile")


def images() -> np.ndarray:
    """Smooth uint8 images."""
    draw = np.random.default_rng(0)
    coarse = draw.uniform(0, 200, (BATCH, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    return (coarse + draw.uniform(0, 55, (BATCH, *SHAPE))).astype(np.uint8)


def jgen_side(folder: Path) -> dict[str, Any]:
    """{task: function that runs it once to the end}, and what it ran on; leaves weights and densities to compare."""
    from jgen.cli import keep_memory

    keep_memory()  # as train.py does
    import jax
    import jax.numpy as jnp

    from jgen.core import parallel
    from jgen.core.generate import sample_images
    from jgen.core.model import Context, ImageSpec
    from jgen.models.flow import glow
    from jgen.train.config import Config
    from jgen.train.optimisers import make_optimiser
    from jgen.train.step import init_state, make_train_step

    config = glow.Config(scales=SCALES, depth=DEPTH, width=WIDTH, class_conditional=False)
    model = glow.make(config, ImageSpec(*SHAPE, 0, 256))
    optimisers = {"flow": make_optimiser(Config())}
    batch = {"image": images(), "label": np.zeros(BATCH, np.int32), "index": np.arange(BATCH, dtype=np.int32)}
    state = jax.jit(lambda b: init_state(model, optimisers, jax.random.key(0), b, True))(batch)
    draw = np.random.default_rng(2)
    shake = lambda p: (np.asarray(p) + 0.02 * draw.standard_normal(p.shape)).astype(np.float32)
    params = jax.tree.map(shake, state.params)
    for scale in range(SCALES - 1):  # normflows' priors do not depend on what flows on
        params["flow"][f"scale{scale}"]["prior"]["given"]["kernel"] = np.zeros_like(
            params["flow"][f"scale{scale}"]["prior"]["given"]["kernel"]
        )
    tree = {"params": params["flow"], "fixed": jax.device_get(state.extra["flow"])}
    flat = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    np.savez(folder / "weights.npz", **flat)

    state = parallel.replicate(state._replace(params=params, ema=params))
    step = make_train_step(model, optimisers, ema_decay=0.999)
    placed = parallel.replicate(params)
    ctx = parallel.replicate(Context(jnp.int32(0), params, state.extra, {}))
    x = images().astype(np.float32) + 0.5
    density = jax.jit(lambda p, c: model.log_density(p, c, None, x, None))
    np.save(folder / "jgen.npy", np.asarray(density(placed, ctx)))
    held = [state]

    def train() -> None:
        held[0], _ = step(held[0], {}, batch)
        jax.block_until_ready(held[0])

    sample = lambda: sample_images(model, placed, ctx, jax.random.key(0), BATCH, batch_size=BATCH)
    tasks = {"train": train, "log_prob": lambda: jax.block_until_ready(density(placed, ctx)), "sample": sample}
    return {"tasks": tasks, "about": {"jax": jax.__version__, "device": str(jax.devices()[0].device_kind)}}


def torch_side(folder: Path, variant: str) -> dict[str, Any]:
    """The same of normflows in PyTorch, in one of its variants."""
    import copy
    from importlib.metadata import version

    import flow_peer
    import torch

    tree: dict[str, Any] = {}
    for name, array in np.load(folder / "weights.npz").items():
        *parts, last = name.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = array
    net = flow_peer.make_peer(SCALES, DEPTH, WIDTH, SHAPE)
    flow_peer.copy_weights(net, tree["params"], tree["fixed"])
    layout = torch.channels_last if variant == "channels_last" else torch.contiguous_format
    net = net.to(memory_format=layout)
    average = copy.deepcopy(net)
    run: Callable = torch.compile(net.log_prob) if variant == "compile" else net.log_prob
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    pixels = torch.from_numpy(images().astype(np.float32)).permute(0, 3, 1, 2).contiguous(memory_format=layout)

    def train() -> None:
        loss = -torch.mean(run((pixels + torch.rand_like(pixels)) / 256 - 0.5, None))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1e-3)

    def log_prob() -> Any:
        with torch.no_grad():
            return run((pixels + 0.5) / 256 - 0.5, None)

    def sample() -> None:
        with torch.no_grad():
            x, _ = net.sample(BATCH)
            ((x + 0.5) * 256).floor().clip(0, 255).byte().numpy()

    if variant == "eager":
        np.save(folder / "peer.npy", log_prob().numpy() - np.prod(SHAPE) * np.log(256))
    about = {"torch": torch.__version__, "normflows": version("normflows"), "threads": torch.get_num_threads()}
    return {"tasks": {"train": train, "log_prob": log_prob, "sample": sample}, "about": about}


def serve(side: str, folder: Path) -> None:
    """A worker: reads a task a line, runs it once, answers with its seconds. The first run of each compiles."""
    made = jgen_side(folder) if side == "jgen" else torch_side(folder, side)
    print(json.dumps(made["about"]), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        made["tasks"][line.strip()]()
        print(json.dumps(time.perf_counter() - start), flush=True)


class Worker:
    """A process that serves one side."""

    def __init__(self, python: str, side: str, folder: str):
        command = [python, __file__, "--worker", side, "--folder", folder]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.read()

    def read(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side of the benchmark ended early")
        return json.loads(line)

    def run(self, task: str) -> float:
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(args: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    """Rows, one a task: medians of every side, ratio against the fastest peer, first-run times."""
    workers = {"jgen": Worker(sys.executable, "jgen", folder)}
    workers |= {variant: Worker(args.peer_python, variant, folder) for variant in args.variants}
    a, b = np.load(Path(folder) / "jgen.npy"), np.load(Path(folder) / "peer.npy")
    difference = float(np.max(np.abs(a - b) / np.abs(b)))
    print(f"log-densities differ by at most {difference:.1e} of themselves", flush=True)
    assert difference < 1e-4, "the two flows are not the same"
    rows = []
    for task in args.tasks:
        first = {side: worker.run(task) for side, worker in workers.items()}
        times: dict[str, list[float]] = {side: [] for side in workers}
        for _ in range(args.rounds):
            for side, worker in workers.items():
                times[side] += [worker.run(task) for _ in range(3)][1:]
        median = {side: statistics.median(found) for side, found in times.items()}
        peer = min((side for side in median if side != "jgen"), key=median.get)
        row = {"task": task, "ratio": median["jgen"] / median[peer], "best_peer": peer, "seconds": median}
        row |= {"first_seconds": first, "all_seconds": times, "density_difference": difference}
        row["versions"] = {**workers["jgen"].about, **workers[peer].about}
        rows.append(row)
        others = "  ".join(f"{side} {seconds:.3f} s" for side, seconds in median.items())
        firsts = " / ".join(f"{seconds:.1f}" for seconds in first.values())
        print(f"{task:8}  {others}  ratio {row['ratio']:.2f}  first runs {firsts} s", flush=True)
    for worker in workers.values():
        worker.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable, help="Python with torch and normflows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", help="JSON file for the outcome")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(args.worker, Path(args.folder))
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(args, folder)
    if args.out:
        from jgen.train.run_directory import commit

        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")]
        processor = f"{os.cpu_count()} x {names[0] if names else platform.processor()}"
        case = f"{SHAPE}, batch {BATCH}, {SCALES} scales of {DEPTH} steps, width {WIDTH}, float32"
        document = {"command": " ".join(["python", *sys.argv]), "title": "Glow", "case": case, "processor": processor}
        document |= {"platform": platform.platform(), "commit": commit(), "rounds": args.rounds, "rows": rows}
        Path(args.out).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
