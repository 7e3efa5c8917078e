"""The comparison as data: one row a system, from the files that measuring, training and evaluating left."""

from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

from jgen.compare.published import PUBLISHED
from jgen.core.model import LIKELIHOODS

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


def columns(network: str) -> tuple[tuple[str, str, int], ...]:
    """`SCORES`, whose distances are called FID and KID only in the features of the published network.

    In an Inception network's features a kernel distance is a matter of hundredths.
    """
    names = {"distance": "FID", "kernel_distance": "KID"} if network == "FID" else {}
    fine = {"kernel_distance": 5} if network == "FID" or network.startswith("FD-inception") else {}
    return tuple((key, names.get(key, name), fine.get(key, digits)) for key, name, digits in SCORES)


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def scores_of(evaluation: dict[str, Any]) -> dict[str, float]:
    """The numbers of one evaluation that the table holds; what a system does not have is missing."""
    quality, found = evaluation["quality"], {}
    found["distance"] = quality["frechet_distance"]["value"]
    for name in ("kernel_distance", "precision", "recall"):
        found[name] = quality[name]["value"]
    found["kernel_distance_error"] = quality["kernel_distance"]["standard_error"]
    found["memorisation"] = 100 * quality["memorisation"]["value"]
    if evaluation["labels"]:
        found["accuracy"] = 100 * evaluation["labels"]["accuracy"]
    if evaluation["likelihood"]:
        found["bits_per_dim"] = evaluation["likelihood"]["bits_per_dim"]["mean"]
        found["bits_per_dim_error"] = evaluation["likelihood"]["bits_per_dim"]["standard_error"]
    found["minutes"], found["steps"] = evaluation["trained"]["minutes"], evaluation["trained"]["steps"]
    found["best_step"] = evaluation["step"]
    return found


def seed_line(evaluation: dict[str, Any]) -> str:
    """What one seed's commands gave, to hold a repetition against."""
    found, interval = scores_of(evaluation), evaluation["quality"]["frechet_distance"]
    shown = columns(evaluation["quality"]["network"])
    said = {key: f"{name} {found[key]:.{digits}f}" for key, name, digits in shown if key in found}
    said["distance"] += f" ({interval['low']:.2f} to {interval['high']:.2f} by bootstrap of the samples)"
    for key, _, digits in shown:
        if (error := found.get(f"{key}_error")) is not None:
            said[key] += f" ± {error:.{digits}f} over images"
    return ", ".join(said.values())


def sampled_with(evaluation: dict[str, Any]) -> str:
    """The options of sampling that shape what a system's samples are."""
    options = evaluation["sampling"]["options"]
    plain = {"temperature": 1.0, "guidance_scale": 1.0, "mean": False}
    said = [f"{options['steps']} steps of {options['sampler']}"] if "steps" in options else []
    chosen = [name for name in plain if options.get(name, plain[name]) != plain[name]]
    said += ["means" if name == "mean" else f"{name.replace('_', ' ')} {options[name]:g}" for name in chosen]
    return ", ".join(said) or "as trained"


def system_row(folder: Path, seeds: int) -> dict[str, Any]:
    """A system's row from its folder: costs, scores by seed with mean and spread, commands, and what went wrong.

    Only seeds 0 .. seeds - 1 count, whatever else the folder holds.
    """
    asked = [f"seed{seed}" for seed in range(seeds)]
    row: dict[str, Any] = {"system": folder.name, "published": PUBLISHED.get(folder.name, "")}
    row |= {"cost": None, "seeds": {}, "scores": {}, "commands": {}, "gave": {}, "errors": {}, "environments": []}
    wanted = ("measure", *(f"seed {seed}" for seed in range(seeds)))
    row["errors"] = {k: v for k, v in (read(folder / "errors.json") or {}).items() if k in wanted}
    measured = read(folder / "measure.json")
    if measured:
        row["config"], row["cost"], row["sizes"] = measured["config"], measured["own"], measured["sizes"]
        row["first_stage"] = measured["first_stage"]
        row["environments"].append(measured["environment"])
    for seed in asked:
        if commands := read(folder / f"{seed}.commands.json"):
            row["commands"][seed] = commands
        evaluation = read(folder / f"{seed}.evaluation.json")
        if evaluation is None:
            continue
        scores = scores_of(evaluation)
        row["environments"] += filter(None, [evaluation["environment"], evaluation["training"]])
        if wrong := [f"{key} is {value}" for key, value in scores.items() if not math.isfinite(value or 0)]:
            row["errors"][seed.replace("seed", "seed ")] = ", ".join(wrong)
            continue
        row["seeds"][seed], row["gave"][seed] = scores, seed_line(evaluation)
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
    grids = [path for seed in row["seeds"] if (path := folder / f"{seed}.png").is_file()]
    row["grid"] = str(grids[0].relative_to(folder.parent)) if grids else ""
    return row


def to_repeat(row: dict[str, Any]) -> list[str]:
    """The commands of the seed that is shown: the first that was scored, else the first that was tried."""
    return row["commands"].get(row["shown"], [])


def all_rows(workdir: Path, systems: list[str], seeds: int) -> list[dict[str, Any]]:
    """Best distance first, then those without one."""
    rows = [system_row(workdir / system, seeds) for system in systems]
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
        cost, failed = row["cost"], "; ".join(f"{where}: {what}" for where, what in row["errors"].items())
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
            elif "error" in at:
                line.append("does not fit")
            else:
                line.append(f"{three(at['images_per_second'])} / {three(at['samples_per_second'])}")
        cells.append([*line, "yes" if cost["free_form_jacobian"] else "no"])
    return [head, *cells]


def markdown(table: list[list[str]]) -> str:
    head, *cells = table
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


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
        lines.append(line | {"error": "; ".join(row["errors"].values()), "published": row["published"]})
    names = list(dict.fromkeys(name for line in lines for name in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)
