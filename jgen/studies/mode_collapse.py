"""Which adversarial losses lose modes? python -m jgen.studies.mode_collapse --out FOLDER

Dense generators and discriminators of equal size are trained on points of the plane: 8 Gaussians on a ring, or 25 on a
grid. Over time, for every loss and seed, it counts the modes that have a sample within 3 standard deviations, and the
fraction of samples that are within 3 standard deviations of a mode (jgen/metrics/modes.py). Writes mode_collapse.json
and mode_collapse.png to FOLDER. The same for images: jgen/studies/stacked_digits.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen import cli
from jgen.core import keys as rng
from jgen.errors import require, require_positive, require_seed
from jgen.studies import reporting
from jgen.studies.reporting import Row

STD = 0.02  # standard deviation of each mode
RADIUS = 0.7  # radius of the ring, and half the grid's width
POINTS = 2500  # samples per count
EVERY = 250  # steps between counts
LATENT = 8


class Contest(NamedTuple):
    """A loss and its training options.

    penalty: kind and weight; clip: bound of the discriminator's weights, 0 for none; disc_steps: discriminator updates
    per step; optimiser: its options.
    """

    loss: str
    penalty: tuple[str, float] = ("none", 0.0)
    clip: float = 0.0
    disc_steps: int = 1
    optimiser: dict[str, Any] = {"learning_rate": 1e-3, "beta1": 0.5}


CRITIC = {"learning_rate": 1e-3, "beta1": 0.5, "beta2": 0.9}
CONTESTS = {
    "minimax": Contest("minimax"),
    "non-saturating": Contest("non_saturating"),
    "non-saturating, R1": Contest("non_saturating", ("r1", 0.002)),
    "least squares": Contest("least_squares"),
    "hinge": Contest("hinge"),
    "Wasserstein, clipped": Contest(
        "wasserstein", clip=0.1, disc_steps=3, optimiser={"name": "rmsprop", "learning_rate": 5e-4, "beta2": 0.99}
    ),
    "Wasserstein, gradient penalty": Contest("wasserstein", ("gradient_penalty", 0.1), disc_steps=3, optimiser=CRITIC),
    "relativistic, R1 and R2": Contest("relativistic", ("r1_r2", 0.002)),
}


@dataclass(frozen=True)
class Arguments:
    """What to train on, and for how long."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    data: str = "ring,grid"
    """ring, grid, or both, separated by a comma."""
    steps: int = 5000
    """Training steps, each with one update of the generator."""
    batch_size: int = 128
    """Real examples, and generated examples, per step."""
    seeds: int = 3
    """Number of seeds per loss."""
    seed: int = 0
    """The first seed."""


def command(args: list[str]) -> int:
    a = cli.parse(Arguments, args, "python -m jgen.studies.mode_collapse", __doc__ or "")
    require_positive(**{"--steps": a.steps, "--batch-size": a.batch_size, "--seeds": a.seeds})
    require_seed(a.seed, "--seed")
    kinds = a.data.split(",")
    for kind in kinds:
        require(kind in CENTRES, f"--data has {kind!r}: it must be of {', '.join(CENTRES)}")
    record, figure = reporting.open_record(a.out, "mode_collapse")
    from jgen.studies import scores

    seeds = list(range(a.seed, a.seed + a.seeds))
    common = {"steps": -(-a.steps // EVERY) * EVERY, "batch_size": a.batch_size, "seeds": seeds}
    settings = [
        {"data": kind, "num_modes": len(CENTRES[kind]()), "name": name, **contest._asdict(), **common}
        for kind in kinds
        for name, contest in CONTESTS.items()
    ]
    rows = scores.score_all(record, settings, measure)
    return reporting.report(figure, rows, draw, table)


def ring() -> np.ndarray:
    """Centres (8, 2)."""
    angles = 2 * math.pi * np.arange(8) / 8
    return RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def grid() -> np.ndarray:
    """Centres (25, 2)."""
    line = np.linspace(-RADIUS, RADIUS, 5)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)


CENTRES = {"ring": ring, "grid": grid}


def draw_points(keys: jax.Array, kind: jax.Array) -> jax.Array:
    """Points (B, 2) of the data with index `kind` (B, 1) in `CENTRES`; one function for all, to compile it once."""
    key_mode, key_noise = rng.split(keys, 2)
    every = [make() for make in CENTRES.values()]
    most, number = max(map(len, every)), kind[:, 0].astype(jnp.int32)
    table = jnp.asarray([np.resize(centres, (most, 2)) for centres in every], jnp.float32)
    u, num = rng.uniform(key_mode, ()), jnp.asarray([len(centres) for centres in every])[number]
    return table[number, (u * num).astype(jnp.int32)] + STD * rng.normal(key_noise, (2,))


def measure(setting: Row) -> Row:
    """Trains a GAN on points, with every seed.

    Returns:
      steps: (n,), steps of the counts; modes, quality, kl: (seeds, n) of `mode_scores`. points: a seed's last samples.
    """
    from jgen.metrics.modes import mode_scores, nearest_modes
    from jgen.studies.games import make_sampler, play
    from jgen.train.config import Config, Optimiser

    centres, kind = CENTRES[setting["data"]](), list(CENTRES).index(setting["data"])
    model = make_model(setting)
    sample = make_sampler(model, POINTS)
    config = Config(
        steps=setting["steps"], batch_size=setting["batch_size"], optimiser=Optimiser(**setting["optimiser"])
    )
    curves: dict[str, dict[int, list]] = {
        name: {s: [] for s in setting["seeds"]} for name in ("modes", "quality", "kl")
    }
    steps, points = [], None
    for _, seed, step, state in play(
        model, config, draw_points, [(float(kind), seed) for seed in setting["seeds"]], EVERY
    ):
        points = sample(state.params, state.extra, seed)
        scores = mode_scores(nearest_modes(points, centres, STD), len(centres))
        for name, by_seed in curves.items():
            by_seed[seed].append(scores[name])
        steps += [step] if seed == setting["seeds"][0] else []
    assert points is not None
    lists = {name: list(by_seed.values()) for name, by_seed in curves.items()}
    return {"steps": steps, **lists, "points": points[:500].round(3).tolist()}


def make_model(setting: Row) -> Any:
    """A GAN of dense networks on points of the plane."""
    from jgen.models.gan.dcgan import clip_weights
    from jgen.models.gan.game import Game, Penalty, make_gan
    from jgen.nn.gan import Discriminator, Generator
    from jgen.studies.games import point_spec

    spec = point_spec(2)
    networks = Generator((128, 128), spec.image), Discriminator((64, 64), 2)
    game = Game(spec, (), *networks, LATENT, setting["loss"], Penalty(*setting["penalty"]))
    project = partial(clip_weights, setting["clip"]) if setting["clip"] else None
    return make_gan("gan", game, disc_steps=setting["disc_steps"], project=project)


def table(rows: list[Row]) -> str:
    """The last counts as a Markdown table: medians over the seeds, and for modes also the minimum and maximum."""
    lines = [
        "| data | loss | steps | modes | fewest, most | quality, % | KL from uniform | most modes before |",
        "| --- " * 8 + "|",
    ]
    for row in rows:
        last = {
            name: [curve[-1] for curve in row[name] if curve[-1] is not None] for name in ("modes", "quality", "kl")
        }
        modes = f"{np.median(last['modes']):g} of {row['setting']['num_modes']}"
        spread = f"{min(last['modes'])}, {max(last['modes'])}"
        kl = f"{np.median(last['kl']):.2f}" if last["kl"] else "-"
        best = f"{np.median([max(curve) for curve in row['modes']]):.0f}"
        quality = f"{100 * np.median(last['quality']):.0f}"
        cells = [
            row["setting"]["data"],
            row["setting"]["name"],
            f"{row['steps'][-1]:,}",
            modes,
            spread,
            quality,
            kl,
            best,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws, for each data set, modes over time above quality over time, with a curve per loss (medians over the
    seeds), and the last samples of one seed, with a panel per loss."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    kinds = list(dict.fromkeys(row["setting"]["data"] for row in rows))
    names = list(dict.fromkeys(row["setting"]["name"] for row in rows))
    shown = any("points" in row for row in rows)
    fig = plt.figure(figsize=(13, (5.4 if shown else 4.0) * len(kinds)), layout="constrained")
    for part, kind in zip(np.atleast_1d(fig.subfigures(len(kinds), 1)), kinds):
        selected = [row for row in rows if row["setting"]["data"] == kind]
        heights = (3, 2) if shown else (1,)
        above, *below = part.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        curves = above.subplots(1, 2)
        for row in selected:
            number = names.index(row["setting"]["name"])
            style = {"color": plt.get_cmap("tab10")(number), "label": row["setting"]["name"], "linewidth": 1.4}
            curves[0].plot(row["steps"], np.median(row["modes"], axis=0), **style)
            curves[1].plot(row["steps"], np.median(row["quality"], axis=0), **style)
        curves[0].axhline(selected[0]["setting"]["num_modes"], color="0.6", linestyle=":")
        curves[0].set(xlabel="steps", ylabel="modes", title=kind)
        curves[1].set(xlabel="steps", ylabel="samples at a mode", ylim=(-0.03, 1.03), title=kind)
        curves[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        if below:
            draw_samples(below[0].subplots(1, len(names)), selected, CENTRES[kind]())
    reporting.save_figure(path, fig)


def draw_samples(axes: Any, rows: list[Row], centres: np.ndarray) -> None:
    """Draws the samples of each row over the modes' centres."""
    for place, row in zip(np.atleast_1d(axes), rows):
        points = np.array(row["points"])
        place.scatter(*centres.T, s=60, color="0.88", linewidths=0)
        place.scatter(*points.T, s=2, color="#d7301f", linewidths=0)
        place.set_title(row["setting"]["name"].replace(", ", ",\n"), fontsize=8)
        place.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=[], yticks=[])
        place.spines[:].set_visible(True)


if __name__ == "__main__":
    cli.main(command)
