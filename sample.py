"""Sample from a trained run: python sample.py RUN --num 64 [--label 3] [--text "..."] [--steps 50] --out grid.png

--out takes a grid (.png), raw arrays (.npz) or a folder. Stopped and started again, it goes on where it was.
The options of a run's sampler, and what it can be conditioned on: python sample.py RUN --help
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jgen import cli
from jgen.errors import require, require_seed


@dataclass(frozen=True)
class Arguments:
    """What to sample and where to put it."""

    num: int = 64
    """Number of images."""
    seed: int = 0
    """Seed; image i of a seed is the same whatever --num and --batch-size."""
    out: str = "samples.png"
    """A grid (.png), raw arrays (.npz), or a folder of PNGs."""
    start: int = 0
    """Number of the first image."""
    batch_size: int = 64
    """Images at a time."""
    columns: int = 0
    """Columns of a grid; 0: about as many as rows."""
    trajectory: str = ""
    """Animated picture (.gif, .webp, .png) of how the first 64 images come about, step by step, written beside them."""
    step: int | Literal["best"] | None = None
    """Checkpoint, or best: of those kept the one with the best validation score; default: the newest."""
    ema: bool = True
    """Use the moving average of the weights."""
    cascade: tuple[str, ...] = ()
    """Run directories of upsamplers: each enlarges what the one before it draws, the first what this run draws."""


def command(args: list[str]) -> int:
    if not args or args[0].startswith("-"):
        if {"--help", "-h"} & set(args):
            cli.parse(Arguments, ["--help"], "sample.py RUN", __doc__)
        require(False, "which run? python sample.py RUN --out samples.png")
    run, rest = str(Path(args[0]).expanduser()), args[1:]
    cli.set_up_process()
    import jax

    import jgen
    from jgen.core.progress import progress_bar
    from jgen.data.pictures import check_animation, check_out, write_animation
    from jgen.data.sample_store import SampleStore
    from jgen.data.text import load_tokenizers
    from jgen.runs import TOKENIZERS, load_experiment

    experiment, data = load_experiment(run)
    options = cli.sample_options(Arguments, experiment, data, load_tokenizers(Path(run) / TOKENIZERS))
    cli.check_spelling(rest, getattr(experiment.model, "sampling", None), ("--model.sampling.", "--sampling."))
    parsed = cli.parse(options, rest, "sample.py RUN", __doc__)
    a = cli.expanded(parsed.main, ("out", "trajectory"))
    require(a.num >= 1, f"--num is {a.num}: it must be above zero")
    require_seed(a.seed, "--seed")
    require(a.columns >= 0, f"--columns is {a.columns}: it must be zero or above")
    check_out(Path(a.out))
    if a.trajectory:
        check_animation(Path(a.trajectory), "--trajectory")
    gen = jgen.load(run, step=a.step, ema=a.ema, frozen=cli.given_frozen(parsed))
    given = cli.given_conditions(parsed, data, experiment.data.background)
    edit, edited = cli.make_edit(gen, parsed, experiment.data.background)
    cond = gen.conditions(a.num, a.start, **given)
    chosen = dict(vars(parsed.sampling)) if hasattr(parsed, "sampling") else {}
    stages = jgen.Cascade(gen, *map(jgen.load, a.cascade))
    hashes = [*map(cli.model_hash, (gen, *stages.upsamplers))]
    identity = {"model": hashes, "seed": a.seed, "given": cli.digest_of(given | edited), "options": chosen}
    store = SampleStore(Path(a.out), a.num, a.start, stages.model.images, identity)
    key, progress = jax.random.key(a.seed), partial(progress_bar, desc="sampling", unit="batch")

    def draw(start: int, num: int) -> Any:
        named = chosen | {name: array[a.num - num :] for name, array in cond.items()}
        named |= {"start": start, "batch_size": a.batch_size, "progress": progress}
        return (edit or stages.sample_batches)(key, num, **named)

    columns, num = a.columns or math.ceil(math.sqrt(a.num)), min(a.num, 64)
    if a.trajectory:
        named = chosen | {name: array[:num] for name, array in cond.items()}
        steps = gen.trajectory(key, num, start=a.start, batch_size=a.batch_size, progress=progress, **named)
        write_animation(Path(a.trajectory), steps, gen.model.images.levels, min(columns, math.ceil(math.sqrt(num))))
        print(f"{steps.shape[1]} steps: {a.trajectory}")
    store.collect(draw)
    store.finish(cond.get("label"), columns, data.label_names)
    print(f"{a.num} images of {stages}: {a.out}")
    return 0


if __name__ == "__main__":
    cli.main(command)
