"""jgen's DDPM beside diffusers' UNet2DModel: the same network, weights and inputs, timed in one run.

    python benchmarks/diffusion.py [--peer-python PYTHON] [--rounds 5] [--head-dims 8 64] [--out results/FILE.json]

Each side runs in a process of its own and waits while the other works, so that JAX and PyTorch may come from different
Python environments and neither keeps threads on the other's cores. Rounds are interleaved, a round being three runs of
each side, of which the first is not counted (it finds the caches full of the other's data), or a single run where one
takes longer than 20 s. Ratios are jgen's median over that of the peer's fastest variant (eager, channels-last,
torch.compile; of the 50-step sampling only the variant that was the fastest forward). Compile time stands apart. Both
sides use huge pages.
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
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]
SIZE, BATCH, CHANNELS, BLOCKS, ATTENTION, GROUPS, STEPS = 32, 32, (64, 128, 128), 2, (16,), 32, 50
TASKS = ("forward", "train", "ddim")
VARIANTS = ("eager", "channels_last", "compile", "compile_channels_last")


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images and noise in NHWC, and times."""
    rng = np.random.default_rng(0)
    x, eps = rng.standard_normal((2, BATCH, SIZE, SIZE, 3), dtype=np.float32)
    return x, eps, rng.integers(1, 1001, BATCH).astype(np.int32)


def jgen_side(head_dim: int, folder: Path) -> dict[str, Any]:
    """{task: function that runs it once to the end}, and the network's output for comparison."""
    from jgen.cli import keep_memory

    keep_memory()  # as train.py does
    import jax
    import jax.numpy as jnp

    from jgen.core import parallel
    from jgen.core.generate import sample_images
    from jgen.core.model import Context, ImageSpec
    from jgen.models.diffusion import ddpm
    from jgen.nn.unet import UNet
    from jgen.train.config import Config
    from jgen.train.optimisers import make_optimiser
    from jgen.train.step import init_state, make_train_step

    x, _, t = inputs()
    config = ddpm.Config(
        channels=CHANNELS,
        blocks=BLOCKS,
        attention=ATTENTION,
        head_dim=head_dim,
        groups=GROUPS,
        dropout=0.0,
        class_conditional=False,
    )
    model = ddpm.make(config, ImageSpec(SIZE, SIZE, 3, 0, 256))
    optimisers = {"unet": make_optimiser(Config())}
    images = np.random.default_rng(1).integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    batch = {"image": images, "label": np.zeros(BATCH, np.int32), "index": np.arange(BATCH, dtype=np.int32)}
    init = lambda b: init_state(model, optimisers, jax.random.key(0), b, True)
    state = jax.jit(init, compiler_options={"xla_backend_optimization_level": 1})(batch)
    leaves, tree = jax.tree.flatten(state.params)
    rng = np.random.default_rng(2)
    shaken = [np.asarray(p) + 0.02 * rng.standard_normal(p.shape, dtype=np.float32) for p in leaves]
    params = jax.tree.unflatten(tree, shaken)
    state = parallel.replicate(state._replace(params=params, ema=params))
    flat = {"/".join(k.key for k in path): v for path, v in jax.tree_util.tree_leaves_with_path(params["unet"])}
    np.savez(folder / "weights.npz", **flat)

    unet = UNet(CHANNELS, BLOCKS, ATTENTION, head_dim, GROUPS, 0.0, 0, 3)
    forward = jax.jit(lambda p, x, t: unet.apply({"params": p}, x, t, None, None))
    placed = parallel.replicate(params)
    ctx = parallel.replicate(Context(jnp.int32(0), params, {}, {}))
    step = make_train_step(model, optimisers, ema_decay=0.999)
    held = [state]
    np.save(folder / "jgen.npy", np.asarray(forward(placed["unet"], x, t)))

    def train() -> None:
        held[0], _ = step(held[0], {}, batch)
        jax.block_until_ready(held[0])

    sample = lambda: sample_images(model, placed, ctx, jax.random.key(0), BATCH, batch_size=BATCH, steps=STEPS)
    tasks = {"train": train, "forward": lambda: jax.block_until_ready(forward(placed["unet"], x, t)), "ddim": sample}
    return {"tasks": tasks, "about": {"jax": jax.__version__, "device": str(jax.devices()[0].device_kind)}}


def torch_side(head_dim: int, folder: Path, variant: str) -> dict[str, Any]:
    """The same of diffusers' network in PyTorch, in one of its variants."""
    import copy

    import diffusers
    import peers
    import torch
    from diffusers import DDIMScheduler

    device = "cuda" if torch.cuda.is_available() else "cpu"
    flat = dict(np.load(folder / "weights.npz"))
    params: dict[str, Any] = {}
    for name, array in flat.items():
        *parts, last = name.split("/")
        node = params
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = array
    net = peers.make_peer(CHANNELS, BLOCKS, ATTENTION, SIZE, head_dim, GROUPS, 0, 3)
    peers.copy_unet_weights(net, params)
    layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    net = net.to(device).to(memory_format=layout)
    average = copy.deepcopy(net)
    run = torch.compile(net) if "compile" in variant else net
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    x, eps, t = inputs()
    to = lambda a: torch.from_numpy(a).permute(0, 3, 1, 2).to(device).contiguous(memory_format=layout)
    x, eps, t = to(x), to(eps), torch.from_numpy(t).to(device)
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def forward() -> Any:
        with torch.no_grad():
            found = run(x, t).sample
        sync()
        return found

    def train() -> None:
        # The same work: noising, the loss, gradients, Adam, and the moving average.
        alpha_bar = torch.rand(BATCH, 1, 1, 1, device=device)
        noisy = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * torch.randn_like(x)
        loss = torch.nn.functional.mse_loss(run(noisy, t).sample, eps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1e-3)
        sync()

    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=True)
    scheduler.set_timesteps(STEPS)

    def ddim() -> None:
        with torch.no_grad():
            image = torch.randn_like(x)
            for time_ in scheduler.timesteps:
                image = scheduler.step(run(image, time_).sample, time_, image).prev_sample
        sync()

    if not (folder / "peer.npy").exists():
        np.save(folder / "peer.npy", forward().permute(0, 2, 3, 1).cpu().numpy())
    about = {"torch": torch.__version__, "diffusers": diffusers.__version__, "threads": torch.get_num_threads()}
    return {"tasks": {"train": train, "forward": forward, "ddim": ddim}, "about": about}


def serve(side: str, head_dim: int, folder: Path) -> None:
    """A worker: reads a task a line, runs it once, answers with its seconds. The first run of each compiles."""
    made = jgen_side(head_dim, folder) if side == "jgen" else torch_side(head_dim, folder, side)
    print(json.dumps(made["about"]), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        made["tasks"][line.strip()]()
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "peak_gib": memory}), flush=True)


class Worker:
    """A process that serves one side."""

    def __init__(self, python: str, side: str, head_dim: int, folder: Path):
        command = [python, __file__, "--worker", side, "--head-dims", str(head_dim), "--folder", str(folder)]
        environment = dict(os.environ)
        if side != "jgen":  # huge pages, as jgen takes them itself: PyTorch is 3 to 10 % faster with them
            environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes, text=True, env=environment)
        self.about = self.read()

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side of the benchmark ended early")
        return json.loads(line)

    def run(self, task: str) -> dict[str, Any]:
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(args: argparse.Namespace, head_dim: int, folder: Path) -> list[dict[str, Any]]:
    """Rows, one a task: medians of every side, ratio against the fastest peer, first-run times, memory."""
    workers = {"jgen": Worker(sys.executable, "jgen", head_dim, folder)}
    workers |= {variant: Worker(args.peer_python, variant, head_dim, folder) for variant in args.variants}
    everyone = workers
    difference = float(np.max(np.abs(np.load(folder / "jgen.npy") - np.load(folder / "peer.npy"))))
    print(f"head dimension {head_dim}: outputs differ by at most {difference:.1e}", flush=True)
    assert difference < 1e-3, "the two networks are not the same"
    rows = []
    fastest = ""
    for task in args.tasks:
        if task == "ddim" and fastest:  # it is long: only of the variant that was the fastest forward
            workers = {side: worker for side, worker in workers.items() if side in ("jgen", fastest)}
        first = {side: worker.run(task)["seconds"] for side, worker in workers.items()}
        times: dict[str, list[float]] = {side: [] for side in workers}
        memory = {}
        for number in range(args.rounds):
            for side, worker in workers.items():
                if first[side] < 20:
                    worker.run(task)
                for _ in range(2 if first[side] < 20 else 1):
                    answer = worker.run(task)
                    times[side].append(answer["seconds"])
                memory[side] = answer["peak_gib"]
            print(f"  {task}: round {number + 1} of {args.rounds}", end="\r", file=sys.stderr, flush=True)
        median = {side: statistics.median(found) for side, found in times.items()}
        peer = min((s for s in median if s != "jgen"), key=median.get)
        fastest = peer if task == "forward" else fastest
        row = {"task": task, "head_dim": head_dim, "ratio": median["jgen"] / median[peer], "best_peer": peer}
        row |= {"seconds": median, "first_seconds": first, "peak_gib": memory, "output_difference": difference}
        row["versions"] = {**workers["jgen"].about, **workers[peer].about}
        rows.append(row)
        print(
            f"{task:8} head {head_dim:3}  jgen {median['jgen']:.3f} s  {peer} {median[peer]:.3f} s"
            f"  ratio {row['ratio']:.2f}  first run {first['jgen']:.1f} / {first[peer]:.1f} s"
            f"  memory {memory['jgen']:.1f} / {memory[peer]:.1f} GiB",
            flush=True,
        )
    for worker in everyone.values():
        worker.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable, help="Python with torch and diffusers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", help="JSON file for the outcome")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(args.worker, args.head_dims[0], Path(args.folder))
    rows = []
    for head_dim in args.head_dims:
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(args, head_dim, Path(folder))
    if args.out:
        from jgen.train.run_directory import commit

        machine = {"processor": processor(), "platform": platform.platform(), "commit": commit()}
        case = f"{SIZE}x{SIZE}x3, batch {BATCH}, channels {CHANNELS}, {BLOCKS} blocks, attention {ATTENTION}, float32"
        command = " ".join(["python", *sys.argv])
        document = {"title": "DDPM U-Net", "command": command, "case": case, **machine, "rounds": args.rounds}
        Path(args.out).write_text(json.dumps({**document, "rows": rows}, indent=1) + "\n")


def processor() -> str:
    """The processor's name and the number of cores."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.processor()}"


if __name__ == "__main__":
    main()
