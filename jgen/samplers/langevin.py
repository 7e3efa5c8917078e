"""Langevin dynamics: many Markov chains at once that follow the gradient of an energy, with noise.

    x <- x - s grad f(x) + noise eps,   eps ~ N(0, I)                    (Welling & Teh 2011; Du & Mordatch 2019,
                                                                          arXiv 1903.08689, equation 1)

With small steps the chains converge to samples of exp(-f / T) at the temperature T = noise^2 / (2 s). There is no
Metropolis test, so the error is proportional to s. On the box [-1, 1]^D chains are reflected at the walls, which leaves
the uniform distribution invariant if f is constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jgen.core import keys as rng

WIDTH = 2.0  # of the box


def temperature_of(step_size: float, noise: float) -> float:
    """T of the distribution exp(-f / T) that the dynamics sample."""
    return noise**2 / (2.0 * step_size)


def reflect(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A point outside the box [-1, 1], reflected into it; and the factor, 1 or -1, on its velocity."""
    folded = jnp.mod(x + 1.0, 2.0 * WIDTH)
    outside = folded > WIDTH
    return jnp.where(outside, 2.0 * WIDTH - folded, folded) - 1.0, jnp.where(outside, -1.0, 1.0)


def langevin(
    gradient: Callable[[jax.Array], jax.Array],
    keys: jax.Array,
    x: jax.Array,
    *,
    steps: int,
    step_size: float,
    noise: float,
    reflecting: bool,
    movable: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The chains after `steps` steps, and which of them diverged, bool (B,): one compiled loop.

    A chain counts as diverged when a gradient step is longer, in any coordinate, than the box is wide: the errors of
    its steps then exceed the energy's effect.

    Args:
      gradient: x (B, ...) to the gradient of each chain's own energy, (B, ...); keys: (B,), one of each chain.
      reflecting: whether the chains are on the box [-1, 1]^D.
      movable: bool, broadcastable to x, false where x is held fixed: the chains then sample the conditional
        distribution of the other coordinates.
    """

    def step(carry: tuple[jax.Array, jax.Array], number: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        x, diverged = carry
        drift = step_size * gradient(x)
        moved = x - drift + noise * rng.normal(rng.fold_in(keys, number), x.shape[1:])
        if movable is not None:
            drift, moved = jnp.where(movable, drift, 0.0), jnp.where(movable, moved, x)
        largest = jnp.max(jnp.abs(drift).reshape(x.shape[0], -1), axis=1)
        diverged = diverged | ~(largest <= WIDTH)  # NaN too
        return (reflect(moved)[0] if reflecting else moved, diverged), None

    start = (x, jnp.zeros(x.shape[0], bool))
    return jax.lax.scan(step, start, jnp.arange(steps))[0]
