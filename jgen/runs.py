"""Loading the model of a run directory, and the frozen runs that it depends on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jgen
from jgen.core.model import DataSpec, FrozenModel, GenerativeModel
from jgen.data.dataset import Dataset, alike
from jgen.data.text import AnyTokenizer, load_tokenizers, save_tokenizers
from jgen.errors import require
from jgen.experiment import Experiment, flatten, from_json, make_model, to_json
from jgen.train import checkpoints
from jgen.train.config import MAY_CHANGE, may_change
from jgen.train.run_directory import RunDirectory, read_config, read_json

TOKENIZERS = "tokenizers.json"  # the tokenizers of a run's text fields, if it has any
MOVED = ("data.name", "data.test")  # options that may change as long as the data's hash does not


class FrozenRun(NamedTuple):
    """A trained model that another depends on: its functions, its arrays, their hash, and {hash of the arrays: seconds
    of training} of this run and of those that it depends on. place: the run directory; tokenizers: {field: tokenizer}
    of the texts that it takes."""

    model: GenerativeModel
    arrays: FrozenModel
    fingerprint: str
    seconds: Mapping[str, float]
    place: str = ""
    tokenizers: Mapping[str, AnyTokenizer] = {}


FrozenRuns = dict[str, FrozenRun]  # by role


def is_published(path: Path) -> bool:
    """Whether a folder holds weights in diffusers' layout (of a pipeline or a model) and is not a run."""
    if (path / "model_index.json").is_file():
        return True
    document = read_json(path / "config.json") if (path / "config.json").is_file() else None
    return isinstance(document, dict) and "experiment" not in document and "_class_name" in document


def load_experiment(run: str | Path) -> tuple[Experiment, DataSpec]:
    """The experiment that a run was made from, and the specification of its data.

    Raises:
      UserError: no run, or a config.json that is damaged or names a class outside jgen.
    """
    path = Path(run).expanduser()
    document, where = read_config(path), str(path / "config.json")
    experiment, data = from_json(document["experiment"], where), from_json(document["data"], where)
    require(isinstance(experiment, Experiment), f"{where} is damaged: it does not hold an experiment")
    require(isinstance(data, DataSpec), f"{where} is damaged: it does not say what the data is")
    return experiment, data


def tokenizers_of(path: Path) -> dict[str, AnyTokenizer]:
    """The tokenizers of a run's text fields; {} where there is no run.

    Raises:
      UserError: the file is damaged, or the tokenizers are not those that the run was trained with.
    """
    tokenizers = load_tokenizers(path / TOKENIZERS)
    wanted = read_config(path).get("tokenizer_fingerprints", {}) if (path / "config.json").is_file() else {}
    for name, digest in wanted.items():  # runs of older versions of jgen have none
        same = name in tokenizers and tokenizers[name].fingerprint == digest
        require(same, f"{path / TOKENIZERS}: the tokenizer of {name} is not the one that {path} was trained with")
    return tokenizers


@lru_cache(maxsize=32)
def _made(config: Any, data: DataSpec, frozen: tuple[tuple[str, GenerativeModel], ...]) -> GenerativeModel:
    return make_model(config, data, dict(frozen))


def model_of(config: Any, data: DataSpec, frozen: FrozenRuns) -> GenerativeModel:
    """The model of a system's Config, cached: all checkpoints of a run share its functions, which compile only once."""
    model = _made(config, data, tuple((role, run.model) for role, run in sorted(frozen.items())))
    check_shared(model, frozen)
    return model


def check_shared(model: GenerativeModel, frozen: FrozenRuns) -> None:
    """Raises `UserError` if this model and one of its frozen runs depend on different runs for a shared role."""
    for role in model.shared:
        for other, run in frozen.items():
            if role in run.arrays.frozen:
                theirs, own = fingerprint_of(run.arrays.frozen[role])[:8], frozen[role].fingerprint[:8]
                stands = f"frozen.{other} depends on the {role} {theirs}, and frozen.{role} is {own}"
                require(theirs == own, f"{stands}: it must be the same run at the same step")


def frozen_arrays(frozen: FrozenRuns) -> dict[str, FrozenModel]:
    """The value of `Context.frozen`."""
    return {role: run.arrays for role, run in frozen.items()}


def frozen_seconds(frozen: FrozenRuns) -> dict[str, float]:
    """{hash of the arrays: seconds of training} of all runs that a run depends on, so that each counts once."""
    return {fingerprint: seconds for run in frozen.values() for fingerprint, seconds in run.seconds.items()}


def fingerprint_of(model: FrozenModel) -> str:
    """SHA-256 of the arrays of a frozen model and of those that it depends on."""
    digest = hashlib.sha256()
    # "first_stage" was the only role in jgen 0.1; hashing under this name for all roles keeps the hashes of its runs.
    for path, leaf in jax.tree_util.tree_leaves_with_path({"first_stage": (model.params, model.extra)}):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    for role, inner in sorted(model.frozen.items()):
        digest.update(role.encode() + fingerprint_of(inner).encode())
    return digest.hexdigest()


def load_frozen(places: Mapping[str, str | Path], wanted: Mapping[str, str], load: Callable[..., Any]) -> FrozenRuns:
    """The averaged weights of earlier runs, by role.

    Args:
      places: {role: run directory}.
      wanted: {role: hash of the arrays to load}, which finds the right checkpoint if the run was trained further since;
        for other roles the newest undamaged checkpoint is loaded.
      load: `jgen.load`.
    Raises:
      UserError: no such run or checkpoint.
    """
    return {role: load_frozen_run(role, place, wanted.get(role, ""), load) for role, place in places.items()}


def load_frozen_run(role: str, run: str | Path, wanted: str, load: Callable[..., Any]) -> FrozenRun:
    """One run of `load_frozen`; the newest undamaged checkpoint if none has the wanted hash."""
    advice = f"train the {role} before, or give its --frozen.{role}"
    run = Path(run).expanduser() if str(run) else run
    require(str(run) != "" and Path(run).is_dir(), f"there is no run at {str(run) or '(empty)'}: {advice}")

    def at(step: int | None) -> FrozenRun:
        gen = load(run, step)
        arrays = FrozenModel(gen.params, gen.ctx.extra, gen.ctx.frozen)
        fingerprint = fingerprint_of(arrays)
        seconds = {**gen.frozen_seconds, fingerprint: gen.own_seconds}
        reads = (*gen.model.conditions, getattr(gen.config.model, "text", ""))
        tokenizers = {name: each for name, each in gen.tokenizers.items() if name in reads}
        return FrozenRun(gen.model, arrays, fingerprint, seconds, str(run), tokenizers)

    newest, folder = at(None), Path(run) / "checkpoints"
    if wanted in ("", newest.fingerprint):
        return newest
    older = (at(step) for step in checkpoints.steps_in(folder) if checkpoints.fault(folder, step) is None)
    return next((one for one in older if one.fingerprint == wanted), newest)


def check_tokenizers(tokenizers: Mapping[str, AnyTokenizer], frozen: FrozenRuns) -> None:
    """Raises `UserError` if a run tokenizes a text field differently than a frozen run that takes the same field.

    Args:
      tokenizers: the run's own, by field.
    """
    for role, run in sorted(frozen.items()):
        for name in sorted(set(tokenizers) & set(run.tokenizers)):
            own, theirs = tokenizers[name], run.tokenizers[name]
            differs = difference(own, theirs)
            how = f"frozen {role}, {run.place}, reads {name} by another tokenizer than this run's data"
            advice = f"train the {role} on this data, or give the run that was"
            require(not differs, f"{how}: {differs}; {advice}, --frozen.{role} RUN")


def difference(own: AnyTokenizer, theirs: AnyTokenizer) -> str:
    """How two tokenizers differ, the value of `own` first; "" if they make the same tokens."""
    if own == theirs:
        return ""
    if type(own) is not type(theirs):
        return "one is CLIP's published kind, and the other is not"
    if own.length != theirs.length:
        return f"texts have {own.length} tokens here and {theirs.length} there"
    if own.merges == theirs.merges:
        return "their vocabularies or their padding differ"
    same = next((i for i, (a, b) in enumerate(zip(own.merges, theirs.merges)) if a != b), None)
    numbers = f"{len(own.merges)} merges here, {len(theirs.merges)} there"
    return f"{numbers}, which differ from merge {same} on" if same is not None else numbers


def find_frozen(
    run: Path, saved: Mapping[str, str], given: Mapping[str, str | Path], optional: Iterable[str] = ()
) -> dict[str, Path]:
    """The paths of a run's frozen runs, by role: as given, or else where they were at training, or next to the run.

    Args:
      optional: roles that the system does not require: a run that was trained without one may be given it now, such as
        a classifier for guidance.
    Raises:
      UserError: a run that is in none of these places, or a role that the run does not depend on.
    """
    takes = [*saved, *(role for role in optional if role not in saved)]
    for role in given:
        known = f"it takes {', '.join(takes)}" if takes else "it depends on no other run"
        require(role in takes, f"frozen has {role!r}, which {run} does not take: {known}")
    places = {}
    for role, place in ({role: "" for role in takes if given.get(role)} | dict(saved)).items():
        beside = run.absolute().parent / Path(place).name
        if given.get(role):
            places[role] = Path(given[role]).expanduser()
            require(places[role].is_dir(), f"there is no run at {places[role]}, which was given as frozen.{role}")
            continue
        candidates = [Path(place).expanduser(), beside]
        places[role] = next((one for one in candidates if one.is_dir()), candidates[0])
        require(
            places[role].is_dir(),
            f"{run} depends on the run {place}, which is neither there nor at {beside}: give its place with"
            f" --frozen.{role}, or jgen.load({str(run)!r}, frozen={{{role!r}: ...}})",
        )
    return places


def open_run(directory: RunDirectory, experiment: Experiment, dataset: Dataset, frozen: FrozenRuns) -> None:
    """Writes a run's configuration into its directory, or compares it with the existing one.

    Raises:
      UserError: fields that differ and must not change; the message gives both values of each.
    """
    document = {"version": jgen.__version__, "experiment": to_json(experiment), "data": to_json(dataset.spec)}
    document["data_fingerprint"] = dataset.fingerprint
    document["tokenizer_fingerprints"] = {name: each.fingerprint for name, each in dataset.tokenizers.items()}
    document["frozen_fingerprints"] = {role: run.fingerprint for role, run in frozen.items()}
    if (directory.path / "config.json").exists():
        saved = read_config(directory.path)
        document["version"] = saved["version"]  # that of the start; environment.json has those of resumptions
        check_unchanged(directory.path, saved, document, experiment)
    directory.write("config.json", document)
    if dataset.tokenizers:
        save_tokenizers(directory.path / TOKENIZERS, dataset.tokenizers)


def spec_of(document: Any, where: str) -> Any:
    """The specification of a run's data, for comparison: shape and levels of images, and the fields without class
    names."""
    data = from_json(document, where)
    return data.image, {name: (spec.shape, spec.dtype, spec.num_values) for name, spec in data.fields.items()}


def check_unchanged(path: Path, saved: dict[str, Any], document: dict[str, Any], experiment: Experiment) -> None:
    """Raises `UserError` for fields that differ from the run's saved ones and must not change."""
    before = flatten(from_json(saved["experiment"], str(path / "config.json")))
    after = flatten(experiment)
    before["the data's hash"], after["the data's hash"] = saved["data_fingerprint"], document["data_fingerprint"]
    if alike(saved["data_fingerprint"], document["data_fingerprint"]):
        after["the data's hash"] = before["the data's hash"]
    for values, one in ((before, saved), (after, document)):
        values |= {f"the hash of frozen {role}": digest for role, digest in one["frozen_fingerprints"].items()}
    shapes = [spec_of(document["data"], str(path / "config.json")) for document in (saved, document)]
    before["the data"], after["the data"] = shapes
    same = saved["data_fingerprint"] == document["data_fingerprint"]
    free: tuple[str, ...] = MOVED if same else ()  # the same data, in another place or format
    if saved["data_fingerprint"] == "":  # converted weights, without their data
        free = tuple(name for name in before if name.startswith("data."))
    changed = [n for n in {**before, **after} if before.get(n) != after.get(n)]
    names = [n for n in changed if not may_change(n) and n not in free]
    changes = "; ".join(f"{name} was {before.get(name)}, is {after.get(name)}" for name in names)
    require(
        not names,
        f"{path} was started with another configuration: {changes}"
        f" (use another --workdir; these may change: {', '.join(MAY_CHANGE)})",
    )
    steps, schedule = before["train.steps"], experiment.train.optimiser.schedule
    if steps != experiment.train.steps and schedule != "constant":
        change = f"train.steps was {steps}, is {experiment.train.steps}: the learning rate follows the {schedule}"
        print(f"{change} schedule of the new length from here on", file=sys.stderr)
