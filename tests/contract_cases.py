"""What the contract tests run over: every configuration's `tiny` variant, and the toy models."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import toys

from jgen.cli import import_config
from jgen.core import parallel
from jgen.core.model import ImageSpec
from jgen.experiment import make_model
from jgen.train.config import Config, Optimiser
from jgen.train.optimisers import make_optimiser
from jgen.train.step import init_state, make_train_step, pack_roles, repeats_of

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {path.stem: path for path in sorted((ROOT / "configs").glob("*/*.py"))}
CASES = [*SYSTEMS, *(f"toy:{name}" for name in toys.TOYS)]
BATCH = 8
SGD = Optimiser(name="sgd", learning_rate=0.01, beta1=0.0)


class Case(NamedTuple):
    model: object
    frozen: dict


@cache
def make_case(name: str, axis_name: str | None = parallel.AXIS) -> Case:
    if name.startswith("toy:"):
        toy = name.removeprefix("toy:")
        return Case(toys.TOYS[toy](axis_name), toys.frozen_for(toy))
    experiment = import_config(SYSTEMS[name]).get_config("tiny")
    images = ImageSpec(8, 8, 1, 10, 2 if experiment.data.binarise != "none" else 17)
    if not experiment.first_stage:
        return Case(make_model(experiment.model, images, axis_name), {})
    first = make_case(Path(experiment.first_stage).name.removesuffix("-tiny"), axis_name=None).model
    frozen = {"first_stage": jax.jit(first.init)(jax.random.key(5), make_batch(first))}
    return Case(make_model(experiment.model, images, axis_name, first), frozen)


def make_batch(model, size: int = BATCH, seed: int = 0) -> dict:
    """Smooth random images: blobs, so that there is something to fit."""
    rng = np.random.default_rng(seed)
    spec = model.images
    y, x = np.mgrid[: spec.height, : spec.width] / spec.height
    centre = rng.uniform(0.2, 0.8, (size, 2, 1, 1))
    blob = np.exp(-20 * ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2))
    image = np.round(blob * (spec.levels - 1)).astype(np.uint8)[..., None].repeat(spec.channels, -1)
    label = rng.integers(0, max(spec.num_classes, 1), size).astype(np.int32)
    return {"image": image, "label": label, "index": np.arange(size, dtype=np.int32)}


def make_run(case: Case, *, optimiser: Optimiser = SGD, ema_decay: float = 0.9, **options):
    """(state before step 0, step function) with the batch size of `make_batch`; compiled once for all tests."""
    init, step = programs(case.model, optimiser, ema_decay, **options)
    state = init(make_batch(case.model))
    # Layers that start at zero hide the gradients of those behind them.
    shaken = jax.tree.map(
        lambda x: x + 0.02 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), state.params
    )
    state = state._replace(params=shaken, ema=pack_roles({role: shaken[role] for role in state.ema}))
    return parallel.replicate(state), step


@cache
def programs(model, optimiser: Optimiser, ema_decay: float, **options):
    """(init, step) of a model."""
    roles = {role for phase in model.phases for role in phase.trains}
    optimisers = {role: make_optimiser(Config(optimiser=optimiser)) for role in roles}
    init = lambda batch: init_state(model, optimisers, jax.random.key(0), batch, ema_decay > 0)
    return jax.jit(init), make_train_step(model, optimisers, ema_decay=ema_decay, **options)


def step_batch(model, seed: int = 0) -> dict:
    """As many batches as a step of the model takes, one after another."""
    parts = [make_batch(model, seed=seed * 100 + r) for r in range(repeats_of(model))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
