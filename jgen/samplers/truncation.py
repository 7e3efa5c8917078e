"""Sampling from the likelier values of a categorical distribution only: temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jgen.errors import require, require_temperature


@dataclass(frozen=True)
class Sampling:
    """Options of sampling from a softmax, one value after another."""

    temperature: float = 1.0
    """Divisor of the logits; below 1 favours likelier values. Must be positive."""
    top_k: int = 0
    """Draw only from this many of the likeliest values; 0: from all."""
    top_p: float = 1.0
    """Nucleus sampling: draw from the smallest set of likeliest values with total probability >= top_p, in (0, 1]; 1:
    from all."""


def truncate(logits: jax.Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """Logits (..., levels) of the distribution to sample from; -inf at values that cannot be drawn.

    The logits are divided by the temperature; then the `top_k` likeliest values remain (0: all); then, of these, the
    fewest whose probabilities sum to `top_p` or more (1: all; Holtzman et al. 2019, arXiv 1904.09751). Values as likely
    as the last of these are kept, too.
    """
    logits = logits.astype(jnp.float32) / temperature
    if top_k:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p < 1.0:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        p = jax.nn.softmax(ordered, axis=-1)
        needed = jnp.cumsum(p, axis=-1) - p < top_p  # those before it do not sum to top_p
        least = jnp.min(jnp.where(needed, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def check_truncation(temperature: float, top_k: int, top_p: float, levels: int) -> None:
    """Raises `UserError` for a temperature, a number of values or a probability out of its range."""
    require_temperature(temperature)
    require(0 <= top_k <= levels, f"top_k is {top_k}: it must be from 1 to {levels}, the levels, or 0 for all of them")
    require(0 < top_p <= 1, f"top_p is {top_p}: it must be above 0 and at most 1")


def check_sampling(levels: int, o: Sampling) -> None:
    """Raises `UserError` for options of sampling that are out of their range."""
    check_truncation(o.temperature, o.top_k, o.top_p, levels)
