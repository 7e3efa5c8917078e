"""The tables of a comparison: cells as text, in Markdown and in CSV."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from jgen.compare.rows import Row, columns
from jgen.core.model import LIKELIHOODS


def mean_with_spread(score: dict[str, Any] | None, digits: int) -> str:
    """A mean with its spread over seeds, as text."""
    if score is None:
        return "-"
    spread = "" if score["spread"] is None else f" ± {score['spread']:.{digits}f}"
    return f"{score['mean']:.{digits}f}{spread}"


def three_digits(value: float | None) -> str:
    """Three digits, with thousands separated."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """Seconds to a tenth."""
    return "-" if value is None else f"{value:.1f}"


def yes_or_no(value: bool | None) -> str:
    """A fact as text; "-" if it is not stated."""
    return "-" if value is None else "yes" if value else "no"


def likelihood(row: Row) -> str:
    """The kind of the likelihood, the number of images and the protocol.

    Levels below 256 are stated, since bits/dim are comparable only for equal numbers of levels.
    """
    kind, protocol = LIKELIHOODS.get(row["cost"]["likelihood"], "-"), row.get("protocol")
    if not protocol:
        return kind
    parts = [f"{protocol['levels']} levels"] if protocol["levels"] < 256 else []
    parts.append(f"{protocol['num']} {protocol['split']} images")
    parts += [f"binarise {protocol['binarise']}"] if protocol["binarise"] != "none" else []
    parts += [f"{protocol['dequantisation']} dequantisation"] if "dequantisation" in protocol else []
    parts += [f"given the {protocol['given']}"] if "given" in protocol else []
    parts += [f"K = {protocol['samples']}"] if "samples" in protocol else []
    return f"{kind} ({', '.join(parts)})"


def failures(row: Row) -> str:
    """Which stages failed, and why."""
    return "; ".join(f"{stage}: {error}" for stage, error in row["errors"].items())


def to_repeat(row: Row) -> list[str]:
    """The commands of the seed that is shown: the first that was scored, else the first that was attempted."""
    return row["commands"].get(row["shown"], [])


def quality_table(rows: list[Row]) -> list[list[str]]:
    """Header and cells."""
    shown = columns(next((row["network"] for row in rows if row.get("network")), ""))
    head = ["system", *(name for _, name, _ in shown)]
    head += ["likelihood", "sampled with", "exact density", "seeds", "published (other data)"]
    cells = []
    for row in rows:
        cost, failed = row["cost"], failures(row)
        line = [row["system"], *(mean_with_spread(row["scores"].get(key), digits) for key, _, digits in shown)]
        line += [likelihood(row) if cost else "-", row.get("sampled", "-")]
        line += [yes_or_no(cost["exact_density"] if cost else None)]
        cells.append([*line, str(len(row["seeds"])) + (f" (failed: {failed})" if failed else ""), row["published"]])
    return [head, *cells]


def unguided_table(rows: list[Row]) -> list[list[str]]:
    """Header and cells for the guided systems without guidance; [] if there are none."""
    guided = [row for row in rows if row.get("unguided", {}).get("scores")]
    network = next((row["network"] for row in guided), "")
    shown = [column for column in columns(network) if column[0] != "bits_per_dim"]
    cells = [
        [row["system"], *(mean_with_spread(row["unguided"]["scores"].get(key), digits) for key, _, digits in shown)]
        for row in sorted(guided, key=lambda row: row["unguided"]["scores"]["distance"]["mean"])
    ]
    return [["system", *(name for _, name, _ in shown)], *cells] if cells else []


def cost_table(rows: list[Row], sizes: list[int]) -> list[list[str]]:
    """Header and cells."""
    head = ["system", "training images/s", "MFLOPs an image", "compile, s", "first sample, s", "samples/s"]
    head += ["parameters", "memory, MiB", "steps", "best step", "minutes trained, compiling too"]
    head += [f"training / sampling images/s at {size}x{size}" for size in sizes]
    head += ["free-form Jacobian"]
    return [head, *(cost_cells(row, sizes, len(head)) for row in rows)]


def cost_cells(row: Row, sizes: list[int], num_columns: int) -> list[str]:
    """The cells of one row of `cost_table`."""
    cost = row["cost"]
    if cost is None:
        return [row["system"], *["-"] * (num_columns - 1)]
    cells = [row["system"], three_digits(cost["images_per_second"]), three_digits(cost["flops_per_image"] / 1e6)]
    cells += [seconds(cost["compile_seconds"]), seconds(cost.get("first_sample_seconds"))]
    cells += [three_digits(cost.get("samples_per_second")), f"{cost['parameters']:,}", three_digits(cost["peak_mib"])]
    counts = [row["scores"].get(name) for name in ("steps", "best_step")]
    cells += [f"{count['mean']:,.0f}" if count else "-" for count in counts]
    cells += [mean_with_spread(row["scores"].get("minutes"), 1)]
    cells += [speed_at(row["sizes"].get(str(size))) for size in sizes]
    return [*cells, yes_or_no(cost.get("free_form_jacobian"))]


def speed_at(figures: dict[str, Any] | None) -> str:
    """Images per second of training and sampling at one size."""
    if figures is None:
        return "-"
    if "unfit" in figures or "error" in figures:
        return "does not fit" if "unfit" in figures else "failed"
    return " / ".join(three_digits(figures.get(f"{name}_per_second")) for name in ("images", "samples"))


def markdown(table: list[list[str]]) -> str:
    """A table of cells, the header first."""

    def plain(cell: str) -> str:
        return re.sub(r"<(?=[\w/!])", "&lt;", cell.replace("|", "\\|"))  # as in "<class 'int'>"

    head, *cells = table
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines)


def write_csv(path: Path, rows: list[Row]) -> None:
    """Writes all numbers as a flat table: a line per system, named columns."""
    lines = []
    for row in rows:
        line = {"system": row["system"], "config": row.get("config", ""), "seeds": len(row["seeds"])}
        line |= {key: row.get(key, "") for key in ("network", "samples", "data_fingerprint")}
        line |= {f"real_{key}": value for key, value in row.get("real", {}).items()}
        for key, score in sorted(row["scores"].items()):
            line |= {key: score["mean"], f"{key}_spread": score["spread"]}
        line |= row["cost"] or {}
        line |= {f"likelihood_{key}": value for key, value in row.get("protocol", {}).items()}
        for size, figures in row.get("sizes", {}).items():
            line |= {f"{key}_at_{size}": value for key, value in figures.items()}
        lines.append(line | {"error": failures(row), "published": row["published"]})
    names = list(dict.fromkeys(name for line in lines for name in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)
