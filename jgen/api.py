"""The Python API: train an experiment, and load a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from jgen.core import backend, parallel
from jgen.core.model import Context, DataSpec, Frozen, GenerativeModel
from jgen.core.options import check_types
from jgen.data.config import located
from jgen.errors import require, require_seed
from jgen.experiment import Experiment, check_roles, flatten, frozen_roles, make_model
from jgen.generator import Generator
from jgen.train.config import check_config, ema_enabled, may_change
from jgen.train.run_directory import RunDirectory, program_identity, read_config

if TYPE_CHECKING:
    from jgen.data.dataset import Dataset
    from jgen.runs import FrozenRuns


def make(
    experiment: Experiment, data: DataSpec, frozen: Mapping[str, GenerativeModel] | None = None
) -> GenerativeModel:
    """Builds the model of an experiment, as pure functions, for data with this specification.

    Args:
      frozen: the models that it depends on, by role.
    Raises:
      UserError: the options, the data or the frozen models are invalid; the message is one line.
    """
    check_types(experiment, "experiment")
    check_types(data.image, "data.image")
    return make_model(experiment.model, data, frozen)


@parallel.together()
def fit(experiment: Experiment, workdir: str | Path, images: Any = None, **fields: Any) -> str:
    """Trains an experiment, resuming what is in `workdir`; returns "trained", or "finished" if it already was.

    Args:
      images: your own images, uint8 (n, H, W, C), instead of the data set that `experiment.data` names.
      fields: further arrays (n, ...), such as label= (integers or names); text= is a sequence of strings.
    Raises:
      UserError: the experiment, its data or the directory is invalid; the message is one line.
      jgen.train.loop.Interrupted: after SIGTERM or Ctrl-C; a checkpoint has been saved.
    """
    from jgen import runs
    from jgen.data import arrays as own
    from jgen.data import dataset as datasets
    from jgen.train import loop

    workdir = Path(workdir).expanduser()
    check_types(experiment, "experiment")
    parallel.require_equal_devices()
    parallel.connect()
    check_config(experiment.train, parallel.device_count())
    check_roles(experiment.model, experiment.frozen)
    require_seed(experiment.seed)
    require(images is not None or not fields, f"{', '.join(fields)} without images: fields belong to images=")
    given = own.given_arrays(images, fields) if images is not None else None
    name = experiment.data.name if given is None else own.GIVEN
    experiment = replace(experiment, data=located(replace(experiment.data, name=name)))
    dataset = datasets.load(experiment.data, runs.tokenizers_of(workdir), given)
    started = (workdir / "config.json").exists()
    wanted = read_config(workdir)["frozen_fingerprints"] if started else {}
    roles = frozen_roles(experiment.model)
    paths = {role: path for role, path in experiment.frozen.items() if path or roles.get(role, True)}
    frozen = runs.load_frozen(paths, wanted, load)
    runs.check_tokenizers(dataset.tokenizers, frozen)
    model = runs.model_of(experiment.model, dataset.spec, frozen)
    loop.role_optimisers(model, experiment.train)  # invalid options are reported before anything is written
    if jax.process_count() > 1:
        parallel.require_same(run_identity(experiment, dataset.fingerprint, frozen))
    main, steps = parallel.is_main_process(), experiment.train.steps
    directory, newest = open_directory(workdir, experiment, dataset, frozen)
    try:
        no_grids = model.sample is None or experiment.train.samples_per_class == 0
        complete = no_grids or bool(parallel.from_main(directory.samples(steps).is_file()))
        if newest == steps and complete:
            return "finished"
        arrays = runs.frozen_arrays(frozen)
        parts = (model, dataset, experiment.train, experiment.data, experiment.seed, directory, arrays)
        training = loop.Training(*parts, newest=newest)
        if newest == steps:  # it was killed after the last checkpoint
            if main:
                training.sample(steps)
            return "finished"
        if main:
            warn_of_bfloat16(experiment)
            directory.note_start(newest or 0, experiment.seed)
        training.run()
    finally:
        directory.close()
    return "trained"


def warn_of_bfloat16(experiment: Experiment) -> None:
    """Warns on standard error if bfloat16 is requested and the device has no bfloat16 arithmetic."""
    from jgen.train.checkpoints import warn

    names = [name for name, value in flatten(experiment.model, "model.").items() if value == "bfloat16"]
    if names and (device := backend.lacks_bfloat16()):
        warn(f"{names[0]} is bfloat16: {device} has no arithmetic of that type, XLA computes in float32 and rounds")


def open_directory(
    workdir: Path, experiment: Experiment, dataset: Dataset, frozen: FrozenRuns
) -> tuple[RunDirectory, int | None]:
    """Opens or creates the run directory and locks it; returns it and its latest step, None for a new run.

    Raises:
      UserError: the directory cannot be used; raised in all processes of the training.
    """
    from jgen import runs
    from jgen.train import checkpoints

    main, steps, opened = parallel.is_main_process(), experiment.train.steps, []
    try:
        newest = None
        with parallel.failing_together():
            opened.append(RunDirectory(workdir, main))
            newest = checkpoints.newest_good(opened[0].checkpoints) if main else None
            fewer = newest is not None and steps < newest
            trained = f"{workdir} is trained to step {newest}"
            require(not fewer, f"train.steps is {steps}: {trained}, it must be that or more")
            if main:
                runs.open_run(opened[0], experiment, dataset, frozen)
        seen = parallel.from_main(-1 if newest is None else newest)  # another process may not see it yet
    except BaseException:
        for directory in opened:
            directory.close()
        raise
    return opened[0], seen if seen >= 0 else None


def run_identity(experiment: Experiment, data: str, frozen: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} that must be identical in all processes of a training run, without paths and without options that
    do not affect the result.

    Args:
      data: the hash of the data.
    """
    from jgen.runs import MOVED  # options that locate the data, whose content is compared by hash

    shared: tuple[str, ...] = (
        "train.steps",
        "train.log_every",
        "train.validate_every",
        "train.checkpoint_every",
        "train.sample_every",
    )
    shared += ("train.steps_per_call",)  # compiled calls must end at the same step in all processes
    flat = sorted(flatten(experiment).items())
    identity = {name: value for name, value in flat if name in shared or not (may_change(name) or name in MOVED)}
    identity["the data's hash"] = data
    identity |= {f"the hash of frozen {role}": run.fingerprint for role, run in sorted(frozen.items())}
    return identity | program_identity()


def load(
    run: str | Path,
    step: int | Literal["best"] | None = None,
    ema: bool = True,
    frozen: Mapping[str, str | Path] | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> Generator:
    """A trained model from its run directory, or from a folder in diffusers' layout, such as Stable Diffusion's.

    Args:
      step: the checkpoint to load, or "best", the stored one with the best validation score; default: the newest
        undamaged one.
      ema: use the moving average (EMA) of the weights, if the run keeps one, rather than the weights themselves.
      frozen: {role: run directory}, overrides the recorded directories: for a frozen run that has moved and is not in
        the same parent folder, or for a role that the run was trained without, such as a classifier for guidance.
      dtype: the computation type of a Stable Diffusion folder, float32 (the default) or bfloat16; that of a run is set
        in its config.
    Raises:
      UserError: no run, no checkpoint, no score that defines "best", a damaged config.json, or one that names a class
        outside jgen; a frozen run that is missing or is not the one that the run was trained with.
    """
    from jgen import runs
    from jgen.train import checkpoints
    from jgen.train.step import averaged

    path = Path(run).expanduser()
    if runs.is_published(path):
        from jgen.convert.loading import load_folder

        given = [name for name, value in (("step", step), ("frozen", frozen)) if value is not None]
        own = f"{', '.join(given) or 'ema'} applies to runs of jgen only"
        require(not given and ema, f"{path} is a diffusers folder: {own}")
        return Generator(*load_folder(path, dtype or "float32"))
    require(dtype is None, f"dtype is {dtype}: {path} is a run, whose config.json says what its arithmetic is")
    experiment, data = runs.load_experiment(path)
    wanted = read_config(path)["frozen_fingerprints"]
    saved = {role: place for role, place in experiment.frozen.items() if role in wanted}
    optional = [role for role, needed in frozen_roles(experiment.model).items() if not needed]
    depends_on = runs.load_frozen(runs.find_frozen(path, saved, frozen or {}, optional), wanted, load)
    for role, digest in wanted.items():
        same = depends_on[role].fingerprint == digest
        require(same, f"frozen {role} has changed since {path} was trained on it, or is another run")
    tokenizers = runs.tokenizers_of(path)
    runs.check_tokenizers(tokenizers, depends_on)
    model = runs.model_of(experiment.model, data, depends_on)
    arrays = runs.frozen_arrays(depends_on)
    step = chosen_step(path, step, model)
    state, meta = checkpoints.read(path / "checkpoints", step, state_template(model, experiment, arrays))
    params = averaged(state) if ema else state.params
    ctx = Context(state.step, None, params, state.extra, arrays, ema and bool(state.ema))
    return Generator(model, params, ctx, experiment, step, meta["seconds"], tokenizers, runs.frozen_seconds(depends_on))


def chosen_step(path: Path, step: int | Literal["best"] | None, model: GenerativeModel) -> int:
    """The step of the checkpoint to load. Raises `UserError` if there is none, or it is damaged."""
    from jgen.train import checkpoints

    folder = path / "checkpoints"
    steps = checkpoints.steps_in(folder)
    if step == "best":
        return checkpoints.best_good(folder, model.best)
    if step is None:
        step = checkpoints.newest_good(folder)
        require(step is not None, f"{path} has no checkpoint that can be used: train it with train.py")
        assert step is not None
        return step
    require(step in steps, f"{path} has no checkpoint of step {step}: it has {', '.join(map(str, sorted(steps)))}")
    reason = checkpoints.fault(folder, step)
    require(reason is None, f"checkpoint {folder / str(step)} {reason}")
    return step


def state_template(model: GenerativeModel, experiment: Experiment, frozen: Mapping[str, Any]) -> Any:
    """The shapes and dtypes of a run's state; nothing is computed."""
    from jgen.train.loop import role_optimisers, with_position
    from jgen.train.step import init_state

    config, num = experiment.train, experiment.train.batch_size
    batch = {name: np.zeros((num, *spec.shape), spec.dtype) for name, spec in model.data.fields.items()}
    batch["image"] = np.zeros((num, *model.images.shape), np.uint8)
    batch["index"] = np.zeros(num, np.int32)
    optimisers = role_optimisers(model, config)

    def template(batch: Any, frozen: Frozen) -> Any:
        return init_state(model, optimisers, jax.random.key(0), batch, ema_enabled(config), frozen)

    return jax.eval_shape(template, with_position(batch), frozen)
