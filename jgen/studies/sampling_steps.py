"""Quality against the number of network evaluations: python -m jgen.studies.sampling_steps RUN [RUN ...] --out FOLDER

Every sampler of a diffusion run, and the steps of few-step systems, from 1 evaluation to 250. Lectures say that with
fewer steps "diversity will suffer", and that errors of the model and of the steps "become more noticeable": the figure
shows both, Fréchet distance and recall. FOLDER has sampling_steps.json, to which further runs are added, and
sampling_steps.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jgen import cli
from jgen.core.files import check_writable
from jgen.errors import require, require_seed
from jgen.samplers.diffusion import Sampler, Sampling, evaluations

COUNTS = (1, 2, 3, 5, 8, 12, 18, 35, 70, 125, 250)
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001)  # of the adaptive solver


@dataclass(frozen=True)
class Arguments:
    """What is sampled."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    samplers: str = "all"
    """Samplers of diffusion runs, separated by commas; all: every one."""
    samples: int = 1000
    """Samples of each setting."""
    guidance_scale: float = 1.0
    """Guidance of diffusion runs; 1 is none."""
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
    known = get_args(Sampler)
    chosen = known if a.samplers == "all" else tuple(a.samplers.split(","))
    for name in chosen:
        require(name in known, f"--samplers has {name!r}: it must be of {', '.join(known)}")
    record, figure = (Path(a.out).expanduser() / f"sampling_steps.{kind}" for kind in ("json", "png"))
    check_writable(record)
    cli.set_up_process()
    from jgen.studies import scores

    rows = []
    for run in runs:
        opened = scores.open_run(run, a.seed)
        gen = opened.gen

        def score(setting: dict[str, Any], opened: Any = opened) -> dict[str, Any]:
            options = setting["options"]
            count = opened.gen.model.evaluations(dataclasses.replace(opened.gen.model.sampling, **options))
            count = count or adaptive_evaluations(opened.gen, options, a.seed)
            return {"evaluations": count, **scores.score(opened, options, a.samples, a.seed)}

        require(gen.model.evaluations is not None, f"{gen.model.name} has no steps to count")
        settings = [
            {"run": run, "system": gen.model.name, "step": gen.step, "name": name, "options": options}
            for name, options in settings_of(gen.model.sampling, chosen, a.guidance_scale)
        ]
        rows = scores.score_all(record, settings, score, {"samples": a.samples, "seed": a.seed})
    draw(figure, rows)
    print(table(rows))
    print(figure)
    return 0


def settings_of(
    sampling: Any, samplers: tuple[str, ...], guidance_scale: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of a curve, options) of every point, by the options that a system's sampling has."""
    names = {field.name for field in dataclasses.fields(sampling)}
    if isinstance(sampling, Sampling):
        for sampler in samplers:
            for options in points_of(sampler):
                yield sampler, {"sampler": sampler, "guidance_scale": guidance_scale, **options}
    elif "sigmas" in names:  # noised again at each
        for more in (0, 1, 2, 4, 7):
            sigmas = (0.8,) if more == 1 else tuple(float(s) for s in np.geomspace(5.0, 0.3, more).round(4))
            yield "", {"sigmas": sigmas}
    elif "steps" in names:
        for steps in COUNTS[:6]:
            yield "", {"steps": steps}
    else:
        yield "", {}


def points_of(sampler: str) -> Iterator[dict[str, Any]]:
    """The options of a sampler's points, one for each of `COUNTS` that it can take, or for each tolerance."""
    if sampler == "ode":
        yield from ({"tolerance": tolerance} for tolerance in TOLERANCES)
        return
    taken = set()
    for count in COUNTS:
        fitting = [n for n in range(1, count + 1) if evaluations(Sampling(sampler=sampler, steps=n)) <= count]  # type: ignore[arg-type]
        if fitting and fitting[-1] not in taken:
            taken.add(fitting[-1])
            yield {"steps": fitting[-1]}


def adaptive_evaluations(gen: Any, options: dict[str, Any], seed: int, num: int = 100) -> float:
    """The mean number of evaluations of the adaptive solver for an image."""
    import jax
    import jax.numpy as jnp

    from jgen.core import keys as rng
    from jgen.prob.process import prior_std, time_of
    from jgen.samplers import ode

    o: Sampling = dataclasses.replace(gen.model.sampling, **options)
    keys = rng.image_keys(jax.random.key(seed), jnp.arange(num))
    process = gen.model.functions["process"](gen.params, gen.ctx)

    @jax.jit
    def count(params: Any, ctx: Any, keys: Any, cond: Any) -> Any:
        x = rng.normal(keys, gen.model.images.shape) * jnp.float32(prior_std(process, 1.0))
        end = time_of(process, -np.log(np.array([o.low])))[0]
        denoise = partial(gen.model.functions["denoise"], params, ctx)
        return ode.adaptive(denoise, process, x, cond, o.tolerance, end)[1]

    return float(np.mean(count(gen.params, gen.ctx, keys, gen.conditions(num))))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, by system, sampler and number of evaluations."""
    lines = ["| system | sampler | evaluations | FD | precision | recall | diversity | class accuracy, % |"]
    lines.append("| --- " * 8 + "|")
    for row in sorted(rows, key=lambda row: (row["setting"]["system"], row["setting"]["name"], row["evaluations"])):
        read = "-" if row["class_accuracy"] is None else f"{100 * row['class_accuracy']:.1f}"
        numbers = f"{row['evaluations']:.0f} | {row['fd']['value']:.1f} | {row['precision']:.3f} | {row['recall']:.3f}"
        setting = row["setting"]
        lines.append(f"| {setting['system']} | {setting['name']} | {numbers} | {row['diversity']:.3f} | {read} |")
    return "\n".join(lines)


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Fréchet distance and recall over the number of evaluations, a curve a system and sampler."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        setting = row["setting"]
        curves.setdefault(" ".join(filter(None, (setting["system"], setting["name"]))), []).append(row)
    few = [name for name in curves if " " not in name]
    fig, axes = plt.subplots(1, 2, figsize=(13.5, 5.4), layout="constrained")
    for number, (name, points) in enumerate(sorted(curves.items(), key=lambda item: (item[0] in few, item[0]))):
        style = {"marker": "s", "linestyle": "--", "linewidth": 2} if name in few else {"marker": "o", "linewidth": 1.2}
        x = [row["evaluations"] for row in points]
        for place, y in zip(axes, ([row["fd"]["value"] for row in points], [row["recall"] for row in points])):
            place.plot(x, y, label=name, markersize=4, color=plt.get_cmap("tab20")(number % 20), **style)
    reference = rows[0]["reference"]
    if reference:
        for place, key in zip(axes, ("frechet_distance", "recall")):
            place.axhline(reference[key], color="0.4", linestyle=":", label="training images")
    axes[0].set(yscale="log", ylabel=f"Fréchet distance ({rows[0]['network']})")
    axes[1].set(ylabel="recall")
    for place in axes:
        place.set(xscale="log", xlabel="network evaluations for an image")
        place.grid(alpha=0.25)
    axes[1].legend(fontsize=8, ncols=2)
    fig.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(fig)


if __name__ == "__main__":
    cli.main(command)
