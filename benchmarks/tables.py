"""Writes the tables of README.md and docs/comparison.md from results/: python benchmarks/tables.py [--check]

Every number of a table stands in a JSON file with the command, commit and machine that gave it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jgen.compare import report, rows  # noqa: E402
from jgen.compare.published import LEGEND, PUBLISHED  # noqa: E402
from jgen.core.model import LIKELIHOODS  # noqa: E402
from jgen.train.logs import best_of  # noqa: E402


def read(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    """(path from the root, document) of the result files that match."""
    files = sorted((ROOT / "results").glob(pattern))
    return [(str(path.relative_to(ROOT)), json.loads(path.read_text())) for path in files]


def table(head: list[str], lines: list[list[str]]) -> str:
    return rows.markdown([head, *lines])


def speed() -> str:
    """One row a task, setting and peer of every side-by-side benchmark, and where the rows come from."""
    lines, records = [], []
    for path, document in read("speed_*.json"):
        versions: dict[str, str] = {}
        for row in document["rows"]:
            mine, best = row["seconds"]["jgen"], row["seconds"][row["best_variant"]]
            versions |= {k: v for k, v in row["versions"].items() if k not in ("device", "threads")}
            name = f"{document['title']}: {row['task']}" + (f", {row['setting']}" if row["setting"] else "")
            peer = row["peer"].replace("another JAX", f"JAX {versions.get('other jax')}")
            peer += f" ({row['best_variant']})" if len(row["seconds"]) > 2 else ""
            ratio = f"**{row['ratio']:.{2 if row['ratio'] > 0.1 else 3}f}**"
            lines.append([name, f"{mine:.3g} s", f"{best:.3g} s: {peer}", ratio])
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
        where = f"{document['case']}; {document['processor']}; {said}; commit {short(document['commit'])}"
        records.append(f"- [{Path(path).name}]({path}): `{document['command']}`; {where}")
    made = table(["case", "jgen", "peer", "jgen / peer"], lines)
    return f"{made}\n\n{loop()}\n\nMeasured by:\n\n" + "\n".join(records) + "\n"


def loop() -> str:
    """What the training loop's rate is beside that of the bare compiled step."""
    said = []
    for path, document in read("loop_*.json"):
        looped, bare = median(document["loop"]), median(document["bare"])
        seconds = f"{looped:.3g} s a step beside {bare:.3g} s, **{100 * document['ratio']:.0f} %** of its rate"
        where = f"`{document['command']}`; {document['processor']}; jax {document['jax']}; commit"
        said.append(f"{document['config']}: {seconds} ([record]({path}): {where} {short(document['commit'])})")
    if not said:
        return ""
    return f"The training loop, with data, logging and checkpoints, beside the bare compiled step: {'; '.join(said)}."


def scores() -> str:
    """One row a scored run, and the commands of each."""
    lines, commands = [], []
    for path, document in read("score_*.json"):
        found, kind = scored(document)
        training = "; ".join(filter(None, [trained(document), kept(path.replace("score_", "kept_"))]))
        lines.append([f"[{document['system']}]({path})", document["data"], found, kind, training])
        lines[-1].append(PUBLISHED.get(document["system"], "-"))
        commands += ["", f"# {Path(path).stem}: {origin(document)}"]
        commands += [" ".join(["python", *latest(document)["command"]]), document["command"]]
    if not lines:
        return ""
    head = ["system", "data", "score", "of what", "training", "published"]
    block = "\n".join(["```text", *commands[1:], "```"])
    return f"Measured. {LEGEND}\n\n{table(head, lines)}\n\nThe commands of these rows:\n\n{block}\n"


def scored(document: dict[str, Any]) -> tuple[str, str]:
    """The scores of a run, and of what they are: kind of likelihood, protocol."""
    cells, kinds = [], []
    if document.get("likelihood"):
        found = document["likelihood"]
        names = {"samples": "K", "num": "N"}
        protocol = ", ".join(f"{names.get(name, name)} {value}" for name, value in found["protocol"].items())
        nats = f"{-found['nats']['mean']:.2f} ± {found['nats']['standard_error']:.2f} nats"
        cells.append(f"**{found['bits_per_dim']['mean']:.3f} bits/dim**, {nats}")
        kinds.append(f"{LIKELIHOODS[found['kind']]}: {protocol}")
    if document.get("labels"):
        found = document["labels"]
        cells.append(f"class accuracy **{100 * found['accuracy']:.1f} %**")
        kinds.append(f"{found['num']} samples, {rows.sampled_with(document)}")
    if document.get("reconstruction"):
        found = document["reconstruction"]
        cells.append(reconstruction(found))
        kinds.append(f"reconstructions of {found['num']} {found['split']} images")
    return "; ".join(cells), "; ".join(kinds)


def reconstruction(found: dict[str, Any]) -> str:
    """How near a model's reconstructions are to held-out images, and the use of its codes."""
    distance = f"r{found['quality']['network']} {found['quality']['frechet_distance']['value']:.2f}"
    error = "exact" if found["psnr"] is None else f"PSNR **{found['psnr']:.2f} dB**"
    said = f"{error}, {distance}"
    if "codes" in found:
        said += f"; perplexity **{found['perplexity']:.1f}** of {found['codes']} codes, {found['codes_used']} used"
    return said


def trained(document: dict[str, Any]) -> str:
    """How long a run was trained, and its best and last validation score."""
    steps, minutes = document["step"], document["training_minutes"]
    whole = document.get("trained", {"steps": steps, "minutes": minutes})
    said = f"{whole['steps']:,} steps, {whole['minutes']:.0f} min"
    said += f"; scored at step {steps:,}" if steps != whole["steps"] else ""
    return "; ".join(filter(None, [said, best_and_last(document["validation"])]))


def kept(path: str) -> str:
    """Of a run without a validation score: its best and last kept checkpoint by class accuracy, "" without a record."""
    if not (ROOT / path).is_file():
        return ""
    of = json.loads((ROOT / path).read_text())
    best, last = max(of, key=lambda one: one["class_accuracy"]), of[-1]
    said = f"{100 * best['class_accuracy']:.1f} % at best (step {best['step']:,})"
    samples = f"{len(of)} checkpoints, {last['num']} samples each"
    return f"[by checkpoint]({path}) {said}, {100 * last['class_accuracy']:.1f} % at last ({samples})"


def short(commit: str | None) -> str:
    return (commit or "-")[:8] + ("+" if str(commit).endswith("+") else "")


def starts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What each start of a run's training said of itself; later ones say only what changed."""
    return [document["training"], *document["training"].get("resumed", [])]


def latest(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for start in starts(document) for name, value in start.items()}


def origin(document: dict[str, Any]) -> str:
    """Seed, machine and commits of a run, and the commit that scored it."""
    first, *resumed = starts(document)
    commits = [f"commit {short(first['commit'])}"]
    commits += [f"from step {start['step']:,} {short(start['commit'])}" for start in resumed if "commit" in start]
    commits += [f"scored at {short(document['environment']['commit'])}"]
    last = latest(document)
    return f"seed {last['seed']}; {last['processor']}, jax {last['versions']['jax']}; {', '.join(commits)}"


def best_and_last(validation: list[dict[str, Any]]) -> str:
    """The best and the last validation score of a run, "" where it has none that has a best."""
    name, best = best_of(validation)
    if best is None:
        return ""
    return f"validation {name} {best[name]:.4g} at best (step {best['step']:,}), {validation[-1][name]:.4g} at last"


def comparison(data: str) -> str:
    """The table of a comparison in results/comparison-DATA, as few columns as a first look needs."""
    path = ROOT / "results" / f"comparison-{data}" / "comparison.json"
    if not path.is_file():
        return ""
    found = json.loads(path.read_text())["rows"]
    quality, cost = rows.quality_table(found), rows.cost_table(found, [])
    both = [[*of_quality, *of_cost[1:]] for of_quality, of_cost in zip(quality, cost)]
    distance = quality[0][1]  # FD, or FID
    wanted = ("system", distance, "precision", "recall", "class accuracy, %", "sampled with", "bits/dim", "likelihood")
    wanted += ("training images/s", "samples/s", "parameters")
    places = [both[0].index(name) for name in wanted]
    made = rows.markdown([[line[place] for place in places] for line in both])
    of = next((row for row in found if row["seeds"]), None)
    if of is None:
        return f"{made}\n"
    said = f"{distance} is {of['network']}: {of['samples']} samples to {report.images_of(of)}, hash of the data"
    return f"{made}\n\n{said} {of['data_fingerprint'][:12]}. {report.reference(of)}".rstrip() + "\n"


def whole_comparison(data: str) -> str:
    """What a comparison says of itself, its tables and its commands; its titles a level lower than in its own file."""
    path = ROOT / "results" / f"comparison-{data}" / "comparison.md"
    if not path.is_file():
        return ""
    text = path.read_text().partition("\n")[2].strip()
    return re.sub("^#", "##", text, flags=re.MULTILINE) + "\n"


def main() -> None:
    made = {"speed": speed(), "scores": scores()}
    for folder in sorted((ROOT / "results").glob("comparison-*")):
        data = folder.name.partition("-")[2]
        made |= {f"comparison {data}": comparison(data), f"whole comparison {data}": whole_comparison(data)}
    placed = set()
    for name in ("README.md", "docs/comparison.md"):
        path = ROOT / name
        text = before = path.read_text()
        for block, table in made.items():
            place = re.compile(f"(<!-- {block} -->\n).*?(<!-- /{block} -->)", re.DOTALL)
            text, times = place.subn(lambda found, table=table: f"{found[1]}{table}{found[2]}", text)
            placed |= {block} if times else set()
        if text != before and "--check" in sys.argv:
            sys.exit(f"{name} is not what results/ says: run python benchmarks/tables.py")
        elif text != before:
            path.write_text(text)
    # The short tables of comparisons but the first are not shown anywhere.
    missing = [block for block in made if block not in placed and made[block] and not block.startswith("comparison ")]
    missing += [] if "comparison digits" in placed else ["comparison digits"]
    if missing:
        sys.exit(f"no document has a place for the tables {', '.join(missing)}")


if __name__ == "__main__":
    main()
