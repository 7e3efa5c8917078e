"""Cached sampling from Gated PixelCNN beside naive sampling, jgen's own and PyTorch's: the same network and weights.

    python benchmarks/autoregressive.py [--peer-python PYTHON] [--rounds 5] [--levels 256] [--out results/FILE.json]

28x28, batch 16, 7 blocks. Naive sampling runs the network over the whole image for every pixel; its passes are all
alike, so PASSES of the 784 are timed and the time scaled to 784. Each side runs in a process of its own and waits while
the others work, so that JAX and PyTorch may come from different Python environments. Rounds are interleaved; a side's
first run in each is not counted, and neither is compilation, which stands apart. Ratios are of medians.
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
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]
SIZE, BATCH, BLOCKS, FEATURES, HIDDEN, FIRST, KERNEL = 28, 16, 7, 32, 64, 7, 3
PASSES = 20  # of the 784 that a naive sampler makes
SIDES = ("cached", "naive", "torch", "torch_compile")


def images(levels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, levels, (BATCH, SIZE, SIZE, 1)).astype(np.int32)


def jgen_side(side: str, levels: int, folder: Path) -> dict[str, Any]:
    """A function that samples once, the part of the draws it makes, and what it is."""
    import jax
    import jax.numpy as jnp
    from naive_autoregressive import sample_naively

    from jgen.core import keys as rng
    from jgen.nn.gated_pixelcnn import GatedPixelCNN
    from jgen.samplers.autoregressive import sample_raster

    network = GatedPixelCNN(levels, 1, FEATURES, BLOCKS, HIDDEN, FIRST, KERNEL)
    params = jax.jit(network.init)(jax.random.key(0), images(levels))["params"]
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + 0.05 * noise.standard_normal(p.shape, dtype=np.float32), params)
    keys = rng.image_keys(jax.random.key(1), jnp.arange(BATCH))
    shape = (SIZE, SIZE, 1)
    if side == "cached":
        flat = {"/".join(k.key for k in path): v for path, v in jax.tree_util.tree_leaves_with_path(params)}
        np.savez(folder / "weights.npz", **flat)
        np.save(folder / "jgen.npy", jax.jit(network.apply)({"params": params}, images(levels))[:, :, :, 0])
        call = jax.jit(lambda p: sample_raster(network, p, keys, None, shape, levels))
        passes = SIZE * SIZE
    else:
        call = jax.jit(lambda p, n: sample_naively(network, p, keys, None, shape, levels, positions=n))
        call = lambda p, call=call: call(p, PASSES)
        passes = PASSES
    run = lambda: jax.block_until_ready(call(params))
    return {"run": run, "about": {"passes": passes, "jax": jax.__version__, "device": jax.devices()[0].device_kind}}


def torch_side(side: str, levels: int, folder: Path) -> dict[str, Any]:
    """Naive sampling in PyTorch: for each pixel the network over the whole image, then a draw."""
    import torch
    import torch_pixelcnn

    params: dict[str, Any] = {}
    for name, array in np.load(folder / "weights.npz").items():
        *parts, last = name.split("/")
        node = params
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = array
    net = torch_pixelcnn.GatedPixelCNN(levels, FEATURES, BLOCKS, HIDDEN, FIRST, KERNEL, 1).eval()
    net.copy_from(params)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = net.to(device)
    # Sampling needs no masks at run time: they are multiplied in once.
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch_pixelcnn.MaskedConv2d):
                module.weight.mul_(module.mask)
                module.mask.fill_(1)
    forward = torch.compile(net) if side == "torch_compile" else net
    if side == "torch":
        with torch.no_grad():
            out = net(torch.from_numpy(images(levels)).permute(0, 3, 1, 2).to(device))
        np.save(folder / "torch.npy", out.permute(0, 2, 3, 1).cpu().numpy())

    def run() -> None:
        x = torch.zeros(BATCH, 1, SIZE, SIZE, dtype=torch.int64, device=device)
        with torch.no_grad():
            for position in range(PASSES):
                i, j = divmod(position, SIZE)
                logits = forward(x)[:, :, i, j]
                x[:, 0, i, j] = torch.distributions.Categorical(logits=logits).sample()
        if device == "cuda":
            torch.cuda.synchronize()

    about = {"passes": PASSES, "torch": torch.__version__, "threads": torch.get_num_threads()}
    return {"run": run, "about": about}


def serve(side: str, levels: int, folder: Path) -> None:
    """A worker: at each line runs once and answers with its seconds. The first run compiles."""
    made = (torch_side if "torch" in side else jgen_side)(side, levels, folder)
    print(json.dumps(made["about"]), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        made["run"]()
        print(json.dumps(time.perf_counter() - start), flush=True)


class Worker:
    """A process that serves one side."""

    def __init__(self, python: str, side: str, levels: int, folder: Path):
        command = [python, __file__, "--worker", side, "--levels", str(levels), "--folder", str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.read()

    def read(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side of the benchmark ended early")
        return json.loads(line)

    def run(self) -> float:
        """Seconds for the 784 pixels of a batch."""
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self.read() * SIZE * SIZE / self.about["passes"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable, help="Python with torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--levels", type=int, default=256)
    parser.add_argument("--sides", nargs="+", choices=SIDES[1:], default=list(SIDES[1:]))
    parser.add_argument("--out", help="JSON file for the outcome")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(args.worker, args.levels, Path(args.folder))
    with tempfile.TemporaryDirectory() as folder:
        workers = {}
        for side in ("cached", *args.sides):
            python = args.peer_python if "torch" in side else sys.executable
            workers[side] = Worker(python, side, args.levels, Path(folder))
        difference = 0.0
        if "torch" in workers:
            difference = float(np.abs(np.load(f"{folder}/jgen.npy") - np.load(f"{folder}/torch.npy")).max())
            print(f"outputs of jgen and PyTorch differ by at most {difference:.1e}")
            assert difference < 1e-3, "the two networks are not the same"
        first = {side: worker.run() * worker.about["passes"] / (SIZE * SIZE) for side, worker in workers.items()}
        times: dict[str, list[float]] = {side: [] for side in workers}
        for _ in range(args.rounds):
            for side, worker in workers.items():
                worker.run()
                times[side].append(worker.run())
        about = {side: worker.about for side, worker in workers.items()}
        for worker in workers.values():
            worker.close()
    median = {side: statistics.median(found) for side, found in times.items()}
    print(
        f"{SIZE}x{SIZE}, {args.levels} levels, batch {BATCH}, {BLOCKS} blocks of {FEATURES} features: seconds a batch"
    )
    for side, seconds in median.items():
        ratio = seconds / median["cached"]
        print(f"  {side:14}{seconds:9.3f} s  {ratio:6.1f} times cached sampling   first run {first[side]:.1f} s")
    if args.out:
        from jgen.train.run_directory import commit

        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")]
        machine = {"processor": f"{os.cpu_count()} x {names[0]}", "platform": platform.platform(), "commit": commit()}
        case = f"{SIZE}x{SIZE}x1, {args.levels} levels, batch {BATCH}, {BLOCKS} blocks, {FEATURES} features, float32"
        document = {"command": " ".join(["python", *sys.argv]), "case": case, **machine, "rounds": args.rounds}
        rows = [
            {"side": s, "seconds": median[s], "all": times[s], "first_seconds": first[s], **about[s]} for s in median
        ]
        document |= {"passes_timed_of_784": PASSES, "output_difference": difference}
        Path(args.out).write_text(json.dumps({**document, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
