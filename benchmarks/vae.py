"""jgen's VAE compared with pythae's: the same dense network, weights and images, trained for one pass over them.

    python benchmarks/vae.py [--peer-python PYTHON] [--rounds 5] [--out results/speed_vae.json]

A pass is what training does with 12,800 binary 28x28 images: their shuffled order, batches (of 64, pythae's default,
and of 128), the bound's gradient, Adam; for jgen also with 20 steps in one compiled call ("train_in_calls", where the
peers do the same as in "train"). "pythae" is pythae's own trainer; "bare" is its model in a minimal loop over tensors
prepared in their order.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Benchmark, Side, about_jax, about_torch, load_weights, main, save_weights

NUM, LATENT, HIDDEN, RATE = 12_800, 40, 512, 1e-3
IN_A_CALL = 20
BATCHES = {"batch 64": 64, "batch 128": 128}


def images() -> np.ndarray:
    """Binary images, uint8 (NUM, 28, 28, 1), with blobs to learn."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:28, :28] / 28
    centre = draw.uniform(0.2, 0.8, (NUM, 2, 1, 1))
    return (((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) < 0.05).astype(np.uint8)[..., None]


def make_jgen(batch: int, folder: Path) -> Side:
    import jax

    from jgen.core import parallel
    from jgen.core.model import Context, DataSpec, ImageSpec
    from jgen.data.batches import train_batches
    from jgen.data.dataset import Split
    from jgen.models.vae import vae
    from jgen.train.config import Config, Optimiser
    from jgen.train.optimisers import make_optimiser
    from jgen.train.step import init_state, make_train_step, make_train_steps

    data = images()

    def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": data[positions], "index": positions.astype(np.int32)}

    config = vae.Config(network="dense", widths=(HIDDEN,), blocks=0, latent=LATENT, decoder="bernoulli")
    model = vae.make(config, DataSpec(ImageSpec(28, 28, 1, 2)))
    training = Config(optimiser=Optimiser(learning_rate=RATE))
    optimisers = {role: make_optimiser(training) for role in ("encoder", "decoder")}
    state = init_state(model, optimisers, jax.random.key(0), fetch(np.arange(1)), False)
    save_weights(folder, state.params)
    ctx = Context(0, None, state.params, state.extra)
    means = model.encode(state.params, ctx, None, data[:batch], {})
    step = make_train_step(model, optimisers)
    held, passes = [parallel.replicate(state)], [0]

    def train() -> None:
        start = passes[0] * (NUM // batch)
        for taken in train_batches(Split(NUM, fetch), 0, batch, start, start + NUM // batch):
            held[0], metrics = step(held[0], {}, taken)
        passes[0] += 1
        jax.block_until_ready((held[0], metrics))

    steps = make_train_steps(model, optimisers, IN_A_CALL)

    def train_in_calls() -> None:
        start = passes[0] * (NUM // batch)
        batches = train_batches(Split(NUM, fetch), 0, batch, start, start + NUM // batch)
        for first in range(0, NUM // batch, IN_A_CALL):
            parts = [next(batches) for _ in range(IN_A_CALL)]
            together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            held[0], metrics = steps(held[0], {}, together, start + first)
        batches.close()
        passes[0] += 1
        jax.block_until_ready((held[0], metrics))

    return Side({"train": train, "train_in_calls": train_in_calls}, np.asarray(means), about_jax())


def make_peer(variant: str, batch: int, folder: Path) -> Side:
    import logging

    import torch
    import vae_peer
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.INFO)
    model = vae_peer.make_peer((1, 28, 28), LATENT)
    model.load_state_dict(vae_peer.by_peer_name(load_weights(folder)), strict=True)
    x = torch.from_numpy(images().transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        means = model.encoder(2 * x[:batch] - 1).embedding.numpy()  # jgen's encoder reads images in [-1, 1]
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)

    def bare() -> None:
        for first in range(0, NUM, batch):
            loss = model({"data": x[first : first + batch]}).loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        loss.item()

    train: Any = bare
    if variant == "pythae":
        options = {"per_device_train_batch_size": batch, "learning_rate": RATE, "no_cuda": True}
        config = BaseTrainerConfig(output_dir=str(folder / "pythae"), **options)
        trainer = BaseTrainer(model, BaseDataset(x, torch.zeros(NUM)), training_config=config)
        trainer.prepare_training()
        train = partial(trainer.train_step, 1)
    return Side({"train": train, "train_in_calls": train}, means, about_torch("pythae"))


BENCHMARK = Benchmark(
    title="VAE",
    case=f"a pass over {NUM} binary 28x28x1 images, hidden {HIDDEN}, latent {LATENT}, float32, Adam",
    tasks=("train", "train_in_calls"),
    peers={"pythae": ("pythae",), "its model in a bare loop": ("bare",)},
    make_side=lambda side, batch, folder: (
        make_jgen(batch, folder) if side == "jgen" else make_peer(side, batch, folder)
    ),
    settings=BATCHES,
    tolerance=1e-4,
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
