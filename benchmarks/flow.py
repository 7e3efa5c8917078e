"""jgen's Glow compared with normflows': the same layers, weights and images.

    python benchmarks/flow.py [--peer-python PYTHON] [--rounds 5] [--out results/speed_glow.json]

Tasks: a training step (uniform dequantisation, the density, its gradient, Adam, moving average), the density alone, and
sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Benchmark, Side, about_jax, about_torch, load_weights, main, save_weights, shaken

SHAPE, BATCH, SCALES, DEPTH, WIDTH = (32, 32, 3), 32, 3, 8, 128


def images() -> np.ndarray:
    """Smooth uint8 images."""
    draw = np.random.default_rng(0)
    coarse = draw.uniform(0, 200, (BATCH, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    return (coarse + draw.uniform(0, 55, (BATCH, *SHAPE))).astype(np.uint8)


def make_jgen(folder: Path) -> Side:
    import jax
    import jax.numpy as jnp

    from jgen.core import parallel
    from jgen.core.generate import sample_images
    from jgen.core.model import Context, DataSpec, ImageSpec
    from jgen.models.flow import glow
    from jgen.train.config import Config
    from jgen.train.optimisers import average_decay, make_optimiser
    from jgen.train.packing import pack_roles
    from jgen.train.step import init_state, make_train_step

    config = glow.Config(scales=SCALES, depth=DEPTH, width=WIDTH, class_conditional=False)
    model = glow.make(config, DataSpec(ImageSpec(*SHAPE, 256)))
    training = Config(ema_decay=0.999)
    optimisers = {"flow": make_optimiser(training)}
    batch = {"image": images(), "index": np.arange(BATCH, dtype=np.int32)}
    state = jax.jit(lambda b: init_state(model, optimisers, jax.random.key(0), b, True))(batch)
    params = shaken(state.params, 0.02)
    for scale in range(SCALES - 1):  # normflows' priors do not depend on the remaining channels
        given = params["flow"][f"scale{scale}"]["prior"]["given"]
        given["kernel"] = np.zeros_like(given["kernel"])
    save_weights(folder, {"params": params["flow"], "fixed": jax.device_get(state.extra["flow"])})

    placed = parallel.replicate(params)
    ctx = parallel.replicate(Context(jnp.int32(0), None, params, state.extra))
    x = images().astype(np.float32) + 0.5
    density = jax.jit(lambda p, c: model.log_density(p, c, None, x, {}))
    step = make_train_step(model, optimisers, ema_decay=average_decay(training))
    held = [parallel.replicate(state._replace(params=params, ema=pack_roles(params)))]

    def train() -> None:
        held[0], _ = step(held[0], {}, batch)
        jax.block_until_ready(held[0])

    tasks = {
        "train": train,
        "log_prob": lambda: jax.block_until_ready(density(placed, ctx)),
        "sample": lambda: sample_images(model, placed, ctx, jax.random.key(0), BATCH, batch_size=BATCH),
    }
    return Side(tasks, np.asarray(model.log_density(placed, ctx, None, x, {})) / np.prod(SHAPE), about_jax())


def make_peer(variant: str, folder: Path) -> Side:
    import copy

    import flow_peer
    import torch

    tree = load_weights(folder)
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

    def log_prob(density: Callable = run) -> Any:
        with torch.no_grad():
            return density((pixels + 0.5) / 256 - 0.5, None)

    def sample() -> None:
        with torch.no_grad():
            x, _ = net.sample(BATCH)
            ((x + 0.5) * 256).floor().clip(0, 255).byte().numpy()

    output = log_prob(net.log_prob).numpy() / np.prod(SHAPE) - np.log(256)
    return Side({"train": train, "log_prob": log_prob, "sample": sample}, output, about_torch("normflows"))


BENCHMARK = Benchmark(
    title="Glow",
    case=f"{SHAPE}, batch {BATCH}, {SCALES} scales of {DEPTH} steps, width {WIDTH}, float32",
    tasks=("train", "log_prob", "sample"),
    peers={"normflows": ("eager", "channels_last", "compile")},
    make_side=lambda side, _, folder: make_jgen(folder) if side == "jgen" else make_peer(side, folder),
    tolerance=1e-4,  # nats per dimension
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
