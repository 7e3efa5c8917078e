"""jgen's DCGAN compared with the same networks in PyTorch: the same weights and inputs.

    python benchmarks/dcgan.py [--peer-python PYTHON] [--rounds 5] [--out results/speed_dcgan.json]

Tasks: a training step, which is one update of the discriminator and one of the generator, non-saturating, with Adam and
the moving average of the generator; and sampling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from side_by_side import Benchmark, Side, about_jax, about_torch, load_weights, main, save_weights

SIZE, IMAGE_CHANNELS, BATCH, CHANNELS, LATENT = 32, 3, 64, (64, 128, 256), 100


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (B, H, W, C) and latents (B, latent)."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (BATCH, SIZE, SIZE, IMAGE_CHANNELS)).astype(np.uint8)
    return images, draw.standard_normal((BATCH, LATENT), dtype=np.float32)


def make_jgen(folder: Path) -> Side:
    import jax
    import jax.numpy as jnp

    from jgen.core import parallel
    from jgen.core.generate import run_over, sample_images
    from jgen.core.model import Context, DataSpec, ImageSpec
    from jgen.models.gan import dcgan
    from jgen.train.config import Config, Optimiser
    from jgen.train.optimisers import average_decay, make_optimiser
    from jgen.train.step import TrainState, init_state, make_train_step

    images, z = inputs()
    config = dcgan.Config(channels=CHANNELS, latent=LATENT, conditioning="none")
    model = dcgan.make(config, DataSpec(ImageSpec(SIZE, SIZE, IMAGE_CHANNELS, 256)))
    training = Config(optimiser=Optimiser(beta1=0.5), ema_decay=0.999)
    optimisers = {role: make_optimiser(training) for role in ("gen", "disc")}
    batch = {"image": images, "index": np.arange(BATCH, dtype=np.int32)}

    def init(batch: dict[str, np.ndarray]) -> TrainState:
        return init_state(model, optimisers, jax.random.key(0), batch, True)

    state = jax.jit(init, compiler_options=parallel.compiler_options())(batch)
    save_weights(folder, state.params)
    held = [parallel.replicate(state)]
    params = parallel.replicate(state.params)
    ctx = parallel.replicate(Context(jnp.int32(0), None, params, state.extra))
    key = jax.random.key(0)
    arrays = {"latents": z, "cond": {}, "index": batch["index"]}
    step = make_train_step(model, optimisers, ema_decay=average_decay(training))

    def train() -> None:
        held[0], _ = step(held[0], {}, batch)
        jax.block_until_ready(held[0])

    def sample() -> None:
        sample_images(model, params, ctx, key, BATCH, batch_size=BATCH)

    output = run_over(model, "decode", params, ctx, key, arrays, batch_size=BATCH)
    return Side({"train": train, "sample": sample}, output, about_jax())


def make_peer(variant: str, folder: Path) -> Side:
    import copy

    import dcgan_peer
    import torch
    from torch.nn.functional import softplus

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    networks = dcgan_peer.make_peers(CHANNELS, LATENT, SIZE, IMAGE_CHANNELS, load_weights(folder))
    gen, disc = (network.to(device).to(memory_format=layout) for network in networks)
    average = copy.deepcopy(gen)
    run_gen, run_disc = (torch.compile(n) if "compile" in variant else n for n in (gen, disc))
    optimisers = [torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True) for n in (gen, disc)]
    images, z = inputs()
    real = torch.from_numpy(images).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
    real = real.contiguous(memory_format=layout)

    def latents() -> torch.Tensor:
        return torch.randn(BATCH, LATENT, device=device)

    def train() -> None:
        with torch.no_grad():
            fake = run_gen(latents())
        loss = (softplus(-run_disc(real)) + softplus(run_disc(fake))).mean()
        optimisers[1].zero_grad(set_to_none=True)
        loss.backward()
        optimisers[1].step()
        disc.requires_grad_(False)  # skips the weight gradients, which the generator's update does not need
        loss = softplus(-run_disc(run_gen(latents()))).mean()
        optimisers[0].zero_grad(set_to_none=True)
        loss.backward()
        optimisers[0].step()
        disc.requires_grad_(True)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(gen.parameters()), 1e-3)
        sync()

    def sample(z: torch.Tensor | None = None, network: torch.nn.Module = run_gen) -> np.ndarray:
        gen.eval()
        with torch.no_grad():
            x = network(latents() if z is None else z)
            x = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        gen.train()
        return x

    output = sample(torch.from_numpy(z).to(device), gen)
    return Side({"train": train, "sample": sample}, output, about_torch())


BENCHMARK = Benchmark(
    title="DCGAN",
    case=f"{SIZE}x{SIZE}x{IMAGE_CHANNELS}, batch {BATCH}, channels {CHANNELS}, latent {LATENT}, float32",
    tasks=("train", "sample"),
    peers={"PyTorch": ("eager", "channels_last", "compile", "compile_channels_last")},
    make_side=lambda side, _, folder: make_jgen(folder) if side == "jgen" else make_peer(side, folder),
    tolerance=1,  # of 256 levels, by rounding
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
