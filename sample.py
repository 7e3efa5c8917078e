"""Sample from a trained run: python sample.py RUN --num 64 [--label 3] [--text "..."] [--steps 50] --out grid.png

--out writes a grid (.png), raw arrays (.npz) or a folder of PNGs. An interrupted command resumes when it is run again.

For the options of a run's sampler and the run's conditions: python sample.py RUN --help
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from jgen import cli
from jgen.distributed import Distributed, working_together
from jgen.errors import require, require_seed


@dataclass(frozen=True)
class Arguments:
    """What to sample and where to put it."""

    num: int = 64
    """Number of images."""
    seed: int = 0
    """Random seed; image i does not depend on --num or --batch-size."""
    out: str = "samples.png"
    """A grid (.png), raw arrays (.npz), or a folder of PNGs."""
    start: int = 0
    """Index of the first image."""
    batch_size: int = 64
    """Number of images generated at a time."""
    columns: int = 0
    """Columns of the grid; 0: about as many as rows."""
    trajectory: str = ""
    """File (.gif, .webp, .png) for an animation of the sampling steps of the first 64 images, in addition to --out."""
    step: int | Literal["best"] | None = None
    """Step of the checkpoint, or best: the kept one with the best validation score; default: the newest."""
    ema: bool = True
    """Use the moving average of the weights."""
    cascade: tuple[str, ...] = ()
    """Run directories of upsamplers, applied to this run's samples one after another."""
    distributed: Distributed = Distributed()


def command(args: list[str]) -> int:
    if not args or args[0].startswith("-"):
        if {"--help", "-h"} & set(args):
            cli.parse(Arguments, ["--help"], "sample.py RUN", __doc__)
        require(False, "which run? python sample.py RUN --out samples.png")
    run, rest = str(Path(args[0]).expanduser()), args[1:]
    from jgen.data.text import load_tokenizers
    from jgen.runs import TOKENIZERS, load_experiment
    from jgen.sampling import write_samples

    experiment, data = load_experiment(run)
    options = cli.sample_options(Arguments, experiment, data, load_tokenizers(Path(run) / TOKENIZERS))
    cli.check_spelling(rest, getattr(experiment.model, "sampling", None), ("--model.sampling.", "--sampling."))
    parsed = cli.parse(options, rest, "sample.py RUN", __doc__)
    a = cli.expanded(parsed.main, ("out", "trajectory"))
    require(a.num >= 1, f"--num is {a.num}: it must be above zero")
    require_seed(a.seed, "--seed")
    require(a.columns >= 0, f"--columns is {a.columns}: it must be zero or above")
    background = experiment.data.background
    given = cli.given_conditions(parsed, data, background)
    make_edit = partial(cli.make_edit, parsed=parsed, background=background)
    sampling = dict(vars(parsed.sampling)) if hasattr(parsed, "sampling") else {}
    cli.set_up_process(a.distributed)
    with working_together():
        write_samples(run, a, given, sampling, cli.given_frozen(parsed), make_edit)
    return 0


if __name__ == "__main__":
    cli.main(command)
