"""Writes the README's tables from results/*.json: python benchmarks/tables.py [--check]

Every number of a table stands in a JSON file with the command, commit and machine that gave it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def read(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    """(path from the root, document) of the result files that match."""
    files = sorted((ROOT / "results").glob(pattern))
    return [(str(path.relative_to(ROOT)), json.loads(path.read_text())) for path in files]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def speed() -> str:
    """One row a task, setting and peer of every side-by-side benchmark."""
    rows = []
    for path, document in read("speed_*.json"):
        for row in document["rows"]:
            mine, best = row["seconds"]["jgen"], row["seconds"][row["best_variant"]]
            versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items() if k in ("jax", "torch"))
            name = f"{document['title']}: {row['task']}" + (f", {row['setting']}" if row["setting"] else "")
            peer = f"{row['peer']} ({row['best_variant']})" if len(row["seconds"]) > 2 else row["peer"]
            where = f"{document['processor']}; {versions}; [{Path(path).name}]({path})"
            times = [f"{mine:.3g} s", f"{best:.3g} s: {peer}", f"**{row['ratio']:.{2 if row['ratio'] > 0.1 else 3}f}**"]
            rows.append([name, *times, where])
    return table(["case", "jgen", "peer", "jgen / peer", "machine, versions, record"], rows) + "\n"


def scores() -> str:
    """One row a scored run."""
    rows = []
    for path, document in read("score_*.json"):
        cells = []
        if document["likelihood"]:
            found = document["likelihood"]
            kind = {"exact": "exact", "lower_bound": "bound", "estimate": "estimate"}[found["kind"]]
            protocol = ", ".join(f"{name} {value}" for name, value in found["protocol"].items() if name != "seed")
            bits, nats = found["bits_per_dim"]["mean"], -found["nats"]["mean"]
            cells.append(f"{bits:.3f} bits/dim, {nats:.2f} nats: {kind} ({protocol})")
        if document["labels"]:
            found = document["labels"]
            cells.append(f"{100 * found['accuracy']:.1f} % of {found['protocol']['num']} samples read as asked for")
        where = document["training"]
        machine = f"{where['processor']}, jax {where['versions']['jax']}, commit {where['commit'][:8]}"
        trained = f"{document['step']:,} steps, {document['training_minutes']:.0f} min; {machine}"
        record = f"[{Path(path).name}]({path})"
        rows.append([document["system"], document["data"], "; ".join(cells), f"{trained}; {record}"])
    if not rows:
        return ""
    return "Measured:\n\n" + table(["system", "data", "score", "training, record"], rows) + "\n"


def main() -> None:
    path = ROOT / "README.md"
    text = before = path.read_text()
    for name, made in (("speed", speed()), ("scores", scores())):
        block = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = block.sub(lambda found, made=made: f"{found[1]}{made}{found[2]}", text)
    if "--check" in sys.argv:
        sys.exit("README.md is not what results/ says: run python benchmarks/tables.py" if text != before else 0)
    path.write_text(text)


if __name__ == "__main__":
    main()
