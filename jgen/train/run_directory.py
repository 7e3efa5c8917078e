"""A run directory: config.json, environment.json, metrics.jsonl, samples/, checkpoints/. One process writes it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from jgen.core.files import drop_unfinished, finite_or_none, lock, written_whole
from jgen.errors import UserError, require

PACKAGES = ("jgen", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


class RunDirectory:
    """Opens a directory for training and holds its lock until `close`.

    Args:
      writes: whether this is the one process of the training that writes the directory; the others hold no lock.
    Raises:
      UserError: the path cannot be written, or another process is training here.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path = path
        self._lock = lock(path, "is training in", "wait for it, or choose another --workdir") if writes else None
        if not writes:
            return
        drop_unfinished(path / "samples" / "step_*.png")  # in the run's own folder, scores may be being written

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def samples(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step:08d}.png"

    def write(self, name: str, document: Any) -> None:
        """Writes a JSON document. Raises `UserError` when it cannot."""
        write_json(self.path / name, document)

    def note_start(self, step: int, seed: int) -> None:
        """Writes environment.json; when a run is resumed, adds the step and what has changed to its `resumed`."""
        now: dict[str, Any] = {**environment(), "seed": seed}
        try:
            saved = json.loads((self.path / "environment.json").read_text())
            before = {**saved, **{name: value for start in saved.get("resumed", []) for name, value in start.items()}}
        except (OSError, ValueError, AttributeError):
            self.write("environment.json", now)
            return
        if changed := {name: value for name, value in now.items() if before.get(name) != value}:
            saved["resumed"] = [*saved.get("resumed", []), {"step": step, **changed}]
            self.write("environment.json", saved)


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document. Raises `UserError` when it cannot."""
    with written_whole(path) as aside:
        aside.write_text(json.dumps(finite_or_none(document), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The document in a JSON file. Raises `UserError` if it cannot be read or is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


FIRST_VERSION = "0.1.0"  # the version of runs that do not state one


def read_config(path: Path) -> dict[str, Any]:
    """The document in a run's config.json, in the form of this version. Raises `UserError` if there is no run, or the
    file is damaged."""
    path = path.expanduser()
    file = path / "config.json"
    require(path.is_dir(), f"there is no run at {path}")
    published = f"{path} is a pipeline in diffusers' layout: python -m jgen.convert {path} RUN makes a run of it"
    require(not (path / "model_index.json").is_file() or file.is_file(), published)
    require(file.is_file(), f"{path} is not a run: it has no config.json")
    document = read_json(file)
    require(isinstance(document, dict), f"{file} is damaged: it lacks its parts")
    document = upgrade(document)
    missing = sorted({"experiment", "data", "data_fingerprint", "frozen_fingerprints"} - set(document))
    require(not missing, f"{file} is damaged: it lacks {', '.join(missing)}")
    fingerprint, frozen = document["data_fingerprint"], document["frozen_fingerprints"]
    require(isinstance(fingerprint, str), f"{file} is damaged: data_fingerprint is {fingerprint!r}: it must be str")
    fits = isinstance(frozen, dict) and all(isinstance(value, str) for value in frozen.values())
    require(fits, f"{file} is damaged: frozen_fingerprints is {frozen!r}: it must be hashes by role")
    return document


def upgrade(document: dict[str, Any]) -> dict[str, Any]:
    """Converts a run's document to this version. Up to 0.1 a run had one frozen model, its first stage, and the number
    of classes was stored with the image shape."""
    new = {"version": FIRST_VERSION, **document}
    experiment = new.get("experiment")
    if isinstance(experiment, dict):
        experiment = dict(experiment)
        first = experiment.pop("first_stage", "")
        if first:
            experiment["frozen"] = {"autoencoder": first}
        new["experiment"] = experiment
    if isinstance(images := new.pop("images", None), dict):
        images = dict(images)
        classes = images.pop("num_classes", 0)
        label = {"class": "jgen.core.model:ArraySpec", "shape": [], "dtype": "int32", "num_values": classes}
        fields = {"label": label} if classes else {}
        new["data"] = {"class": "jgen.core.model:DataSpec", "image": images, "fields": fields}
    if isinstance(first := new.pop("first_stage_fingerprint", None), str):
        new["frozen_fingerprints"] = {"autoencoder": first} if first else {}
    return new


def environment() -> dict[str, Any]:
    """Versions, devices, commit and command, to document the run."""
    import jax

    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.local_devices()],
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def program_identity() -> dict[str, Any]:
    """{name: value} that must be equal in all processes that work together."""
    import jax

    backend = jax.default_backend()
    return {"jgen's commit": commit(), "jgen's code": code_hash(), "JAX": jax.__version__, "the backend": backend}


def code_hash() -> str:
    """A hash of jgen's source files, which also distinguishes local changes and installed packages."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} ".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def processor() -> str:
    """The number of cores and the processor's name."""
    try:
        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    return f"{os.cpu_count()} x {names[0] if names else platform.processor()}"


def commit() -> str | None:
    """The commit of the source tree that jgen is imported from, with "+" for local changes; None outside a tree.

    Files in results/ do not count as changes, so that writing one result does not mark the next as changed.
    """
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        status = [*git, "status", "--porcelain", "--", ".", ":(exclude)results"]
        dirty = subprocess.run(status, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
