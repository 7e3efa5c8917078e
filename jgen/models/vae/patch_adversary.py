"""What first stages with a patch discriminator share: its options, phases, weight and losses.

Esser, Rombach & Ommer 2021 (arXiv 2012.09841). D gives each patch a score; the hinge loss trains it, and the
autoencoder gains -w E D(x_hat), with

    w = weight |grad_out error| / (|grad_out E D(x_hat)| + 1e-4)                                         (equation 7)

where the gradients are with respect to the decoder's last kernel, and both terms are active from step `start` on. The
gradients are those of the previous step: means over a whole batch are known only after the step, and so w does not
depend on how a batch is split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core.model import ImageSpec, Loss, Phase, Roles, Tree
from jgen.errors import require, require_positive
from jgen.nn.first_stage import Decoder, PatchDiscriminator
from jgen.prob.adversarial import discriminator_loss

LARGEST = 1e4  # of the ratio of gradients


@dataclass(frozen=True)
class Config:
    """A discriminator of patches."""

    weight: float = 0.0
    """Weight of the discriminator's score in the autoencoder's loss; 0: no discriminator."""
    start: int = 0
    """Step from which on the discriminator is used."""
    channels: tuple[int, ...] = (64, 128)
    """Channels at 1/2, 1/4, ... of the image's size."""


class Adversary(NamedTuple):
    """The discriminator, whose parameters are the role "disc"."""

    config: Config
    network: PatchDiscriminator

    @property
    def exists(self) -> bool:
        return self.config.weight > 0

    def scores(self, disc: Tree, x: jax.Array) -> jax.Array:
        """The discriminator's score of each patch of images in [-1, 1], (B, h, w)."""
        return self.network.apply({"params": disc}, x)


def make_adversary(config: Config, groups: int, dtype: DTypeLike, images: ImageSpec) -> Adversary:
    """The adversary of a first stage whose group normalisation has `groups` groups.

    Raises:
      UserError: options out of their range, or images that cannot be halved once for each of `channels`.
    """
    require_positive(channels=config.channels)
    for name in ("weight", "start"):
        value = getattr(config, name)
        require(value >= 0, f"adversary.{name} is {value}: it must be zero or above")
    factor, size = 2 ** len(config.channels), f"{images.height}x{images.width}"
    fits = config.weight == 0 or (images.height % factor == 0 and images.width % factor == 0)
    require(fits, f"adversary.channels are {config.channels}: images of {size} must be divisible by {factor}")
    for features in config.channels[1:]:
        divides = features % groups == 0
        require(divides, f"adversary.channels are {config.channels}: each must be divisible by groups = {groups}")
    return Adversary(config, PatchDiscriminator(config.channels, groups, dtype))


def phases(
    adversary: Adversary, trained: tuple[str, ...], loss: Callable[..., Any], reconstruct: Callable[..., Any]
) -> tuple[Phase, ...]:
    """The phases of a first stage.

    Args:
      trained: the roles of the autoencoder; loss: (has_adversary, params, ctx, keys, batch) -> as a phase's loss.
      reconstruct: (params, ctx, keys, batch) -> (x, x_hat), images in [-1, 1].
    """
    if not adversary.exists:
        return (Phase(trained, partial(loss, False)),)
    start = adversary.config.start

    def before(step: int) -> bool:
        return step < start

    def after(step: int) -> bool:
        return step >= start

    alone = (Phase(trained, partial(loss, False), runs=before, name="start"),) if start else ()
    against = Phase(trained, partial(loss, True), runs=after, name="autoencoder")
    return (*alone, against, Phase(("disc",), partial(disc_loss, adversary, reconstruct), runs=after))


def start_gradients(decoder: Tree) -> dict[str, jax.Array]:
    """extra["adversary"] before the first step: no gradients, with which w is 0."""
    kernel = decoder["conv_out"]["kernel"]
    return {"error": jnp.zeros_like(kernel), "score": jnp.zeros_like(kernel)}


def score_term(
    adversary: Adversary,
    decoder: Decoder,
    params: Roles,
    gradients: dict[str, jax.Array],
    error: Callable[[jax.Array], jax.Array],
    z: jax.Array,
    x_hat: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """-w E D(x_hat), its metrics, and the gradients of this step.

    Args:
      gradients: extra["adversary"], those of the step before: means over all its examples, wherever they were computed.
      error: x_hat -> the error of the reconstruction, a scalar; z: the latents that x_hat was decoded from.
    """
    score = -jnp.mean(adversary.scores(params["disc"], x_hat))
    error_norm, score_norm = (jnp.linalg.norm(gradients[name].ravel()) for name in ("error", "score"))
    weight = adversary.config.weight * jnp.clip(error_norm / (score_norm + 1e-4), 0.0, LARGEST)
    new = last_gradients(adversary, decoder, params, error, z)
    return weight * score, {"score": score, "weight": weight}, new


def last_gradients(
    adversary: Adversary, decoder: Decoder, params: Roles, error: Callable[[jax.Array], jax.Array], z: jax.Array
) -> dict[str, jax.Array]:
    """Gradients of the error and of -E D(x_hat) by the decoder's last kernel."""
    frozen, disc, z = jax.lax.stop_gradient((params["decoder"], params["disc"], z))

    def terms(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        last = {**frozen["conv_out"], "kernel": kernel}
        x_hat = decoder.apply({"params": {**frozen, "conv_out": last}}, z)
        return error(x_hat), -jnp.mean(adversary.scores(disc, x_hat))

    _, pullback = jax.vjp(terms, frozen["conv_out"]["kernel"])
    one, zero = jnp.ones(()), jnp.zeros(())
    sides = {"error": (one, zero), "score": (zero, one)}
    return {name: jax.lax.stop_gradient(pullback(side)[0]) for name, side in sides.items()}


def disc_loss(
    adversary: Adversary, reconstruct: Callable[..., Any], params: Roles, ctx: Any, keys: jax.Array, batch: Any
) -> Loss:
    """The discriminator's hinge loss, half of it as in the authors' code."""
    x, x_hat = reconstruct(params, ctx, keys, batch)
    real, fake = adversary.scores(params["disc"], x), adversary.scores(params["disc"], x_hat)
    metrics = {"accuracy_real": jnp.mean(real > 0), "accuracy_fake": jnp.mean(fake < 0)}
    return 0.5 * jnp.mean(discriminator_loss("hinge", real, fake)), (metrics, {})
