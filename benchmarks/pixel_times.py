"""Time per pixel of every autoregressive model's sampler, as a function of image size.

    python benchmarks/pixel_times.py [--sizes 8 16 32] [--num 16] [--rounds 5] [--out results/pixel_times.json]

Networks of the `digits` variants with initial weights, images of one channel in 17 levels. If a sampler evaluates its
network over the whole image for every pixel, its time per pixel grows with the image's area.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--num", type=int, default=16, help="images generated at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="JSON file for the results")
    args = parser.parse_args()

    from jgen import cli

    cli.set_up_process()
    import jax

    from jgen.train.run_directory import commit, processor, write_json

    names = sorted(path.stem for path in (ROOT / "configs" / "autoregressive").glob("*.py"))
    samplers = {(name, size): compile_sampler(name, size, args.num) for name in names for size in args.sizes}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in samplers}
    for _ in range(args.rounds):  # in turn, so that other work on the machine affects all of them
        for key, sample in samplers.items():
            start = time.perf_counter()
            sample()
            seconds[key].append(time.perf_counter() - start)
    rows = []
    for (name, size), each in seconds.items():
        pixel = statistics.median(each) / (args.num * size * size)
        rows.append({"system": name, "size": size, "seconds": each, "seconds_per_pixel": pixel})
        print(f"{name:20} {size}x{size}: {pixel * 1e6:8.2f} us a pixel of an image")
    if args.out:
        document = {"command": " ".join(["python", *sys.argv]), "commit": commit(), "processor": processor()}
        document |= {"jax": jax.__version__, "python": platform.python_version(), "num": args.num}
        write_json(Path(args.out), {**document, "rows": rows})


def compile_sampler(name: str, size: int, num: int):
    """A compiled sampler of `num` images, as a function without arguments, already called once."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jgen.core import keys as rng
    from jgen.core.model import ArraySpec, Context, DataSpec, ImageSpec
    from jgen.experiment import make_model

    config = importlib.import_module(f"configs.autoregressive.{name}").get_config("digits").model
    data = DataSpec(ImageSpec(size, size, 1, 17), {"label": ArraySpec((), "int32", 10)})
    model = make_model(config, data)
    batch = {"image": np.zeros((num, size, size, 1), np.uint8), "label": np.arange(num, dtype=np.int32) % 10}
    params, extra = jax.jit(lambda key: model.init(key, batch, {}))(jax.random.key(0))
    keys, cond = rng.image_keys(jax.random.key(1), jnp.arange(num)), model.condition(batch)
    compiled = jax.jit(lambda params: model.sample(params, Context(jnp.int32(0), None, params, extra), keys, cond))
    jax.block_until_ready(compiled(params))
    return lambda: jax.block_until_ready(compiled(params))


if __name__ == "__main__":
    main()
