"""Objectives of generative adversarial networks: losses, penalties on the discriminator's gradient, and diversity.

`real` and `fake` are the discriminator's outputs before any sigmoid, (B,). In the formulas of the first two losses, D
is a probability: the sigmoid of that output. Each loss is to be minimised.

    minimax          L_D = -E log D(x) - E log(1 - D(G(z)))     L_G =  E log(1 - D(G(z)))    Goodfellow 2014, 1406.2661
    non_saturating   L_D as above                               L_G = -E log D(G(z))         the same, section 3
    least_squares    L_D = E (D(x) - 1)^2 / 2 + E D(G(z))^2 / 2  L_G = E (D(G(z)) - 1)^2 / 2   Mao 2016, 1611.04076
    hinge            L_D = E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))     L_G = -E D(G(z))   Lim & Ye 2017, 1705.02894
    wasserstein      L_D = E D(G(z)) - E D(x)                             L_G = -E D(G(z))   Arjovsky 2017, 1701.07875
    relativistic     L_D = -E log sigmoid(D(x) - D(G(z)))         L_G = -E log sigmoid(D(G(z)) - D(x)), of pairs of x
                     and G(z)                                                       Jolicoeur-Martineau 2018, 1807.00734
    gradient penalty E (|grad D(x_hat)| - 1)^2, x_hat = u x + (1 - u) G(z), u ~ U[0, 1]      Gulrajani 2017, 1704.00028
    R1               E |grad D(x)|^2 / 2                                                   Mescheder 2018, 1801.04406
    R2               E |grad D(G(z))|^2 / 2                                                                  the same
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.prob.likelihoods import sum_image

LOSSES = ("minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic")
RELATIVE_LOSSES = ("relativistic",)  # losses whose generator part also uses real images
PENALTIES = ("gradient_penalty", "r1", "r1_r2")
PENALTIES_OF_PAIRS = ("gradient_penalty", "r1_r2")  # penalties that also use generated images

Critic = Callable[[jax.Array], jax.Array]  # images (B, H, W, C) to outputs (B,)


def discriminator_loss(kind: str, real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's loss for each pair of a real and a generated image, (B,)."""
    if kind in ("minimax", "non_saturating"):
        return jax.nn.softplus(-real) + jax.nn.softplus(fake)
    if kind == "least_squares":
        return 0.5 * (real - 1.0) ** 2 + 0.5 * fake**2
    if kind == "hinge":
        return jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)
    if kind == "relativistic":
        return jax.nn.softplus(fake - real)
    assert kind == "wasserstein", kind
    return fake - real


def generator_loss(kind: str, fake: jax.Array, real: jax.Array | None = None) -> jax.Array:
    """The generator's loss for each generated image, (B,); only the `RELATIVE_LOSSES` use `real`."""
    if kind == "relativistic":
        assert real is not None
        return jax.nn.softplus(real - fake)
    if kind == "minimax":
        return -jax.nn.softplus(fake)
    if kind == "non_saturating":
        return jax.nn.softplus(-fake)
    if kind == "least_squares":
        return 0.5 * (fake - 1.0) ** 2
    assert kind in ("hinge", "wasserstein"), kind
    return -fake


def decision_boundary(kind: str, real: jax.Array, fake: jax.Array) -> jax.Array | float:
    """The output above which the discriminator classifies an image as real: halfway between its two targets.

    A Wasserstein critic and a relativistic discriminator have no targets and are defined only up to a constant: their
    boundary is halfway between the means, over all devices, of the outputs for real and for generated images, (B,)
    each.
    """
    if kind in ("wasserstein", "relativistic"):
        return parallel.pmean(0.5 * (jnp.mean(real) + jnp.mean(fake)))
    return 0.5 if kind == "least_squares" else 0.0


def squared_gradient(critic: Critic, x: jax.Array) -> jax.Array:
    """|grad D(x)|^2 of each image, (B,). The critic must not mix examples, unlike batch normalisation."""
    return sum_image(jax.grad(lambda images: jnp.sum(critic(images)))(x) ** 2)


def gradient_penalty(critic: Critic, real: jax.Array, fake: jax.Array, keys: jax.Array) -> jax.Array:
    """(|grad D(x_hat)| - 1)^2 of each pair of images, (B,), at a point drawn uniformly between the two."""
    u = rng.uniform(keys, (1, 1, 1))
    # 1e-12, since the gradient of a square root is infinite at zero.
    norm = jnp.sqrt(squared_gradient(critic, u * real + (1.0 - u) * fake) + 1e-12)
    return (norm - 1.0) ** 2


def r1_penalty(critic: Critic, x: jax.Array) -> jax.Array:
    """|grad D(x)|^2 / 2 of each image, (B,): R1 of real images, R2 of generated ones."""
    return 0.5 * squared_gradient(critic, x)


def penalty(kind: str, critic: Critic, real: jax.Array, fake: Any, keys: jax.Array) -> jax.Array:
    """One of `PENALTIES` for each image, or pair of images, (B,); r1_r2 is the sum of R1 and R2.

    Args:
      fake: generated images, read by the `PENALTIES_OF_PAIRS`; keys: read by gradient_penalty.
    """
    if kind == "gradient_penalty":
        return gradient_penalty(critic, real, fake, keys)
    assert kind in ("r1", "r1_r2"), kind
    r1 = r1_penalty(critic, real)
    return r1 if kind == "r1" else r1 + r1_penalty(critic, fake)


def relative_diversity(fake: jax.Array, real: jax.Array, label: jax.Array | None, num_classes: int) -> jax.Array:
    """Diversity of generated images within a class relative to that of real images: about 1, and 0 after mode collapse.

    The ratio of root mean square distances of images (B, H, W, C) from the mean of their class, over the batch of all
    devices. NaN where no class has two different real images.

    Args:
      label: int (B,), the class of both the real and the generated image; None treats all images as one class.
    """
    one_hot = jnp.ones((len(real), 1)) if label is None else jax.nn.one_hot(label, num_classes)
    count = parallel.pmean(jnp.mean(one_hot, axis=0))

    def spread(x: jax.Array) -> jax.Array:
        flat = x.reshape(x.shape[0], -1).astype(jnp.float32)
        mean = parallel.pmean(one_hot.T @ flat / len(flat)) / jnp.maximum(count, 1e-12)[:, None]
        return parallel.pmean(jnp.mean(jnp.sum((flat - one_hot @ mean) ** 2, axis=1)))

    real_spread = spread(real)
    varied = real_spread > 1e-6
    return jnp.where(varied, jnp.sqrt(spread(fake) / jnp.maximum(real_spread, 1e-6)), jnp.nan)
