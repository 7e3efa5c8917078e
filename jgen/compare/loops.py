"""Counts loop iterations: programs with `lax.while_loop` are executed with counters in addition to their values.

A program is a jaxpr. Its loops and branches are identified by their path: the indices of the equations that lead to
them, and "body", "cond" or the index of a branch. Programs without `while` are not run: a scan has a static length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jgen.errors import require

Program = core.Jaxpr | core.ClosedJaxpr
Path = tuple[int | str, ...]
Counts = dict[Path, Any]  # executions, int32 scalars of JAX, or 0
CALLS = ("call_jaxpr", "fun_jaxpr", "jaxpr")  # parameters with the jaxpr of a call, such as jit's


def inner_programs(equation: core.JaxprEqn) -> Iterator[tuple[int, Program]]:
    """(index, jaxpr) of the programs in an equation's parameters, open or closed."""
    values = (v if isinstance(v, (tuple, list)) else (v,) for v in equation.params.values())
    programs = (v for group in values for v in group if isinstance(v, (core.Jaxpr, core.ClosedJaxpr)))
    yield from enumerate(programs)


def open_jaxpr(program: Program) -> core.Jaxpr:
    """The jaxpr without its constants."""
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


def has_loop(program: Program, names: Sequence[str] = ("while", "scan")) -> bool:
    """Whether a program contains one of these primitives at any depth."""
    return any(
        equation.primitive.name in names or any(has_loop(inner, names) for _, inner in inner_programs(equation))
        for equation in open_jaxpr(program).eqns
    )


def has_while(program: Program) -> bool:
    """Whether a program contains a loop without a static length."""
    return has_loop(program, ("while",))


def count_executions(program: core.ClosedJaxpr, values: Sequence[Any]) -> dict[Path, int]:
    """{path: number of executions in one run} for the bodies and conditions of `while`, and for branches with loops.

    Only for what is in a `while` or contains one. The program is compiled and run once on `values`, its inputs.

    Raises:
      UserError: a `while` inside a primitive that is neither a loop, a conditional nor a call.
    """
    counts = jax.jit(lambda *inputs: evaluate(program, inputs, ())[1])(*values)
    return {path: int(count) for path, count in jax.device_get(list(counts.items()))}


def evaluate(program: Program, inputs: Sequence[Any], path: Path) -> tuple[list[Any], Counts]:
    """The outputs of a jaxpr and the execution counts of what it contains. It can be traced."""
    jaxpr = open_jaxpr(program)
    counts: Counts = {}
    environment = dict(zip(jaxpr.constvars, getattr(program, "consts", ())))
    environment |= dict(zip(jaxpr.invars, inputs))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else environment[variable]

    for number, equation in enumerate(jaxpr.eqns):
        arguments = [read(variable) for variable in equation.invars]
        if any(has_while(inner) for _, inner in inner_programs(equation)) or equation.primitive.name == "while":
            outputs, inner_counts = evaluate_equation(equation, arguments, (*path, number))
            counts |= inner_counts
        else:
            outputs = apply_primitive(equation, arguments)
        environment |= dict(zip(equation.outvars, outputs))
    return [read(variable) for variable in jaxpr.outvars], counts


def apply_primitive(equation: core.JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of an equation without a `while`."""
    primitive = equation.primitive
    parameters = primitive.get_bind_params(equation.params)
    functions: Sequence[Any] = ()
    if isinstance(parameters, tuple):  # before JAX 0.11
        functions, parameters = parameters
    with equation.ctx.manager:
        outputs = primitive.bind(*functions, *inputs, **parameters)
    return outputs if primitive.multiple_results else [outputs]


def evaluate_equation(equation: core.JaxprEqn, inputs: list[Any], path: Path) -> tuple[list[Any], Counts]:
    """`evaluate` for an equation that contains a `while`."""
    rules = {"while": evaluate_while, "scan": evaluate_scan, "cond": evaluate_cond}
    name = equation.primitive.name
    if name in rules:
        return rules[name](equation, inputs, path)
    programs = list(inner_programs(equation))
    is_call = len(programs) == 1 and any(parameter in equation.params for parameter in CALLS)
    require(is_call, f"operations of a while_loop inside {name} cannot be counted")
    number, program = programs[0]
    return evaluate(program, inputs, (*path, number))


def zero_counts(program: Program, inputs: Sequence[Any], path: Path) -> Counts:
    """The counters of a program that has not run."""
    counts = jax.eval_shape(lambda *values: evaluate(program, values, path)[1], *inputs)
    return {name: jnp.int32(0) for name in counts}


def add_counts(one: Counts, other: Counts) -> Counts:
    """The sum of counters; missing entries count as 0."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def evaluate_while(equation: core.JaxprEqn, inputs: list[Any], path: Path) -> tuple[list[Any], Counts]:
    """A `while` with the executions of its body and of its condition, including the last, false one."""
    params = equation.params
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    cond_consts, body_consts, carry = inputs[: split[0]], inputs[split[0] : split[1]], inputs[split[1] :]
    in_cond, in_body = (*path, "cond"), (*path, "body")

    def check(carry: Sequence[Any]) -> tuple[Any, Counts]:
        (go_on,), counts = evaluate(cond, [*cond_consts, *carry], in_cond)
        return go_on, add_counts(counts, {in_cond: jnp.int32(1)})

    def iterate(state: Any) -> Any:
        carry, counts = state
        go_on, cond_counts = check(carry)
        outputs, body_counts = evaluate(body, [*body_consts, *carry], in_body)
        counts = add_counts(add_counts(counts, cond_counts), add_counts(body_counts, {in_body: jnp.int32(1)}))
        return [select_examples(go_on, new, old) for new, old in zip(outputs, carry)], counts

    counts = zero_counts(cond, [*cond_consts, *carry], in_cond) | zero_counts(body, [*body_consts, *carry], in_body)
    start = (list(carry), {in_body: jnp.int32(0), in_cond: jnp.int32(0), **counts})
    outputs, counts = jax.lax.while_loop(lambda state: jnp.any(check(state[0])[0]), iterate, start)
    return outputs, add_counts(counts, check(outputs)[1])


def select_examples(go_on: Any, new: Any, old: Any) -> Any:
    """The carry after an iteration: under `vmap`, examples that are finished keep their values."""
    if go_on.ndim == 0:
        return new
    return jnp.where(go_on.reshape(*go_on.shape, *(1,) * (new.ndim - go_on.ndim)), new, old)


def evaluate_scan(equation: core.JaxprEqn, inputs: list[Any], path: Path) -> tuple[list[Any], Counts]:
    """A `scan` with the executions of what its body contains, summed over its iterations."""
    params, body = equation.params, equation.params["jaxpr"]
    num_xs = count_sliced(equation.invars, open_jaxpr(body).invars)
    num_carry = len(equation.outvars) - count_sliced(equation.outvars, open_jaxpr(body).outvars)
    split = len(inputs) - num_xs - num_carry, len(inputs) - num_xs
    consts, carry, xs = inputs[: split[0]], inputs[split[0] : split[1]], inputs[split[1] :]

    def iterate(carry: Sequence[Any], x: Sequence[Any]) -> tuple[Any, Any]:
        outputs, counts = evaluate(body, [*consts, *carry, *x], (*path, "body"))
        return outputs[:num_carry], (outputs[num_carry:], counts)

    carry, (ys, counts) = jax.lax.scan(iterate, carry, xs, params["length"], params["reverse"])
    return [*carry, *ys], {name: jnp.sum(count) for name, count in counts.items()}


def count_sliced(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """The number of a scan's variables with a scanned axis: xs or ys, not constants or carry."""
    return sum(out.aval.ndim > into.aval.ndim for out, into in zip(outside, inside))


def evaluate_cond(equation: core.JaxprEqn, inputs: list[Any], path: Path) -> tuple[list[Any], Counts]:
    """A conditional with the executions of its branches and of what they contain."""
    index, *operands = inputs
    branches = list(enumerate(equation.params["branches"]))
    names = [{(*path, number), *zero_counts(branch, operands, (*path, number))} for number, branch in branches]
    zeros = {name: jnp.int32(0) for name in set().union(*names)}

    def run(number: int, branch: Program) -> Any:
        def chosen(*operands: Any) -> Any:
            outputs, counts = evaluate(branch, operands, (*path, number))
            return outputs, {**zeros, **counts, (*path, number): jnp.int32(1)}

        return chosen

    return jax.lax.switch(index, [run(*branch) for branch in branches], *operands)
