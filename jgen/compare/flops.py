"""Operations of a training step: python -m jgen.compare.flops CONFIG:VARIANT [--sizes 8 16 32]

Floating-point operations per image, from XLA's cost analysis of the step of a whole batch on one device, before any
optimisation and with layers in their plain form (`core.backend`): the same on every machine. Runs on CPU only, since
other backends count nothing before compilation.

XLA counts the body of a loop once, however often it runs, and only the most expensive branch of a conditional. With its
count X, the operations of a program are

    C(program) = X(program) + sum over its loops [n C(body) - X(body)],

where n is the length of a scan. A `while_loop`, such as an adaptive solver's, has no static length: a program with one
is run on random images, and n is its number of iterations; under `vmap`, that of the slowest example.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

from jgen import cli
from jgen.compare.loops import Path, count_executions, has_loop, has_while, inner_programs, open_jaxpr
from jgen.compare.program import Program, initial_state, make_program
from jgen.compare.systems import Training, data_spec, load_training
from jgen.core.backend import plain_forms
from jgen.errors import UserError, require


@dataclass(frozen=True)
class Arguments:
    """What to count."""

    sizes: tuple[int, ...] = ()
    """Heights and widths of images, in addition to those of the data."""


def training_flops(training: Training, size: int | None = None) -> float:
    """Training operations per image; for phases that do not run in every step, the mean over the experiment's steps.

    Args:
      size: height and width of the images; default: those of the data.
    Raises:
      UserError: images that the model cannot be made for.
    """
    with plain_forms():
        program = make_program(training, size)
        flops = sum(share * step_flops(program, number) for number, share in program.phase_sets.items())
    return flops / training.experiment.train.batch_size


def step_flops(program: Program, number: int) -> float:
    """Operations of the step with this number, with the phases that run in it."""
    key = jax.random.key(0)
    frozen = jax.eval_shape(program.init_frozen, key)
    state = jax.eval_shape(program.init, key, program.part.batch, frozen)

    def values() -> tuple[Any, ...]:
        return (*initial_state(program), program.batch)

    return program_flops(program.local_step(number), state, frozen, program.batch, values=values)


def program_flops(
    function: Callable[..., Any], *args: Any, values: Callable[[], tuple[Any, ...]] | None = None
) -> float:
    """Operations of one call of `function`, which is traced and lowered, and run only if it contains a `while_loop`.

    Args:
      args: arrays or `jax.ShapeDtypeStruct`.
      values: returns the arrays to run the function on; default: `args`.
    Raises:
      UserError: a backend other than CPU, or a `while_loop` in a place where it cannot be counted.
    """
    backend = jax.default_backend()
    require(backend == "cpu", f"operations are counted on CPU, and this is {backend}: set JAX_PLATFORMS=cpu")
    program = jax.make_jaxpr(function)(*args)
    executions: Mapping[Path, int] = {}
    if has_while(program):
        executions = count_executions(program, jax.tree.leaves(args if values is None else values()))
    return total_cost(program, (), 1, executions)


def total_cost(program: Any, path: Path, runs: int, executions: Mapping[Path, int]) -> float:
    """C: the operations of one run of a program, averaged over its `runs`."""
    return xla_count(program) + correction(program, path, runs, executions)


def correction(program: Any, path: Path, runs: int, executions: Mapping[Path, int]) -> float:
    """C - X of a program: the cost of its loops beyond XLA's count."""
    total = 0.0
    for number, equation in enumerate(open_jaxpr(program).eqns):
        name, here = equation.primitive.name, (*path, number)
        if name == "scan":
            body, length = equation.params["jaxpr"], equation.params["length"]
            total += length * total_cost(body, (*here, "body"), runs * length, executions) - xla_count(body)
        elif name == "while":
            for part in ("cond", "body"):
                inner, times = equation.params[f"{part}_jaxpr"], executions.get((*here, part), 0)
                cost = times / runs * total_cost(inner, (*here, part), times, executions) if times else 0.0
                total += cost - xla_count(inner)
        elif name == "cond":
            total += branches_cost(equation.params["branches"], here, runs, executions)
        else:
            for place, inner in inner_programs(equation):
                total += correction(inner, (*here, place), runs, executions)
    return total


def branches_cost(branches: Any, path: Path, runs: int, executions: Mapping[Path, int]) -> float:
    """C - X of a conditional. If the program was run, C is the mean over the branches weighted by how often each was
    taken, else that of the most expensive branch."""
    if not any(has_loop(branch) for branch in branches):
        return 0.0
    taken = [executions.get((*path, number)) for number in range(len(branches))]
    if None in taken:
        costs = [total_cost(branch, (*path, number), runs, executions) for number, branch in enumerate(branches)]
        cost = max(costs)
    else:
        pairs = [(number, times) for number, times in enumerate(taken) if times]
        cost = sum(times * total_cost(branches[n], (*path, n), times, executions) for n, times in pairs) / runs
    return cost - max(xla_count(branch) for branch in branches)


def xla_count(program: core.ClosedJaxpr) -> float:
    """X: XLA's own count, before optimisation, so that it does not depend on the libraries that a backend calls."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.in_avals]
    analysis = jax.jit(core.jaxpr_as_fun(program)).lower(*shapes).cost_analysis()
    return float((analysis or {}).get("flops", 0.0))  # a program that only moves data has none


def flops_at_sizes(config: str, sizes: tuple[int, ...]) -> dict[str, float | None]:
    """{height: training operations per image} of a configuration: its data's height first, then `sizes`.

    The value is None for a size that the model cannot be made for.

    Raises:
      UserError: no such configuration, or data that cannot be loaded.
    """
    training = load_training(config)
    flops: dict[str, float | None] = {str(data_spec(training).image.height): training_flops(training)}
    for size in sizes:
        if str(size) in flops:
            continue
        try:
            flops[str(size)] = training_flops(training, size)
        except UserError:
            flops[str(size)] = None
    return flops


def count_in_process(config: str, sizes: tuple[int, ...]) -> dict[str, float | None]:
    """`flops_at_sizes` in a separate process, on one CPU device. Raises `UserError` with its error."""
    one_device = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    words = [sys.executable, "-m", "jgen.compare.flops", config, *(["--sizes", *map(str, sizes)] if sizes else [])]
    done = subprocess.run(words, env={**os.environ, **one_device}, capture_output=True, text=True)
    last = (done.stderr.strip() or "no reason").splitlines()[-1].removeprefix("error: ")
    require(done.returncode == 0, f"operations of {config} could not be counted: {last}")
    return json.loads(done.stdout)


def command(args: list[str]) -> int:
    require(bool(args) and not args[0].startswith("-"), "which configuration? python -m jgen.compare.flops CONFIG")
    name = args.pop(0)
    arguments = cli.parse(Arguments, args, "python -m jgen.compare.flops CONFIG:VARIANT", __doc__ or "")
    require(all(size >= 1 for size in arguments.sizes), f"--sizes is {arguments.sizes}: sizes must be above zero")
    print(json.dumps(flops_at_sizes(name, arguments.sizes)))
    return 0


if __name__ == "__main__":
    cli.main(command)
