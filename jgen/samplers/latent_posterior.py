"""Completing images by latents: chains in the latent space of a decoder G, annealed towards what is known of an image.

    p(z | y) ~ N(z; 0, I) exp(-E(G(z))) prod_known N(y; G(z), sigma^2),    G(z) instead of the unknown pixels       (1)

The chains start at draws of N(0, I), where G makes samples of the model, and end at (1) after Hamiltonian steps through
the distributions between (`jgen.samplers.annealing`): of long annealing they have the distribution (1), and of short
annealing they favour what is near to a sample. Other methods search for one z by gradient descent (Yeh et al. 2017,
arXiv 1607.07539, for GANs); chains give as many completions as there are keys.

For a flow and sigma to 0, (1) is the conditional distribution of the unknown pixels; a GAN's images are a manifold that
a real image is beside, and sigma is how far.

Glossary: z latents, y image, G decoder, E an energy that weighs the decoder's images where a model has one, else 0;
sigma standard deviation of the known pixels about G(z).
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
    """Steps of the annealing, each of two evaluations of the decoder with its gradient."""
    noise: float = 0.05
    """sigma, in units of the range of levels: how nearly the decoder's image agrees with the known pixels."""


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
      weigh: E in nats (B,), of images as `decode` gives them; None: 0.
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
