"""jgen's DiT compared with diffusers' DiTTransformer2DModel: the same network, weights and inputs.

    python benchmarks/dit.py [--peer-python PYTHON] [--rounds 5] [--out results/speed_dit.json]

Tasks: one denoising step (the network's forward pass) and a training step (noising, labels dropped at a rate of 0.1,
loss, gradient, Adam, moving average). diffusers embeds time and class again in every block, with separate weights for
each block, as its users have it; here these weights are the same in all blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Benchmark, Side, about_jax, about_torch, load_weights, main, save_weights, shaken

SIZE, CHANNELS, PATCH, WIDTH, LAYERS, HEADS, CLASSES = 32, 4, 2, 384, 6, 6, 1000
BATCHES = {"batch 8": 8}


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Latents and noise in NHWC, times, classes."""
    draw = np.random.default_rng(0)
    x, eps = draw.standard_normal((2, batch, SIZE, SIZE, CHANNELS), dtype=np.float32)
    return x, eps, draw.integers(0, 1000, batch).astype(np.int32), draw.integers(0, CLASSES, batch).astype(np.int32)


def make_jgen(batch: int, folder: Path) -> Side:
    import jax

    from jgen.convert.dit import tensors_of
    from jgen.core import parallel
    from jgen.core.model import ArraySpec, DataSpec, ImageSpec
    from jgen.models.diffusion import ddpm
    from jgen.nn import dit
    from jgen.train.config import Config
    from jgen.train.optimisers import average_decay, make_optimiser
    from jgen.train.packing import pack_roles
    from jgen.train.step import TrainState, init_state, make_train_step

    x, _, t, label = inputs(batch)
    network = dit.Config(PATCH, WIDTH, LAYERS, HEADS)
    data = DataSpec(ImageSpec(SIZE, SIZE, CHANNELS, levels=0), {"label": ArraySpec((), "int32", CLASSES)})
    model = ddpm.make(ddpm.Config(network=network), data)
    training = Config(ema_decay=0.999)
    optimisers = {"dit": make_optimiser(training)}
    examples = {"image": x, "label": label, "index": np.arange(batch, dtype=np.int32)}

    def init(examples: dict[str, np.ndarray]) -> TrainState:
        return init_state(model, optimisers, jax.random.key(0), examples, True)

    state = jax.jit(init, compiler_options=parallel.compiler_options())(examples)
    params = {"dit": shaken(state.params["dit"], 0.02)}
    save_weights(folder, tensors_of(network, params["dit"]))  # by diffusers' names
    held = [parallel.replicate(state._replace(params=params, ema=pack_roles(params)))]
    net, placed = dit.make_dit(network, data.image, CLASSES + 1), parallel.replicate(params["dit"])
    forward = jax.jit(lambda p, x, t, label: net.apply({"params": p}, x, t, label, None))
    step = make_train_step(model, optimisers, ema_decay=average_decay(training))

    def train() -> None:
        held[0], _ = step(held[0], {}, examples)
        jax.block_until_ready(held[0])

    tasks = {"forward": lambda: jax.block_until_ready(forward(placed, x, t, label)), "train": train}
    return Side(tasks, np.asarray(forward(placed, x, t, label)), about_jax())


def make_peer(variant: str, batch: int, folder: Path) -> Side:
    import copy

    import torch
    from diffusers import DiTTransformer2DModel

    net = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=CHANNELS,
        num_layers=LAYERS,
        sample_size=SIZE,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    )
    weights = {name: torch.from_numpy(array) for name, array in load_weights(folder).items()}
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert not unexpected and all(name == "pos_embed.pos_embed" for name in missing), (missing, unexpected)
    average = copy.deepcopy(net).eval()
    run = torch.compile(net) if variant == "compile" else net
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    x, eps, t, label = (torch.from_numpy(array) for array in inputs(batch))
    x, eps = (array.permute(0, 3, 1, 2).contiguous() for array in (x, eps))

    def forward() -> Any:
        net.eval()
        with torch.no_grad():
            return run(x, timestep=t, class_labels=label).sample

    def train() -> None:
        net.train()  # which drops labels
        alpha_bar = torch.rand(batch, 1, 1, 1)
        noisy = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * torch.randn_like(x)
        loss = torch.nn.functional.mse_loss(run(noisy, timestep=t, class_labels=label).sample, eps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1e-3)

    output = forward().permute(0, 2, 3, 1).numpy()
    return Side({"forward": forward, "train": train}, output, about_torch("diffusers"))


BENCHMARK = Benchmark(
    title="DiT",
    case=f"{SIZE}x{SIZE}x{CHANNELS}, patches of {PATCH}x{PATCH}, width {WIDTH}, {LAYERS} blocks, head dimension"
    f" {WIDTH // HEADS}, float32",
    tasks=("forward", "train"),
    peers={"diffusers": ("eager", "compile")},
    make_side=lambda side, batch, folder: (
        make_jgen(batch, folder) if side == "jgen" else make_peer(side, batch, folder)
    ),
    settings=BATCHES,
    tolerance=1e-3,
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
