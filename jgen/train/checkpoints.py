"""Checkpoints: asynchronous, written by Orbax, with a list of hashes to detect damage.

A checkpoint is a folder `checkpoints/<step>/` with the arrays of the state and a small JSON document; Orbax writes it
under a temporary name and renames it. Next to it, `checkpoints/<step>.sha256.json` lists the hash of each of its files;
it is written once the checkpoint is complete. A checkpoint without this list is incomplete, and one that does not match
it is damaged. Hashes are checked only for the checkpoint that is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jgen.core.files import written_whole
from jgen.errors import UserError, require
from jgen.train.logs import best_of, validation_scores
from jgen.train.step import TrainState


def to_storable(state: TrainState) -> dict[str, Any]:
    """The state as a dict of plain arrays; PRNG keys are converted to uint32."""
    return {**state._asdict(), "key": jax.random.key_data(state.key)}


def from_storable(arrays: dict[str, Any]) -> TrainState:
    """The inverse of `to_storable`."""
    return TrainState(**{**arrays, "key": jax.random.wrap_key_data(arrays["key"])})


def import_orbax() -> Any:
    """Orbax, imported on first use (it takes half a second), without its log lines."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    import orbax.checkpoint as ocp

    return ocp


def steps_in(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir()), reverse=True)


def manifest_path(folder: Path, step: int) -> Path:
    return folder / f"{step}.sha256.json"


def hash_tree(folder: Path) -> dict[str, str]:
    """{relative path: SHA-256} of every file below a folder, read in chunks."""
    hashes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            hashes[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def fault(folder: Path, step: int) -> str | None:
    """What is wrong with a checkpoint, including files that cannot be read; None if it is undamaged."""
    try:
        return damage(folder, step)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def damage(folder: Path, step: int) -> str | None:
    """What is wrong with the files of a checkpoint, or None. Raises `OSError` if they cannot be read."""
    try:
        wanted = json.loads(manifest_path(folder, step).read_text())
    except FileNotFoundError:
        return "was not finished"
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        return "has a damaged list of hashes"
    hashes = hash_tree(folder / str(step))
    for name, digest in wanted.items():
        if name not in hashes:
            return f"has lost {name}"
        if hashes[name] != digest:
            return f"is damaged in {name}"
    return None


def warn(message: str) -> None:
    """One line on standard error."""
    print(f"warning: {message}", file=sys.stderr)


def newest_good(folder: Path) -> int | None:
    """The step of the newest undamaged checkpoint; newer damaged ones are skipped with a warning.

    None if there is none yet, or only one whose writing was interrupted.

    Raises:
      UserError: there are complete checkpoints, and all are damaged: training from the start would overwrite the run.
    """
    damaged = ""
    for step in steps_in(folder):
        reason = fault(folder, step)
        if reason is None:
            return step
        if manifest_path(folder, step).exists():
            damaged = damaged or f"that of step {step} {reason}"
        warn(f"checkpoint {folder / str(step)} {reason}: passed over")
    if damaged:
        raise UserError(f"no checkpoint in {folder} is whole any more: {damaged}; restore one, or remove the run")
    return None


def wait_until_seen(folder: Path, step: int, seconds: float = 60.0) -> None:
    """Waits until this process sees a checkpoint written by another, which may appear later on a shared file system.

    Raises:
      UserError: it is not complete after this time.
    """
    reason, until = fault(folder, step), time.monotonic() + seconds
    while reason is not None and time.monotonic() < until:
        time.sleep(0.5)
        reason = fault(folder, step)
    where = f"process {jax.process_index()} of the training does not see the checkpoint that the first one goes on from"
    require(reason is None, f"{where}: after {seconds:.0f} s {folder / str(step)} {reason}")


def best_good(folder: Path, best: tuple[str, str] | None) -> int:
    """The step of the checkpoint with the best validation score; damaged ones are skipped with a warning.

    Args:
      best: the score and "min" or "max", as in `GenerativeModel.best`.
    Raises:
      UserError: no checkpoint was validated, or no score tells which is better, as in adversarial training.
    """
    lines, steps = validation_scores(folder.parent), set(steps_in(folder))
    left = [line for line in lines if line["step"] in steps]
    while (line := best_of(left, best)) is not None:
        reason = fault(folder, line["step"])
        if reason is None:
            return line["step"]
        warn(f"checkpoint {folder / str(line['step'])} {reason}: using the next best")
        left.remove(line)
    scores = ", ".join(name for name in (lines or [{}])[0] if name not in ("step", "split")) or "no scores"
    scored = best_of(lines, best) is not None
    reason = "no kept and whole checkpoint has a score" if scored else f"its validation has {scores}"
    raise UserError(f"{folder.parent} does not say which checkpoint is best: {reason}; give a step")


def seconds_at(folder: Path, step: int) -> float:
    """Seconds of training up to a checkpoint, without frozen models. Raises `UserError` if it cannot be read."""
    ocp = import_orbax()
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            return checkpointer.restore((folder / str(step)).absolute(), args).meta["seconds"]
    except Exception as error:  # of many types
        raise UserError(f"checkpoint {folder / str(step)} cannot be read: {reason_of(error)}") from error


def read(folder: Path, step: int, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state and the document of a checkpoint; `template` gives the arrays' structure and shapes.

    Raises:
      UserError: it cannot be read, or holds other arrays than the template.
    """
    ocp = import_orbax()
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), jax.eval_shape(to_storable, template)
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore((folder / str(step)).absolute(), args)
    except Exception as error:  # Orbax and TensorStore raise many types for arrays that do not fit
        if "Gloo" in str(error):  # Orbax waits for the other processes here, and one of them has ended
            raise
        raise UserError(f"checkpoint {folder / str(step)} does not hold this model: {reason_of(error)}") from error
    return from_storable(restored.state), restored.meta


def reason_of(error: BaseException) -> str:
    """The message of an error, truncated to one line."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= 200 else message[:197] + "..."


class Writer:
    """Writes checkpoints of one run in the background, and removes those that are not to be kept.

    Args:
      first: the step that the run resumes from; later checkpoints, which could not be read, are moved aside.
    Raises:
      UserError: from `save` and `close`, if a checkpoint could not be written (a full disk); earlier ones are intact.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int, first: int = 0):
        ocp = import_orbax()
        self.folder, self.keep, self.keep_every = folder.absolute(), keep, keep_every
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._set_aside_later(first)
            alone: dict[str, Any] = {}
            if jax.process_count() > 1:  # this process writes, without waiting for the others
                own = jax.process_index()
                only = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
                alone = {"multiprocessing_options": only, "create": False}
            options = ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=not alone, enable_async_checkpointing=True, **alone
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {folder}: {error.strerror or error}") from error

    def _set_aside_later(self, first: int) -> None:
        """Moves checkpoints after step `first`, which could not be read, aside; removes hash lists without one."""
        for step in steps_in(self.folder):
            if step > first:
                aside = self.folder / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
        self._drop_orphans()

    def _drop_orphans(self) -> None:
        steps = {str(step) for step in steps_in(self.folder)}
        for path in self.folder.glob("*.sha256.json"):
            if path.name.split(".")[0] not in steps:
                path.unlink(missing_ok=True)

    def _drop_old(self) -> None:
        """Removes checkpoints that are not to be kept; called once the newest is known to be complete."""
        for step in steps_in(self.folder)[self.keep :]:
            if not self.keep_every or step % self.keep_every:
                self._manager.delete(step)
        self._drop_orphans()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Copies the state to the host and returns; a thread writes it. Waits for the previous save, if any."""
        ocp = import_orbax()
        self.wait()
        step = int(state.step)
        if step in steps_in(self.folder):
            return
        # A copy: the CPU backend returns its own memory, which is donated to the next step.
        host = jax.tree.map(lambda x: np.array(x), to_storable(state))
        # Checked before, since Orbax's threads fail with stack traces when the disk fills up.
        needed, free = sum(x.nbytes for x in jax.tree.leaves(host)), shutil.disk_usage(self.folder).free
        if free < 1.1 * needed + (1 << 16):
            sizes = f"it takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free on the disk"
            raise UserError(f"cannot write a checkpoint to {self.folder}: {sizes}")
        args = ocp.args.Composite(state=ocp.args.StandardSave(host), meta=ocp.args.JsonSave(meta))

        def finish() -> None:
            try:
                self._manager.save(step, args=args)
                self._manager.wait_until_finished()
                if not (self.folder / str(step)).is_dir():
                    raise OSError("it was not written")
                with written_whole(manifest_path(self.folder, step)) as aside:
                    aside.write_text(json.dumps(hash_tree(self.folder / str(step))))
                self._drop_old()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=finish, name="jgen-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the last save is complete on disk. Raises `UserError` if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise UserError(f"cannot write a checkpoint to {self.folder}: {reason_of(error)}") from error

    def close(self) -> None:
        """Waits for the last save and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
