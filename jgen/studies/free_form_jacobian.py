"""What does a free-form Jacobian buy? python -m jgen.studies.free_form_jacobian --minutes M --out FOLDER

Flows with triangular, symmetric and free-form Jacobians (jgen/studies/contenders.py), with equal numbers of parameters,
are trained for equal times, and again with equal numbers of operations: on densities of the plane with known entropy,
or on images. Minutes are CPU time. Writes free_form_jacobian.json and free_form_jacobian.png to FOLDER.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jgen import cli
from jgen.errors import require, require_positive, require_seed
from jgen.studies import reporting
from jgen.studies.reporting import Row

COLOURS = {"triangular": "#3b6fb6", "block triangular": "#6bb0c9", "symmetric": "#8a6bb1", "free-form": "#d1622b"}


@dataclass(frozen=True)
class Arguments:
    """What to train, and for how long."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    data: str = "gaussians,rings,spirals,checkerboard"
    """Densities of the plane, or a data set of images, such as digits; several separated by commas."""
    flows: str = ""
    """Names of the flows, separated by semicolons; "" for all."""
    minutes: float = 1.0
    """Minutes of CPU time per training; 0: no trainings of equal time."""
    teraflops: float = 0.0
    """Trillions of operations per training; 0: no trainings of equal operations."""
    parameters: int = 8000
    """Approximate number of trained parameters of each flow."""
    batch_size: int = 256
    """Examples per step."""
    learning_rates: tuple[float, ...] = (1e-3, 5e-3)
    """Learning rates, of which the best by validation is used for each flow."""
    seeds: int = 3
    """Number of seeds per training."""
    seed: int = 0
    """The first seed."""


def command(args: list[str]) -> int:
    a = cli.parse(Arguments, args, "python -m jgen.studies.free_form_jacobian", __doc__ or "")
    require_positive(**{"--seeds": a.seeds, "--batch-size": a.batch_size, "--parameters": a.parameters})
    require_seed(a.seed, "--seed")
    for name, value in (("--minutes", a.minutes), ("--teraflops", a.teraflops)):
        require(0 <= value < math.inf, f"{name} is {value}: it must be at least 0 and finite")
    require(a.minutes + a.teraflops > 0, "--minutes and --teraflops are 0: one of them must be above zero")
    rates = a.learning_rates
    require(bool(rates) and all(0 < rate < math.inf for rate in rates), f"--learning-rates is {rates}: above zero")
    record, figure = reporting.open_record(a.out, "free_form_jacobian")
    from jgen.studies import flow_trials, scores

    scores.score_all(record, settings_of(a), flow_trials.measure)
    return reporting.report(figure, json.loads(record.read_text())["rows"], draw, table)  # also of other data


def settings_of(a: Arguments) -> list[Row]:
    """The settings of all rows. Raises `UserError` for unknown data or flows."""
    from jgen.prob.densities import DENSITIES
    from jgen.studies.contenders import CONTENDERS, ON_POINTS_ALONE
    from jgen.studies.flow_trials import open_images

    names = [name.strip() for name in a.flows.split(";")] if a.flows else list(CONTENDERS)
    for name in names:
        require(name in CONTENDERS, f"--flows has {name!r}: it must be of {'; '.join(CONTENDERS)}")
    common = {"parameters": a.parameters, "batch_size": a.batch_size, "learning_rates": list(a.learning_rates)}
    common |= {"seeds": list(range(a.seed, a.seed + a.seeds))}
    budgets = [
        (minutes, teraflops) for minutes, teraflops in ((a.minutes, 0.0), (0.0, a.teraflops)) if minutes + teraflops
    ]
    settings = []
    for data in a.data.split(","):
        if data not in DENSITIES:
            open_images(data)
        for minutes, teraflops in budgets:
            for name in names:
                if data in DENSITIES or name not in ON_POINTS_ALONE:
                    budget = {"minutes": minutes, "teraflops": teraflops}
                    settings.append({"data": data, "name": name, **budget, **common})
    return settings


def budget_of(setting: Row) -> str:
    """A description of a setting's budget."""
    return f"{setting['minutes']:g} min" if setting["minutes"] else f"{setting['teraflops']:g} Tflop"


def excess(row: Row) -> np.ndarray:
    """KL(p, q) in nats between the true density p and a flow's density q of points, by seed. For a flow that is not a
    bijection by construction, q is first normalised by its integral."""
    from jgen.prob.densities import entropy
    from jgen.studies.contenders import CONTENDERS

    nats = np.array(row["nats"]) - entropy(row["setting"]["data"])
    return nats if CONTENDERS[row["setting"]["name"]].bijective else nats + np.log(row["mass"])


def spread(values: Any, digits: int = 3) -> str:
    """Mean and standard deviation."""
    if not np.all(np.isfinite(values)):
        return "not finite"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=min(1, len(values) - 1)):.{digits}f}"


def table(rows: list[Row]) -> str:
    """Means and standard deviations over the seeds as Markdown tables: for points, then for images."""
    from jgen.prob.densities import DENSITIES

    on_points = [row for row in rows if row["setting"]["data"] in DENSITIES]
    parts = [(point_table, on_points), (image_table, [row for row in rows if row not in on_points])]
    return "\n\n".join(make(part) for make, part in parts if part)


def head(row: Row) -> list[str]:
    """The columns that both tables have."""
    from jgen.studies.contenders import CONTENDERS

    setting = row["setting"]
    speed = setting["batch_size"] / row["step_seconds"]
    names = [setting["data"], budget_of(setting), setting["name"], CONTENDERS[setting["name"]].jacobian]
    return [*names, f"{row['parameters']:,}", f"{row['steps']:,}", f"{speed:,.0f}"]


def markdown(columns: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, ["---"] * len(columns), *lines])


HEAD = ["data", "budget", "flow", "Jacobian", "parameters", "steps", "examples/s"]


def point_table(rows: list[Row]) -> str:
    from jgen.prob.densities import entropy

    lines = []
    for row in rows:
        true = entropy(row["setting"]["data"])
        ends = [f"{max(row['inverse_error']):.1e}", f"{1e6 * np.mean(row['sample_seconds']):.3g}"]
        lines.append([*head(row), spread(row["nats"]), f"{true:.3f}", spread(row["mass"]), spread(excess(row)), *ends])
    return markdown([*HEAD, "nats", "entropy", "mass", "nats above it", "inverse error", "µs/sample"], lines)


def image_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        ends = [f"{max(row['inverse_error']):.1e}", f"{1e3 * np.mean(row['sample_seconds']):.3g}"]
        lines.append([*head(row), spread(row["bits_per_dim"]), spread(row["fd"], 1), *ends])
    return markdown([*HEAD, "bits/dim", "FD", "inverse error", "ms/sample"], lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws, for each data set, the score of each flow with each budget, above samples with the first budget."""
    from jgen.compare.page import pyplot
    from jgen.prob.densities import DENSITIES

    plt = pyplot()
    data = list(dict.fromkeys(row["setting"]["data"] for row in rows))
    fig = plt.figure(figsize=(16, 4.6 * len(data)), layout="constrained")
    for part, name in zip(np.atleast_1d(fig.subfigures(len(data), 1)), data):
        selected = [row for row in rows if row["setting"]["data"] == name]
        left, right = part.subfigures(1, 2, width_ratios=(2, 3))
        draw_scores(left.subplots(), selected, name in DENSITIES)
        budgets = [budget_of(row["setting"]) for row in selected]
        draw_samples(right, [row for row in selected if budget_of(row["setting"]) == budgets[0]], name)
    reporting.save_figure(path, fig)


def draw_scores(axes: Any, rows: list[Row], on_points: bool) -> None:
    """Draws a line per flow, a point per seed and a marker per budget."""
    from jgen.studies.contenders import CONTENDERS

    names = list(dict.fromkeys(row["setting"]["name"] for row in rows))
    budgets = list(dict.fromkeys(budget_of(row["setting"]) for row in rows))
    for row in rows:
        setting = row["setting"]
        values = excess(row) if on_points else np.array(row["bits_per_dim"])
        number = budgets.index(budget_of(setting))
        place = names.index(setting["name"]) + 0.25 * (number - (len(budgets) - 1) / 2)
        colour = COLOURS[CONTENDERS[setting["name"]].jacobian]
        label = budget_of(setting) if setting["name"] == names[0] else None
        axes.scatter(values, np.full(len(values), place), s=22, color=colour, marker="o^"[number], label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(title=rows[0]["setting"]["data"], xlabel="nats above the entropy" if on_points else "bits/dim")
    if on_points:
        axes.set_xscale("symlog", linthresh=0.01)
    axes.grid(axis="x", color="0.92")
    axes.legend(fontsize=8)


def draw_samples(part: Any, rows: list[Row], data: str) -> None:
    """Draws samples of each flow; for points, also of the density."""
    import jax

    from jgen.core import keys as rng
    from jgen.prob.densities import DENSITIES, EXTENT, draw_points

    shown = [(row["setting"]["name"], np.array(row["samples"])) for row in rows]
    if data in DENSITIES:
        keys = rng.image_keys(rng.seed_key(0), np.arange(500))
        shown = [("data", np.asarray(draw_points(keys, jax.numpy.int32(list(DENSITIES).index(data))))), *shown]
    panels = part.subplots(-(-len(shown) // 6), 6, squeeze=False).ravel()
    for place, (name, samples) in zip(panels, shown):
        place.set_title(name, fontsize=8)
        if data in DENSITIES:
            place.scatter(*samples.T, s=2, color="#333333", linewidths=0)
            place.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal")
        else:
            side = math.isqrt(samples.shape[1])
            place.imshow(samples.reshape(5, 4, side, side).transpose(0, 2, 1, 3).reshape(5 * side, 4 * side), "gray")
    for place in panels:
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(place in panels[: len(shown)])


if __name__ == "__main__":
    cli.main(command)
