"""jgen's DCGAN beside the same network in PyTorch: the same weights and inputs, timed in one run.

    python benchmarks/dcgan.py [--peer-python PYTHON] [--rounds 5] [--out results/FILE.json]

A training step is one update of the discriminator and one of the generator, non-saturating, with Adam and the moving
average of both. Each side runs in a process of its own and waits while the other works, so that JAX and PyTorch may
come from different Python environments and neither keeps threads on the other's cores. Rounds are interleaved, a round
being five runs of each side, of which the first is not counted: it finds the caches full of the other's data. Ratios
are jgen's median over that of the peer's fastest variant (eager, channels-last, torch.compile); compile time apart.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]
SIZE, IMAGE_CHANNELS, BATCH, CHANNELS, LATENT = 32, 3, 64, (64, 128, 256), 100
TASKS = ("train", "sample")
VARIANTS = ("eager", "channels_last", "compile", "compile_channels_last")
CASE = f"{SIZE}x{SIZE}x{IMAGE_CHANNELS}, batch {BATCH}, channels {CHANNELS}, latent {LATENT}, float32"


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (B, H, W, C) and latents (B, latent)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, SIZE, SIZE, IMAGE_CHANNELS)).astype(np.uint8)
    return images, rng.standard_normal((BATCH, LATENT), dtype=np.float32)


def jgen_side(folder: Path) -> dict[str, Any]:
    """{task: function that runs it once to the end}, and what the networks give for comparison."""
    from jgen.cli import keep_memory

    keep_memory()  # as train.py does; PyTorch was found to gain nothing from it
    import jax
    import jax.numpy as jnp

    from jgen.core import parallel
    from jgen.core.generate import run_over, sample_images
    from jgen.core.model import Context, ImageSpec
    from jgen.models.gan import dcgan
    from jgen.train.config import Config, Optimiser
    from jgen.train.optimisers import make_optimiser
    from jgen.train.step import init_state, make_train_step

    images, z = inputs()
    config = dcgan.Config(channels=CHANNELS, latent=LATENT, conditioning="none")
    model = dcgan.make(config, ImageSpec(SIZE, SIZE, IMAGE_CHANNELS, 0, 256), parallel.AXIS)
    optimisers = {role: make_optimiser(Config(optimiser=Optimiser(beta1=0.5))) for role in ("gen", "disc")}
    batch = {"image": images, "label": np.zeros(BATCH, np.int32), "index": np.arange(BATCH, dtype=np.int32)}
    init = lambda b: init_state(model, optimisers, jax.random.key(0), b, True)
    state = jax.jit(init, compiler_options={"xla_backend_optimization_level": 1})(batch)
    flat = {"/".join(k.key for k in path): v for path, v in jax.tree_util.tree_leaves_with_path(state.params)}
    np.savez(folder / "weights.npz", **flat)
    state = parallel.replicate(state)
    params = parallel.replicate(state.params)
    ctx = parallel.replicate(Context(jnp.int32(0), params, state.extra, {}))
    key = jax.random.key(0)
    arrays = {"latents": z, "label": batch["label"], "index": batch["index"]}
    np.save(folder / "jgen.npy", run_over(model, "decode", params, ctx, key, arrays, batch_size=BATCH))
    step = make_train_step(model, optimisers, ema_decay=0.999)
    held = [state]

    def train() -> None:
        held[0], _ = step(held[0], {}, batch)
        jax.block_until_ready(held[0])

    sample = lambda: sample_images(model, params, ctx, key, BATCH, batch_size=BATCH)
    about = {"jax": jax.__version__, "device": str(jax.devices()[0].device_kind)}
    return {"tasks": {"train": train, "sample": sample}, "about": about}


def torch_side(folder: Path, variant: str) -> dict[str, Any]:
    """The same in PyTorch, in one of its variants."""
    import copy

    import dcgan_peer
    import torch
    from torch.nn.functional import softplus

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    params: dict[str, Any] = {}
    for name, array in np.load(folder / "weights.npz").items():
        *parts, last = name.split("/")
        node = params
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = array
    layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    networks = dcgan_peer.make_peers(CHANNELS, LATENT, SIZE, IMAGE_CHANNELS, params)
    gen, disc = (network.to(device).to(memory_format=layout) for network in networks)
    averages = [copy.deepcopy(network) for network in (gen, disc)]
    run_gen, run_disc = (torch.compile(n) if "compile" in variant else n for n in (gen, disc))
    optimisers = [torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True) for n in (gen, disc)]
    images, z = inputs()
    real = torch.from_numpy(images).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
    real = real.contiguous(memory_format=layout)
    latents = lambda: torch.randn(BATCH, LATENT, device=device)

    def train() -> None:
        with torch.no_grad():
            fake = run_gen(latents())
        loss = (softplus(-run_disc(real)) + softplus(run_disc(fake))).mean()
        optimisers[1].zero_grad(set_to_none=True)
        loss.backward()
        optimisers[1].step()
        disc.requires_grad_(False)  # spares it the weight gradients that the generator's update has no use for
        loss = softplus(-run_disc(run_gen(latents()))).mean()
        optimisers[0].zero_grad(set_to_none=True)
        loss.backward()
        optimisers[0].step()
        disc.requires_grad_(True)
        with torch.no_grad():
            for average, network in zip(averages, (gen, disc)):
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1e-3)
        sync()

    def sample() -> None:
        gen.eval()
        with torch.no_grad():
            x = run_gen(latents())
            ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        gen.train()

    if variant == "eager":
        gen.eval()
        with torch.no_grad():
            x = gen(torch.from_numpy(z).to(device)).permute(0, 2, 3, 1).cpu().numpy()
        gen.train()
        np.save(folder / "peer.npy", np.round((x + 1) * 127.5).clip(0, 255).astype(np.uint8))
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return {"tasks": {"train": train, "sample": sample}, "about": about}


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

    def __init__(self, python: str, side: str, folder: Path):
        command = [python, __file__, "--worker", side, "--folder", str(folder)]
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


def compare(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Rows, one a task: medians of every side, ratio against the fastest peer, first-run times."""
    workers = {"jgen": Worker(sys.executable, "jgen", folder)}
    workers |= {variant: Worker(args.peer_python, variant, folder) for variant in args.variants}
    if "eager" in args.variants:
        ours, theirs = (np.load(folder / f"{side}.npy").astype(int) for side in ("jgen", "peer"))
        print(f"samples from the same latents differ by at most {np.abs(ours - theirs).max()} levels", flush=True)
        assert np.abs(ours - theirs).max() <= 1, "the two networks are not the same"
    rows = []
    for task in args.tasks:
        first = {side: worker.run(task) for side, worker in workers.items()}
        times: dict[str, list[float]] = {side: [] for side in workers}
        for _ in range(args.rounds):
            for side, worker in workers.items():
                worker.run(task)
                times[side] += [worker.run(task) for _ in range(4)]
        median = {side: statistics.median(found) for side, found in times.items()}
        peer = min((s for s in median if s != "jgen"), key=median.get)
        ratio = median["jgen"] / median[peer]
        versions = {**workers["jgen"].about, **workers[peer].about}
        rows.append({"task": task, "ratio": ratio, "best_peer": peer, "seconds": median, "first_seconds": first})
        rows[-1]["versions"] = versions
        every = "  ".join(f"{side} {1e3 * seconds:.1f}" for side, seconds in median.items())
        print(f"{task}: ms {every}; ratio {ratio:.2f}; first {first['jgen']:.1f} / {first[peer]:.1f} s", flush=True)
    for worker in workers.values():
        worker.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable, help="Python with torch")
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
        rows = compare(args, Path(folder))
    if args.out:
        from jgen.train.run_directory import commit

        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")]
        machine = {"processor": f"{os.cpu_count()} x {names[0] if names else platform.processor()}"}
        machine |= {"platform": platform.platform(), "commit": commit()}
        document = {"command": " ".join(["python", *sys.argv]), "case": CASE, **machine, "rounds": args.rounds}
        Path(args.out).write_text(json.dumps({**document, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
