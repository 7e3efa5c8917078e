"""Cached sampling from Gated PixelCNN compared with naive sampling in jgen and PyTorch: same network and weights.

    python benchmarks/autoregressive.py [--peer-python PYTHON] [--rounds 5] [--out results/speed_gated_pixelcnn.json]

Naive sampling runs the network over the whole image for every pixel. All passes take the same time, so only PASSES of
the 784 are timed and the time is scaled to 784.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from side_by_side import Benchmark, Side, about_jax, about_torch, load_weights, main, save_weights

SIZE, BATCH, BLOCKS, FEATURES, HIDDEN, FIRST, KERNEL = 28, 16, 7, 32, 64, 7, 3
PASSES = 20  # of the 784 that a naive sampler makes


def images(levels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, levels, (BATCH, SIZE, SIZE, 1)).astype(np.int32)


def make_jgen(side: str, levels: int, folder: Path) -> Side:
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
    if side == "jgen":
        save_weights(folder, params)
        call = jax.jit(lambda p: sample_raster(network, p, keys, None, shape, levels))
        about = about_jax()
    else:
        naive = jax.jit(lambda p, n: sample_naively(network, p, keys, None, shape, levels, positions=n))
        call = partial(naive, n=PASSES)
        about = about_jax() | {"runs": SIZE * SIZE / PASSES}
    logits = jax.jit(network.apply)({"params": params}, images(levels))[:, :, :, 0]
    return Side({"sample": lambda: jax.block_until_ready(call(params))}, np.asarray(logits), about)


def make_torch(side: str, levels: int, folder: Path) -> Side:
    """Naive sampling in PyTorch: for each pixel the network over the whole image, then a draw."""
    import torch
    import torch_pixelcnn

    net = torch_pixelcnn.GatedPixelCNN(levels, FEATURES, BLOCKS, HIDDEN, FIRST, KERNEL, 1).eval()
    net.copy_from(load_weights(folder))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    net = net.to(device)
    # Sampling needs no masks at run time: they are multiplied in once.
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch_pixelcnn.MaskedConv2d):
                module.weight.mul_(module.mask)
                module.mask.fill_(1)
        logits = net(torch.from_numpy(images(levels)).permute(0, 3, 1, 2).to(device))
    forward = torch.compile(net) if side == "compile" else net

    def sample() -> None:
        x = torch.zeros(BATCH, 1, SIZE, SIZE, dtype=torch.int64, device=device)
        with torch.no_grad():
            for position in range(PASSES):
                i, j = divmod(position, SIZE)
                x[:, 0, i, j] = torch.distributions.Categorical(logits=forward(x)[:, :, i, j]).sample()
        sync()

    about = about_torch() | {"runs": SIZE * SIZE / PASSES}
    return Side({"sample": sample}, logits.permute(0, 2, 3, 1).cpu().numpy(), about)


BENCHMARK = Benchmark(
    title="Gated PixelCNN",
    case=f"{SIZE}x{SIZE}x1, batch {BATCH}, {BLOCKS} blocks of {FEATURES} features, {PASSES} naive passes timed",
    tasks=("sample",),
    peers={"naive jgen": ("jgen_naive",), "naive PyTorch": ("eager", "compile")},
    make_side=lambda side, levels, folder: (
        make_jgen(side, levels, folder) if side.startswith("jgen") else make_torch(side, levels, folder)
    ),
    tolerance=1e-3,
    settings={"256 levels": 256, "2 levels": 2},
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
