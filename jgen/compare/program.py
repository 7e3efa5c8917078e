"""The training of a configuration on random images, to time it and count its operations: model, state and step."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jgen.compare.systems import Training, data_spec
from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.model import ArraySpec, Batch, DataSpec, Frozen, FrozenModel, GenerativeModel
from jgen.data.style import SIBLINGS
from jgen.data.transforms import added_fields, make_transform
from jgen.experiment import make_model
from jgen.train.config import ema_enabled
from jgen.train.loop import role_optimisers, with_position
from jgen.train.optimisers import average_decay
from jgen.train.step import active_phases, batches_per_step, init_state, local_step, make_train_step, split_per_example


class Part(NamedTuple):
    """A model with a transformed batch of random examples, and the models that it depends on."""

    training: Training
    model: GenerativeModel
    data: DataSpec
    batch: Batch
    frozen: Mapping[str, Part]


def make_part(training: Training, size: int | None = None) -> Part:
    """The model of a training, with its options adapted to square images of another size (`at_height`).

    Args:
      size: height and width of the images; default: those of the data. If a frozen model's data has another image size,
        it is scaled by the same factor.
    Raises:
      UserError: image sizes that the model, or one that it depends on, cannot be made for.
    """
    own = data_spec(training)
    data, experiment = own, training.experiment
    frozen = {role: make_part(inner, inner_size(inner, own, size)) for role, inner in training.frozen.items()}
    if size is not None:
        image = dataclasses.replace(own.image, height=size, width=size)
        data = DataSpec(image, {**own.fields, **added_fields(experiment.data, image)})
        experiment = training.at_height(experiment, own.image.height, size)
        training = dataclasses.replace(training, experiment=experiment)
    model = make_model(experiment.model, data, {role: part.model for role, part in frozen.items()})
    examples = random_examples(training, data, experiment.train.batch_size)
    keys = rng.image_keys(jax.random.key(0), examples["index"])
    batch = jax.jit(make_transform(experiment.data, data, train=True))(keys, with_position(examples))
    return Part(training, model, data, batch, frozen)


def inner_size(inner: Training, own: DataSpec, size: int | None) -> int | None:
    """The image size of a frozen model if the dependent model's images, `own.image`, are resized to `size`."""
    return None if size is None else max(1, round(data_spec(inner).image.height * size / own.image.height))


def random_examples(training: Training, data: DataSpec, num: int) -> Batch:
    """Random examples in the form of a data set: pixels from 0 to 255, classes in turn."""
    draw = np.random.default_rng(0)
    added = added_fields(training.experiment.data, data.image)
    batch = {"image": draw.integers(0, 256, (num, *data.image.shape)).astype(np.uint8)}
    batch |= {name: random_field(draw, spec, num) for name, spec in data.fields.items() if name not in added}
    if "style" in added:
        batch[SIBLINGS] = draw.integers(0, 256, (num, data.num_classes, *data.image.shape)).astype(np.uint8)
    return {**batch, "index": np.arange(num, dtype=np.int32)}


def random_field(draw: np.random.Generator, spec: ArraySpec, num: int) -> np.ndarray:
    """Random values of a field, (num, *spec.shape)."""
    if spec.is_class:
        return (np.arange(num) % spec.num_values).astype(spec.dtype)
    if np.issubdtype(np.dtype(spec.dtype), np.floating):
        return draw.standard_normal((num, *spec.shape)).astype(spec.dtype)
    return draw.integers(0, spec.num_values or 2, (num, *spec.shape)).astype(spec.dtype)


class Program(NamedTuple):
    """A training as the loop runs it, and the inputs of a step.

    init:        (key, batch, {role: FrozenModel}) -> the state before step 0; `batch` is `part.batch`.
    init_frozen: key -> {role: FrozenModel}, with random weights.
    step:        the result of `make_train_step`.
    local_step:  index of a step -> (state, frozen, batch) -> the same on one device, not compiled.
    batch:       random examples for all repeats of a step.
    phase_sets:  {index of a step: fraction of the experiment's steps that run the same phases as this step}.
    """

    part: Part
    init: Callable[..., Any]
    init_frozen: Callable[..., Any]
    step: Callable[..., Any]
    local_step: Callable[[int], Callable[..., Any]]
    batch: Batch
    phase_sets: dict[int, float]


def make_program(training: Training, size: int | None = None) -> Program:
    """The training of a configuration on random images. Arguments and errors as in `make_part`."""
    part = make_part(training, size)
    model, config = part.model, part.training.experiment.train
    optimisers = role_optimisers(model, config)
    batch = random_examples(part.training, part.data, config.batch_size * batches_per_step(model))
    transform = make_transform(part.training.experiment.data, part.data, train=True)
    decay, accumulation = average_decay(config), config.accumulation

    def init(key: jax.Array, batch: Batch, frozen: Frozen) -> Any:
        return init_state(model, optimisers, key, batch, ema_enabled(config), frozen)

    def local(number: int) -> Callable[..., Any]:
        active = active_phases(model, number)

        def run(state: Any, frozen: Frozen, batch: Batch) -> Any:
            repeats = batches_per_step(model)
            batch = jax.tree.map(lambda x: x.reshape(repeats, x.shape[0] // repeats, *x.shape[1:]), batch)
            whole, per_example = split_per_example(model, state.extra)
            parts = (optimisers, decay, accumulation, transform, active)
            return local_step(model, *parts, state._replace(extra=whole), per_example, frozen, batch)

        return run

    step = make_train_step(model, optimisers, ema_decay=decay, accumulation=accumulation, transform=transform)
    shares = phase_sets(tuple(phase.runs for phase in model.phases), config.steps)
    return Program(part, init, partial(init_frozen, part), step, local, batch, shares)


def init_frozen(part: Part, key: jax.Array) -> dict[str, FrozenModel]:
    """Random arrays of the models that a part depends on."""
    arrays = {}
    for role, inner in part.frozen.items():
        below = init_frozen(inner, key)
        arrays[role] = FrozenModel(*inner.model.init(key, inner.batch, below), below)
    return arrays


@lru_cache(maxsize=32)
def phase_sets(runs: tuple[Callable[[int], bool], ...], steps: int) -> dict[int, float]:
    """How often each set of phases runs together in steps 0 .. steps - 1.

    Args:
      runs: `Phase.runs` of each phase.
    Returns:
      {the first step that runs exactly this set: the set's fraction of the steps}.
    """
    first: dict[tuple[bool, ...], int] = {}
    counts: Counter[tuple[bool, ...]] = Counter()
    for step in range(steps):
        active = tuple(run(step) for run in runs)
        first.setdefault(active, step)
        counts[active] += 1
    return {first[active]: count / steps for active, count in counts.items()}


def initial_state(program: Program) -> tuple[Any, dict[str, FrozenModel]]:
    """The state before step 0 and the frozen arrays, on the default device."""
    options, key = parallel.compiler_options(), jax.random.key(0)
    frozen = jax.jit(program.init_frozen, compiler_options=options)(key)
    return jax.jit(program.init, compiler_options=options)(key, program.part.batch, frozen), frozen


def random_conditions(program: Program, num: int) -> dict[str, Any]:
    """Random conditions of `num` samples."""
    training, data = program.part.training, program.part.data
    examples = random_examples(training, data, num)
    keys = rng.image_keys(jax.random.key(0), examples["index"])
    batch = make_transform(training.experiment.data, data, train=False)(keys, examples)
    return {name: np.asarray(value) for name, value in program.part.model.condition(batch).items()}
