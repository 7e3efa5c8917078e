"""How good are completions? python -m jgen.studies.inpainting RUN [RUN ...] --out FOLDER

Every run completes test images several times under the same masks; masks that a run does not support, such as all but
the first rows for an autoregressive model, are left out. Over the unknown pixels, in units of the range of levels:

    error      root mean squared difference of a completion from the image: lower is better, but not zero for an exact
               sampler
    mean error the same for the mean of the completions; for an exact sampler and many completions, sqrt(2) times lower
               than its error
    diversity  root mean squared deviation of completions from their mean
    boundary   mean absolute difference of neighbouring pixels across the mask's edge, divided by that of the images
               themselves: 1 for completions that fit equally well

Writes inpainting.json, from which the same command resumes, and inpainting.png to FOLDER.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from jgen import cli, figures
from jgen.core.model import Cond
from jgen.errors import UserError, require, require_positive, require_seed
from jgen.studies import reporting
from jgen.studies.reporting import Row

if TYPE_CHECKING:
    from jgen.generator import Generator
MASKS = get_args(figures.Mask)


@dataclass(frozen=True)
class Arguments:
    """What to complete."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    num: int = 100
    """Number of images, the first of the test split."""
    draws: int = 4
    """Completions per image."""
    kept: float = 0.5
    """Approximate fraction of an image's pixels to keep."""
    seed: int = 0
    """Seed of the completions."""


def command(args: list[str]) -> int:
    title = "python -m jgen.studies.inpainting RUN [RUN ...]"
    runs = []
    while args and not args[0].startswith("-"):
        runs.append(args.pop(0))
    a = cli.parse(Arguments, args, title, __doc__ or "")
    require(bool(runs), f"which runs? {title} --out FOLDER")
    require_positive(**{"--num": a.num})
    require(a.draws >= 2, f"--draws is {a.draws}: diversity needs 2 or more")
    require(0 < a.kept < 1, f"--kept is {a.kept}: it must be above 0 and below 1")
    require_seed(a.seed, "--seed")
    record, figure = reporting.open_record(a.out, "inpainting")
    import jgen
    from jgen.core.generate import require_capability
    from jgen.studies import scores

    gens = {run: jgen.load(run) for run in runs}
    for gen in gens.values():
        require_capability(gen.model, "inpaint")
    settings = [
        {**scores.identity_of(run, gen, a.num * a.draws, a.seed), "mask": mask, "kept": a.kept, "completions": a.draws}
        for run, gen in gens.items()
        for mask in MASKS
        if serves(gen.model, mask_of(gen, mask, a.kept, a.seed))
    ]
    rows = scores.score_all(record, settings, lambda setting: measure(setting, gens[setting["run"]]))
    return reporting.report(figure, rows, draw, table)


def mask_of(gen: Generator, name: figures.Mask, kept: float, seed: int) -> np.ndarray:
    """The mask (H, W) of this name."""
    arguments = figures.Arguments(mask=name, kept=kept, seed=seed)
    return figures.kept_pixels(arguments, *gen.model.images.shape[:2])


def serves(model: Any, mask: np.ndarray) -> bool:
    """Whether the model can complete images with this mask."""
    try:
        if model.check_mask is not None:
            model.check_mask(mask)
    except UserError:
        return False
    return True


def measure(setting: Row, gen: Generator) -> Row:
    """The scores of one run under one mask."""
    import jax

    from jgen.data import dataset
    from jgen.train.run_directory import read_config

    fingerprint = read_config(Path(setting["run"]))["data_fingerprint"]
    _, data = dataset.reopen(gen.config.data, fingerprint, setting["run"], gen.tokenizers)
    draws, mask = setting["completions"], mask_of(gen, setting["mask"], setting["kept"], setting["seed"])
    batch = figures.fetch(gen, data.splits["test"], np.arange(setting["samples"] // draws), setting["seed"])
    repeated: Cond = {name: np.repeat(batch[name], draws, axis=0) for name in gen.model.conditions}
    images = np.repeat(batch["image"], draws, axis=0)
    made = gen.inpaint(jax.random.key(setting["seed"]), images, mask, batch_size=100, **repeated)
    assert np.array_equal(made[:, mask], images[:, mask])
    shape = (-1, draws, *images.shape[1:])
    top = gen.model.images.levels - 1
    return judge(made.reshape(shape) / top, batch["image"] / top, mask)


def judge(made: np.ndarray, images: np.ndarray, mask: np.ndarray) -> Row:
    """The scores of completions (n, draws, H, W, C) of images (n, H, W, C) under a mask (H, W)."""
    mean = made.mean(axis=1)

    def rms(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(x[..., ~mask, :] ** 2)))

    return {
        "error": rms(made - images[:, None]),
        "mean_error": rms(mean - images),
        "diversity": rms(made - mean[:, None]),
        "boundary": step_across(made, mask) / step_across(images, mask),
    }


def step_across(images: np.ndarray, mask: np.ndarray) -> float:
    """The mean absolute difference of neighbouring pixels of which the mask keeps one, in images (..., H, W, C)."""
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    steps = [
        np.abs(np.diff(images, axis=-3))[..., down, :].ravel(),
        np.abs(np.diff(images, axis=-2))[..., right, :].ravel(),
    ]
    return float(np.concatenate(steps).mean())


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, by mask."""
    names = ("error", "mean_error", "diversity", "boundary")
    lines = ["| mask | system | error | mean error | diversity | boundary |", "| --- " * 6 + "|"]
    for row in sorted(rows, key=lambda row: MASKS.index(row["setting"]["mask"])):
        cells = [f"{row[name]:.3f}" for name in names]
        lines.append(f"| {row['setting']['mask']} | {row['setting']['system']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws error over diversity, with a point per row."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    fig, axis = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    markers = dict(zip(MASKS, "o<s*^"))
    systems = list(dict.fromkeys(row["setting"]["system"] for row in rows))
    for row in rows:
        setting = row["setting"]
        colour = f"C{systems.index(setting['system'])}"
        label = f"{setting['system']}, {setting['mask']}"
        axis.plot(row["diversity"], row["error"], markers[setting["mask"]], color=colour, label=label)
    axis.set_xlabel("diversity")
    axis.set_ylabel("error")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    reporting.save_figure(path, fig)


if __name__ == "__main__":
    cli.main(command)
