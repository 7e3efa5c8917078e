"""The results of a comparison as files: comparison.md, .csv, .json and .html, and the grids as one picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jgen.compare import page, rows, tables
from jgen.compare.config import Arguments, describe_budget
from jgen.compare.facts import legend
from jgen.compare.rows import Row
from jgen.core.files import written_whole
from jgen.train.run_directory import write_json

VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")  # versions that affect the numbers of a row
Environment = dict[str, Any]


def write_report(folder: Path, arguments: Arguments, compared: list[Row], command: str) -> None:
    """Writes the rows of a comparison and their protocol into a folder.

    Args:
      command: the comparison's command; rows that were added later have their own.
    Raises:
      UserError: a file that cannot be written.
    """
    network = next((row["network"] for row in compared if row["seeds"]), "-")
    lines, commands = about_lines(arguments, compared), commands_of(compared, command)
    title = f"jgen: every family on {arguments.data}"
    about: dict[str, Any] = {"title": title, "lines": lines, "network": network}
    about |= {"sizes": list(arguments.sizes), "commands": commands}
    document: dict[str, Any] = {"command": command, "commands": commands, "arguments": dataclasses.asdict(arguments)}
    document |= {"data": arguments.data, "budget": describe_budget(arguments), "rows": compared}
    write_json(folder / "comparison.json", document)
    writers: dict[str, Callable[[Path], Any]] = {
        "comparison.csv": lambda path: tables.write_csv(path, compared),
        "comparison.md": lambda path: path.write_text(markdown_report(compared, about)),
        "comparison.html": lambda path: page.write_page(path, compared, about),
    }
    if page.drawable(compared):
        writers["figures.png"] = lambda path: page.write_figures(path, compared, network)
    if any(row.get("grid") for row in compared):
        writers["grids.png"] = lambda path: page.write_grids(path, compared)
    for name, write in writers.items():
        with written_whole(folder / name) as aside:
            write(aside)


def commands_of(compared: list[Row], command: str) -> list[str]:
    """The commands of the comparisons that the rows come from, `command` first."""
    return list(dict.fromkeys([command, *(row.get("comparison", command) for row in compared)]))


def markdown_report(compared: list[Row], about: dict[str, Any]) -> str:
    """The report in Markdown. `about`: as in `page.write_page`."""
    parts = [f"# {about['title']}", *about["lines"], *(f"`{command}`" for command in about["commands"])]
    parts += ["## Quality", tables.markdown(tables.quality_table(compared))]
    if unguided := tables.unguided_table(compared):
        parts += ["## Without guidance", tables.markdown(unguided)]
    parts += ["## Cost", tables.markdown(tables.cost_table(compared, about["sizes"]))]
    for row in compared:
        if commands := tables.to_repeat(row):
            block = "\n".join(commands)
            parts += [f"## Repeat {row['system']}", f"```bash\n{block}\n```"]
            parts += [f"gave {row['gave'][row['shown']]}."] if row["shown"] in row["gave"] else []
    return "\n\n".join(parts) + "\n"


def real_images(row: Row) -> str:
    """A description of the images that samples were compared with."""
    return "{num} {split} images".format(**row["real"])


def reference(row: Row) -> str:
    """The scores of real images in place of the samples, "" if they were not measured."""
    scores = row["evaluations"][row["shown"]]["quality"].get("reference")
    if not scores:
        return ""
    keys = {"distance": "frechet_distance"}
    shown = [(keys.get(key, key), name, digits) for key, name, digits in rows.columns(row["network"])]
    text = ", ".join(f"{name} {scores[key]:.{digits}f}" for key, name, digits in shown if key in scores)
    return f"{scores['num']} real images of the {scores['split']} split, in place of samples, have {text}."


def distances(network: str) -> str:
    """A description of the distances, by the network of their features."""
    if network == "FID":
        return "FID and KID, in the features of the published Inception-v3 network"
    text = f"Fréchet distance (FD) and kernel distance in the features of {network}"
    if network.startswith("FD-inception"):
        return f"{text}, an Inception-v3 network whose weights are not the published ones: not FID"
    return f"{text}, which is trained on the data: not FID, and not comparable between data sets"


def about_lines(arguments: Arguments, compared: list[Row]) -> list[str]:
    """The text around the tables: budget, machine, protocol and versions."""
    environments = [one for row in compared for one in row.get("environments", [])]
    lines = [budget_line(arguments, compared, environments)]
    scored = next((row for row in compared if row["seeds"]), None)
    if scored:
        lines.append(
            f"{distances(scored['network'])}. {scored['samples']} samples against {real_images(scored)}."
            f" Hash of the data: {scored['data_fingerprint'][:12] or '-'}. {reference(scored)}".rstrip()
        )
    lines.append(
        "Bits/dim are exact or an upper bound, on the first test images; the likelihood column gives their number and"
        " the protocol. Rows are sorted by distance, and losers stay."
    )
    lines += level_lines(sorted({row["cost"]["levels"] for row in compared if row["cost"]}))
    published = legend(row.get("published", "") for row in compared)
    lines.append(f"At sizes other than the data's, attention stays at the same levels of the network. {published}")
    return [*lines, *staged_lines(compared), version_line(environments)]


def budget_line(arguments: Arguments, compared: list[Row], environments: list[Environment]) -> str:
    """The budget of each training, and its machine."""
    by = "as many steps as its operations put" if arguments.teraflops else "the steps that its measured speed puts"
    machines = each_once(machine_of(one) for one in environments)
    seeds = f"seeds 0 to {arguments.seeds - 1}, mean ± standard deviation" if arguments.seeds > 1 else "seed 0"
    line = f"Each system was given {by} into {describe_budget(arguments)}, on {machines}; {seeds}."
    if took := [scores["minutes"] for row in compared for scores in row["seeds"].values()]:
        line += f" Trainings took {min(took):.1f} to {max(took):.1f} minutes, compiling and validation included."
    return line + " Scored is the checkpoint of eight with the best validation score; the last where there is none."


def level_lines(levels: list[int]) -> list[str]:
    """A remark on images of fewer than 256 levels."""
    if len(levels) == 1 and levels[0] < 256:
        return [f"Images have {levels[0]} levels: bits/dim do not compare with those of 256."]
    if len(levels) > 1:
        return [
            "A system that is trained on fewer than 256 levels says so: its bits/dim do not compare with the"
            " others', and its samples are compared with test images of as many levels."
        ]
    return []


def staged_lines(compared: list[Row]) -> list[str]:
    """A remark on systems that depend on frozen models."""
    texts = []
    for row in compared:
        *frozen, _ = row.get("trainings") or [*filter(None, [row.get("first_stage")]), ""]
        if frozen:
            texts.append(f"{row['system']} on {', '.join(Path(config.partition(':')[0]).stem for config in frozen)}")
    if not texts:
        return []
    return [
        f"Trained on frozen models: {'; '.join(texts)}. The budget is divided evenly between the trainings; speed,"
        " operations, compile time and steps are those of the last, parameters and minutes of all."
    ]


def version_line(environments: list[Environment]) -> str:
    """Versions and commits of all measurements, trainings and scores."""
    packages = [name for name in VERSIONS if any(one["versions"].get(name) for one in environments)]
    versions = [f"{name} {each_once(one['versions'].get(name) for one in environments)}" for name in packages]
    python, platform = (each_once(one[name] for one in environments) for name in ("python", "platform"))
    commits = each_once(short_commit(one["commit"]) for one in environments)
    return f"{', '.join(versions) or 'jax -'}, Python {python}, {platform}, commit {commits}."


def each_once(values: Iterable[Any]) -> str:
    """The distinct values, as text."""
    return ", ".join(dict.fromkeys(map(str, values))) or "-"


def machine_of(environment: Environment) -> str:
    """The processor, or the accelerators if there are any."""
    devices = environment["devices"]
    return environment["processor"] if devices[0].startswith("cpu") else ", ".join(devices)


def short_commit(commit: str | None) -> str:
    """The first characters of a commit, with "+" for local changes."""
    return (commit or "-")[:12] + ("+" if str(commit).endswith("+") else "")
