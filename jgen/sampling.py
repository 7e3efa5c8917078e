"""The implementation of sample.py: draws images of a run, by one process or several; the first process writes.

`arguments` are those of `sample.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jgen
from jgen import cli
from jgen.core import parallel
from jgen.core.generate import sampled_images
from jgen.core.progress import progress_bar
from jgen.data.pictures import check_animation, check_out, write_animation
from jgen.data.sample_store import SampleStore
from jgen.generator import Generator
from jgen.train.run_directory import program_identity

AT_MOST = 64  # images in an animation


def write_samples(
    run: str,
    arguments: Any,
    given: Mapping[str, Any],
    sampling: dict[str, Any],
    frozen: Mapping[str, str],
    make_edit: Callable[[Generator], tuple[Any, dict[str, Any]]],
) -> None:
    """Draws images of a run, enlarged by `arguments.cascade`, and writes them to `arguments.out`; an interrupted call
    is resumed.

    Args:
      given: conditions by field; sampling: options of the model's sampler.
      frozen: {role: run directory} of the runs that it depends on, as in `jgen.load`.
      make_edit: `cli.make_edit` with the command line bound: how samples are made of a picture, if one is given.
    Raises:
      UserError: no run, conditions out of range, invalid options, paths that cannot be written, or processes whose
        options differ.
    """
    a, out, main = arguments, Path(arguments.out), parallel.is_main_process()
    if main:
        check_out(out)
        if a.trajectory:
            check_animation(Path(a.trajectory), "--trajectory")
    gen = jgen.load(run, step=a.step, ema=a.ema, frozen=frozen)
    edit, edited = make_edit(gen)
    cond = gen.conditions(a.num, a.start, "sample" if edit is None else "edit", **given)
    stages = jgen.Cascade(gen, *map(jgen.load, a.cascade))
    hashes = [*map(cli.model_hash, (gen, *stages.upsamplers))]
    identity = {"model": hashes, "seed": a.seed, "given": cli.digest_of({**given, **edited}), "options": sampling}
    divided = {"num": a.num, "start": a.start, "batch_size": a.batch_size, "trajectory": bool(a.trajectory)}
    parallel.require_same(identity | divided | program_identity())
    key, columns = jax.random.key(a.seed), a.columns or math.ceil(math.sqrt(a.num))
    where: dict[str, Any] = {"batch_size": a.batch_size}
    where["progress"] = partial(progress_bar, desc="sampling", unit="batch")

    def named(rows: slice) -> dict[str, Any]:
        return sampling | {name: array[rows] for name, array in cond.items()}

    def draw(start: int, num: int) -> Iterable[np.ndarray]:
        return (edit or stages.sample_batches)(key, num, start=start, **where, **named(slice(a.num - num, None)))

    if a.trajectory:
        num = min(a.num, AT_MOST)
        steps = gen.trajectory(key, num, start=a.start, **where, **named(slice(num)))
        if main:
            wide = min(columns, math.ceil(math.sqrt(num)))
            write_animation(Path(a.trajectory), steps, gen.model.images.levels, wide)
            print(f"{steps.shape[1]} steps: {a.trajectory}")
    images = stages.model.images if a.cascade else sampled_images(gen.model, sampling)
    store = SampleStore(out, a.num, a.start, images, identity)
    store.collect(draw)
    store.finish(cond.get("label"), columns, gen.model.data.label_names)
    if main:
        print(f"{a.num} images of {stages}: {a.out}")
