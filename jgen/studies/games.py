"""GANs on points, shared by studies of adversarial training.

A point of D numbers is an image of one pixel. The game, its losses and the training step are those of the GAN systems;
only the data are drawn from a known density instead of being read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.core.model import Batch, Context, DataSpec, GenerativeModel, ImageSpec, Roles
from jgen.data.batches import train_batches
from jgen.data.dataset import Split
from jgen.train.config import Config
from jgen.train.loop import role_optimisers
from jgen.train.step import TrainState, batches_per_step, init_state, make_train_step, make_train_steps, place_state

Draw = Callable[[jax.Array, jax.Array], jax.Array]  # (keys (B,), parameter of the data, (B, 1)) to points (B, D)


class Gaussian(nn.Module):
    """A generator of Gaussians only: z (B, 1) to x = mean + exp(log_std) z, (B, 1, 1, 1)."""

    start: tuple[float, float] = (0.0, 0.0)

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        mean, log_std = (
            self.param(name, nn.initializers.constant(value), ())
            for name, value in zip(("mean", "log_std"), self.start, strict=True)
        )
        return (mean + jnp.exp(log_std) * z).reshape(-1, 1, 1, 1)


def point_spec(dimensions: int) -> DataSpec:
    """Points as images of one pixel; `levels` 0, since they are floats."""
    return DataSpec(ImageSpec(1, 1, dimensions, levels=0), {})


def blank(spec: DataSpec, num: int, parameter: float = 0.0) -> Batch:
    """A batch to be replaced by drawn points, filled with the parameter of their distribution."""
    return {"image": np.full((num, *spec.image.shape), parameter, np.float32), "index": np.arange(num, dtype=np.int32)}


def play(
    model: GenerativeModel,
    config: Config,
    draw: Draw,
    cases: Iterable[tuple[float, int]],
    every: int,
    phases: slice = slice(None),
) -> Iterator[tuple[float, int, int, TrainState]]:
    """Trains on points of `draw`; yields, for every case, the state at the start and after every `every` steps.

    Args:
      config: gives the number of steps, the batch size and the optimisers.
      cases: (parameter of the data, seed), all trained with one compiled program.
      phases: the phases of the model to run; with only the first, the generator is not trained.
    Yields:
      (parameter, seed, step, state), one case after the other. A state is valid until the next is requested.
    """

    def transform(keys: jax.Array, batch: Batch) -> Batch:
        x = batch["image"]
        return {**batch, "image": draw(keys, x[:, 0, 0, :1]).reshape(x.shape)}

    optimisers = role_optimisers(model, config)
    playing = model._replace(phases=model.phases[phases])
    steps = make_train_steps(playing, optimisers, every, transform=transform)
    first = blank(model.data, config.batch_size)
    start = jax.jit(lambda key: init_state(model, optimisers, key, first, ema=False))
    for parameter, seed in cases:
        batches = blank(model.data, every * batches_per_step(playing) * config.batch_size, parameter)
        state = place_state(model, start(rng.seed_key(seed)))
        yield parameter, seed, 0, state
        for step in range(0, config.steps, every):
            state, _ = steps(state, {}, batches, step)
            yield parameter, seed, step + every, state


def train_on(
    model: GenerativeModel, optimisers: Any, state: TrainState, split: Split, batch_size: int, seed: int, num: int
) -> Iterator[tuple[TrainState, dict[str, Any]]]:
    """(state, metrics) after each of `num` steps of the model's phases on the images of a split."""
    step = make_train_step(model, optimisers)
    batches = train_batches(split, seed, batch_size * batches_per_step(model), 0, num)
    for number, batch in enumerate(batches):
        state, metrics = step(state, {}, batch, number)
        yield state, metrics


def make_sampler(model: GenerativeModel, num: int) -> Callable[[Roles, Roles, int], np.ndarray]:
    """(params, extra, seed) -> `num` points of the generator, (num, D)."""

    draw = model.sample
    assert draw is not None

    @jax.jit
    def sample(params: Roles, extra: Roles, key: jax.Array) -> jax.Array:
        ctx = Context(jnp.int32(0), extra=extra, averaged=False)
        return draw(params, ctx, rng.image_keys(key, jnp.arange(num)), {})

    def points(params: Roles, extra: Roles, seed: int) -> Any:
        return np.asarray(sample(params, extra, rng.seed_key(seed))).reshape(num, -1)

    return points
