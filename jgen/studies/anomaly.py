"""Which images are out of distribution? python -m jgen.studies.anomaly RUN [RUN ...] --others mnist --out FOLDER

Measures how well scores of a run separate test images of other sets from those of its own, by the area under the
receiver operating characteristic (AUROC): 0.5 is chance, and below it the other images look more like the model's data
than its own. A model of Fashion-MNIST gives MNIST's digits a higher likelihood than Fashion-MNIST's test images
(Nalisnick et al. 2019, arXiv 1810.09136); complexity, typicality and the ratio to another model are proposed remedies
(`jgen.prob.anomaly`). Writes anomaly.json, from which the same command resumes, and anomaly.png to FOLDER.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jgen import cli
from jgen.errors import require, require_positive, require_seed
from jgen.metrics.decisions import auroc
from jgen.prob.anomaly import KINDS, score_of
from jgen.studies import reporting
from jgen.studies.reporting import Row

if TYPE_CHECKING:
    from jgen.generator import Generator
NOISE = "noise"  # uniform pixels, instead of a data set


@dataclass(frozen=True)
class Arguments:
    """Which sets to separate from a run's own data, and by which scores."""

    others: str = "noise"
    """Other sets, separated by commas, converted to the size and levels of the run's data: data names, or noise."""
    background: str = ""
    """Run of the background model for the likelihood ratio; default: no ratio."""
    out: str = "results/studies"
    """Folder of the record and the figure."""
    num: int = 1000
    """Number of images, the first of each test split, or all if it has fewer; also of the training split, for
    typicality."""
    seed: int = 0
    """Seed of the noise in bounds."""


def command(args: list[str]) -> int:
    title = "python -m jgen.studies.anomaly RUN [RUN ...]"
    runs = []
    while args and not args[0].startswith("-"):
        runs.append(args.pop(0))
    a = cli.parse(Arguments, args, title, __doc__ or "")
    require(bool(runs), f"which runs? {title} --others mnist --out FOLDER")
    require_positive(**{"--num": a.num})
    require_seed(a.seed, "--seed")
    record, figure = reporting.open_record(a.out, "anomaly")
    import jgen
    from jgen.core.generate import require_capability
    from jgen.studies import scores

    gens = {run: jgen.load(run) for run in runs}
    for gen in gens.values():
        require_capability(gen.model, "anomaly_score")
    background = jgen.load(a.background) if a.background else None
    if background is not None:
        require_capability(background.model, "anomaly_score")
    kinds = [kind for kind in KINDS if kind != "ratio" or background is not None]
    settings = [
        {**scores.identity_of(run, gen, 0, a.seed), "num": a.num, "other": other, "background": a.background}
        for run, gen in gens.items()
        for other in a.others.split(",")
    ]

    def measure(setting: Row) -> Row:
        return compare(setting, gens[setting["run"]], background, kinds)

    rows = scores.score_all(record, settings, measure)
    return reporting.report(figure, rows, draw, table)


def compare(setting: Row, gen: Generator, background: Generator | None, kinds: list[str]) -> Row:
    """{kind: AUROC} of the run's own test images against those of another set, and the mean nats of both."""
    import jax

    from jgen.data import dataset
    from jgen.train.run_directory import read_config

    fingerprint = read_config(Path(setting["run"]))["data_fingerprint"]
    config, data = dataset.reopen(gen.config.data, fingerprint, setting["run"], gen.tokenizers)
    num, spec, key = setting["num"], gen.model.images, jax.random.key(setting["seed"])
    train, own = (first_images(gen, data.splits[name], num) for name in ("train", "test"))
    if setting["other"] == NOISE:
        shape = (len(own), *spec.shape)
        others = np.random.default_rng(setting["seed"]).integers(0, spec.levels, shape, np.uint8)
    else:
        levels = 0 if spec.levels == 256 else spec.levels
        other = dataset.load(replace(config, name=setting["other"], test="", size=spec.height, levels=levels))
        fits = other.spec.image == spec
        require(fits, f"--others has {setting['other']}, of images {other.spec.image}: the run's are {spec}")
        others = first_images(gen, other.splits["test"], num)
    reference = gen.anomaly_score(key, train, batch_size=250)
    values: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    for images in (own, others):
        nats = gen.anomaly_score(key, images, batch_size=250)
        base = None if background is None else background.anomaly_score(key, images, batch_size=250)
        for kind in kinds:
            values[kind].append(score_of(kind, nats, images, reference, base))
    return {
        "auroc": {kind: auroc(*pair) for kind, pair in values.items()},
        "means": {kind: [float(x.mean()) for x in pair] for kind, pair in values.items()},
        "images": [len(own), len(others)],
    }


def first_images(gen: Generator, split: Any, num: int) -> np.ndarray:
    """The first `num` images of a split, or all if it has fewer, processed like the model's own data."""
    from jgen.figures import fetch

    return fetch(gen, split, np.arange(min(num, split.num)), 0)["image"]


def table(rows: list[Row]) -> str:
    """AUROC by run, other set and score, as a Markdown table."""
    lines = [f"| system | own data | other images | {' | '.join(KINDS)} |", "| --- " * (3 + len(KINDS)) + "|"]
    for row in rows:
        setting, areas = row["setting"], row["auroc"]
        cells = [f"{areas[kind]:.3f}" if kind in areas else "-" for kind in KINDS]
        lines.append(f"| {setting['system']} | {setting['run']} | {setting['other']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws the AUROC of every score, with a group of bars per run and other set."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    fig, axis = plt.subplots(figsize=(8, 0.8 * len(rows) + 1.2), layout="constrained")
    place = np.arange(len(rows))
    for number, kind in enumerate(KINDS):
        values = [row["auroc"].get(kind, np.nan) for row in rows]
        axis.barh(place + 0.2 * number - 0.3, values, 0.18, label=kind)
    axis.axvline(0.5, color="black", linewidth=0.8)
    axis.set_yticks(place, [f"{row['setting']['system']}: {row['setting']['other']}" for row in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("AUROC; 0.5 is chance")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    reporting.save_figure(path, fig)


if __name__ == "__main__":
    cli.main(command)
