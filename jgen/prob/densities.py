"""Densities on the plane with known entropy, to train flows on and compare them with the truth.

gaussians     8 on a ring, well apart
rings         2, each with a normal radius and a uniform angle: a hole, and a gap between
spirals       2 thin arms, a mixture of 128 Gaussians each
checkerboard  uniform on 8 squares: discontinuous
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EXTENT = 4.0  # outside of [-4, 4]^2 all of them are below 1e-12


class Density(NamedTuple):
    """draw: key -> point (2,). log_prob: points (n, 2) -> nats (n,)."""

    draw: Callable[[jax.Array], jax.Array]
    log_prob: Callable[[jax.Array], jax.Array]


def mixture(centres: np.ndarray, std: float) -> Density:
    """Equally weighted Gaussians at centres (k, 2)."""

    def draw(key: jax.Array) -> jax.Array:
        key_centre, key_noise = jax.random.split(key)
        chosen = jax.random.randint(key_centre, (), 0, len(centres))
        return jnp.asarray(centres, jnp.float32)[chosen] + std * jax.random.normal(key_noise, (2,))

    def log_prob(x: jax.Array) -> jax.Array:
        squares = jnp.sum((x[:, None] - jnp.asarray(centres, x.dtype)[None]) ** 2, axis=-1)
        normaliser = math.log(2 * math.pi * std**2 * len(centres))
        return jax.nn.logsumexp(-0.5 * squares / std**2, axis=1) - normaliser

    return Density(draw, log_prob)


def gaussians() -> Density:
    angles = 2 * math.pi * np.arange(8) / 8
    return mixture(2.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1), 0.2)


def spirals() -> Density:
    t = np.linspace(0.5, 3 * math.pi, 128)
    arm = (t / (3 * math.pi) * 2.5)[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1)
    return mixture(np.concatenate([arm, -arm]), 0.1)


def rings() -> Density:
    radii, std = jnp.array([1.0, 2.2]), 0.12

    def draw(key: jax.Array) -> jax.Array:
        key_ring, key_radius, key_angle = jax.random.split(key, 3)
        radius = radii[jax.random.randint(key_ring, (), 0, 2)] + std * jax.random.normal(key_radius)
        angle = jax.random.uniform(key_angle, maxval=2 * math.pi)
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def log_prob(x: jax.Array) -> jax.Array:
        r = jnp.sqrt(jnp.sum(x**2, axis=1))
        by_ring = -0.5 * ((r[:, None] - radii[None]) / std) ** 2 - math.log(2 * std * math.sqrt(2 * math.pi))
        return jax.nn.logsumexp(by_ring, axis=1) - jnp.log(2 * math.pi * r)

    return Density(draw, log_prob)


def checkerboard() -> Density:
    """Squares of side 1 on [-2, 2]^2, those whose row and column have an even sum."""

    def draw(key: jax.Array) -> jax.Array:
        key_square, key_place = jax.random.split(key)
        square = jax.random.randint(key_square, (), 0, 8)
        row = square // 2
        corner = jnp.stack([2 * (square % 2) + row % 2, row])
        return corner - 2.0 + jax.random.uniform(key_place, (2,))

    def log_prob(x: jax.Array) -> jax.Array:
        inside = jnp.all(jnp.abs(x) < 2, axis=1) & (jnp.sum(jnp.floor(x), axis=1) % 2 == 0)
        return jnp.where(inside, -math.log(8), -jnp.inf)

    return Density(draw, log_prob)


DENSITIES = {"gaussians": gaussians, "rings": rings, "spirals": spirals, "checkerboard": checkerboard}


def draw_points(keys: jax.Array, number: jax.Array) -> jax.Array:
    """Points (B, 2) of the density with that index in `DENSITIES`; one function for all densities is compiled only
    once."""
    draws = [make().draw for make in DENSITIES.values()]
    return jax.vmap(lambda key: jax.lax.switch(number, draws, key))(keys)


def grid(side: int) -> np.ndarray:
    """Points (side^2, 2), the middles of equal cells of [-EXTENT, EXTENT]^2."""
    axis = EXTENT * ((2 * np.arange(side) + 1) / side - 1)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)


def integral(values: np.ndarray) -> float:
    """The integral of a function, from its values (side^2,) on `grid`."""
    return float(np.sum(values.astype(np.float64)) * (2 * EXTENT) ** 2 / len(values))


@cache
def entropy(name: str, side: int = 1200) -> float:
    """Nats, by quadrature; exact for the checkerboard, whose squares are divided by the grid's cells."""
    log_prob = jax.jit(DENSITIES[name]().log_prob)
    parts = [np.asarray(log_prob(part)) for part in np.array_split(grid(side), 50)]
    log_p = np.concatenate(parts).astype(np.float64)
    return integral(-np.exp(log_p) * np.where(np.isfinite(log_p), log_p, 0.0))
