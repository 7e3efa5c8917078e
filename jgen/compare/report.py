"""The outcome of a comparison as files: comparison.md, .csv, .json and .html, and the grids as one picture."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jgen.compare import page, rows
from jgen.compare.published import LEGEND
from jgen.core.files import written_whole

VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")  # by which the numbers of a row are repeated


def write_report(workdir: Path, arguments: Any, found: list[dict[str, Any]]) -> None:
    """Writes the rows of a comparison, with all that they are of, into `workdir`.

    Args:
      arguments: of the command.
    Raises:
      UserError: a file that cannot be written.
    """
    from jgen.train.run_directory import write_json

    a, where = arguments, [found_in for row in found for found_in in row["environments"]]
    scored = next((row for row in found if row["seeds"]), None)
    network, lines = scored["network"] if scored else "-", about_lines(a, found, where)
    command = "python -m jgen.compare " + shlex.join(sys.argv[1:])
    about = {"title": f"jgen: every family on {a.data}", "lines": lines, "network": network, "sizes": list(a.sizes)}
    about["command"] = command
    document = {"command": command, "data": a.data, "budget": budget(a), "rows": found}
    parts = [f"# {about['title']}", *lines, f"`{command}`", "## Quality", rows.markdown(rows.quality_table(found))]
    parts += ["## Cost", rows.markdown(rows.cost_table(found, list(a.sizes)))]
    for row in found:
        if commands := rows.to_repeat(row):
            said = "\n".join(commands)
            parts += [f"## Repeat {row['system']}", f"```bash\n{said}\n```"]
            parts += [f"gave {row['gave'][row['shown']]}."] if row["shown"] in row["gave"] else []
    write_json(workdir / "comparison.json", document)
    writers: dict[str, Callable[[Path], Any]] = {
        "comparison.csv": lambda path: rows.write_csv(path, found),
        "comparison.md": lambda path: path.write_text("\n\n".join(parts) + "\n"),
        "comparison.html": lambda path: page.write_page(path, found, about),
    }
    if page.drawable(found):
        writers["figures.png"] = lambda path: page.write_figures(path, found, network)
    if any(row.get("grid") for row in found):
        writers["grids.png"] = lambda path: page.write_grids(path, found)
    for name, write in writers.items():
        with written_whole(workdir / name) as aside:
            write(aside)


def budget(a: Any) -> str:
    return f"{a.teraflops:g} trillion operations" if a.teraflops else f"{a.minutes:g} minutes"


def given(a: Any) -> str:
    steps = "Each system was given as many steps as its operations put into" if a.teraflops else ""
    return f"{steps or 'Each system was given the steps that its measured speed puts into'} {budget(a)}"


def images_of(row: dict[str, Any]) -> str:
    return "{num} {split} images".format(**row["real"])


def reference(row: dict[str, Any]) -> str:
    """What real images would have in the samples' place, "" where that was not measured."""
    found = row["evaluations"][row["shown"]]["quality"].get("reference")
    if not found:
        return ""
    of = lambda key: "frechet_distance" if key == "distance" else key
    shown = [(of(key), name, digits) for key, name, digits in rows.columns(row["network"])]
    said = ", ".join(f"{name} {found[key]:.{digits}f}" for key, name, digits in shown if key in found)
    return f"{found['num']} real images of the {found['split']} split, in place of samples, have {said}."


def distances(network: str) -> str:
    """What the distances are, by the network whose features they are taken in."""
    if network == "FID":
        return "FID and KID, in the features of the published Inception-v3 network"
    said = f"Fréchet distance (FD) and kernel distance in the features of {network}"
    if network.startswith("FD-inception"):
        return f"{said}, an Inception-v3 network whose weights are not the published ones: not FID"
    return f"{said}, which is trained on the data: not FID, and not comparable between data sets"


def about_lines(a: Any, found: list[dict[str, Any]], where: list[dict[str, Any]]) -> list[str]:
    """What stands above the tables: budget, machine, protocol and versions.

    Args:
      where: the environments of all that was measured, trained and scored.
    """
    of = lambda name: ", ".join(dict.fromkeys(str(name(one)) for one in where)) or "-"
    on = of(lambda w: w["processor"] if w["devices"][0].startswith("cpu") else ", ".join(w["devices"]))
    seeds = f"seeds 0 to {a.seeds - 1}, mean ± standard deviation" if a.seeds > 1 else "seed 0"
    lines = [f"{given(a)}, on {on}; {seeds}."]
    if took := [one["minutes"] for row in found for one in row["seeds"].values()]:
        lines[0] += f" Trainings took {min(took):.1f} to {max(took):.1f} minutes, compiling and validation included."
    lines[0] += " Scored is the checkpoint of eight with the best validation score; the last where there is none."
    scored = next((row for row in found if row["seeds"]), None)
    if scored:
        lines.append(
            f"{distances(scored['network'])}. {scored['samples']} samples against {images_of(scored)}."
            f" Hash of the data: {scored['data_fingerprint'][:12] or '-'}. {reference(scored)}".rstrip()
        )
    lines.append(
        "Bits/dim are exact or an upper bound, on the first test images; the likelihood column gives their number and"
        " the protocol. Rows are sorted by distance, and losers stay."
    )
    levels = sorted({row["cost"]["levels"] for row in found if row["cost"]})
    if len(levels) == 1 and levels[0] < 256:
        lines.append(f"Images have {levels[0]} levels: bits/dim do not compare with those of 256.")
    elif len(levels) > 1:
        lines.append(
            "A system that is trained on fewer than 256 levels says so: its bits/dim do not compare with the"
            " others', and its samples are compared with test images of as many levels."
        )
    lines.append("At sizes other than the data's, attention stays at the same levels of the network. " + LEGEND)
    staged = [row["system"] for row in found if row.get("first_stage")]
    if staged:
        lines.append(
            f"Of {', '.join(staged)}, which has a first stage, speed, operations, compile time and steps are those of"
            " the second, samples are decoded by the first, and parameters and minutes are of both."
        )
    commit = lambda w: (w["commit"] or "-")[:12] + ("+" if str(w["commit"]).endswith("+") else "")
    packages = [name for name in VERSIONS if any(w["versions"].get(name) for w in where)]
    versions = ", ".join(f"{name} {of(lambda w, name=name: w['versions'].get(name))}" for name in packages)
    on = f"Python {of(lambda w: w['python'])}, {of(lambda w: w['platform'])}"
    lines.append(f"{versions or 'jax -'}, {on}, commit {of(commit)}.")
    return lines
