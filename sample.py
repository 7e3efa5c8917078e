"""Sample from a trained run: python sample.py RUN --num 64 [--label 3] [--steps 50] --out grid.png

--out takes a grid (.png), raw arrays (.npz) or a folder.

Options of the run's sampler (steps, guidance_scale, ...) are listed by: python sample.py RUN --help
"""

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from jgen import cli
from jgen.errors import require, require_seed


@dataclass(frozen=True)
class Arguments:
    """What to sample and where to put it."""

    num: int = 64
    """Number of images."""
    seed: int = 0
    """Seed; image i of a seed is the same whatever --num and --batch-size."""
    label: int | None = None
    """Class of all images; default: the classes in turn."""
    out: str = "samples.png"
    """A grid (.png), raw arrays (.npz), or a folder of PNGs."""
    start: int = 0
    """Number of the first image."""
    batch_size: int = 64
    """Images at a time."""
    columns: int = 0
    """Columns of a grid; 0: about as many as rows."""
    step: int | Literal["best"] | None = None
    """Checkpoint, or best: of those kept the one with the best validation score; default: the newest."""
    ema: bool = True
    """Use the moving average of the weights."""
    first_stage: str = ""
    """Run of the first stage, where it is neither where it was nor beside this one."""


def command(args: list[str]) -> int:
    if not args or args[0].startswith("-"):
        if "--help" in args or "-h" in args:
            cli.parse(Arguments, ["--help"], "sample.py RUN", __doc__)
        require(False, "which run? python sample.py RUN --out samples.png")
    run, rest = args[0], args[1:]
    cli.set_up_process()
    import jax
    import tyro
    from tqdm import tqdm

    import jgen
    from jgen.api import load_experiment
    from jgen.data.pictures import check_out, write_images

    sampling = load_experiment(run)[0].model.sampling
    fields = [
        ("main", Annotated[Arguments, tyro.conf.arg(name="")], dataclasses.field(default=Arguments())),
        ("sampling", Annotated[type(sampling), tyro.conf.arg(name="")], dataclasses.field(default=sampling)),
    ]
    options = dataclasses.make_dataclass("Options", fields, frozen=True)
    parsed = cli.parse(options, rest, "sample.py RUN", __doc__)
    a: Arguments = parsed.main
    require(a.num >= 1, f"--num is {a.num}: it must be above zero")
    require_seed(a.seed, "--seed")
    require(a.columns >= 0, f"--columns is {a.columns}: it must be zero or above")
    check_out(Path(a.out))
    gen = jgen.load(run, step=a.step, ema=a.ema, first_stage=a.first_stage)
    images = gen.sample(
        jax.random.key(a.seed),
        a.num,
        label=a.label,
        start=a.start,
        batch_size=a.batch_size,
        progress=lambda chunks: tqdm(chunks, desc="sampling", unit="batch", file=sys.stderr),
        **{f.name: getattr(parsed.sampling, f.name) for f in dataclasses.fields(sampling)},
    )
    labels = gen.labels(a.num, a.label, a.start)
    columns = a.columns or math.ceil(math.sqrt(a.num))
    write_images(Path(a.out), images, labels, gen.model.images.levels, columns, a.start)
    print(f"{a.num} images of {gen}: {a.out}")
    return 0


if __name__ == "__main__":
    cli.main(command)
