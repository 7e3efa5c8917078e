"""What the contract tests run over: toy models, one a feature, and every configuration's `tiny` variant."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import toys

from jgen.cli import import_config
from jgen.core import parallel
from jgen.core.model import ArraySpec, DataSpec, FrozenModel, ImageSpec
from jgen.data.fonts import LETTERS
from jgen.data.text import NUM_BYTES
from jgen.data.transforms import added_fields
from jgen.experiment import make_model
from jgen.train.config import Config, Optimiser
from jgen.train.loop import with_position
from jgen.train.optimisers import average_decay, make_optimiser
from jgen.train.packing import pack_roles
from jgen.train.step import batches_per_step, init_state, make_train_step, place_state

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {path.stem: path for path in sorted((ROOT / "configs").glob("*/*.py"))}
TOYS = [f"toy:{name}" for name in toys.TOYS]
BATCH = 8
SGD = Optimiser(name="sgd", learning_rate=0.01, beta1=0.0)


class Case(NamedTuple):
    """A model, and the arrays of those that it depends on."""

    model: object
    frozen: dict


@cache
def make_case(name: str) -> Case:
    if name.startswith("toy:"):
        toy = toys.TOYS[name.removeprefix("toy:")]
        below = {role: make_case(f"toy:{other}") for role, other in toy.stands_on.items()}
        model = toy.make(**{role: case.model for role, case in below.items()})
    else:
        experiment = import_config(SYSTEMS[name]).get_config("tiny")
        below = {role: make_case(system_of(run)) for role, run in experiment.frozen.items()}
        model = make_model(
            experiment.model, data_of(experiment.data), {role: case.model for role, case in below.items()}
        )
    return Case(model, {role: freeze(case) for role, case in below.items()})


def system_of(run: str) -> str:
    """The system whose tiny variant trains a run."""
    return Path(run).name.removesuffix("-tiny")


def train_below(python, tmp_path, path):
    """The options that name the frozen runs of a system, after short trainings of these, and of their frozen runs."""
    options = []
    for role, place in import_config(path).get_config("tiny").frozen.items():
        below, run = SYSTEMS[system_of(place)], tmp_path / system_of(place)
        args = [f"{below.relative_to(ROOT)}:tiny", "--workdir", run, "--train.steps", "20"]
        python("train.py", *args, *train_below(python, tmp_path, below))
        options += [f"--frozen.{role}", run]
    return options


def data_of(data) -> DataSpec:
    """The digits, the shapes or emoji with their captions, or letters of fonts, as the options of data show them."""
    if data.name in ("shapes", "emoji"):
        vocabulary = NUM_BYTES if data.tokenizer == "bytes" else data.vocabulary
        tokens = ArraySpec((data.text_length,), "int32", vocabulary)
        size = data.size or {"shapes": 32, "emoji": 64}[data.name]
        return DataSpec(ImageSpec(size, size, 3, 256), {"text": tokens})
    if data.name == "fonts":
        image = ImageSpec(data.size or 32, data.size or 32, 1, 256)
        label = ArraySpec((), "int32", len(LETTERS), tuple(LETTERS))
        return DataSpec(image, {"label": label, **added_fields(data, image)})
    image = ImageSpec(8, 8, 1, 2 if data.binarise != "none" else 17)
    return DataSpec(image, {"label": ArraySpec((), "int32", 10), **added_fields(data, image)})


def freeze(case: Case) -> FrozenModel:
    """A model with its first weights, as one that another depends on."""
    params, extra = jax.jit(case.model.init)(jax.random.key(5), make_batch(case.model), case.frozen)
    return FrozenModel(params, extra, case.frozen)


def make_batch(model, size: int = BATCH, seed: int = 0) -> dict:
    """Smooth random images: blobs, so that there is something to fit; and random fields."""
    rng = np.random.default_rng(seed)
    spec = model.images
    y, x = np.mgrid[: spec.height, : spec.width] / spec.height
    centre = rng.uniform(0.2, 0.8, (size, 2, 1, 1))
    blob = np.exp(-20 * ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2))
    image = np.round(blob * (spec.levels - 1)).astype(np.uint8)[..., None].repeat(spec.channels, -1)
    batch = {"image": image, "index": np.arange(size, dtype=np.int32)}
    for name, field in model.data.fields.items():
        batch[name] = rng.integers(0, max(field.num_values, 1), (size, *field.shape)).astype(field.dtype)
    return with_position(batch)


AVERAGED = Config(ema_decay=0.9)


def make_run(case: Case, *, optimiser: Optimiser = SGD, config: Config = AVERAGED, **options):
    """(state before step 0, step function) with the batch size of `make_batch`; compiled once for all tests."""
    init, step = programs(case.model, optimiser, config, **options)
    return place_state(case.model, init(make_batch(case.model), case.frozen)), step


def shake(x: jax.Array) -> jax.Array:
    return x + 0.02 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)


@cache
def programs(model, optimiser: Optimiser, config: Config, **options):
    """(init, step) of a model."""
    roles = {role for phase in model.phases for role in phase.trains}
    optimisers = {role: make_optimiser(Config(optimiser=optimiser), role) for role in roles}
    decay = average_decay(config)

    def init(batch, frozen):
        state = init_state(model, optimisers, jax.random.key(0), batch, decay is not None, frozen)
        # Layers that start at zero hide the gradients of those behind them.
        params = jax.tree.map(shake, state.params)
        return state._replace(params=params, ema=pack_roles({role: params[role] for role in state.ema}))

    return jax.jit(init), make_train_step(model, optimisers, ema_decay=decay, **options)


def step_batch(model, seed: int = 0) -> dict:
    """As many batches as a step of the model takes, one after another; of several processes, this one's rows."""
    parts = [make_batch(model, seed=seed * 100 + r) for r in range(batches_per_step(model))]
    rows = parallel.local_rows(BATCH)
    return {name: np.concatenate([part[name][rows] for part in parts]) for name in parts[0] if name != "position"}
