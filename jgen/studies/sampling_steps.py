"""Quality against the number of network evaluations: python -m jgen.studies.sampling_steps RUN [RUN ...] --out FOLDER

Every sampler of a diffusion run, and the steps of few-step systems, from 1 to 250 evaluations. It is taught that with
fewer steps "diversity will suffer", and that errors of the model and of the steps "become more noticeable": the figure
shows Fréchet distance and recall. Writes sampling_steps.json, from which the same command resumes, and
sampling_steps.png, for the given runs, to FOLDER.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from jgen import cli
from jgen.errors import require, require_seed
from jgen.samplers.diffusion import Sampler, Sampling, evaluations
from jgen.studies import reporting
from jgen.studies.reporting import Row

if TYPE_CHECKING:
    from jgen.generator import Generator

COUNTS = (1, 2, 3, 5, 8, 12, 18, 35, 70, 125, 250)
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001)  # tolerances of the adaptive solver


@dataclass(frozen=True)
class Arguments:
    """What to sample."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    samplers: str = "all"
    """Samplers of diffusion runs, separated by commas, or all."""
    samples: int = 1000
    """Samples of each setting."""
    guidance_scale: float = 1.0
    """Guidance scale of diffusion runs; 1: no guidance."""
    seed: int = 0
    """Seed of the samples."""


def command(args: list[str]) -> int:
    title = "python -m jgen.studies.sampling_steps RUN [RUN ...]"
    runs = []
    while args and not args[0].startswith("-"):
        runs.append(args.pop(0))
    a = cli.parse(Arguments, args, title, __doc__ or "")
    require(bool(runs), f"which runs? {title} --out FOLDER")
    require_seed(a.seed, "--seed")
    known: tuple[Sampler, ...] = get_args(Sampler)
    names = known if a.samplers == "all" else tuple(a.samplers.split(","))
    for name in names:
        require(name in known, f"--samplers has {name!r}: it must be of {', '.join(known)}")
    chosen = tuple(sampler for sampler in known if sampler in names)
    record, figure = reporting.open_record(a.out, "sampling_steps")
    from jgen.studies import scores

    opened = {run: scores.open_run(run, a.seed) for run in runs}
    for each in opened.values():
        require(each.gen.model.evaluations is not None, f"{each.gen.model.name} has no steps to count")
    settings = [
        {**scores.identity_of(run, each.gen, a.samples, a.seed), "name": name, "options": options}
        for run, each in opened.items()
        for name, options in settings_of(each.gen.model.sampling, chosen, a.guidance_scale)
    ]

    def score_one(setting: Row) -> Row:
        run, options = opened[setting["run"]], setting["options"]
        count = mean_evaluations(run.gen, options, a.seed)
        return {"evaluations": count, **scores.score(run, options, a.samples, a.seed)}

    rows = scores.score_all(record, settings, score_one)
    return reporting.report(figure, rows, draw, table)


def settings_of(
    sampling: Any, samplers: tuple[Sampler, ...], guidance_scale: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of a curve, options) for every point, depending on the sampling options of the system."""
    names = {field.name for field in dataclasses.fields(sampling)}
    if isinstance(sampling, Sampling):
        for sampler in samplers:
            for options in points_of(sampler):
                yield sampler, {"sampler": sampler, "guidance_scale": guidance_scale, **options}
    elif "sigmas" in names:  # a consistency model, which adds noise to the image again at each
        for num_sigmas in (0, 1, 2, 4, 7):
            sigmas = [0.8] if num_sigmas == 1 else np.geomspace(5.0, 0.3, num_sigmas).round(4).tolist()
            yield "", {"sigmas": tuple(sigmas)}
    elif "steps" in names:
        for steps in COUNTS[:6]:
            yield "", {"steps": steps}
    else:
        yield "", {}


def points_of(sampler: Sampler) -> Iterator[dict[str, Any]]:
    """The options of a sampler's points, one for each possible number of evaluations in `COUNTS`, or each tolerance."""
    if sampler == "ode":
        yield from ({"tolerance": tolerance} for tolerance in TOLERANCES)
        return
    taken = set()
    for count in COUNTS:
        fitting = [n for n in range(1, count + 1) if evaluations(Sampling(sampler=sampler, steps=n)) <= count]
        if fitting and fitting[-1] not in taken:
            taken.add(fitting[-1])
            yield {"steps": fitting[-1]}


def mean_evaluations(gen: Generator, options: dict[str, Any], seed: int, num: int = 100) -> float:
    """Network evaluations per image; if they depend on the image, their mean over `num` images."""
    assert gen.model.evaluations is not None
    count = gen.model.evaluations(dataclasses.replace(gen.model.sampling, **options))
    if count:
        return float(count)
    import jax
    import jax.numpy as jnp

    from jgen.core import keys as rng

    keys = rng.image_keys(jax.random.key(seed), jnp.arange(num))
    count_evaluations = jax.jit(partial(gen.model.functions["count_evaluations"], **options))
    return float(np.mean(count_evaluations(gen.params, gen.ctx, keys, gen.conditions(num))))


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, by system, sampler and number of evaluations."""
    lines = ["| system | sampler | evaluations | FD | precision | recall | diversity | class accuracy, % |"]
    lines.append("| --- " * 8 + "|")
    for row in sorted(rows, key=lambda row: (row["setting"]["system"], row["setting"]["name"], row["evaluations"])):
        accuracy = "-" if row["class_accuracy"] is None else f"{100 * row['class_accuracy']:.1f}"
        numbers = f"{row['evaluations']:.0f} | {row['fd']['value']:.1f} | {row['precision']:.3f} | {row['recall']:.3f}"
        setting = row["setting"]
        lines.append(f"| {setting['system']} | {setting['name']} | {numbers} | {row['diversity']:.3f} | {accuracy} |")
    return "\n".join(lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws Fréchet distance and recall over the number of evaluations, with a curve per system and sampler."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        curves.setdefault((row["setting"]["system"], row["setting"]["name"]), []).append(row)
    fig, axes = plt.subplots(1, 2, figsize=(13.5, 5.4), layout="constrained")
    # Few-step systems, which have no choice of samplers, come last and are dashed.
    for number, ((system, sampler), points) in enumerate(
        sorted(curves.items(), key=lambda item: (not item[0][1], item[0]))
    ):
        style = {"marker": "o", "linewidth": 1.2} if sampler else {"marker": "s", "linestyle": "--", "linewidth": 2}
        label, x = f"{system} {sampler}".strip(), [row["evaluations"] for row in points]
        for ax, y in zip(axes, ([row["fd"]["value"] for row in points], [row["recall"] for row in points])):
            ax.plot(x, y, label=label, markersize=4, color=plt.get_cmap("tab20")(number % 20), **style)
    reference = rows[0]["reference"]
    if reference:
        for ax, key in zip(axes, ("frechet_distance", "recall")):
            ax.axhline(reference[key], color="0.4", linestyle=":", label="training images")
    axes[0].set(yscale="log", ylabel=f"Fréchet distance ({rows[0]['network']})")
    axes[1].set(ylabel="recall")
    for ax in axes:
        ax.set(xscale="log", xlabel="network evaluations for an image")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.25)
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    axes[1].legend(fontsize=8, ncols=2)
    reporting.save_figure(path, fig)


if __name__ == "__main__":
    cli.main(command)
