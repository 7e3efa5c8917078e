"""Annealed importance sampling of an energy's normaliser (Neal 2001, arXiv physics/9803008).

    Z = int exp(-U(x)) dx
    p_b(x) ~ exp(-(1 - b) U_0(x) - b U(x)),  b from 0 to 1, where exp(-U_0) is a density that can be sampled         (1)
    w = exp(sum_k (b_k - b_{k-1}) (U_0(x_{k-1}) - U(x_{k-1}))),  x_k from x_{k-1} by a step that keeps p_{b_k}       (2)
    E w = Z                                                                                                          (3)

The mean of the weights w is an unbiased estimate of Z for any number of annealing steps, so its logarithm is in
expectation a lower bound on log Z: the estimate of log p is too high rather than too low. The steps are Hamiltonian
(Neal 2011, arXiv 1206.1901), with a Metropolis test. On the box [-1, 1]^D trajectories are reflected at the walls,
which preserves volume and is reversible. Every chain draws its own step size for each step, from a range of decades, so
that some steps suit every b.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.prob.likelihoods import sum_image
from jgen.samplers.langevin import reflect

Energy = Callable[[jax.Array], jax.Array]  # x (B, ...) to nats (B,)
POWER = 4.0  # of the schedule b_k = (k / steps)^POWER: the weights of a peaked density vary most at small b


class Chains(NamedTuple):
    """The chains' positions, with both energies (B,) and their gradients there."""

    x: jax.Array
    base: jax.Array
    base_gradient: jax.Array
    energy: jax.Array
    gradient: jax.Array

    def mixed(self, b: Any) -> tuple[jax.Array, jax.Array]:
        """The energy of p_b and its gradient."""
        return (
            (1.0 - b) * self.base + b * self.energy,
            (1.0 - b) * self.base_gradient + b * self.gradient,
        )


def chains_at(x: jax.Array, base: Energy, energy: Energy) -> Chains:
    def both(function: Energy) -> tuple[jax.Array, jax.Array]:
        value, pullback = jax.vjp(function, x)
        return value, pullback(jnp.ones_like(value))[0]

    return Chains(x, *both(base), *both(energy))


def hamiltonian_step(
    evaluate: Callable[[jax.Array], Chains],
    b: Any,
    keys: jax.Array,
    chains: Chains,
    step_size: jax.Array,
    *,
    leapfrog: int,
    reflecting: bool,
) -> tuple[Chains, jax.Array]:
    """A step of every chain that leaves p_b invariant, and its acceptance probability, (B,).

    Args:
      evaluate: x to the chains at x; step_size: (B,), of each chain; leapfrog: the number of leapfrog steps.
    """
    key_momentum, key_accept = rng.split(keys, 2)
    momentum = rng.normal(key_momentum, chains.x.shape[1:])
    size = step_size.reshape(-1, *[1] * (chains.x.ndim - 1))
    start, gradient = chains.mixed(b)
    start = start + 0.5 * sum_image(momentum**2)
    new = chains
    for _ in range(leapfrog):
        momentum = momentum - 0.5 * size * gradient
        x = new.x + size * momentum
        if reflecting:
            x, sign = reflect(x)
            momentum = sign * momentum
        new = evaluate(x)
        end, gradient = new.mixed(b)
        momentum = momentum - 0.5 * size * gradient
    log_accept = start - end - 0.5 * sum_image(momentum**2)
    log_accept = jnp.where(jnp.isfinite(log_accept), jnp.minimum(log_accept, 0.0), -jnp.inf)
    taken = jnp.log(rng.uniform(key_accept, ())) < log_accept

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, new, chains), jnp.exp(log_accept)


def anneal(
    base: Energy,
    energy: Energy,
    keys: jax.Array,
    x: jax.Array,
    *,
    steps: int,
    leapfrog: int = 2,
    step_sizes: tuple[float, float] = (0.01, 0.5),
    reflecting: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chains that are annealed from the base density to exp(-energy) / Z: (x, log w (B,), mean acceptance (B,)).

    Args:
      base: -log of the base density, nats; x: samples of it, (B, ...); keys: (B,), one of each chain.
      steps: number of distributions, from the base (excluded) to the energy's own.
      step_sizes: smallest and largest step size; they are drawn log-uniformly.
    """
    low, high = (math.log(size) for size in step_sizes)

    def evaluate(x: jax.Array) -> Chains:
        return chains_at(x, base, energy)

    def step(carry: Any, number: Any) -> tuple[Any, None]:
        chains, log_w, accepted = carry
        before, b = (number / steps) ** POWER, ((number + 1) / steps) ** POWER
        log_w = log_w + (b - before) * (chains.base - chains.energy)
        key_size, key_step = rng.split(rng.fold_in(keys, number), 2)
        size = jnp.exp(low + (high - low) * rng.uniform(key_size, ()))
        how: dict[str, Any] = {"leapfrog": leapfrog, "reflecting": reflecting}
        chains, probability = hamiltonian_step(evaluate, b, key_step, chains, size, **how)
        return (chains, log_w, accepted + probability / steps), None

    start = (evaluate(x), jnp.zeros(x.shape[0]), jnp.zeros(x.shape[0]))
    (chains, log_w, accepted), _ = jax.lax.scan(step, start, jnp.arange(steps))
    return chains.x, log_w, accepted
