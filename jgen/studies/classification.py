"""Classification by generative models: python -m jgen.studies.classification RUN [RUN ...] --out FOLDER

p(class | image) of test images by Bayes' rule from class-conditional runs, compared with a network that is trained to
classify the same training images; runs trained on fewer images (--data.validation 0.9) show how much each depends on
their number. "score" is the likelihood, or the denoising error, that is used in Bayes' rule; "nll" is the mean of
-log p(true class) in nats, and ECE the expected calibration error (Guo et al. 2017, arXiv 1706.04599). Writes
classification.json, from which the same command resumes, and classification.png to FOLDER.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jgen import cli
from jgen.errors import require, require_seed
from jgen.metrics.decisions import calibration_error
from jgen.studies import reporting
from jgen.studies.reporting import Row

if TYPE_CHECKING:
    from jgen.generator import Generator


@dataclass(frozen=True)
class Arguments:
    """What to classify."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    scores: Literal["all", "log_prob", "energy"] = "all"
    """Score for Bayes' rule, for runs that have both; a diffusion model's bound is slow."""
    num: int = 0
    """Number of images, the first of the test split; 0: all."""
    seed: int = 0
    """Seed of the noise in bounds."""


def command(args: list[str]) -> int:
    title = "python -m jgen.studies.classification RUN [RUN ...]"
    runs = []
    while args and not args[0].startswith("-"):
        runs.append(args.pop(0))
    a = cli.parse(Arguments, args, title, __doc__ or "")
    require(bool(runs), f"which runs? {title} --out FOLDER")
    require(a.num >= 0, f"--num is {a.num}: it must be zero (all) or above")
    require_seed(a.seed, "--seed")
    record, figure = reporting.open_record(a.out, "classification")
    import jgen
    from jgen.core.generate import require_capability
    from jgen.studies import scores

    gens = {run: jgen.load(run) for run in runs}
    for gen in gens.values():
        require_capability(gen.model, "classify")
    settings = [
        {**scores.identity_of(run, gen, 0, a.seed), "num": a.num, "score": score}
        for run, gen in gens.items()
        for score in scores_of(gen.model, a.scores)
    ]
    firsts = {repr(gen.config.data): run for run, gen in reversed(gens.items())}  # one network per data set
    for run in gens:
        if run in firsts.values():
            first = next(setting for setting in settings if setting["run"] == run)
            settings.append({**first, "system": "classifier", "score": "network"})
    rows = scores.score_all(record, settings, lambda setting: measure(setting, gens[setting["run"]]))
    return reporting.report(figure, rows, draw, table)


def scores_of(model: Any, wanted: str) -> list[str]:
    """The wanted scores of a model; if it has only the other score, that one."""
    names = [name for name in ("log_prob", "energy") if getattr(model, name) is not None]
    return [name for name in names if wanted in ("all", name)] or names


def measure(setting: Row, gen: Generator) -> Row:
    """The results of one run with one score, or of the network trained on that run's data."""
    import jax

    from jgen.data import dataset
    from jgen.data.pictures import to_display
    from jgen.figures import fetch
    from jgen.sample_scores import load_reader
    from jgen.studies.scores import ScoringProtocol
    from jgen.train.run_directory import read_config

    fingerprint = read_config(Path(setting["run"]))["data_fingerprint"]
    config, data = dataset.reopen(gen.config.data, fingerprint, setting["run"], gen.tokenizers)
    split = data.splits["test"]
    num = setting["num"] or split.num
    require(num <= split.num, f"--num is {num}: the test split has {split.num}")
    batch = fetch(gen, split, np.arange(num), setting["seed"])
    images, classes = batch["image"], batch["label"]
    trained_on = {"training_images": data.splits["train"].num}
    if setting["score"] == "network":
        reader = load_reader(data, config, ScoringProtocol(), True)
        logits = np.asarray(reader.apply(to_display(images, data.spec.image.levels))[2], np.float64)
        return trained_on | judge(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), classes)
    key = jax.random.key(setting["seed"])
    return trained_on | judge(gen.class_log_probs(key, images, by=setting["score"], batch_size=100), classes)


def judge(log_probs: np.ndarray, classes: np.ndarray) -> Row:
    """Accuracy, mean negative log-probability of the true class in nats, and calibration error of log p (n, K)."""
    right = log_probs[np.arange(len(classes)), classes]
    confidence = np.exp(log_probs.max(axis=1))
    return {
        "images": len(classes),
        "accuracy": float(np.mean(log_probs.argmax(axis=1) == classes)),
        "nll": float(-right.mean()),
        "calibration_error": calibration_error(log_probs, classes),
        "confidence": float(confidence.mean()),
    }


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    heads = ("system", "score", "training images", "accuracy, %", "mean confidence, %", "ECE, %", "nll, nats")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows:
        setting = row["setting"]
        numbers = [f"{100 * row[name]:.1f}" for name in ("accuracy", "confidence", "calibration_error")]
        start = (setting["system"], setting["score"], str(row["training_images"]))
        lines.append(f"| {' | '.join((*start, *numbers))} | {row['nll']:.3f} |")
    return "\n".join(lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws the accuracy and mean confidence of each row as bars."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    fig, axis = plt.subplots(figsize=(7, 0.5 * len(rows) + 1.2), layout="constrained")
    names = [f"{row['setting']['system']}, {row['setting']['score']}, {row['training_images']} images" for row in rows]
    place = np.arange(len(rows))
    for shift, name in ((-0.2, "accuracy"), (0.2, "confidence")):
        axis.barh(place + shift, [100 * row[name] for row in rows], 0.38, label=name)
    axis.set_yticks(place, names)
    axis.invert_yaxis()
    axis.set_xlim(min(80, *(100 * row["accuracy"] - 5 for row in rows)), 100)
    axis.set_xlabel("% of test images")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    reporting.save_figure(path, fig)


if __name__ == "__main__":
    cli.main(command)
