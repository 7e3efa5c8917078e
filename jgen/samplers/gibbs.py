"""Completing images by a latent-variable model's conditional distribution: Metropolis within Gibbs.

    z' ~ q(z | x),  accepted with probability min(1, w(z') / w(z)),  w(z) = p(x | z) p(z) / q(z | x)
    unknown pixels of x ~ p(x | z)

in alternation (Mattei & Frellsen 2018, arXiv 1802.04826, algorithm 1), so that the chain's distribution is p(z, unknown
| known). The first steps accept every proposal, since the initial unknown pixels are far from likely ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.errors import require


@dataclass(frozen=True)
class Inpainting:
    """Options of inpaint."""

    steps: int = 200
    """Steps of the Markov chain, each with one evaluation of the encoder and two of the decoder."""
    warmup_steps: int = 20
    """Number of first steps that accept every proposal."""


def complete(
    keys: jax.Array,
    start: tuple[jax.Array, jax.Array],
    images: jax.Array,
    mask: jax.Array,
    propose: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    draw: Callable[[jax.Array, jax.Array], jax.Array],
    o: Inpainting,
) -> tuple[jax.Array, jax.Array]:
    """Latents (B, D) and images (B, H, W, C) at the end of the chains.

    Args:
      start: latents, and images whose known pixels are those of `images`.
      mask: bool (B, H, W), true where a pixel is known.
      propose: (keys, z, x) -> z' ~ q(z | x), and log w(z') - log w(z), float32 (B,).
      draw: (keys, z) -> images ~ p(x | z).
    Raises:
      UserError: options out of range.
    """
    require(0 <= o.warmup_steps < o.steps, f"warmup_steps is {o.warmup_steps}: it must be from 0 and below steps")

    def step(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        z, x = carry
        key_z, key_accept, key_x = rng.split(rng.fold_in(keys, number), 3)
        proposal, log_ratio = propose(key_z, z, x)
        accept = jnp.log(rng.uniform(key_accept, ())) < log_ratio
        z = jnp.where(((number < o.warmup_steps) | accept)[:, None], proposal, z)
        return (z, jnp.where(mask[..., None], images, draw(key_x, z))), None

    return jax.lax.scan(step, start, jnp.arange(o.steps))[0]
