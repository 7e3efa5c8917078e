"""Pictures of textures beside their samples: python -m jgen.studies.textures RUN [RUN ...] --out textures.png

Each row is about one picture: the first of its training crops, and the first sample (not selected) of each run on it,
in the given order. So runs of a system are in one column if the runs of each picture are given in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jgen import cli
from jgen.core.files import check_writable
from jgen.errors import require, require_seed


@dataclass(frozen=True)
class Arguments:
    """The output file, and the seed of the samples."""

    out: str = "textures.png"
    """Where to write the picture."""
    seed: int = 0
    """Seed of the samples."""


def command(args: list[str]) -> int:
    title = "python -m jgen.studies.textures RUN [RUN ...]"
    runs = []
    while args and not args[0].startswith("-"):
        runs.append(args.pop(0))
    a = cli.parse(Arguments, args, title, __doc__ or "")
    require(bool(runs), f"which runs? {title} --out textures.png")
    require_seed(a.seed, "--seed")
    require(a.out.endswith(".png"), f"--out is {a.out}: a figure must end in .png")
    check_writable(Path(a.out).expanduser())
    cli.set_up_process()
    import jgen
    from jgen.data.pictures import write_images

    gens = {run: jgen.load(run) for run in runs}
    rows = rows_of(gens)
    images = np.concatenate([row_of(members, gens, a.seed) for members in rows])
    levels = next(iter(gens.values())).model.images.levels
    write_images(Path(a.out).expanduser(), images, None, levels, 1 + len(rows[0]))
    print(a.out)
    return 0


def rows_of(gens: dict[str, Any]) -> list[list[str]]:
    """The runs of each picture, in the order given.

    Raises:
      UserError: a run that is not of a texture, pictures with different numbers of runs, or images of different shapes.
    """
    rows: dict[str, list[str]] = {}
    first_run, first = next(iter(gens.items()))
    for run, gen in gens.items():
        require("texture_error" in gen.model.functions, f"{run} is a {gen.model.name}: a system of textures is wanted")
        images, wanted = gen.model.images, first.model.images
        require(images == wanted, f"{run} has images {images}: those of {first_run} are {wanted}")
        rows.setdefault(gen.config.data.name, []).append(run)
    numbers = {name: len(members) for name, members in rows.items()}
    counted = ", ".join(f"{number} of {name}" for name, number in numbers.items())
    require(len(set(numbers.values())) == 1, f"there are {counted}: each picture must have as many runs")
    return list(rows.values())


def row_of(runs: list[str], gens: dict[str, Any], seed: int) -> np.ndarray:
    """A crop of the picture of these runs, and the first sample of each, uint8 (1 + runs, H, W, C)."""
    import jax

    from jgen.data import dataset
    from jgen.figures import fetch
    from jgen.train.run_directory import read_config

    gen = gens[runs[0]]
    fingerprint = read_config(Path(runs[0]))["data_fingerprint"]
    _, data = dataset.reopen(gen.config.data, fingerprint, runs[0], gen.tokenizers)
    crop = fetch(gen, data.splits["train"], np.arange(1), seed)["image"]
    return np.concatenate([crop, *(gens[run].sample(jax.random.key(seed), 1) for run in runs)])


if __name__ == "__main__":
    cli.main(command)
