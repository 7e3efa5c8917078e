"""The comparison as data: one row per system, from the files written by measuring, training and evaluating."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from PIL import Image

from jgen.compare.systems import System, sampling_defaults
from jgen.errors import UserError
from jgen.experiment import entries
from jgen.train.run_directory import read_json

Row = dict[str, Any]
# Network of the features, hash of the data, number of samples, split and number of the real images.
Protocol = tuple[str, str, int, str, int]

# (key, column, digits) of the scores of each seed
SCORES = (
    ("distance", "FD", 2),
    ("kernel_distance", "kernel distance", 1),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("memorisation", "memorisation, %", 1),
    ("accuracy", "class accuracy, %", 1),
    ("bits_per_dim", "bits/dim", 3),
)

# The measurements of a system.
COSTS: tuple[str, ...] = ("batch_size", "parameters", "flops_per_image", "compile_seconds", "step_seconds")
COSTS += ("images_per_second",)
COSTS += ("first_sample_seconds", "samples_per_second", "peak_mib", "likelihood", "levels", "exact_density")
# The fields of each evaluation that a row keeps: every number with its interval and protocol, and validation scores.
KEPT = ("quality", "labels", "likelihood", "sampling", "validation")


def columns(network: str) -> tuple[tuple[str, str, int], ...]:
    """`SCORES`, with distances called FID and KID only if the features are those of the published network.

    In an Inception network's features a kernel distance is of the order of 0.01, so it needs more digits.
    """
    names = {"distance": "FID", "kernel_distance": "KID"} if network == "FID" else {}
    fine = {"kernel_distance": 5} if network == "FID" or network.startswith("FD-inception") else {}
    return tuple((key, names.get(key, name), fine.get(key, digits)) for key, name, digits in SCORES)


def read(path: Path) -> Any:
    """The JSON document at a path, None if there is none. Raises `UserError` if it is damaged."""
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"{error}; remove it to have it made anew") from None


def protocol_of(evaluation: dict[str, Any]) -> Protocol:
    """The protocol of an evaluation's distances."""
    quality = evaluation["quality"]
    real = quality["real"]
    return quality["network"], evaluation["data_fingerprint"], quality["num"], real["split"], real["num"]


def describe_protocol(protocol: Protocol) -> str:
    """A protocol in words."""
    network, data, num, split, num_real = protocol
    return f"{network}, {num} samples to {num_real} {split} images, data {data[:12]}"


def scores_of(evaluation: dict[str, Any]) -> dict[str, float]:
    """The numbers of one evaluation for the table; those that were not computed, or do not exist, are missing."""
    quality, labels, likelihood = (evaluation.get(part) or {} for part in ("quality", "labels", "likelihood"))
    kernel, bits = quality.get("kernel_distance", {}), likelihood.get("bits_per_dim", {})
    percent = 100.0
    scores = {
        "distance": value_of(quality.get("frechet_distance")),
        "kernel_distance": value_of(kernel),
        "kernel_distance_error": kernel.get("standard_error"),
        "memorisation": value_of(quality.get("memorisation"), percent),
        "spatial_distance": value_of(quality.get("spatial_frechet_distance")),
        "accuracy": value_of(labels, percent, "accuracy"),
        "class_balance": labels.get("balance"),
        "bits_per_dim": bits.get("mean"),
        "bits_per_dim_error": bits.get("standard_error"),
        "minutes": evaluation["trained"]["minutes"],
        "steps": evaluation["trained"]["steps"],
        "best_step": evaluation["step"],
    }
    others = ("precision", "recall", "density", "coverage", "classifier_score", "inception_score")
    scores |= {name: value_of(quality.get(name)) for name in others}
    return {name: score for name, score in scores.items() if score is not None}


def value_of(score: dict[str, Any] | None, scale: float = 1.0, key: str = "value") -> float | None:
    """A score's value; None if it was not computed."""
    value = (score or {}).get(key)
    return None if value is None else scale * value


def seed_line(evaluation: dict[str, Any]) -> str:
    """The scores of one seed, each with its bootstrap interval or standard error, for comparison with a rerun."""
    scores, quality = scores_of(evaluation), evaluation["quality"]
    names = {"distance": "frechet_distance"} | {name: name for name in ("memorisation", "precision", "recall")}
    intervals = {key: quality.get(name) or {} for key, name in names.items()} | {"accuracy": evaluation["labels"] or {}}
    parts = []
    for key, name, digits in columns(quality["network"]):
        if key not in scores:
            continue
        text = f"{name} {scores[key]:.{digits}f}"
        interval, scale = intervals.get(key, {}), 100 if key in ("memorisation", "accuracy") else 1
        if "low" in interval:
            text += f" ({scale * interval['low']:.{digits}f} to {scale * interval['high']:.{digits}f})"
        if f"{key}_error" in scores:
            text += f" ± {scores[f'{key}_error']:.{digits}f} over images"
        parts.append(text)
    return f"{', '.join(parts)}; in brackets, 95 % by bootstrap of the images"


def describe_sampling(options: dict[str, Any], defaults: Any) -> str:
    """A description of a system's sampling options: steps and sampler, if it has them, and every other option that
    differs from its default.

    Args:
      defaults: the system's options with the defaults of their dataclass, or None.
    """
    usual = {} if defaults is None else entries(defaults)
    parts, shown = [], {"steps", "sampler"}
    if "steps" in options:
        parts.append(f"{options['steps']} steps" + (f" of {options['sampler']}" if "sampler" in options else ""))
    elif "sampler" in options:
        parts.append(f"{options['sampler']}")
    for name, value in options.items():
        value = tuple(value) if isinstance(value, list) else value
        if name not in shown and value != usual.get(name):
            parts.append(describe_option(name.replace("_", " "), value))
    return ", ".join(parts) or "as trained"


def describe_option(name: str, value: Any) -> str:
    """An option in words: "temperature 0.8", "mean", "no clip", "3 times"."""
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, tuple):
        return f"{len(value)} {name}"
    return f"{name} {value:g}" if isinstance(value, (int, float)) else f"{name} {value}"


def read_evaluation(path: Path, wanted: Protocol | None) -> dict[str, Any] | None:
    """The evaluation of one seed, None if there is none yet.

    Raises:
      UserError: a file that is damaged or from another version of jgen, a protocol other than `wanted`, or a score that
        is not a finite number.
    """
    evaluation = read(path)
    if evaluation is None:
        return None
    try:
        scores, protocol = scores_of(evaluation), protocol_of(evaluation)
        seed_line(evaluation), evaluation["sampling"]["options"], evaluation["environment"], evaluation["training"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} lacks {error}; remove it to have it made anew") from None
    if "distance" not in scores:
        raise UserError(f"{path} has no distance: it was not finite")
    if wrong := [f"{key} is {value}" for key, value in scores.items() if not math.isfinite(value)]:
        raise UserError(", ".join(wrong))
    if wanted and protocol != wanted:
        others = f"others with {describe_protocol(wanted)}"
        raise UserError(f"scored with {describe_protocol(protocol)}; {others}: remove {path} to score it anew")
    return evaluation


def system_row(system: System, folder: Path, seeds: int, wanted: Protocol | None = None) -> Row:
    """A system's row from its folder: costs, scores by seed with mean and spread, commands, and errors.

    Only seeds 0 .. seeds - 1 count, and of them only those with the protocol `wanted`, or that of the first of them.
    """
    row: Row = {"system": system.name, "published": system.training.facts.published}
    row |= {"cost": None, "seeds": {}, "scores": {}, "commands": {}, "gave": {}, "errors": {}, "environments": []}
    row |= {"evaluations": {}, "unguided": {"seeds": {}}}
    stages = ("measure", *(f"seed {seed}" for seed in range(seeds)))
    errors = read_or_note(folder / "errors.json", row, "errors") or {}
    row["errors"] |= {stage: error for stage, error in errors.items() if stage in stages}
    add_costs(row, system, folder)
    for seed in range(seeds):
        add_seed(row, system, folder, seed, wanted)
        if wanted is None and row["seeds"]:
            wanted = row_protocol(row)
    row["scores"] = mean_and_spread(list(row["seeds"].values()))
    row["unguided"]["scores"] = mean_and_spread(list(row["unguided"]["seeds"].values()))
    row["shown"] = next(iter([*row["seeds"], *row["commands"]]), "")
    grids = [path for seed in row["seeds"] if is_picture(path := folder / f"{seed}.png")]
    row["grid"] = str(grids[0].relative_to(folder.parent)) if grids else ""
    return row


def read_or_note(path: Path, row: Row, stage: str) -> Any:
    """The document at a path; if it is damaged, this is added to the row as an error of the stage."""
    try:
        return read(path)
    except UserError as error:
        row["errors"][stage] = str(error)
        return None


def add_costs(row: Row, system: System, folder: Path) -> None:
    """Adds the measurements of a system to its row."""
    path = folder / "measure.json"
    measured = read_or_note(path, row, "measure")
    if not measured:
        return
    lacking = [name for name in ("config", "sizes", "environment") if name not in measured]
    lacking += [name for name in COSTS if name not in measured.get("own", COSTS)]
    if lacking:
        row["errors"]["measure"] = f"{path} lacks {', '.join(lacking)}; remove it to have it made anew"
    elif "own" in measured:
        cost = measured["own"] | {"free_form_jacobian": system.training.facts.free_form_jacobian}
        trainings = [training.config for training in system.training.in_order()]
        row |= {"config": measured["config"], "cost": cost, "sizes": measured["sizes"], "trainings": trainings}
        row["environments"].append(measured["environment"])


def add_seed(row: Row, system: System, folder: Path, seed: int, wanted: Protocol | None) -> None:
    """Adds the commands and the scores of one seed to a system's row."""
    name, stage = f"seed{seed}", f"seed {seed}"
    if commands := read_or_note(folder / f"{name}.commands.json", row, stage):
        row["commands"][name] = commands
    try:
        evaluation = read_evaluation(folder / f"{name}.evaluation.json", wanted)
        unguided = read_evaluation(folder / f"{name}.unguided.json", wanted)
    except UserError as error:
        row["errors"][stage] = str(error)
        return
    if evaluation is None:
        return
    if errors := evaluation.get("errors"):
        row["errors"][stage] = "; ".join(errors.values())
    quality = evaluation["quality"]
    row["environments"] += filter(None, [evaluation["environment"], evaluation["training"]])
    row["seeds"][name], row["gave"][name] = scores_of(evaluation), seed_line(evaluation)
    if unguided is not None:
        row["unguided"]["seeds"][name] = scores_of(unguided)
    row["evaluations"][name] = {part: evaluation.get(part) for part in KEPT}
    row["sampled"] = describe_sampling(evaluation["sampling"]["options"], sampling_defaults(system.training))
    row |= {"network": quality["network"], "samples": quality["num"], "real": quality["real"]}
    row["data_fingerprint"] = evaluation["data_fingerprint"]
    if evaluation["likelihood"]:
        protocol = evaluation["likelihood"]["protocol"]
        row["protocol"] = {key: value for key, value in protocol.items() if key != "seed"}


def mean_and_spread(seeds: list[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """{score: {"mean", "spread"}} over seeds; the spread, a standard deviation, is None for a single value."""
    scores = {}
    for key in sorted({key for seed in seeds for key in seed}):
        values = [seed[key] for seed in seeds if seed.get(key) is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            scores[key] = {"mean": statistics.mean(values), "spread": spread}
    return scores


def row_protocol(row: Row) -> Protocol:
    """The protocol of the distances in a row with scores."""
    return row["network"], row["data_fingerprint"], row["samples"], row["real"]["split"], row["real"]["num"]


def is_picture(path: Path) -> bool:
    """Whether there is a valid picture."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError):  # Pillow raises it for a damaged picture
        return False
    return True


def all_rows(workdir: Path, systems: list[System], seeds: int, wanted: Protocol | None = None) -> list[Row]:
    """The rows of systems, all with the protocol `wanted`, or that of the first that was scored."""
    rows: list[Row] = []
    for system in systems:
        rows.append(system_row(system, workdir / system.name, seeds, wanted))
        if wanted is None and rows[-1]["seeds"]:
            wanted = row_protocol(rows[-1])
    return rows


def by_distance(rows: list[Row]) -> list[Row]:
    """Rows with the best distance first, then those without one."""
    return sorted(rows, key=lambda row: row["scores"].get("distance", {"mean": math.inf})["mean"])
