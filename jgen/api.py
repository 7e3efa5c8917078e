"""jgen from a program: train an experiment, load a run, sample from it and score images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jgen.core import parallel
from jgen.core.generate import (
    CAPABILITIES,
    Progress,
    check_images,
    require_capability,
    resolve_labels,
    sample_images,
    score_images,
)
from jgen.core.model import Context, GenerativeModel, ImageSpec, Roles
from jgen.errors import require
from jgen.experiment import Experiment, flatten, from_json, make_model, to_json
from jgen.prob.pixels import bits_per_dim
from jgen.train.config import MAY_CHANGE, check_config
from jgen.train.run_directory import RunDirectory, environment, read_config


def make(experiment: Experiment, images: ImageSpec, axis_name: str | None = None) -> GenerativeModel:
    """The model of an experiment, as pure functions, over images of that specification."""
    return make_model(experiment.model, images, axis_name)


def fit(experiment: Experiment, workdir: str | Path) -> str:
    """Trains an experiment in a run directory, resuming what is there; returns "trained" or "finished" (before).

    Raises:
      UserError: whatever is wrong with the experiment, its data or the directory, in one line.
      jgen.train.loop.Interrupted: after SIGTERM or Ctrl-C; what was done is saved.
    """
    from jgen.data import dataset as datasets
    from jgen.train import checkpoints, loop

    check_config(experiment.train, parallel.device_count())
    dataset = datasets.load(experiment.data)
    model = make_model(experiment.model, dataset.images, parallel.AXIS)
    directory = RunDirectory(Path(workdir))
    try:
        open_run(directory, experiment, dataset.images, dataset.fingerprint)
        newest = checkpoints.newest_good(directory.checkpoints)
        if newest is not None and newest >= experiment.train.steps:
            return "finished"
        loop.Training(model, dataset, experiment.train, experiment.data, experiment.seed, directory).run()
    finally:
        directory.close()
    return "trained"


def open_run(directory: RunDirectory, experiment: Experiment, images: ImageSpec, fingerprint: str) -> None:
    """Writes what a run is into its directory, or compares it with what is there.

    Raises:
      UserError: fields that differ and may not change, each with its two values.
    """
    document = {"experiment": to_json(experiment), "images": to_json(images), "data_fingerprint": fingerprint}
    if (directory.path / "config.json").exists():
        saved = read_config(directory.path)
        before = flatten(from_json(saved["experiment"], str(directory.path / "config.json")))
        before["the data's hash"] = saved["data_fingerprint"]
        after = {**flatten(experiment), "the data's hash": fingerprint}
        names = [name for name in {**before, **after} if before.get(name) != after.get(name) and name not in MAY_CHANGE]
        changes = "; ".join(f"{name} was {before.get(name)}, is {after.get(name)}" for name in names)
        require(
            not names,
            f"{directory.path} was started with another configuration: {changes}"
            f" (use another --workdir; these may change: {', '.join(MAY_CHANGE)})",
        )
    else:
        directory.write("environment.json", {**environment(), "seed": experiment.seed})
    directory.write("config.json", document)


def load_experiment(run: str | Path) -> tuple[Experiment, ImageSpec]:
    """What a run was made from, and the images it is about.

    Raises:
      UserError: no run, or a config.json that is damaged or names a class outside jgen.
    """
    document = read_config(Path(run))
    where = str(Path(run) / "config.json")
    experiment, images = from_json(document["experiment"], where), from_json(document["images"], where)
    require(isinstance(experiment, Experiment), f"{where} is damaged: it does not hold an experiment")
    require(isinstance(images, ImageSpec), f"{where} is damaged: it does not say what images are")
    return experiment, images


def load(run: str | Path, step: int | None = None, ema: bool = True) -> Generator:
    """A trained model from its run directory.

    Args:
      step: the checkpoint to take; default the newest that is whole.
      ema: the moving average of the weights, where the run keeps one, rather than the weights themselves.
    Raises:
      UserError: no run, no checkpoint, a damaged config.json, or one that names a class outside jgen.
    """
    from jgen.train import checkpoints
    from jgen.train.loop import role_optimisers
    from jgen.train.step import init_state

    path = Path(run)
    experiment, images = load_experiment(path)
    model = make_model(experiment.model, images)
    folder = path / "checkpoints"
    found = checkpoints.steps_in(folder)
    if step is None:
        step = checkpoints.newest_good(folder)
        require(step is not None, f"{path} has no checkpoint that can be used: train it with train.py")
    require(step in found, f"{path} has no checkpoint of step {step}: it has {', '.join(map(str, sorted(found)))}")
    assert step is not None
    reason = checkpoints.fault(folder, step)
    require(reason is None, f"checkpoint {folder / str(step)} {reason}")

    def template() -> Any:
        batch = {"image": np.zeros((1, *images.shape), np.uint8), "label": np.zeros(1, np.int32)}
        batch["index"] = np.zeros(1, np.int32)
        optimisers = role_optimisers(model, experiment.train)
        return init_state(model, optimisers, jax.random.key(0), batch, experiment.train.ema_decay > 0)

    state, _ = checkpoints.read(folder, step, jax.eval_shape(template))
    params = state.ema if ema and state.ema else state.params
    return Generator(model, params, Context(state.step, params, state.extra, {}), experiment, step)


class Generator:
    """A trained generative model: what `load` returns. Its functions are jitted and run on all local devices.

    model, params, ctx, config: the pure functions and arrays underneath, for your own jit, vmap and grad.
    likelihood: what `log_prob` is: "exact", "lower_bound", "estimate" or "none".
    """

    def __init__(self, model: GenerativeModel, params: Roles, ctx: Context, config: Experiment, step: int):
        self.model, self.params, self.ctx, self.config, self.step = model, params, ctx, config, step
        self.likelihood = model.likelihood
        self._placed = parallel.replicate((params, ctx))

    def __repr__(self) -> str:
        spec = self.model.images
        size = sum(x.size for x in jax.tree.leaves(self.params))
        return (
            f"<{self.model.name} of {spec.height}x{spec.width}x{spec.channels}, {size:,} parameters, step {self.step}>"
        )

    def labels(self, n: int, label: Any = None, start: int = 0) -> np.ndarray | None:
        """The classes, int32 (n,), that `sample` with these arguments asks for; None for a model without classes."""
        return resolve_labels(self.model, label, n, start)

    def sample(
        self,
        key: jax.Array,
        n: int,
        *,
        label: Any = None,
        start: int = 0,
        batch_size: int = 64,
        progress: Progress = iter,
        **options: Any,
    ) -> np.ndarray:
        """`n` images, uint8 (n, H, W, C), 0 .. levels - 1. Image i has the key `fold_in(key, start + i)`.

        Args:
          label: a class, n classes, or None: a conditional model then takes its classes in turn.
          batch_size: images at a time; it does not change them.
          progress: wraps the iterator over batches, as tqdm does.
          options: fields of `model.sampling`, such as steps or guidance_scale.
        Raises:
          UserError: n below 1, labels out of range, options unknown or impossible.
        """
        params, ctx = self._placed
        where = {"label": label, "start": start, "batch_size": batch_size, "progress": progress}
        return sample_images(self.model, params, ctx, key, n, **where, **options)

    def log_prob(self, key: jax.Array, images: Any, *, label: Any = None, batch_size: int = 64) -> np.ndarray:
        """Log-probability of uint8 images in nats, float32 (n,); `likelihood` says of what kind.

        Args:
          label: classes of the images, for a conditional model; a conditional model needs them.
        Raises:
          NotSupported: the model has no likelihood. UserError: images of another shape, type or range.
        """
        require_capability(self.model, "log_prob")
        array = check_images(self.model, images)
        require(
            not self.model.conditional or label is not None,
            f"{self.model.name} is conditional: log_prob needs label=, one class an image",
        )
        labels = resolve_labels(self.model, label, len(array), 0)
        zeros = np.zeros(len(array), np.int32)
        index = np.arange(len(array), dtype=np.int32)
        batch = {"image": array, "label": zeros if labels is None else labels, "index": index}
        params, ctx = self._placed
        return score_images(self.model, "log_prob", params, ctx, key, batch, batch_size=batch_size)

    def bits_per_dim(self, key: jax.Array, images: Any, *, label: Any = None, batch_size: int = 64) -> np.ndarray:
        """The same as `log_prob` in bits per dimension: -log_prob / (H W C ln 2)."""
        nats = self.log_prob(key, images, label=label, batch_size=batch_size)
        return bits_per_dim(nats, self.model.images.size)

    def __getattr__(self, name: str) -> Any:
        """Capabilities that this model lacks raise `NotSupported`, which says what it can do."""
        if name in CAPABILITIES:
            require_capability(self.model, name)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
