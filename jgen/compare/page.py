"""The comparison as one self-contained HTML page: tables, figures and sample grids."""

from __future__ import annotations

import base64
import html
import io
import math
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jgen.compare.rows import Row
from jgen.compare.tables import cost_table, quality_table, to_repeat, unguided_table
from jgen.errors import UserError

STYLE = """
:root { --ink: #1b1f24; --dim: #5b6570; --line: #d9dee3; --paper: #ffffff; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --dim: #9aa4ae; --line: #353c44; --paper: #15181c; --band: #1e2329; }
  figure svg { background: #ffffff; border-radius: 6px; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 16px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .4em 0; } h2 { font-size: 1.2rem; margin: 1.8em 0 .5em; }
p, figcaption { color: var(--dim); max-width: 80ch; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .8rem; }
th, td { padding: 6px 5px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { background: var(--band); vertical-align: bottom; white-space: normal; min-width: 4em; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--band);
  font-weight: 600; }
th.words, td.words { white-space: normal; min-width: 10em; text-align: left; }
td.words { color: var(--dim); }
@media (max-width: 700px) { th.words, td.words { min-width: 24em; } }  /* scrolled to: rows stay low */
td.best { font-weight: 700; }
tr:last-child td { border-bottom: 0; }
.figures, .grids { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
.grids { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
figure { margin: 0; } figure svg, figure img { width: 100%; height: auto; display: block; }
figure img { image-rendering: pixelated; border: 1px solid var(--line); }
pre { overflow-x: auto; background: var(--band); padding: 10px; border-radius: 6px; font-size: .8rem; }
"""


def pyplot() -> Any:
    """matplotlib's pyplot, set up for files. Raises `UserError` if it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("the page's figures need matplotlib: pip install 'jgen[compare]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams["svg.hashsalt"] = "jgen"
    return plt


def drawable(rows: list[Row]) -> list[Row]:
    """The rows to draw in the figures: those with a distance and a sampling speed."""
    return [row for row in rows if "distance" in row["scores"] and (row["cost"] or {}).get("samples_per_second")]


def mean(row: Row, key: str) -> float:
    return row["scores"][key]["mean"]


def spread(row: Row, key: str) -> float:
    return row["scores"][key]["spread"] or 0.0


def colours_of(drawn: list[Row]) -> dict[str, str]:
    return {row["system"]: f"C{i}" for i, row in enumerate(sorted(drawn, key=lambda row: row["system"]))}


def draw_speed(axes: Any, drawn: list[Row], network: str) -> None:
    """Quality against sampling speed."""
    import matplotlib.ticker

    colours, names = colours_of(drawn), []
    for row in drawn:
        x, y, colour = row["cost"]["samples_per_second"], mean(row, "distance"), colours[row["system"]]
        axes.errorbar(x, y, yerr=spread(row, "distance"), fmt="o", color=colour, capsize=3)
        names.append((row["system"], (x, y), colour, 3.0))
    axes.set(xscale="log", yscale="log", xlabel="samples per second", ylabel=f"Fréchet distance, {network}")

    def plain(value: float, position: Any) -> str:
        return f"{value:,.6g}"

    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2, 3, 5)))  # distances may be within one decade
    axes.yaxis.set_minor_formatter(plain)
    axes.grid(alpha=0.25)
    axes.margins(0.12)
    slow, fast = axes.get_xlim()
    wide = max(1.0, math.sqrt(20 * slow / fast))  # so that the axis contains a power of ten, the only label
    axes.set_xlim(slow / wide, fast * wide)
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    write_names(axes, names)


def draw_trilemma(axes: Any, drawn: list[Row], network: str) -> None:
    """Quality, coverage and speed."""
    colours, names = colours_of(drawn), []
    speeds = [row["cost"]["samples_per_second"] for row in drawn]
    for row in drawn:
        if not {"precision", "recall"} <= set(row["scores"]):
            continue
        x, y, colour = mean(row, "recall"), mean(row, "precision"), colours[row["system"]]
        area = 40 + 160 * math.log10(row["cost"]["samples_per_second"] / min(speeds))
        axes.errorbar(x, y, xerr=spread(row, "recall"), yerr=spread(row, "precision"), color=colour, alpha=0.5)
        axes.scatter(x, y, s=area, color=colour, alpha=0.6)
        names.append((row["system"], (x, y), colour, math.sqrt(area / math.pi)))
    axes.set(xlabel="recall (coverage)", ylabel="precision (quality)")
    axes.grid(alpha=0.25)
    axes.margins(0.15)
    write_names(axes, names)


FIGURES = (
    (draw_speed, "Quality against sampling speed: lower is closer to the data, further right is faster."),
    (draw_trilemma, "The learning trilemma: quality upwards, coverage to the right, speed as the area."),
)


def figures(rows: list[Row], network: str) -> list[tuple[str, str]]:
    """(SVG, caption) of each of `FIGURES`. Raises `UserError` if matplotlib is not installed."""
    plt, drawn_figures = pyplot(), []
    for draw, caption in FIGURES if (drawn := drawable(rows)) else ():
        fig, axes = plt.subplots(figsize=(6.4, 4.4))
        draw(axes, drawn, network)
        out = io.StringIO()
        fig.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(fig)
        drawn_figures.append((out.getvalue()[out.getvalue().index("<svg") :], caption))
    return drawn_figures


def write_figures(path: Path, rows: list[Row], network: str) -> None:
    """`FIGURES` as one picture, for documents that cannot include the page."""
    plt = pyplot()
    fig, axes = plt.subplots(1, len(FIGURES), figsize=(6.6 * len(FIGURES), 4.6), layout="constrained")
    for place, (draw, caption) in zip(axes, FIGURES):
        place.set_title(caption.partition(":")[0])
        draw(place, drawable(rows), network)
    fig.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(fig)


def write_names(axes: Any, names: list[Any]) -> None:
    """Writes each (name, point, colour, radius in points) next to its disc, where it covers fewest points and names."""
    from matplotlib.transforms import Bbox

    axes.figure.canvas.draw()  # so that the scales are known
    places = axes.transData.transform([point for _, point, _, _ in names])
    halves = [max(9.0, radius * axes.figure.dpi / 72) for *_, radius in names]
    taken = [Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half) for (x, y), half in zip(places, halves)]
    for name, point, colour, radius in names:
        sides: list[Any] = []
        out, up, down = 0.7 * radius + 4, 0.7 * radius + 3, -0.7 * radius - 11
        for dx, dy, side in ((out, up, "left"), (-out, up, "right"), (out, down, "left"), (-out, down, "right")):
            shift = {"textcoords": "offset points", "xytext": (dx, dy), "ha": side}
            text = axes.annotate(name, point, color=colour, **shift)
            sides.append((text.get_window_extent().count_overlaps(taken), len(sides), text))
        *_, chosen = min(sides)
        for *_, text in sides:
            if text is not chosen:
                text.remove()
        taken.append(chosen.get_window_extent())


def write_grids(path: Path, rows: list[Row]) -> None:
    """One picture with every system's grid under its name, in the table's order; at least one grid must exist."""
    shown, plt = [row for row in rows if row.get("grid")], pyplot()
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    size = (2.6 * columns, 2.9 * lines)  # inches of 250 dots, so that no pixel of a grid is lost
    fig, axes = plt.subplots(lines, columns, squeeze=False, figsize=size, layout="constrained")
    for place, row in zip_longest(axes.ravel(), shown):
        place.set_axis_off()
        if row:
            place.imshow(plt.imread(path.parent / row["grid"]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            place.set_title(row["system"])
    fig.savefig(path, dpi=250, metadata={"Software": None})
    plt.close(fig)


# Columns in which the smallest or the largest value is best, for any data.
LEAST: tuple[str, ...] = ("FD", "FID", "kernel distance", "KID", "bits/dim", "MFLOPs an image", "compile, s")
LEAST += ("first sample, s", "parameters", "memory, MiB")
MOST = ("precision", "recall", "class accuracy, %", "training images/s", "samples/s")


def best_of(name: str, cells: list[str]) -> str:
    """The best cell of a column, "" if it has none."""
    choose = min if name in LEAST else max if name in MOST else None
    values = [cell for cell in cells if cell != "-"]
    if choose is None or not values:
        return ""
    return choose(values, key=lambda cell: float(cell.split()[0].replace(",", "")))


def table(cells: list[list[str]], words: tuple[str, ...], unlike: tuple[str, ...] = ()) -> str:
    """An HTML table; columns in `words` contain text, and in the others, except those in `unlike`, the best is bold."""
    head, *lines = cells
    best = {n: "" if n in unlike else best_of(n, [line[place] for line in lines]) for place, n in enumerate(head)}

    def kind(name: str, cell: str) -> str:
        if name in words or "failed" in cell:
            return " class=words"
        return " class=best" if cell and cell == best[name] else ""

    out = ["<div class=scroll><table><thead><tr>"]
    out += [f"<th{kind(name, '')}>{html.escape(name)}</th>" for name in head]
    out.append("</tr></thead><tbody>")
    for line in lines:
        tags = (f"<td{kind(name, cell)}>{html.escape(cell)}</td>" for name, cell in zip(head, line))
        out += ["<tr>", *tags, "</tr>"]
    return "".join([*out, "</tbody></table></div>"])


def grid_figures(folder: Path, rows: list[Row]) -> str:
    """Each system's grid, embedded into the page."""
    parts = []
    for row in rows:
        if row.get("grid"):
            picture = base64.b64encode((folder / row["grid"]).read_bytes()).decode()
            name = html.escape(row["system"])
            parts.append(
                f"<figure><img alt='samples of {name}' src='data:image/png;base64,{picture}'>"
                f"<figcaption>{name}</figcaption></figure>"
            )
    return "".join(parts)


def repeat_block(rows: list[Row]) -> str:
    """The commands that reproduce each row, and their results."""
    blocks = []
    for row in rows:
        if commands := to_repeat(row):
            gave = [f"# gave {row['gave'][row['shown']]}"] if row["shown"] in row["gave"] else []
            blocks.append("\n".join([f"# {row['system']}", *commands, *gave]))
    return html.escape("\n\n".join(blocks))


def write_page(path: Path, rows: list[Row], about: dict[str, Any]) -> None:
    """Writes the page.

    Args:
      about: title; lines, which describe the tables, two of them above the tables and the others below the samples;
        network, that of the features; sizes; commands, those of the whole comparison.
    """
    # Fewer levels need fewer bits.
    unlike = ("bits/dim",) if len({row["cost"]["levels"] for row in rows if row["cost"]}) > 1 else ()
    drawn = [f"<figure>{svg}<figcaption>{text}</figcaption></figure>" for svg, text in figures(rows, about["network"])]
    title, lines = html.escape(about["title"]), [f"<p>{html.escape(line)}</p>" for line in about["lines"]]
    grids, commands = grid_figures(path.parent, rows), repeat_block(rows)
    body = [
        f"<h1>{title}</h1>",
        *lines[:2],
        "<h2>Quality</h2><p>Bold: the best of a column, by its mean.</p>",
        table(quality_table(rows), ("likelihood", "sampled with", "published (other data)"), unlike),
        *(["<h2>Without guidance</h2>", table(unguided, ())] if (unguided := unguided_table(rows)) else []),
        "<h2>Cost</h2>",
        table(cost_table(rows, about["sizes"]), ()),
        "<h2>Figures</h2><div class=figures>" + "".join(drawn) + "</div>" if drawn else "",
        "<h2>Samples</h2><div class=grids>" + grids + "</div>" if grids else "",
        "<h2>How it was measured</h2>",
        *lines[2:],
        *(f"<pre>{html.escape(command)}</pre>" for command in about["commands"]),
        "<h2>Repeat a row</h2><pre>" + commands + "</pre>" if commands else "",
    ]
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
    document = f"<!doctype html><html lang=en><head>{head}<title>{title}</title><style>{STYLE}</style></head>"
    path.write_text(document + "<body>" + "\n".join(body) + "</body></html>\n")
