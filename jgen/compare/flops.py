"""Operations of a training step: python -m jgen.compare.flops CONFIG:VARIANT [--sizes 8 16 32]

Floating-point operations an image, from XLA's cost analysis of the whole batch's step on one device, before any
optimisation and with layers in their plain form (`core.backend`): the same on every machine. Run on CPU: other backends
count nothing before they compile.

XLA counts the body of a loop once, however often it runs. Here the count of every `scan` is made good: where X counts
each loop's body once, the cost of a program is

    C(program) = X(program) + sum over its loops of [length C(body) - X(body)].

Loops of unknown length (`while_loop`) still count once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.extend import core

from jgen import cli
from jgen.compare.program import at_height, first_stage_config, make_program
from jgen.core.backend import plain_forms
from jgen.errors import UserError, require
from jgen.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Arguments:
    """What is counted."""

    sizes: tuple[int, ...] = ()
    """Heights and widths of images, beside those of the data."""


def training_flops(experiment: Experiment, first: Experiment | None, images: Any) -> float:
    """Operations of training, an image, those of a phase that rests in most steps being their mean.

    Args:
      first: the experiment of its first stage, whose operations in a step of this one count.
    Raises:
      UserError: images that the model cannot be made for.
    """
    with plain_forms():
        program = make_program(experiment, first, images)
        state = jax.eval_shape(program.init, program.once)
        frozen = {"first_stage": jax.eval_shape(program.stage.init, jax.random.key(0), program.once)} if first else {}
        cycle = math.lcm(*(phase.every for phase in program.model.phases))
        steps = [lambda s, f, b, i=i: program.step(s, f, b, i) for i in range(cycle)]
        flops = [program_flops(step, state, frozen, program.batch) for step in steps]
    return statistics.mean(flops) / experiment.train.batch_size


def program_flops(function: Callable[..., Any], *args: Any) -> float:
    """Operations of one call of `function`, which is traced and lowered but not compiled or run.

    Args:
      args: arrays, or `jax.ShapeDtypeStruct` in their place.
    """
    return _cost(jax.make_jaxpr(function)(*args))


def _cost(program: core.ClosedJaxpr) -> float:
    total = _counted_once(program)
    for length, body in _loops(program.jaxpr):
        total += length * _cost(body) - _counted_once(body)
    return total


def _counted_once(program: core.ClosedJaxpr) -> float:
    """X: XLA's own count, before optimisation, so that it does not depend on the libraries that a backend calls."""
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.jaxpr.invars]
    found = jax.jit(core.jaxpr_as_fun(program)).lower(*shapes).cost_analysis()
    counts = bool(found) and "flops" in found
    require(counts, f"{jax.default_backend()} counts no operations: set JAX_PLATFORMS=cpu")
    return float(found["flops"])


def _loops(jaxpr: Any) -> Iterator[tuple[int, core.ClosedJaxpr]]:
    """(length, body) of the outermost scans."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["length"], equation.params["jaxpr"]
            continue
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                if isinstance(inner, core.ClosedJaxpr):
                    inner = inner.jaxpr
                if isinstance(inner, core.Jaxpr):
                    yield from _loops(inner)


def at_sizes(name: str, sizes: tuple[int, ...]) -> dict[str, float | None]:
    """{height: operations of training, an image} of a configuration: its data's height first, then `sizes`.

    A size that the model cannot be made for has None.

    Raises:
      UserError: no such configuration, or data that cannot be loaded.
    """
    from jgen.data import dataset

    experiment, _ = cli.load_config(name, ROOT)
    before = first_stage_config(name, experiment)
    first = cli.load_config(before, ROOT)[0] if before else None
    images = dataset.load(experiment.data).images
    found: dict[str, float | None] = {str(images.height): training_flops(experiment, first, images)}
    for size in sizes:
        scaled, scaled_first = (e and at_height(e, images.height, size) for e in (experiment, first))
        try:
            flops = training_flops(scaled, scaled_first, dataclasses.replace(images, height=size, width=size))
        except UserError:
            flops = None
        found.setdefault(str(size), flops)
    return found


def counted_apart(name: str, sizes: tuple[int, ...]) -> dict[str, float | None]:
    """`at_sizes` by a process of its own, on one device of the CPU. Raises `UserError` with what it says went wrong."""
    here = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    words = [sys.executable, "-m", "jgen.compare.flops", name, *(["--sizes", *map(str, sizes)] if sizes else [])]
    done = subprocess.run(words, env={**os.environ, **here}, capture_output=True, text=True)
    last = (done.stderr.strip() or "no reason").splitlines()[-1].removeprefix("error: ")
    require(done.returncode == 0, f"operations of {name} could not be counted: {last}")
    return json.loads(done.stdout)


def command(args: list[str]) -> int:
    require(bool(args) and not args[0].startswith("-"), "which configuration? python -m jgen.compare.flops CONFIG")
    name = args.pop(0)
    arguments = cli.parse(Arguments, args, "python -m jgen.compare.flops CONFIG:VARIANT", __doc__ or "")
    require(all(size >= 1 for size in arguments.sizes), f"--sizes is {arguments.sizes}: sizes must be above zero")
    print(json.dumps(at_sizes(name, arguments.sizes)))
    return 0


if __name__ == "__main__":
    cli.main(command)
