"""Minimising a function by the limited-memory BFGS method (Liu & Nocedal 1989), one evaluation a step.

    d = -H g,  H the inverse Hessian that the last changes of x and g imply (`optax.scale_by_lbfgs`)
    a trial x + t d, from t = 1, is taken where f(x + t d) <= f(x) + 1e-4 t <g, d> (Armijo), else t is halved

A step is one evaluation of value and gradient, of a trial that is taken or not, so that the number of steps is what a
minimisation costs, and a program holds the function once, where optax's own line searches hold it several times. Where
d is no direction of descent, it is the gradient's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

MEMORY = 20  # changes of x and g that H is made of
ARMIJO = 1e-4


class State(NamedTuple):
    """x, its value, and the next trial: direction, the slope along it, its length t; memory: of optax."""

    x: jax.Array
    value: jax.Array
    direction: jax.Array
    slope: jax.Array
    length: jax.Array
    memory: Any


def minimise(function: Callable[[jax.Array], jax.Array], x: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """The best of `steps` points that are tried, the first being x, and its value.

    Args:
      function: x -> scalar, differentiable; a trial where it is not finite is not taken.
    """
    method = optax.scale_by_lbfgs(memory_size=MEMORY)

    def step(_: Any, state: State) -> State:
        trial = state.x + state.length * state.direction
        value, gradient = jax.value_and_grad(function)(trial)
        taken = value <= state.value + ARMIJO * state.length * state.slope
        towards, memory = method.update(gradient, state.memory, trial)
        slope = -jnp.vdot(gradient, towards)
        towards = jnp.where(slope < 0, towards, gradient)
        slope = jnp.where(slope < 0, slope, -jnp.vdot(gradient, gradient))
        after = State(trial, value, -towards, slope, jnp.ones_like(state.length), memory)
        refused = state._replace(length=0.5 * state.length)
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), after, refused)

    zero = jnp.zeros((), x.dtype)
    start = State(x, jnp.full_like(zero, jnp.inf), jnp.zeros_like(x), zero, jnp.ones_like(zero), method.init(x))
    end = jax.lax.fori_loop(0, steps, step, start)
    return end.x, end.value
