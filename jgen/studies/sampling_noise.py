"""Does diffusion without added noise repeat its training images? python -m jgen.studies.sampling_noise RUN --out FOLDER

It is taught that "if no diversity term was added at each iteration, the process would re-generate a noise free image,
present in the original training set". Here a trained run is sampled with the full noise of an ancestral step, with less
and with none. Reported are the diversity of the samples of a class and their distance to the training images, both
relative to unseen test images, and the fraction of samples that are nearer to a training image than 95 % of test images
are. Writes sampling_noise.json and sampling_noise.png to FOLDER.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jgen import cli
from jgen.errors import require, require_positive, require_seed
from jgen.samplers.diffusion import Sampling
from jgen.studies import reporting
from jgen.studies.reporting import Row

# (name, options): "none" only omits the noise of the ancestral step.
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ancestral, no noise", {"sampler": "ancestral", "variance": "none"}),
    ("ancestral, beta_tilde", {"sampler": "ancestral", "variance": "beta_tilde"}),
    ("ancestral, beta", {"sampler": "ancestral", "variance": "beta"}),
    *((f"ddim, eta {eta:g}", {"sampler": "ddim", "eta": eta}) for eta in (0.0, 0.25, 0.5, 0.75, 1.0)),
)


@dataclass(frozen=True)
class Arguments:
    """What to sample."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    steps: int = 250
    """Steps of each sampler."""
    samples: int = 1000
    """Samples of each setting."""
    guidance_scale: float = 1.0
    """Guidance scale; 1: no guidance."""
    seed: int = 0
    """Seed of the samples."""


def command(args: list[str]) -> int:
    title = "python -m jgen.studies.sampling_noise RUN"
    run = args.pop(0) if args and not args[0].startswith("-") else ""
    a = cli.parse(Arguments, args, title, __doc__ or "")
    require(bool(run), f"which run? {title} --out FOLDER")
    require_positive(**{"--steps": a.steps})
    require_seed(a.seed, "--seed")
    record, figure = reporting.open_record(a.out, "sampling_noise")
    from jgen.studies import scores

    opened = scores.open_run(run, a.seed)
    fits = isinstance(opened.gen.model.sampling, Sampling)
    require(fits, f"{opened.gen.model.name} has no samplers with and without noise: it must be a diffusion model")
    identity = scores.identity_of(run, opened.gen, a.samples, a.seed)
    common = {"steps": a.steps, "guidance_scale": a.guidance_scale}
    settings = [{**identity, "name": name, "options": {**options, **common}} for name, options in SETTINGS]
    rows = scores.score_all(
        record, settings, lambda setting: scores.score(opened, setting["options"], a.samples, a.seed)
    )
    return reporting.report(figure, rows, draw, table)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| noise | FD | precision | recall | diversity | nearest | copies, % |", "| --- " * 7 + "|"]
    for row in rows:
        numbers = f"{row['fd']['value']:.1f} | {row['precision']:.3f} | {row['recall']:.3f}"
        numbers += f" | {row['diversity']:.3f} | {row['nearest']:.3f} | {100 * row['copies']:.1f}"
        lines.append(f"| {row['setting']['name']} | {numbers} |")
    return "\n".join(lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws the scores of the settings as bars, with those of unseen images as a line."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    names = [row["setting"]["name"] for row in rows]
    panels = (
        ("diversity", "spread within a class\n(test images: 1)", 1.0),
        ("nearest", "distance to training images\n(test images: 1)", 1.0),
        ("copies", "nearer than 95 % of test images\n(test images: 0.05)", 0.05),
    )
    fig, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), sharey=True, layout="constrained")
    for place, (key, title, unseen) in zip(axes, panels):
        place.barh(names, [row[key] for row in rows], color="C0")
        place.axvline(unseen, color="0.4", linestyle="--")
        place.set_title(title, fontsize=10)
    axes[0].invert_yaxis()
    reporting.save_figure(path, fig)


if __name__ == "__main__":
    cli.main(command)
