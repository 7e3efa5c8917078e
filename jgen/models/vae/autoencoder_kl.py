"""The first stage of latent diffusion, regularised by KL divergence (Rombach et al. 2022, arXiv 2112.10752).

    z ~ N(mean(x), exp(logvar(x))),  x_hat = decode(z)
    loss      |x - x_hat| + kl_weight KL(q(z|x) || N(0, I)) + adversarial terms                   (equation 25)
    adversary D gives each patch a score; hinge loss for D; the autoencoder gains -w E D(x_hat), with
              w = disc_weight |grad_out |x - x_hat|| / |grad_out E D(x_hat)|, the gradients those of the decoder's last
              layer (Esser et al. 2021, arXiv 2012.09841, equation 7), both from step `disc_start` on

Glossary: x image in [-1, 1]; z latents (B, h, w, c); all terms are means over pixels or latents.

The latents are no distribution that is known: `sample` is for a diffusion over them (jgen/models/diffusion/latent.py).

Differs from the paper: no perceptual term; D has group normalisation; the weight w is that of each device's part.

Measured:
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, GenerativeModel, ImageSpec, Phase, Roles, Tree
from jgen.errors import require, require_latents, require_positive
from jgen.nn import first_stage as networks
from jgen.prob import adversarial
from jgen.prob.likelihoods import mean_image, normal_kl
from jgen.prob.pixels import to_float, to_uint8

LOGVAR = (-30.0, 20.0)  # least and largest log-variance of a latent
WEIGHT = (0.0, 1e4)  # least and largest w before disc_weight


@dataclass(frozen=True)
class Config:
    """An autoencoder whose latents are nearly without noise."""

    network: networks.Config = field(default_factory=networks.Config)
    kl_weight: float = 1e-6
    """Weight of the KL divergence, a mean over latents, beside the error, a mean over pixels."""
    disc_weight: float = 0.0
    """Weight of the patches' adversarial loss; 0: no discriminator."""
    disc_start: int = 0
    """Step from which on there is a discriminator."""
    disc_channels: tuple[int, ...] = (64, 128)
    """Channels of the discriminator at 1/2, 1/4, ... of the image's size."""


class AutoencoderKl(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`."""

    config: Config
    images: ImageSpec
    encoder: networks.Encoder
    decoder: networks.Decoder
    discriminator: networks.PatchDiscriminator

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        network = self.config.network
        size = (self.images.height // network.factor, self.images.width // network.factor)
        return (*size, network.latent_channels)


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """An autoencoder over images of the shape and the number of levels of `data`.

    Raises:
      UserError: sizes that the networks cannot be built with, or options out of their range.
    """
    check_config(config, data.image)
    network, dtype = config.network, jnp.dtype(config.network.dtype)
    encoder = networks.Encoder(network, 2 * network.latent_channels)
    decoder = networks.Decoder(network, data.image.channels)
    discriminator = networks.PatchDiscriminator(config.disc_channels, network.groups, dtype)
    kl = AutoencoderKl(config, data.image, encoder, decoder, discriminator)
    trained = ("encoder", "decoder")
    start = config.disc_start
    phases = [Phase(trained, partial(loss, kl, False))]
    if config.disc_weight > 0:
        phases = [
            *([Phase(trained, partial(loss, kl, False), runs=lambda step: step < start, name="start")] * (start > 0)),
            Phase(trained, partial(loss, kl, True), runs=lambda step: step >= start, name="autoencoder"),
            Phase(("disc",), partial(disc_loss, kl), runs=lambda step: step >= start),
        ]
    return GenerativeModel(
        name="autoencoder_kl",
        data=data,
        init=partial(init, kl),
        phases=tuple(phases),
        validate=partial(validate, kl),
        best=("mse", "min"),
        encode=partial(encode, kl),
        decode=partial(decode, kl),
        functions={"encode_continuous": partial(encode_continuous, kl), "decode_continuous": partial(decoded, kl)},
        averages=trained,
        why_not={"sample": "its latents are no known distribution: train a latent diffusion on them"},
    )


def init(kl: AutoencoderKl, key: jax.Array, batch: Batch, frozen: Any) -> tuple[Roles, Roles]:
    key_e, key_d, key_disc = jax.random.split(key, 3)
    x = to_float(batch["image"][:1], kl.images.levels)
    roles = {"encoder": kl.encoder.init(key_e, x)["params"]}
    roles["decoder"] = kl.decoder.init(key_d, jnp.zeros((1, *kl.latent_shape)))["params"]
    if kl.config.disc_weight > 0:
        roles["disc"] = kl.discriminator.init(key_disc, x)["params"]
    return roles, {}


def posterior(kl: AutoencoderKl, params: Roles, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance of z, (B, h, w, c) each, of images in [-1, 1]."""
    mean, logvar = jnp.split(kl.encoder.apply({"params": params["encoder"]}, x), 2, axis=-1)
    return mean, jnp.clip(logvar, *LOGVAR)


def decoded(kl: AutoencoderKl, params: Roles, ctx: Context, z: jax.Array) -> jax.Array:
    """x_hat, float32 (B, H, W, C), of latents."""
    return kl.decoder.apply({"params": params["decoder"]}, z)


def encode_continuous(kl: AutoencoderKl, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array) -> jax.Array:
    """A draw of z, float32 (B, h, w, c), of images in [-1, 1]."""
    mean, logvar = posterior(kl, params, x)
    return mean + jnp.exp(0.5 * logvar) * rng.normal(keys, kl.latent_shape)


def loss(
    kl: AutoencoderKl, adversary: bool, params: Roles, ctx: Context, keys: jax.Array, batch: Batch
) -> tuple[jax.Array, tuple[dict, Roles]]:
    c = kl.config
    x = to_float(batch["image"], kl.images.levels)
    mean, logvar = posterior(kl, params, x)
    z = mean + jnp.exp(0.5 * logvar) * rng.normal(keys, kl.latent_shape)
    x_hat = decoded(kl, params, ctx, z)
    error, divergence = jnp.mean(jnp.abs(x - x_hat)), jnp.mean(normal_kl(mean, logvar, 0.0, 0.0))
    metrics = {"error": error, "kl": divergence}
    total = error + c.kl_weight * divergence
    if adversary:
        metrics["fake"] = -jnp.mean(discriminated(kl, params["disc"], x_hat))
        weight = adaptive_weight(kl, params, x, jax.lax.stop_gradient(z))
        total = total + c.disc_weight * weight * metrics["fake"]
        metrics["weight"] = weight
    return total, (metrics, {})


def adaptive_weight(kl: AutoencoderKl, params: Roles, x: jax.Array, z: jax.Array) -> jax.Array:
    """|grad error| / |grad adversarial term| of the decoder's last kernel; a constant of the loss."""
    decoder = jax.lax.stop_gradient(params["decoder"])
    disc = jax.lax.stop_gradient(params["disc"])

    def terms(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        last = {**decoder["conv_out"], "kernel": kernel}
        x_hat = kl.decoder.apply({"params": {**decoder, "conv_out": last}}, z)
        return jnp.mean(jnp.abs(x - x_hat)), -jnp.mean(discriminated(kl, disc, x_hat))

    kernel = decoder["conv_out"]["kernel"]
    _, pullback = jax.vjp(terms, kernel)
    one, zero = jnp.ones(()), jnp.zeros(())
    of_error, of_fake = (jnp.linalg.norm(pullback(side)[0]) for side in ((one, zero), (zero, one)))
    return jax.lax.stop_gradient(jnp.clip(of_error / (of_fake + 1e-4), *WEIGHT))


def discriminated(kl: AutoencoderKl, disc: Tree, x: jax.Array) -> jax.Array:
    """Scores of patches, (B, h, w)."""
    return kl.discriminator.apply({"params": disc}, x)


def disc_loss(
    kl: AutoencoderKl, params: Roles, ctx: Context, keys: jax.Array, batch: Batch
) -> tuple[jax.Array, tuple[dict, Roles]]:
    """The discriminator's hinge loss, half of it as in the authors' code."""
    x = to_float(batch["image"], kl.images.levels)
    x_hat = decoded(kl, params, ctx, encode_continuous(kl, params, ctx, keys, x))
    real, fake = discriminated(kl, params["disc"], x), discriminated(kl, params["disc"], x_hat)
    metrics = {"accuracy_real": jnp.mean(real > 0), "accuracy_fake": jnp.mean(fake < 0)}
    return 0.5 * jnp.mean(adversarial.discriminator_loss("hinge", real, fake)), (metrics, {})


def validate(kl: AutoencoderKl, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    x = to_float(batch["image"], kl.images.levels)
    mean, logvar = posterior(kl, params, x)
    x_hat = decoded(kl, params, ctx, mean)
    return {"mse": mean_image((x_hat - x) ** 2), "kl": mean_image(normal_kl(mean, logvar, 0.0, 0.0))}


def encode(kl: AutoencoderKl, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    """The mean of z."""
    return posterior(kl, params, to_float(x, kl.images.levels))[0]


def decode(kl: AutoencoderKl, params: Roles, ctx: Context, keys: jax.Array, z: jax.Array, cond: Cond) -> jax.Array:
    require_latents(z, kl.latent_shape)
    return to_uint8(decoded(kl, params, ctx, z), kl.images.levels)


def check_config(config: Config, images: ImageSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    networks.check_first_stage(config.network, images)
    require_positive(disc_channels=config.disc_channels)
    for name in ("kl_weight", "disc_weight", "disc_start"):
        require(getattr(config, name) >= 0, f"{name} is {getattr(config, name)}: it must be zero or above")
    factor = 2 ** len(config.disc_channels)
    fits = config.disc_weight == 0 or (images.height % factor == 0 and images.width % factor == 0)
    require(
        fits, f"disc_channels are {config.disc_channels}: images of {images.height}x{images.width} must halve so often"
    )
