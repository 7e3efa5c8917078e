"""The comparison as data: one row a system, from the files that measuring, training and evaluating left."""

from __future__ import annotations

import csv
import math
import re
import statistics
from pathlib import Path
from typing import Any

from PIL import Image

from jgen.compare.published import PUBLISHED
from jgen.core.model import LIKELIHOODS
from jgen.errors import UserError
from jgen.train.run_directory import read_json

# (key, column, digits) of what is measured once a seed
SCORES = (
    ("distance", "FD", 2),
    ("kernel_distance", "kernel distance", 1),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("memorisation", "memorisation, %", 1),
    ("accuracy", "class accuracy, %", 1),
    ("bits_per_dim", "bits/dim", 3),
)

# What is measured of a system.
COSTS = ("batch_size", "parameters", "flops_per_image", "compile_seconds", "step_seconds", "images_per_second")
COSTS += ("first_sample_seconds", "samples_per_second", "peak_mib", "likelihood", "levels")
COSTS += ("exact_density", "free_form_jacobian")
# What a row keeps of each evaluation: every number with its interval and protocol, and validation on the way.
KEPT = ("quality", "labels", "likelihood", "sampling", "validation")


def columns(network: str) -> tuple[tuple[str, str, int], ...]:
    """`SCORES`, whose distances are called FID and KID only in the features of the published network.

    In an Inception network's features a kernel distance is a matter of hundredths.
    """
    names = {"distance": "FID", "kernel_distance": "KID"} if network == "FID" else {}
    fine = {"kernel_distance": 5} if network == "FID" or network.startswith("FD-inception") else {}
    return tuple((key, names.get(key, name), fine.get(key, digits)) for key, name, digits in SCORES)


def read(path: Path) -> Any:
    """The document at a path, None where there is none. Raises `UserError` for one that is damaged."""
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"{error}; remove it to have it made anew") from None


Yardstick = tuple[str, str, int, str, int]


def yardstick(evaluation: dict[str, Any]) -> Yardstick:
    """What scores were measured with: network, hash of the data, number of samples, split and number of real images."""
    quality = evaluation["quality"]
    real = quality["real"]
    return quality["network"], evaluation["data_fingerprint"], quality["num"], real["split"], real["num"]


def scores_of(evaluation: dict[str, Any]) -> dict[str, float]:
    """The numbers of one evaluation that the table holds; what a system does not have is missing."""
    quality, found = evaluation["quality"], {}
    found["distance"] = quality["frechet_distance"]["value"]
    for name in ("kernel_distance", "precision", "recall"):
        found[name] = quality[name]["value"]
    found["kernel_distance_error"] = quality["kernel_distance"]["standard_error"]
    found["memorisation"] = 100 * quality["memorisation"]["value"]
    found["spatial_distance"] = quality["spatial_frechet_distance"]["value"]
    found["density"], found["coverage"] = quality["density"]["value"], quality["coverage"]["value"]
    score = "inception_score" if quality["network"] == "FID" else "classifier_score"
    found[score] = quality[score]["value"]
    if evaluation["labels"]:
        found["accuracy"], found["class_balance"] = (
            100 * evaluation["labels"]["accuracy"],
            evaluation["labels"]["balance"],
        )
    if evaluation["likelihood"]:
        found["bits_per_dim"] = evaluation["likelihood"]["bits_per_dim"]["mean"]
        found["bits_per_dim_error"] = evaluation["likelihood"]["bits_per_dim"]["standard_error"]
    found["minutes"], found["steps"] = evaluation["trained"]["minutes"], evaluation["trained"]["steps"]
    found["best_step"] = evaluation["step"]
    return found


def seed_line(evaluation: dict[str, Any]) -> str:
    """What one seed's commands gave, each with its interval by bootstrap or its error, to hold a repetition against."""
    found, quality = scores_of(evaluation), evaluation["quality"]
    intervals = {"distance": (quality["frechet_distance"], 1), "memorisation": (quality["memorisation"], 100)}
    intervals |= {name: (quality[name], 1) for name in ("precision", "recall")}
    intervals["accuracy"] = (evaluation["labels"] or {}, 100)
    said = []
    for key, name, digits in columns(quality["network"]):
        if key not in found:
            continue
        said.append(f"{name} {found[key]:.{digits}f}")
        of, times = intervals.get(key, ({}, 1))
        if "low" in of:
            said[-1] += f" ({times * of['low']:.{digits}f} to {times * of['high']:.{digits}f})"
        if (error := found.get(f"{key}_error")) is not None:
            said[-1] += f" ± {error:.{digits}f} over images"
    return f"{', '.join(said)}; in brackets, 95 % by bootstrap of the images"


def sampled_with(evaluation: dict[str, Any]) -> str:
    """The options of sampling that shape what a system's samples are."""
    options = evaluation["sampling"]["options"]
    plain = {"temperature": 1.0, "guidance_scale": 1.0, "mean": False}
    said = [f"{options['steps']} steps of {options['sampler']}"] if "steps" in options else []
    chosen = [name for name in plain if options.get(name, plain[name]) != plain[name]]
    said += ["means" if name == "mean" else f"{name.replace('_', ' ')} {options[name]:g}" for name in chosen]
    return ", ".join(said) or "as trained"


def evaluation_of(folder: Path, seed: str, wanted: Yardstick | None) -> dict[str, Any] | None:
    """The scores of one seed, None where there are none yet.

    Raises:
      UserError: a file that is damaged or of another jgen, or what was measured otherwise than `wanted`, or a score
        that is no finite number.
    """
    path = folder / f"{seed}.evaluation.json"
    evaluation = read(path)
    if evaluation is None:
        return None
    try:
        scores, found = scores_of(evaluation), yardstick(evaluation)
        seed_line(evaluation), sampled_with(evaluation), evaluation["environment"], evaluation["training"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} lacks {error}; remove it to have it made anew") from None
    if wrong := [f"{key} is {value}" for key, value in scores.items() if not math.isfinite(value or 0)]:
        raise UserError(", ".join(wrong))
    said = lambda y: f"{y[0]}, {y[2]} samples to {y[4]} {y[3]} images, data {y[1][:12]}"
    if wanted and found != wanted:
        raise UserError(f"scored with {said(found)}; others with {said(wanted)}: remove {path} to score it anew")
    return evaluation


def system_row(folder: Path, seeds: int, wanted: Yardstick | None = None) -> dict[str, Any]:
    """A system's row from its folder: costs, scores by seed with mean and spread, commands, and what went wrong.

    Only seeds 0 .. seeds - 1 count, whatever else the folder holds, and of them those that were measured as `wanted`,
    or as the first of them.
    """
    asked = [f"seed{seed}" for seed in range(seeds)]
    row: dict[str, Any] = {"system": folder.name, "published": PUBLISHED.get(folder.name, "")}
    row |= {"cost": None, "seeds": {}, "scores": {}, "commands": {}, "gave": {}, "errors": {}, "environments": []}
    row["evaluations"] = {}
    stages = ("measure", *(f"seed {seed}" for seed in range(seeds)))

    def saved(name: str, stage: str) -> Any:
        """A file of the folder; what is wrong with it is an error of its stage."""
        try:
            return read(folder / name)
        except UserError as error:
            row["errors"][stage] = str(error)
            return None

    row["errors"] |= {k: v for k, v in (saved("errors.json", "errors") or {}).items() if k in stages}
    measured = saved("measure.json", "measure")
    lacking = [name for name in ("config", "first_stage", "sizes", "environment") if measured and name not in measured]
    lacking += [name for name in COSTS if name not in (measured or {}).get("own", COSTS)]
    if lacking:
        measured, said = None, f"{folder / 'measure.json'} lacks {', '.join(lacking)}; remove it to have it made anew"
        row["errors"]["measure"] = said
    if measured and "own" in measured:
        row["config"], row["cost"], row["sizes"] = measured["config"], measured["own"], measured["sizes"]
        row["first_stage"] = measured["first_stage"]
        row["environments"].append(measured["environment"])
    for seed in asked:
        stage = seed.replace("seed", "seed ")
        if commands := saved(f"{seed}.commands.json", stage):
            row["commands"][seed] = commands
        try:
            evaluation = evaluation_of(folder, seed, wanted)
        except UserError as error:
            row["errors"][stage] = str(error)
            continue
        if evaluation is None:
            continue
        wanted = wanted or yardstick(evaluation)
        if said := evaluation.get("errors"):
            row["errors"][stage] = "; ".join(said.values())
        row["environments"] += filter(None, [evaluation["environment"], evaluation["training"]])
        row["seeds"][seed], row["gave"][seed] = scores_of(evaluation), seed_line(evaluation)
        row["evaluations"][seed] = {name: evaluation.get(name) for name in KEPT}
        row["sampled"] = sampled_with(evaluation)
        row["network"] = evaluation["quality"]["network"]
        row["samples"], row["real"] = evaluation["quality"]["num"], evaluation["quality"]["real"]
        row["data_fingerprint"] = evaluation.get("data_fingerprint", "")
        if evaluation["likelihood"]:
            found = evaluation["likelihood"]["protocol"]
            row["protocol"] = {name: value for name, value in found.items() if name != "seed"}
    for key in sorted({key for found in row["seeds"].values() for key in found}):
        values = [found[key] for found in row["seeds"].values() if found.get(key) is not None]
        if not values:
            continue
        spread = statistics.stdev(values) if len(values) > 1 else None
        row["scores"][key] = {"mean": statistics.mean(values), "spread": spread}
    row["shown"] = next(iter([*row["seeds"], *row["commands"]]), "")
    grids = [path for seed in row["seeds"] if is_picture(path := folder / f"{seed}.png")]
    row["grid"] = str(grids[0].relative_to(folder.parent)) if grids else ""
    return row


def is_picture(path: Path) -> bool:
    """Whether there is one that can be shown."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError):  # as Pillow says of a damaged one
        return False
    return True


def to_repeat(row: dict[str, Any]) -> list[str]:
    """The commands of the seed that is shown: the first that was scored, else the first that was tried."""
    return row["commands"].get(row["shown"], [])


def all_rows(workdir: Path, systems: list[str], seeds: int) -> list[dict[str, Any]]:
    """Best distance first, then those without one; all measured alike, as the first that was scored."""
    rows: list[dict[str, Any]] = []
    wanted = None
    for system in systems:
        rows.append(system_row(workdir / system, seeds, wanted))
        if wanted is None and (first := next(iter(rows[-1]["seeds"]), None)):
            wanted = yardstick(read(workdir / system / f"{first}.evaluation.json"))
    return sorted(rows, key=lambda row: row["scores"].get("distance", {"mean": float("inf")})["mean"])


def show(score: dict[str, Any] | None, digits: int) -> str:
    """A mean with its spread over seeds."""
    if score is None:
        return "-"
    spread = "" if score["spread"] is None else f" ± {score['spread']:.{digits}f}"
    return f"{score['mean']:.{digits}f}{spread}"


def three(value: float) -> str:
    """Three digits, with thousands separated."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def likelihood(row: dict[str, Any]) -> str:
    """Of which kind it is, and of what: how many images, and by which protocol.

    Bits/dim of fewer levels are fewer, and do not compare with those of 256.
    """
    kind, found, said = LIKELIHOODS.get(row["cost"]["likelihood"], "-"), row.get("protocol"), []
    if found:
        said += [f"{found['levels']} levels"] if found["levels"] < 256 else []
        said.append(f"{found['num']} {found['split']} images")
        said += [f"binarise {found['binarise']}"] if found["binarise"] != "none" else []
        said += [f"{found['dequantisation']} dequantisation"] if "dequantisation" in found else []
        said += [f"given the {found['given']}"] if "given" in found else []
        said += [f"K = {found['samples']}"] if "samples" in found else []
    return f"{kind} ({', '.join(said)})" if said else kind


def failures(row: dict[str, Any]) -> str:
    """Which stages went wrong, and how."""
    return "; ".join(f"{where}: {what}" for where, what in row["errors"].items())


def quality_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Header and cells."""
    shown = columns(next((row["network"] for row in rows if row.get("network")), ""))
    head = [
        "system",
        *(name for _, name, _ in shown),
        "likelihood",
        "sampled with",
        "exact density",
        "seeds",
        "published (other data)",
    ]
    cells = []
    for row in rows:
        cost, failed = row["cost"], failures(row)
        line = [row["system"], *(show(row["scores"].get(key), digits) for key, _, digits in shown)]
        line += [likelihood(row) if cost else "-", row.get("sampled", "-")]
        line += [("yes" if cost["exact_density"] else "no") if cost else "-"]
        cells.append([*line, str(len(row["seeds"])) + (f" (failed: {failed})" if failed else ""), row["published"]])
    return [head, *cells]


def cost_table(rows: list[dict[str, Any]], sizes: list[int]) -> list[list[str]]:
    """Header and cells."""
    head = [
        "system",
        "training images/s",
        "MFLOPs an image",
        "compile, s",
        "first sample, s",
        "samples/s",
        "parameters",
    ]
    head += [
        "memory, MiB",
        "steps",
        "best step",
        "minutes trained, compiling too",
        *(f"training / sampling images/s at {s}x{s}" for s in sizes),
    ]
    head += ["free-form Jacobian"]
    cells = []
    for row in rows:
        cost = row["cost"]
        if cost is None:
            cells.append([row["system"], *["-"] * (len(head) - 1)])
            continue
        line = [row["system"], three(cost["images_per_second"]), three(cost["flops_per_image"] / 1e6)]
        line += [
            f"{cost['compile_seconds']:.1f}",
            f"{cost['first_sample_seconds']:.1f}",
            three(cost["samples_per_second"]),
        ]
        line += [f"{cost['parameters']:,}", three(cost["peak_mib"])]
        counts = [row["scores"].get(name) for name in ("steps", "best_step")]
        line += [f"{count['mean']:,.0f}" if count else "-" for count in counts]
        line += [show(row["scores"].get("minutes"), 1)]
        for size in sizes:
            at = row["sizes"].get(str(size))
            if at is None:
                line.append("-")
            elif "unfit" in at or "error" in at:
                line.append("does not fit" if "unfit" in at else "failed")
            else:
                line.append(f"{three(at['images_per_second'])} / {three(at['samples_per_second'])}")
        cells.append([*line, "yes" if cost["free_form_jacobian"] else "no"])
    return [head, *cells]


def markdown(table: list[list[str]]) -> str:
    head, *cells = table
    lines = [head, ["---"] * len(head), *cells]
    plain = lambda cell: re.sub(r"<(?=[\w/!])", "&lt;", cell.replace("|", "\\|"))  # as in "<class 'int'>"
    return "\n".join("| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Every number flat: a line a system, columns by name."""
    lines = []
    for row in rows:
        line = {"system": row["system"], "config": row.get("config", ""), "seeds": len(row["seeds"])}
        line |= {key: row.get(key, "") for key in ("network", "samples", "data_fingerprint")}
        line |= {f"real_{key}": value for key, value in row.get("real", {}).items()}
        for key, score in sorted(row["scores"].items()):
            line |= {key: score["mean"], f"{key}_spread": score["spread"]}
        line |= {key: value for key, value in (row["cost"] or {}).items()}
        line |= {f"likelihood_{key}": value for key, value in row.get("protocol", {}).items()}
        for size, at in row.get("sizes", {}).items():
            line |= {f"{key}_at_{size}": value for key, value in at.items()}
        lines.append(line | {"error": failures(row), "published": row["published"]})
    names = list(dict.fromkeys(name for line in lines for name in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)
