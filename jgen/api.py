"""jgen from a program: train an experiment, load a run, sample from it and score images."""

from __future__ import annotations

import hashlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jgen.core import parallel
from jgen.core.generate import (
    CAPABILITIES,
    Arrays,
    Progress,
    capabilities,
    check_images,
    check_latents,
    require_capability,
    resolve_labels,
    resolve_options,
    run_over,
    sample_images,
)
from jgen.core.model import Context, GenerativeModel, ImageSpec, Roles
from jgen.core.options import check_types
from jgen.errors import require, require_seed
from jgen.experiment import Experiment, flatten, from_json, make_model, to_json
from jgen.prob.pixels import bits_per_dim
from jgen.train.config import MAY_CHANGE, check_config, may_change
from jgen.train.run_directory import RunDirectory, read_config


def make(
    experiment: Experiment,
    images: ImageSpec,
    axis_name: str | None = None,
    first_stage: GenerativeModel | None = None,
) -> GenerativeModel:
    """The model of an experiment, as pure functions, over images of that specification.

    Raises:
      UserError: whatever is wrong with the options or the images, in one line.
    """
    check_types(experiment, "experiment")
    check_types(images, "images")
    return make_model(experiment.model, images, axis_name, first_stage)


def fit(experiment: Experiment, workdir: str | Path) -> str:
    """Trains an experiment in a run directory, resuming what is there; returns "trained" or "finished" (before).

    Raises:
      UserError: whatever is wrong with the experiment, its data or the directory, in one line.
      jgen.train.loop.Interrupted: after SIGTERM or Ctrl-C; what was done is saved.
    """
    from jgen.data import dataset as datasets
    from jgen.train import checkpoints, loop

    check_types(experiment, "experiment")
    check_config(experiment.train, parallel.device_count())
    require_seed(experiment.seed)
    dataset = datasets.load(experiment.data)
    started = (Path(workdir) / "config.json").exists()
    wanted = read_config(Path(workdir))["first_stage_fingerprint"] if started else ""
    first = load_first_stage(experiment.first_stage, dataset.images, wanted)
    model = make_model(experiment.model, dataset.images, parallel.AXIS, first.model if first else None)
    loop.role_optimisers(model, experiment.train)  # what is wrong with them is said before anything is written
    directory = RunDirectory(Path(workdir))
    try:
        newest, steps = checkpoints.newest_good(directory.checkpoints), experiment.train.steps
        fewer = newest is not None and steps < newest
        require(not fewer, f"train.steps is {steps}: {workdir} is trained to step {newest}, it must be that or more")
        open_run(directory, experiment, dataset.images, dataset.fingerprint, first.fingerprint if first else "")
        if newest == steps and directory.samples(steps).is_file():
            return "finished"
        frozen = first.frozen if first else {}
        parts = (model, dataset, experiment.train, experiment.data, experiment.seed, directory, frozen)
        training = loop.Training(*parts)
        if newest == steps:  # it was killed after the last checkpoint
            training.sample(steps)
            return "finished"
        directory.note_start(newest or 0, experiment.seed)
        training.run()
    finally:
        directory.close()
    return "trained"


made_before = lru_cache(maxsize=32)(make_model)  # the same functions for every checkpoint of a run: compiled once


class FirstStage(NamedTuple):
    """A trained model that another stands on: its functions, what goes into `ctx.frozen`, a hash of that, and how long
    it was trained."""

    model: GenerativeModel
    frozen: Roles
    fingerprint: str
    seconds: float


def load_first_stage(run: str | Path, images: ImageSpec, wanted: str = "") -> FirstStage | None:
    """A run's averaged weights as a frozen first stage; None for an empty path.

    Args:
      wanted: the hash of the checkpoint to take, which may be an older one of a run that was trained on; of the newest
        good one where it is empty, or that of no checkpoint.
    Raises:
      UserError: no such run or checkpoint, or one that was trained on other images.
    """
    from jgen.train import checkpoints

    if not str(run):
        return None
    require(Path(run).is_dir(), f"there is no run at {run}: train the first stage before, or give its --first-stage")

    def at(step: int | None) -> FirstStage:
        gen = load(run, step)
        other = f"first stage {run} was trained on {gen.model.images}"
        require(gen.model.images == images, f"{other}: the data is {images}")
        frozen = {"first_stage": (gen.params, gen.ctx.extra)}
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(frozen):
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
        return FirstStage(gen.model, frozen, digest.hexdigest(), gen.seconds)

    newest, folder = at(None), Path(run) / "checkpoints"
    if wanted in ("", newest.fingerprint):
        return newest
    older = (at(step) for step in checkpoints.steps_in(folder) if checkpoints.fault(folder, step) is None)
    return next((found for found in older if found.fingerprint == wanted), newest)


def find_first_stage(run: Path, saved: str) -> Path:
    """Where the first stage of a run is: where it was when the run was trained, or else beside the run.

    Raises:
      UserError: it is at neither place.
    """
    beside = run.absolute().parent / Path(saved).name
    found = [place for place in (Path(saved), beside) if place.is_dir()]
    require(
        bool(found),
        f"{run} stands on the run {saved}, which is neither there nor at {beside}: give its place with --first-stage,"
        f" or jgen.load({str(run)!r}, first_stage=...)",
    )
    return found[0]


def open_run(
    directory: RunDirectory, experiment: Experiment, images: ImageSpec, fingerprint: str, first_stage: str
) -> None:
    """Writes what a run is into its directory, or compares it with what is there.

    Raises:
      UserError: fields that differ and may not change, each with its two values.
    """
    from jgen.data.dataset import alike

    document = {"experiment": to_json(experiment), "images": to_json(images)}
    document |= {"data_fingerprint": fingerprint, "first_stage_fingerprint": first_stage}
    if (directory.path / "config.json").exists():
        saved = read_config(directory.path)
        before = flatten(from_json(saved["experiment"], str(directory.path / "config.json")))
        after = flatten(experiment)
        for part, name in (("data_fingerprint", "the data's hash"), ("first_stage_fingerprint", "the first stage")):
            before[name], after[name] = saved[part], document[part]
        if alike(saved["data_fingerprint"], fingerprint):
            after["the data's hash"] = before["the data's hash"]
        names = [n for n in {**before, **after} if before.get(n) != after.get(n) and not may_change(n)]
        changes = "; ".join(f"{name} was {before.get(name)}, is {after.get(name)}" for name in names)
        require(
            not names,
            f"{directory.path} was started with another configuration: {changes}"
            f" (use another --workdir; these may change: {', '.join(MAY_CHANGE)})",
        )
        steps, schedule = before["train.steps"], experiment.train.optimiser.schedule
        if steps != experiment.train.steps and schedule != "constant":
            said = f"train.steps was {steps}, is {experiment.train.steps}: the learning rate follows the {schedule}"
            print(f"{said} schedule of the new length from here on", file=sys.stderr)
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


def load(
    run: str | Path, step: int | Literal["best"] | None = None, ema: bool = True, first_stage: str | Path = ""
) -> Generator:
    """A trained model from its run directory.

    Args:
      step: the checkpoint to take, or "best": of those kept the one with the best validation score; default the newest
        that is whole.
      ema: the moving average of the weights, where the run keeps one, rather than the weights themselves.
      first_stage: where the run's first stage is now, if it is neither where it was nor beside the run.
    Raises:
      UserError: no run, no checkpoint, no score that says which is best, a damaged config.json, or one that names a
        class outside jgen; a first stage that is missing or is not the one that the run was trained on.
    """
    from jgen.train import checkpoints
    from jgen.train.loop import role_optimisers
    from jgen.train.step import averaged, init_state

    path = Path(run)
    experiment, images = load_experiment(path)
    place = first_stage or (find_first_stage(path, experiment.first_stage) if experiment.first_stage else "")
    wanted = read_config(path)["first_stage_fingerprint"]
    first = load_first_stage(place, images, wanted)
    same = first is None or first.fingerprint == wanted
    require(same, f"first stage {place} has changed since {path} was trained on it, or is another")
    model = made_before(experiment.model, images, None, first.model if first else None)
    folder = path / "checkpoints"
    found = checkpoints.steps_in(folder)
    if step == "best":
        step = checkpoints.best_good(folder)
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

    state, meta = checkpoints.read(folder, step, jax.eval_shape(template))
    params = averaged(state) if ema else state.params
    ctx = Context(state.step, params, state.extra, first.frozen if first else {}, ema and bool(state.ema))
    return Generator(model, params, ctx, experiment, step, meta["seconds"] + (first.seconds if first else 0.0))


class Generator:
    """A trained generative model: what `load` returns. Its functions are jitted and run on all local devices.

    model, params, ctx, config: the pure functions and arrays underneath, for your own jit, vmap and grad.
    step, seconds: how long it was trained, in steps and in time, compiling and a first stage's training included.
    likelihood: what `log_prob` is: "exact", "lower_bound", "estimate" or "none".
    """

    def __init__(
        self, model: GenerativeModel, params: Roles, ctx: Context, config: Experiment, step: int, seconds: float = 0.0
    ):
        self.model, self.params, self.ctx, self.config = model, params, ctx, config
        self.step, self.seconds = step, seconds
        self.likelihood = model.likelihood
        same = ctx.ema is params  # once on each device, then
        placed, rest = parallel.replicate((params, ctx._replace(ema={} if same else ctx.ema)))
        self._placed = placed, rest._replace(ema=placed) if same else rest

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

    def log_prob(
        self,
        key: jax.Array,
        images: Any,
        *,
        label: Any = None,
        batch_size: int = 64,
        progress: Progress = iter,
        **options: Any,
    ) -> np.ndarray:
        """Log-probability of uint8 images in nats, float32 (n,); `likelihood` says of what kind.

        Args:
          label: classes of the images; a conditional model needs them.
          options: fields of `model.scoring`, where it has any, such as the number of importance samples.
        Raises:
          NotSupported: the model has no likelihood. UserError: images of another shape, type or range.
        """
        require_capability(self.model, "log_prob")
        array = check_images(self.model, images)
        where = {"label": label, "batch_size": batch_size, "progress": progress}
        return self._run("log_prob", key, len(array), {"image": array}, options, **where)

    def bits_per_dim(self, key: jax.Array, images: Any, **options: Any) -> np.ndarray:
        """The same as `log_prob` in bits per dimension: -log_prob / (H W C ln 2)."""
        return bits_per_dim(self.log_prob(key, images, **options), self.model.images.size)

    def log_density(self, key: jax.Array, x: Any, *, label: Any = None, batch_size: int = 64) -> np.ndarray:
        """Exact log-density in nats, float32 (n,), of dequantised images: floats (n, H, W, C) in [0, levels)."""
        require_capability(self.model, "log_density")
        array, spec = np.asarray(x, np.float32), self.model.images
        wanted = f"(n, {', '.join(map(str, spec.shape))})"
        require(len(array) > 0 and array.shape[1:] == spec.shape, f"x has shape {array.shape}: it must be {wanted}")
        inside = bool(np.all((array >= 0) & (array < spec.levels)))
        require(inside, f"x has values outside [0, {spec.levels}): log_density is of dequantised images")
        return self._run("log_density", key, len(array), {"image": array}, {}, label=label, batch_size=batch_size)

    def encode(self, key: jax.Array, images: Any, *, label: Any = None, batch_size: int = 64) -> Any:
        """Latents of uint8 images: a tree of arrays (n, ...)."""
        require_capability(self.model, "encode")
        array = check_images(self.model, images)
        return self._run("encode", key, len(array), {"image": array}, {}, label=label, batch_size=batch_size)

    def decode(self, key: jax.Array, latents: Any, *, label: Any = None, batch_size: int = 64) -> np.ndarray:
        """uint8 images (n, H, W, C) of latents such as `encode` returns.

        Raises:
          UserError: latents of other shapes, or codes out of range.
        """
        require_capability(self.model, "decode")
        arrays = check_latents(self.model, latents)
        n = len(jax.tree.leaves(arrays)[0])
        return self._run("decode", key, n, {"latents": arrays}, {}, label=label, batch_size=batch_size)

    def reconstruct(self, key: jax.Array, images: Any, *, label: Any = None, batch_size: int = 64) -> np.ndarray:
        """`decode` of `encode`: uint8 (n, H, W, C)."""
        require_capability(self.model, "reconstruct")
        where = {"label": label, "batch_size": batch_size}
        return self.decode(key, self.encode(key, images, **where), **where)

    def interpolate(self, key: jax.Array, first: Any, second: Any, num: int = 8, *, label: Any = None) -> np.ndarray:
        """Images between pairs of images, along the line between their latents: uint8 (n, num, H, W, C).

        Args:
          first, second: uint8 (n, H, W, C); num: images from the first to the second, both counted, 2 or more.
        """
        require_capability(self.model, "interpolate")
        require(num >= 2, f"num is {num}: an interpolation has 2 images or more")
        a, b = (self.encode(key, images, label=label) for images in (first, second))
        n = len(jax.tree.leaves(a)[0])
        require(len(jax.tree.leaves(b)[0]) == n, f"first has {n} images: second must have as many")
        weights = np.linspace(0.0, 1.0, num, dtype=np.float32)

        def between(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            w = weights.reshape(1, num, *[1] * (x.ndim - 1))
            return ((1 - w) * x[:, None] + w * y[:, None]).reshape(n * num, *x.shape[1:]).astype(x.dtype)

        labels = np.repeat(label, num) if np.ndim(label) == 1 else label
        images = self.decode(key, jax.tree.map(between, a, b), label=labels)
        return images.reshape(n, num, *self.model.images.shape)

    def inpaint(
        self, key: jax.Array, images: Any, mask: Any, *, label: Any = None, batch_size: int = 64, **options: Any
    ) -> np.ndarray:
        """Completes uint8 images (n, H, W, C) where `mask`, bool (H, W) or (n, H, W), is false.

        Raises:
          NotSupported: the model cannot. UserError: a mask that its order of generation cannot serve.
        """
        require_capability(self.model, "inpaint")
        array, kept = check_images(self.model, images), np.asarray(mask)
        spec = self.model.images
        require(kept.dtype == bool, f"mask is {kept.dtype}: it must be bool, true where a pixel is kept")
        kept = np.broadcast_to(kept, (len(array), *kept.shape)) if kept.ndim == 2 else kept
        wanted = (len(array), spec.height, spec.width)
        require(kept.shape == wanted, f"mask has shape {kept.shape}: it must be {wanted[1:]} or {wanted}")
        for one in np.unique(kept, axis=0):
            if self.model.check_mask is not None:
                self.model.check_mask(one)
        inputs = {"image": array, "mask": kept}
        return self._run("inpaint", key, len(array), inputs, options, label=label, batch_size=batch_size)

    def _run(
        self,
        name: str,
        key: jax.Array,
        n: int,
        inputs: Arrays,
        options: dict[str, Any],
        *,
        label: Any,
        batch_size: int,
        progress: Progress = iter,
    ) -> Any:
        """One of the model's functions over n inputs; a conditional model needs their classes."""
        require(
            not self.model.conditional or label is not None,
            f"{self.model.name} is conditional: {name} needs label=, one class an image",
        )
        labels = resolve_labels(self.model, label, n, 0)
        arrays = {**inputs, "index": np.arange(n, dtype=np.int32)}
        arrays["label"] = np.zeros(n, np.int32) if labels is None else labels
        chosen = resolve_options(self.model, name, options)
        params, ctx = self._placed
        where = {"options": chosen, "batch_size": batch_size, "progress": progress}
        return run_over(self.model, name, params, ctx, key, arrays, **where)

    def __getattr__(self, name: str) -> Any:
        """Capabilities that no model has yet raise `NotSupported`, which says what this one can do."""
        if name in CAPABILITIES:
            require_capability(self.model, name)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *capabilities(self.model)})
