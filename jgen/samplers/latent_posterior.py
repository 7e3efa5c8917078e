"""Completing images in latent space: Markov chains in the latents of a decoder G, annealed towards the known pixels.

    p(z | y) ~ N(z; 0, I) exp(-E(G(z))) prod_known N(y; G(z), sigma^2),    G(z) instead of the unknown pixels       (1)

The chains start at draws of N(0, I), which G maps to samples of the model, and reach (1) by Hamiltonian steps through
intermediate distributions (`jgen.samplers.annealing`): after long annealing they have the distribution (1), after short
annealing they stay nearer to unconditional samples. Other methods search for one z by gradient descent (Yeh et al.
2017, arXiv 1607.07539, for GANs); chains give a different completion for every key.

For a flow, as sigma goes to 0, (1) becomes the conditional distribution of the unknown pixels; a GAN's images lie on a
manifold that does not contain a real image, and sigma is the distance allowed.

Glossary: z latents, y image, G decoder, E an energy of the decoder's images if the model has one, else 0; sigma
standard deviation of the known pixels around G(z).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.errors import require_positive
from jgen.prob.likelihoods import sum_image
from jgen.samplers.annealing import anneal

STEP_SIZES = (0.005, 0.5)  # in units of the latents, whose standard deviation is 1


@dataclass(frozen=True)
class Inpainting:
    """Options of inpaint."""

    steps: int = 200
    """Annealing steps, each two evaluations of the decoder with its gradient."""
    noise: float = 0.05
    """sigma, in units of the range of levels: how closely the decoder's image matches the known pixels."""


def complete(
    decode: Callable[[jax.Array], jax.Array],
    keys: jax.Array,
    size: int,
    y: jax.Array,
    mask: jax.Array,
    levels: int,
    o: Inpainting,
    weigh: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Latents (B, size) of images whose known pixels are near those of y: equation 1.

    Args:
      decode: z (B, size) -> images in the units of y, float (B, H, W, C), each of its own z.
      y: float (B, H, W, C), in units of which the levels are 1 apart; mask: bool (B, H, W), true where it is known.
      weigh: E in nats (B,), a function of images from `decode`; None: 0.
    Raises:
      UserError: options out of range.
    """
    require_positive(steps=o.steps, noise=o.noise)
    precision = mask[..., None] / (o.noise * (levels - 1)) ** 2
    key_start, key_chain = rng.split(keys, 2)

    def prior(z: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(z**2, axis=1)

    def energy(z: jax.Array) -> jax.Array:
        x = decode(z)
        given = prior(z) + 0.5 * sum_image(precision * (x - y) ** 2)
        return given if weigh is None else given + weigh(x)

    start = rng.normal(key_start, (size,))
    return anneal(prior, energy, key_chain, start, steps=o.steps, step_sizes=STEP_SIZES, reflecting=False)[0]
