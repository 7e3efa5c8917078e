"""Images per second from a data set that does not fit into memory: python benchmarks/decoding.py --out FILE

Pictures of 500 x 375 pixels, the average size in ImageNet, are written as JPEG files (smooth colours with grain, 65 to
70 KB each) and read as in training: decoded, resized to 64 or 256 pixels and cropped, in batches of 64, by threads or
by processes (`train.data_workers`). Rounds are interleaved; the result is the median of three. The CPU time per image
tells how the rate scales with more cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from jgen.data import dataset
from jgen.data.batches import train_batches
from jgen.data.config import Config
from jgen.train.run_directory import commit, processor

SIZES, BATCH, ROUNDS = (64, 256), 64, 3


def write_pictures(folder: Path, num: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(num):
        colours = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
        grain = np.asarray(colours) + rng.normal(0.0, 8.0, (375, 500, 3))
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)


def images_per_second(split: dataset.Split, workers: int, num_batches: int) -> float:
    """The rate of the batches after the first two, which wait for processes to start."""
    batches = train_batches(split, 0, BATCH, 0, num_batches + 2, workers=workers)
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    num = sum(len(batch["image"]) for batch in batches)
    return num / (time.perf_counter() - start)


def cpu_milliseconds(split: dataset.Split) -> float:
    """CPU time per image, summed over all threads of this process."""
    start = time.process_time()
    split.fetch(np.arange(BATCH))
    return 1e3 * (time.process_time() - start) / BATCH


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, os.cpu_count() or 1], help="numbers of processes; 0: threads"
    )
    parser.add_argument("--pictures", type=int, default=320, help="number of JPEG files")
    parser.add_argument("--batches", type=int, default=10, help="number of timed batches")
    parser.add_argument("--out", help="JSON file for the record")
    options = parser.parse_args()
    dataset.memory_limit = lambda: 0  # so that it is streamed
    record: dict[str, object] = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "processor": processor(),
    }
    record |= {"python": platform.python_version(), "pillow": PIL.__version__}
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.pictures)
        splits = {size: dataset.load(Config(name=f"folder:{folder}", size=size)).splits["train"] for size in SIZES}
        cpu = {size: cpu_milliseconds(split) for size, split in splits.items()}
        for _ in range(ROUNDS):
            for size, split in splits.items():
                for workers in options.workers:
                    rate = images_per_second(split, workers, options.batches)
                    rates.setdefault(f"{size} pixels, {workers} workers", []).append(rate)
    record |= {
        "pictures": options.pictures,
        "batch": BATCH,
        "cpu_ms_per_image": {str(k): round(v, 2) for k, v in cpu.items()},
    }
    record["images_per_second"] = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    print(json.dumps(record, indent=2))
    if options.out:
        Path(options.out).write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
