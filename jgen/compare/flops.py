"""Floating-point operations of a program, from XLA's cost analysis.

XLA counts the body of a loop once, however often it runs. Here the count of every `scan` is made good: where X counts
each loop's body once, the cost of a program is

    C(program) = X(program) + sum over its loops of [length C(body) - X(body)].

Loops of unknown length (`while_loop`) still count once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


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
    found = jax.jit(core.jaxpr_as_fun(program)).lower(*shapes).cost_analysis() or {}
    return float(found.get("flops", 0.0))


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
