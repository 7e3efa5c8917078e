"""What does a discriminator measure, and what do different divergences choose for a model that is too small?

python -m jgen.studies.optimal_discriminator --out FOLDER

    V(D, G) = E_p log D(x) + E_q log(1 - D(x));  D* = p / (p + q);  V(D*, G) = 2 JS(p, q) - 2 log 2
                                                        (Goodfellow et al. 2014, arXiv 1406.2661, proposition 1, eq. 6)

For Gaussians p and q with known densities, D is trained from a random initialisation with G fixed, and V(D, G) is
computed as an integral, not estimated from samples. Then one Gaussian is fitted to two at distance 2 a: by KL(p, q),
which maximum likelihood and a VAE's bound minimise; by JS, which a GAN's game minimises; by KL(q, p); and by the game
itself, whose generator is that Gaussian. Writes optimal_discriminator.json and optimal_discriminator.png to FOLDER.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jgen import cli
from jgen.core import keys as rng
from jgen.errors import require_positive, require_seed
from jgen.studies import reporting
from jgen.studies.divergences import TITLES, divergence
from jgen.studies.reporting import Row

SHIFTS = (0.5, 1.0, 2.0, 4.0)  # distances of p and q for which a discriminator is trained
EVERY = 50  # steps between values of V
HALVES = tuple(round(0.25 * i, 2) for i in range(1, 21))  # a, half the distance of the two modes
OF_GAMES = (1.0, 2.0, 3.0, 4.0, 5.0)  # values of a at which the game is played
IN_TABLE = (1.0, 2.0, 3.0, 5.0)
OBJECTIVES = ("kl_pq", "js", "kl_qp")
LOSSES = ("minimax", "non_saturating")
STARTS = (0.0, 4.0)  # initial means of the generator: between the modes, and near one of them
SEEDS = 3  # seeds per game
PLACES = 1001  # grid points of an integral


@dataclass(frozen=True)
class Arguments:
    """Options of the training."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    steps: int = 1000
    """Steps of each discriminator, and of each game, in which the discriminator has five updates per step."""
    batch_size: int = 256
    """Real points, and generated points, per step."""
    seed: int = 0
    """The first seed."""


def command(args: list[str]) -> int:
    a = cli.parse(Arguments, args, "python -m jgen.studies.optimal_discriminator", __doc__ or "")
    require_positive(**{"--steps": a.steps, "--batch-size": a.batch_size})
    require_seed(a.seed, "--seed")
    record, figure = reporting.open_record(a.out, "optimal_discriminator")
    from jgen.studies import scores

    training = {"steps": -(-a.steps // EVERY) * EVERY, "batch_size": a.batch_size, "seed": a.seed}
    settings: list[Row] = [{"part": "value", "shift": shift, **training} for shift in SHIFTS]
    settings += [{"part": "fit", "objective": name, "halves": HALVES} for name in OBJECTIVES]
    games = [{"part": "game", "loss": loss, "start": start} for loss in LOSSES for start in STARTS]
    settings += [{**game, "halves": OF_GAMES, **training} for game in games]
    parts = {"value": measure_value, "fit": measure_fit, "game": measure_game}
    rows = scores.score_all(record, settings, lambda setting: parts[setting["part"]](setting))
    return reporting.report(figure, rows, draw, table)


def log_normal(x: Any, mean: Any, std: Any) -> jax.Array:
    return -0.5 * ((x - mean) / std) ** 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)


def log_two_modes(x: jax.Array, half: Any) -> jax.Array:
    """Log-density of a mixture of Gaussians at -half and half, with standard deviation 1 and weight 1/2 each."""
    return jnp.logaddexp(log_normal(x, -half, 1.0), log_normal(x, half, 1.0)) - math.log(2)


def value(outputs: np.ndarray, log_p: np.ndarray, log_q: np.ndarray, step: float) -> float:
    """V(D, G) in nats, from D's logits and the log-densities at points with spacing `step`, (n,) each."""
    log_d, log_not_d = -np.logaddexp(0, -outputs), -np.logaddexp(0, outputs)
    return float(step * np.sum(np.exp(log_p) * log_d + np.exp(log_q) * log_not_d))


def make_game(mean: float, std: float, loss: str) -> Any:
    """A one-dimensional GAN whose generator is a Gaussian, and its training options except for the length."""
    from jgen.models.gan.game import Game, make_gan
    from jgen.nn.gan import Discriminator
    from jgen.studies.games import Gaussian, point_spec

    generator = Gaussian((mean, math.log(std)))
    return make_gan("gan", Game(point_spec(1), (), generator, Discriminator((32, 32), 3), 1, loss), disc_steps=5)


def training_of(setting: Row) -> Any:
    from jgen.train.config import Config, Optimiser

    # The generator's two parameters must change more than the discriminator's weights.
    optimiser = Optimiser(learning_rate=2e-3, beta1=0.5, schedule="linear", by_role=(("gen", "learning_rate", 1e-2),))
    return Config(steps=setting["steps"], batch_size=setting["batch_size"], optimiser=optimiser)


def draw_two_modes(keys: jax.Array, half: jax.Array) -> jax.Array:
    """Points (B, 1) of the density of `log_two_modes`; half (B, 1)."""
    key_sign, key_noise = rng.split(keys, 2)
    return jnp.where(rng.bernoulli(key_sign, 0.5, (1,)), half, -half) + rng.normal(key_noise, (1,))


def measure_value(setting: Row) -> Row:
    """V(D, G) while D is trained between N(0, 1) and N(shift, 1).

    Returns:
      optimal: V(D*, G); jensen_shannon: 2 JS - 2 log 2. steps, values: V during training, (n,) each.
      places, probabilities, best: points, and the trained D and D* there.
    """
    from jgen.nn.gan import Discriminator
    from jgen.studies.games import play

    shift = setting["shift"]
    with jax.enable_x64(True):
        places = jnp.linspace(-8.0, shift + 8.0, PLACES)
        densities = log_normal(places, 0.0, 1.0), log_normal(places, shift, 1.0)
        jensen_shannon = float(divergence("js", places, *densities))
    x, log_p, log_q = (np.asarray(each) for each in (places, *densities))
    network = Discriminator((32, 32), 3)
    images = x.reshape(-1, 1, 1, 1).astype(np.float32)
    outputs = jax.jit(lambda disc: network.apply({"params": disc}, images, None))
    game = make_game(shift, 1.0, "minimax")
    model = game._replace(phases=(game.phases[0]._replace(repeats=1), game.phases[1]))
    steps, values, last = [], [], np.zeros(PLACES)
    cases = [(0.0, setting["seed"])]
    for _, _, number, state in play(model, training_of(setting), draw_two_modes, cases, EVERY, slice(1)):
        last = np.asarray(outputs(state.params["disc"]), np.float64)
        steps.append(number)
        values.append(value(last, log_p, log_q, x[1] - x[0]))
    shown = slice(None, None, PLACES // 100)
    return {
        "optimal": value(log_p - log_q, log_p, log_q, x[1] - x[0]),
        "jensen_shannon": 2 * jensen_shannon - 2 * math.log(2),
        "steps": steps,
        "values": values,
        "places": x[shown].round(4).tolist(),
        "probabilities": (1 / (1 + np.exp(-last[shown]))).round(4).tolist(),
        "best": (1 / (1 + np.exp(log_q - log_p)[shown])).round(4).tolist(),
    }


def measure_fit(setting: Row) -> Row:
    """The best Gaussian for two modes, at each `half`: means, stds, values of the objective, and `quality_of`."""
    with jax.enable_x64(True):
        halves = jnp.asarray(setting["halves"], jnp.float64)
        values, means, stds = jax.jit(jax.vmap(partial(fit, setting["objective"])))(halves)
        return {
            "values": np.asarray(values).tolist(),
            "means": np.abs(means).tolist(),
            "stds": np.asarray(stds).tolist(),
            "quality": quality_of(halves, means, stds),
        }


def fit(objective: str, half: jax.Array, num: int = 1500) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(value, mean, std) of the best Gaussian for two modes, of two initialisations: over both modes, and at one."""
    x = jnp.linspace(-16.0, 16.0, PLACES)
    log_p = log_two_modes(x, half)

    def loss(at: jax.Array) -> jax.Array:
        return divergence(objective, x, log_p, log_normal(x, at[0], jnp.exp(at[1])))

    optimiser = optax.adam(optax.cosine_decay_schedule(0.05, num))

    def step(carry: tuple, _: Any) -> tuple[tuple, None]:
        at, state = carry
        updates, state = optimiser.update(jax.grad(loss)(at), state)
        return (at + updates, state), None

    def fitted(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = jax.lax.scan(step, (at, optimiser.init(at)), length=num)[0][0]
        return loss(at), at

    zero = jnp.zeros_like(half)
    starts = jnp.stack([jnp.stack([zero, 0.5 * jnp.log(1 + half**2)]), jnp.stack([half, zero])])
    values, ends = jax.vmap(fitted)(starts)
    best = ends[jnp.argmin(values)]
    return jnp.min(values), best[0], jnp.exp(best[1])


def quality_of(halves: Any, means: Any, stds: Any) -> list[float]:
    """The probability mass of each Gaussian within two standard deviations of a mode at -half or half; 0.954 for the
    data if its modes are far apart."""

    def below(x: Any) -> Any:
        return jax.scipy.stats.norm.cdf((x - means) / stds)

    halves = jnp.asarray(halves)
    inner = jnp.maximum(halves - 2, 0.0)  # half-width of the gap between the two intervals
    outside = 1 - below(halves + 2) + below(-halves - 2) + below(inner) - below(-inner)
    return np.asarray(1 - outside).round(4).tolist()


def measure_game(setting: Row) -> Row:
    """The Gaussian that the game reaches from N(start, 1): averages over the last quarter of the steps, for each seed.

    Returns:
      halves: those of the setting, once for each seed; means, stds, quality: of the same length.
    """
    from jgen.studies.games import play

    model, config = make_game(setting["start"], 1.0, setting["loss"]), training_of(setting)
    cases = [(half, setting["seed"] + i) for half in setting["halves"] for i in range(SEEDS)]
    late: dict[tuple[float, int], list[tuple[float, float]]] = {case: [] for case in cases}
    for half, seed, number, state in play(model, config, draw_two_modes, cases, EVERY):
        if number > 0.75 * config.steps:
            gen = state.params["gen"]
            late[half, seed].append((float(gen["mean"]), float(jnp.exp(gen["log_std"]))))
    means, stds = np.mean(list(late.values()), axis=1).T
    halves = [half for half, _ in cases]
    quality = quality_of(halves, means, stds)
    return {"halves": halves, "means": np.abs(means).tolist(), "stds": stds.tolist(), "quality": quality}


def table(rows: list[Row]) -> str:
    """Two Markdown tables: what trained discriminators reach, and the Gaussians for two modes."""
    lines = ["| shift | 2 JS - 2 log 2 | V of D* | V of the trained D | short by |", "| --- " * 5 + "|"]
    for row in (row for row in rows if row["setting"]["part"] == "value"):
        last = row["values"][-1]
        numbers = f"{row['jensen_shannon']:.4f} | {row['optimal']:.4f} | {last:.4f} | {row['optimal'] - last:.4f}"
        lines.append(f"| {row['setting']['shift']:g} | {numbers} |")
    head = [f"a = {half:g}: std, quality" for half in IN_TABLE]
    lines += ["", f"| fitted by | {' | '.join(head)} |", "| --- " * (1 + len(IN_TABLE)) + "|"]
    for row in (row for row in rows if row["setting"]["part"] != "value"):
        cells = []
        for half in IN_TABLE:
            at = [i for i, other in enumerate(halves_of(row)) if other == half]
            std, quality = (float(np.median([row[key][i] for i in at])) for key in ("stds", "quality"))
            cells.append(f"{std:.2f}, {quality:.2f}")
        lines.append(f"| {name_of(row)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def halves_of(row: Row) -> list[float]:
    return row.get("halves") or row["setting"]["halves"]


def name_of(row: Row) -> str:
    setting = row["setting"]
    if setting["part"] == "game":
        loss = setting["loss"].replace("_", "-")
        return f"GAN, {loss}, started at {setting['start']:g} (median of {SEEDS} seeds)"
    return TITLES[setting["objective"]]


def draw(path: Path, rows: list[Row]) -> None:
    """Draws V while D is trained, D and D*, the fitted Gaussians' standard deviations, and the densities at a = 3."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    fig, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    (of_values, of_networks), (of_stds, of_densities) = axes
    for number, row in enumerate(row for row in rows if row["setting"]["part"] == "value"):
        colour, label = f"C{number}", f"shift {row['setting']['shift']:g}"
        of_values.plot(row["steps"], row["values"], color=colour, label=label)
        of_values.axhline(row["jensen_shannon"], color=colour, linestyle="--", linewidth=1)
        of_networks.plot(row["places"], row["probabilities"], color=colour, label=label)
        of_networks.plot(row["places"], row["best"], color=colour, linestyle="--", linewidth=1)
    of_values.set(xlabel="steps", ylabel="V(D, G), nats", title="V of a trained D; dashed: 2 JS - 2 log 2")
    of_values.legend(fontsize=9, loc="lower right")
    of_networks.set(xlabel="x", ylabel="D(x)", title="the trained D; dashed: p / (p + q)")
    x, half = np.linspace(-9, 9, 400), 3.0
    of_densities.fill_between(x, np.exp(log_two_modes(jnp.asarray(x), half)), color="0.85", label="data")
    for number, row in enumerate(row for row in rows if row["setting"]["part"] != "value"):
        colour, halves = f"C{number}", halves_of(row)
        at = halves.index(half)
        density = np.exp(log_normal(jnp.asarray(x), row["means"][at], row["stds"][at]))
        if row["setting"]["part"] == "game":
            marker = "o" if row["setting"]["start"] == 0 else "x"
            of_stds.scatter(halves, row["stds"], color=colour, label=name_of(row).partition(" (")[0], marker=marker)
        else:
            of_stds.plot(halves, row["stds"], color=colour, label=name_of(row))
            of_densities.plot(x, density, color=colour, label=name_of(row))
    of_stds.set(
        xlabel="a, half of the distance of the modes", ylabel="standard deviation", title="one Gaussian for two"
    )
    of_densities.set(xlabel="x", ylabel="density", title="the Gaussians at a = 3")
    for ax in (of_stds, of_densities):
        ax.legend(fontsize=9)
    reporting.save_figure(path, fig)


if __name__ == "__main__":
    cli.main(command)
