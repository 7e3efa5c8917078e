"""jgen's DDPM compared with diffusers' UNet2DModel: the same network, weights and inputs.

    python benchmarks/diffusion.py [--peer-python PYTHON] [--rounds 5] [--out results/speed_diffusion.json]

Tasks: one denoising step (the network's forward pass), a training step (noising, loss, gradient, Adam, moving average),
and 50 steps of DDIM from noise to images. The side other_jgen (only if named in --sides) is jgen with the JAX of
--peer-python.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Benchmark, Side, about_jax, about_torch, load_weights, main, save_weights, shaken

SIZE, BATCH, CHANNELS, BLOCKS, ATTENTION, GROUPS, STEPS = 32, 32, (64, 128, 128), 2, (16,), 32, 50


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images and noise in NHWC, and times."""
    draw = np.random.default_rng(0)
    x, eps = draw.standard_normal((2, BATCH, SIZE, SIZE, 3), dtype=np.float32)
    return x, eps, draw.integers(1, 1001, BATCH).astype(np.int32)


def make_jgen(side: str, head_dim: int, folder: Path) -> Side:
    import jax
    import jax.numpy as jnp

    from jgen.core import parallel
    from jgen.core.generate import sample_images
    from jgen.core.model import Context, DataSpec, ImageSpec
    from jgen.models.diffusion import ddpm
    from jgen.nn import unet as networks
    from jgen.train.config import Config
    from jgen.train.optimisers import average_decay, make_optimiser
    from jgen.train.packing import pack_roles
    from jgen.train.step import TrainState, init_state, make_train_step

    x, _, t = inputs()
    network = networks.Config(CHANNELS, BLOCKS, ATTENTION, head_dim, GROUPS, dropout=0.0)
    data = DataSpec(ImageSpec(SIZE, SIZE, 3, 256))
    model = ddpm.make(ddpm.Config(network=network, class_conditional=False), data)
    training = Config(ema_decay=0.999)
    optimisers = {"unet": make_optimiser(training)}
    images = np.random.default_rng(1).integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    batch = {"image": images, "index": np.arange(BATCH, dtype=np.int32)}

    def init(batch: dict[str, np.ndarray]) -> TrainState:
        return init_state(model, optimisers, jax.random.key(0), batch, True)

    state = jax.jit(init, compiler_options=parallel.compiler_options())(batch)
    if side == "jgen":
        save_weights(folder, shaken(state.params["unet"], 0.02))
    params = {"unet": load_weights(folder)}
    held = [parallel.replicate(state._replace(params=params, ema=pack_roles(params)))]

    unet = networks.make_unet(network, data.image, 0)
    forward = jax.jit(lambda p, x, t: unet.apply({"params": p}, x, t, None, None))
    placed = parallel.replicate(params)
    ctx = parallel.replicate(Context(jnp.int32(0), None, params))
    step = make_train_step(model, optimisers, ema_decay=average_decay(training))

    def train() -> None:
        held[0], _ = step(held[0], {}, batch)
        jax.block_until_ready(held[0])

    tasks = {
        "forward": lambda: jax.block_until_ready(forward(placed["unet"], x, t)),
        "train": train,
        "ddim": lambda: sample_images(model, placed, ctx, jax.random.key(0), BATCH, batch_size=BATCH, steps=STEPS),
    }
    return Side(tasks, np.asarray(unet.apply({"params": placed["unet"]}, x, t, None, None)), about_jax(side))


def make_peer(variant: str, head_dim: int, folder: Path) -> Side:
    import copy

    import peers
    import torch
    from diffusers import DDIMScheduler

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    net = peers.make_peer(CHANNELS, BLOCKS, ATTENTION, SIZE, head_dim, GROUPS, 0, 3)
    peers.copy_unet_weights(net, load_weights(folder))
    layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    net = net.to(device).to(memory_format=layout)
    average = copy.deepcopy(net)
    run = torch.compile(net) if "compile" in variant else net
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    x, eps, t = inputs()
    x, eps = (
        torch.from_numpy(array).permute(0, 3, 1, 2).to(device).contiguous(memory_format=layout) for array in (x, eps)
    )
    t = torch.from_numpy(t).to(device)

    def forward(network: Any = run) -> Any:
        with torch.no_grad():
            predicted = network(x, t).sample
        sync()
        return predicted

    def train() -> None:
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
            for time in scheduler.timesteps:
                image = scheduler.step(run(image, time).sample, time, image).prev_sample
        sync()

    output = forward(net).permute(0, 2, 3, 1).cpu().numpy()
    return Side({"forward": forward, "train": train, "ddim": ddim}, output, about_torch("diffusers"))


BENCHMARK = Benchmark(
    title="DDPM U-Net",
    case=f"{SIZE}x{SIZE}x3, batch {BATCH}, channels {CHANNELS}, {BLOCKS} blocks, attention at {ATTENTION}, float32",
    tasks=("forward", "train", "ddim"),
    peers={
        "diffusers": ("eager", "channels_last", "compile", "compile_channels_last"),
        "jgen on another JAX": ("other_jgen",),
    },
    make_side=lambda side, head_dim, folder: (
        make_jgen(side, head_dim, folder) if "jgen" in side else make_peer(side, head_dim, folder)
    ),
    tolerance=1e-3,
    settings={"head dimension 8": 8, "head dimension 64": 64},
    long_after={"ddim": "forward"},
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
