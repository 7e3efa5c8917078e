"""Minimising a function by the limited-memory BFGS method (Liu & Nocedal 1989), one evaluation per step.

    d = -H g,  H the inverse Hessian that the last changes of x and g imply (`optax.scale_by_lbfgs`)
    a trial x + t d, at first with t = 1, is accepted if it fulfils Wolfe's conditions,

        f(x + t d) <= f(x) + 1e-4 t <g, d>   or else t is too long,   <g(x + t d), d> >= 0.9 <g, d>   or else too short,

    the second of which keeps H positive. The next t halves the interval between what is too short and too long, and is
    twice as long where nothing was too long yet (Lewis & Overton 2013, algorithm 2.6).

A step is one evaluation of value and gradient, whether the trial is accepted or not: the number of steps is the cost of
a minimisation, and a compiled program contains the function once, where optax's own line searches contain it several
times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

MEMORY = 20  # number of changes of x and g that H is computed from
DECREASE, CURVATURE = 1e-4, 0.9  # of Wolfe's conditions


class State(NamedTuple):
    """x, its value, and the next trial: direction, the slope along it, its length t, and the interval in which t must
    lie.

    memory: of optax.
    """

    x: jax.Array
    value: jax.Array
    direction: jax.Array
    slope: jax.Array
    length: jax.Array
    low: jax.Array
    high: jax.Array
    memory: Any


def minimise(function: Callable[[jax.Array], jax.Array], x: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """The last of `steps` trials that was accepted (the first is x itself), and its value.

    Args:
      function: x -> scalar, differentiable; a trial at which it is not finite counts as too long.
    """
    method = optax.scale_by_lbfgs(memory_size=MEMORY)
    zero, one = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
    never = jnp.full((), jnp.inf, x.dtype)

    def step(_: Any, state: State) -> State:
        trial = state.x + state.length * state.direction
        value, gradient = jax.value_and_grad(function)(trial)
        falls = value <= state.value + DECREASE * state.length * state.slope
        flat = jnp.vdot(gradient, state.direction) >= CURVATURE * state.slope
        towards, memory = method.update(gradient, state.memory, trial)
        after = State(trial, value, -towards, -jnp.vdot(gradient, towards), one, zero, never, memory)
        low, high = jnp.where(falls, state.length, state.low), jnp.where(falls, state.high, state.length)
        length = jnp.where(jnp.isinf(high), 2 * low, 0.5 * (low + high))
        other = state._replace(low=low, high=high, length=length)
        return jax.tree.map(lambda a, b: jnp.where(falls & flat, a, b), after, other)

    start = State(x, never, jnp.zeros_like(x), zero, one, zero, never, method.init(x))
    end = jax.lax.fori_loop(0, steps, step, start)
    return end.x, end.value
