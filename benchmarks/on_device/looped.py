"""The training loop compared with the bare step, on random images in memory: see `benchmarks/loop.py`."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import numpy as np

NAMES = {"ddpm": "configs/diffusion/ddpm.py", "vae": "configs/vae/vae.py"}


def measure(name: str, small: bool) -> dict[str, Any]:
    """Milliseconds per step of the bare step and of the loop, and the rate of the loop over that of the bare step.

    The networks are those of the `mnist` variants, in batches of 128: so small that any delay of the host makes a GPU
    wait. If `small`, they are those of the `tiny` variants.
    """
    import loop

    from jgen import cli
    from jgen.data import arrays as own
    from jgen.data import dataset as datasets
    from on_device.servers import ROOT

    experiment, _ = cli.load_config(f"{NAMES[name]}:{'tiny' if small else 'mnist'}", ROOT)
    size, num, batch = (8, 256, 16) if small else (28, 20_000, 128)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (num, size, size, 1)).astype(np.uint8)
    given = own.given_arrays(images, {"label": np.arange(num) % 10})
    data = dataclasses.replace(experiment.data, name=own.GIVEN, levels=0)
    train = dataclasses.replace(experiment.train, batch_size=batch)
    experiment = dataclasses.replace(experiment, data=data, train=train)
    steps, rounds = (20, 3) if small else (200, 4)
    bare, looped = loop.measure(experiment, datasets.load(data, {}, given), steps, rounds)
    ms = {"bare_ms": statistics.median(bare) * 1e3, "loop_ms": statistics.median(looped) * 1e3}
    return {**ms, "rate": ms["bare_ms"] / ms["loop_ms"], "bare": bare, "loop": looped}
