"""Which divergences keep a gradient as two densities move apart? python -m jgen.studies.divergences --out FOLDER

    KL(p, q) = int p log p/q;  JS = (KL(p, m) + KL(q, m)) / 2, m = (p + q) / 2;  TV = 1/2 int |p - q|
    W1 = int |P - Q|, with the distribution functions P, Q
    MMD^2 = int int k(x, y) (p - q)(x) (p - q)(y), k(x, y) = exp(-(x - y)^2 / (2 h^2))

p is fixed, and q is p moved by a shift. Both have standard deviation 1: Gaussians, whose support is the whole line, or
raised cosines (1 + cos(pi x / w)) / (2 w) on [-w, w], w = 2.77, which do not overlap for shifts of at least 2 w = 5.53.
Integrals are sums over a grid in float64; gradients with respect to the shift are computed by automatic differentiation
of the sums. Writes divergences.json and divergences.png to FOLDER.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jgen import cli
from jgen.errors import require_positive
from jgen.studies import reporting
from jgen.studies.reporting import Row

HALF_WIDTH = 1 / math.sqrt(1 / 3 - 2 / math.pi**2)  # of the raised cosine whose standard deviation is 1
# The grid. At every shift the densities cross between two grid points: at a point, |p - q| would not be differentiable.
LOWEST, HIGHEST, CELL = -9.0, 19.0, 1 / 96
SHIFTS = tuple(round(0.25 * i, 2) for i in range(1, 41))
ROUNDING = 1e-14  # smaller derivatives are zero up to rounding errors of the sums
IN_TABLE = (0.5, 2.0, 4.0, 6.0, 10.0)  # shifts whose gradients are columns of the table
FAMILIES = {"gaussian": "Gaussians", "cosine": "raised cosines, which part at 5.53"}
TITLES = {"kl_pq": "KL(p, q)", "kl_qp": "KL(q, p)", "js": "JS", "tv": "TV", "w1": "W1", "mmd2": "MMD²"}


@dataclass(frozen=True)
class Arguments:
    """Options of the computation."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    bandwidth: float = 1.0
    """h of MMD's kernel, in standard deviations of the densities."""


def command(args: list[str]) -> int:
    a = cli.parse(Arguments, args, "python -m jgen.studies.divergences", __doc__ or "")
    require_positive(**{"--bandwidth": a.bandwidth})
    record, figure = reporting.open_record(a.out, "divergences")
    from jgen.studies import scores

    settings = [
        {"family": family, "divergence": name, "bandwidth": a.bandwidth, "shifts": SHIFTS}
        for family in FAMILIES
        for name in TITLES
    ]
    return reporting.report(figure, scores.score_all(record, settings, measure), draw, table)


def measure(setting: Row) -> Row:
    """The divergence of a setting at each shift, and its derivative with respect to it; None for infinite ones."""

    def at(shift: jax.Array) -> jax.Array:
        x = jnp.arange(LOWEST + CELL / 2, HIGHEST, CELL)
        log_p, log_q = (log_density(setting["family"], places) for places in (x, x - shift))
        return divergence(setting["divergence"], x, log_p, log_q, setting["bandwidth"])

    with jax.enable_x64(True):
        function = jax.jit(jax.vmap(jax.value_and_grad(at)))
        values, gradients = (np.asarray(x) for x in function(jnp.asarray(setting["shifts"], jnp.float64)))
    infinite = ~np.isfinite(values)
    gradients = np.where(np.abs(gradients) < ROUNDING, 0.0, gradients)
    pairs = {"values": values, "gradients": gradients}
    return {
        name: [None if bad else float(f"{x:.6g}") for x, bad in zip(array, infinite)] for name, array in pairs.items()
    }


def log_density(family: str, x: jax.Array) -> jax.Array:
    """log p(x), -inf outside the support."""
    if family == "gaussian":
        return -0.5 * x**2 - 0.5 * math.log(2 * math.pi)
    assert family == "cosine", family
    inside = jnp.abs(x) < HALF_WIDTH
    u = jnp.where(inside, x, 0.0) / HALF_WIDTH
    # (1 + cos(pi u)) / 2 = cos(pi u / 2)^2, without cancellation near the edges.
    return jnp.where(inside, 2 * jnp.log(jnp.cos(math.pi * u / 2)) - math.log(HALF_WIDTH), -jnp.inf)


def divergence(name: str, x: jax.Array, log_p: jax.Array, log_q: jax.Array, bandwidth: float = 1.0) -> jax.Array:
    """One of the divergences `TITLES` of two densities, from their logarithms (n,) at equally spaced points x (n,).

    Returns:
      nats for KL and JS, the unit of x for W1; infinite where KL is.
    """
    step = x[1] - x[0]
    if name in ("kl_pq", "kl_qp"):
        return step * kl_sum(*((log_p, log_q) if name == "kl_pq" else (log_q, log_p)))
    if name == "js":
        log_m = jnp.logaddexp(finite(log_p), finite(log_q)) - math.log(2)
        return step * (kl_sum(log_p, log_m) + kl_sum(log_q, log_m)) / 2
    difference = jnp.exp(log_p) - jnp.exp(log_q)
    if name == "tv":
        return step * jnp.sum(jnp.abs(difference)) / 2
    if name == "w1":
        return step**2 * jnp.sum(jnp.abs(jnp.cumsum(difference)))
    assert name == "mmd2", name
    kernel = jnp.exp(-((x[:, None] - x[None, :]) ** 2) / (2 * bandwidth**2))
    return step**2 * difference @ kernel @ difference


def finite(log_density: jax.Array) -> jax.Array:
    """Replaces -inf by -1e4, which also means zero probability, but does not give NaN derivatives."""
    return jnp.maximum(log_density, -1e4)


def kl_sum(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """The sum of p log p/q over grid points; infinite if q is zero where p is not."""
    some = jnp.isfinite(log_p)
    ratio = jnp.where(some, finite(log_p) - finite(log_q), 0.0)
    total = jnp.sum(jnp.where(some, jnp.exp(finite(log_p)), 0.0) * ratio)
    return jnp.where(jnp.any(some & ~jnp.isfinite(log_q)), jnp.inf, total)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table: the gradient at some shifts."""
    lines = ["| densities | divergence | largest value | " + " | ".join(f"gradient at {s:g}" for s in IN_TABLE) + " |"]
    lines.append("| --- " * (3 + len(IN_TABLE)) + "|")
    for row in rows:
        setting = row["setting"]
        at = dict(zip(setting["shifts"], row["gradients"]))
        largest = "infinite" if None in row["values"] else f"{max(row['values']):.3g}"
        gradients = ["-" if at[s] is None else f"{at[s]:.2g}" for s in IN_TABLE]
        cells = [FAMILIES[setting["family"]], TITLES[setting["divergence"]], largest, *gradients]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws values above gradients over the shift, with a column for each family of densities."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    fig, axes = plt.subplots(2, len(FAMILIES), figsize=(11, 7), sharex=True, sharey="row", layout="constrained")
    for column, family in enumerate(FAMILIES):
        value_axes, gradient_axes = axes[:, column]
        for number, (name, title) in enumerate(TITLES.items()):
            row = next(r for r in rows if (r["setting"]["family"], r["setting"]["divergence"]) == (family, name))
            shifts = row["setting"]["shifts"]
            style = {"color": f"C{number}", "linewidth": 2.0, "linestyle": "--" if name == "kl_qp" else "-"}
            label = f"{title}: infinite" if None in row["values"] else title
            values, gradients = ([math.nan if x is None else x for x in row[key]] for key in ("values", "gradients"))
            value_axes.plot(shifts, values, label=label, **style)
            # A derivative of zero, which a logarithmic axis cannot show, is drawn at its lower end.
            gradient_axes.plot(shifts, np.maximum(np.abs(gradients), ROUNDING), **style)
        if family == "cosine":
            for ax in (value_axes, gradient_axes):
                ax.axvline(2 * HALF_WIDTH, color="0.5", linestyle=":")
        value_axes.set(title=FAMILIES[family], yscale="log", ylim=(1e-3, 60))
        value_axes.legend(fontsize=9)
        gradient_axes.set(xlabel="shift, standard deviations", yscale="log", ylim=(ROUNDING, 30))
    axes[0, 0].set_ylabel("divergence")
    axes[1, 0].set_ylabel("size of its gradient by the shift\n(1e-14: zero)")
    reporting.save_figure(path, fig)


if __name__ == "__main__":
    cli.main(command)
