"""jgen's VAE beside pythae's: the same dense network, weights and images, trained for a pass over them, in one run.

    python benchmarks/vae.py [--peer-python PYTHON] [--rounds 5] [--out results/FILE.json]

A pass is what training does with 12,800 binary 28x28 images in batches of 128: their shuffled order, batches, the
bound's gradient, Adam. "pythae" is its own trainer, "bare" its model in a loop of nothing else over tensors laid ready.
Each side runs in a process of its own and waits while the other works. Rounds are interleaved, a round being three
passes of each side, of which the first is not counted: it finds the caches full of the other's data. Ratios are jgen's
median images a second over the peer's. Compile time stands apart.
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
NUM, BATCH, LATENT, HIDDEN, RATE = 12_800, 128, 40, 512, 1e-3
PEERS = ("pythae", "bare")


def images() -> np.ndarray:
    """Binary images, uint8 (NUM, 28, 28, 1), with blobs to learn."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:28, :28] / 28
    centre = rng.uniform(0.2, 0.8, (NUM, 2, 1, 1))
    return (((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) < 0.05).astype(np.uint8)[..., None]


def jgen_side(folder: Path) -> tuple[Callable[[], float], dict[str, Any]]:
    """A pass, which returns the mean loss of its last batch, and what it ran on."""
    from jgen.cli import keep_memory

    keep_memory()  # as train.py does
    import jax

    from jgen.core import parallel
    from jgen.core.model import ImageSpec
    from jgen.data.batches import train_batches
    from jgen.data.dataset import Split
    from jgen.models.vae import vae
    from jgen.train.config import Config, Optimiser
    from jgen.train.optimisers import make_optimiser
    from jgen.train.step import init_state, make_train_step

    data, label = images(), np.zeros(NUM, np.int32)
    fetch = lambda where: {"image": data[where], "label": label[where], "index": where.astype(np.int32)}
    config = vae.Config(network="dense", widths=(HIDDEN,), blocks=0, latent=LATENT, decoder="bernoulli")
    model = vae.make(config, ImageSpec(28, 28, 1, 0, 2))
    make = lambda: make_optimiser(Config(optimiser=Optimiser(learning_rate=RATE)))
    optimisers = {"encoder": make(), "decoder": make()}
    state = init_state(model, optimisers, jax.random.key(0), fetch(np.arange(1)), False)
    flat = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(state.params)}
    np.savez(folder / "weights.npz", **flat)
    step = make_train_step(model, optimisers)
    held, passes = [parallel.replicate(state)], [0]

    def run() -> float:
        start = passes[0] * (NUM // BATCH)
        for batch in train_batches(Split(NUM, fetch), 0, BATCH, start, start + NUM // BATCH):
            held[0], metrics = step(held[0], {}, batch)
        passes[0] += 1
        return float(metrics["loss"])

    return run, {"jax": jax.__version__, "device": str(jax.devices()[0].device_kind)}


def peer_side(folder: Path, variant: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """The same of pythae's model, by its own trainer or in a bare loop."""
    import logging

    import torch
    import vae_peer
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.INFO)
    params: dict[str, Any] = {}
    for name, array in np.load(folder / "weights.npz").items():
        node = params
        *parts, last = name.strip("[]'").split("']['")
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = array
    model = vae_peer.make_peer((1, 28, 28), LATENT)
    model.load_state_dict(vae_peer.by_peer_name(params), strict=True)
    x = torch.from_numpy(images().transpose(0, 3, 1, 2).astype(np.float32))
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if variant == "pythae":
        options = {"per_device_train_batch_size": BATCH, "learning_rate": RATE, "no_cuda": True}
        config = BaseTrainerConfig(output_dir=str(folder / "pythae"), **options)
        trainer = BaseTrainer(model, BaseDataset(x, torch.zeros(NUM)), training_config=config)
        trainer.prepare_training()
        return lambda: float(trainer.train_step(1)), about
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)

    def run() -> float:
        for first in range(0, NUM, BATCH):
            loss = model({"data": x[first : first + BATCH]}).loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        return loss.item()

    return run, about


def serve(side: str, folder: Path) -> None:
    """A worker: for every line that it reads, one pass, and an answer with its seconds. The first compiles."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    run, about = jgen_side(folder) if side == "jgen" else peer_side(folder, side)
    print(json.dumps(about), file=out, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = run()
        print(json.dumps({"seconds": time.perf_counter() - start, "loss": loss}), file=out, flush=True)


class Worker:
    """A process that serves one side."""

    def __init__(self, python: str, side: str, folder: str):
        command = [python, __file__, "--worker", side, "--folder", folder]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.read()

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side of the benchmark ended early")
        return json.loads(line)

    def run(self) -> dict[str, Any]:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()


def compare(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Images a second of every side, jgen's ratio to each peer, seconds of the first pass, losses."""
    workers = {"jgen": Worker(sys.executable, "jgen", folder)}
    workers |= {side: Worker(args.peer_python, side, folder) for side in PEERS}
    first = {side: worker.run()["seconds"] for side, worker in workers.items()}
    times: dict[str, list[float]] = {side: [] for side in workers}
    losses = {}
    for _ in range(args.rounds):
        for side, worker in workers.items():
            worker.run()
            for _ in range(2):
                answer = worker.run()
                times[side].append(answer["seconds"])
            losses[side] = answer["loss"]
    rate = {side: NUM / statistics.median(found) for side, found in times.items()}
    ratios = {side: rate["jgen"] / rate[side] for side in PEERS}
    for side in workers:
        ratio = f", jgen is {ratios[side]:.2f} times as fast" if side in ratios else ""
        print(f"{side}: {rate[side]:,.0f} images/s (first pass {first[side]:.1f} s, loss {losses[side]:.1f}){ratio}")
    for worker in workers.values():
        worker.process.stdin.close()
        worker.process.wait()
    about = {side: worker.about for side, worker in workers.items()}
    return {"images_per_second": rate, "ratio": ratios, "first_pass_seconds": first, "loss": losses, "about": about}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable, help="Python with torch and pythae")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="JSON file for the outcome")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(args.worker, Path(args.folder))
    with tempfile.TemporaryDirectory() as folder:
        found = compare(args, folder)
    if args.out:
        from jgen.train.run_directory import commit

        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")]
        machine = {"processor": f"{os.cpu_count()} x {names[0] if names else platform.processor()}"}
        machine |= {"platform": platform.platform(), "commit": commit()}
        case = f"28x28x1 binary, batch {BATCH}, one hidden layer of {HIDDEN}, latent {LATENT}, float32, Adam"
        document = {"command": " ".join(["python", *sys.argv]), "case": case, **machine, "rounds": args.rounds}
        Path(args.out).write_text(json.dumps({**document, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
