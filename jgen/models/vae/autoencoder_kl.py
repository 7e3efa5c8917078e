"""The first stage of latent diffusion, regularised by KL divergence (Rombach et al. 2022, arXiv 2112.10752).

    z ~ N(mean(x), exp(logvar(x))),  x_hat = decode(z)
    loss      |x - x_hat| + p d(x, x_hat) + kl_weight KL(q(z|x) || N(0, I)) - w E D(x_hat)            (equation 25)
    adversary D scores patches: jgen/models/vae/patch_adversary.py

Glossary: x image in [-1, 1]; z latents (B, h, w, c); d a perceptual distance (jgen/nn/perceptual.py), p its weight; all
terms are means over pixels or latents.

The distribution of the latents is unknown, so there is no `sample`: a diffusion models them
(jgen/models/diffusion/latent.py).

Differs from the paper: d is not LPIPS; D has group normalisation; w is computed from the previous step's gradients.

Measured: PSNR 30.75 dB of the reconstructed 8x8 digits, from 4x4 latents of 4 channels; 1,500 steps of
`python train.py configs/vae/autoencoder_kl.py:digits`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, Frozen, GenerativeModel, ImageSpec, Loss, Roles
from jgen.errors import require, require_latents
from jgen.models.vae import patch_adversary as adversaries
from jgen.nn import first_stage as networks
from jgen.nn.perceptual import check_perceptual, reconstruction_error
from jgen.prob.likelihoods import mean_image, normal_kl
from jgen.prob.pixels import to_float, to_uint8

LOGVAR = (-30.0, 20.0)  # least and largest log-variance of a latent


@dataclass(frozen=True)
class Config:
    """An autoencoder with continuous latents and a weak KL regularisation."""

    network: networks.Config = field(default_factory=networks.Config)
    kl_weight: float = 1e-6
    """Weight of the KL divergence (a mean over latents) relative to the error (a mean over pixels)."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual distance in EfficientNet-Lite0 features; above 0, its package must be installed."""
    adversary: adversaries.Config = adversaries.Config()


class AutoencoderKl(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`."""

    config: Config
    images: ImageSpec
    encoder: networks.Encoder
    decoder: networks.Decoder
    adversary: adversaries.Adversary

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        network = self.config.network
        return (*network.grid(self.images), network.latent_channels)


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """An autoencoder for the image shape and levels of `data`.

    Raises:
      UserError: sizes that the networks cannot be built with, or options out of their range.
    """
    network, images = config.network, data.image
    networks.check_first_stage(network, images)
    require(config.kl_weight >= 0, f"kl_weight is {config.kl_weight}: it must be zero or above")
    check_perceptual(config.perceptual_weight, images)
    adversary = adversaries.make_adversary(config.adversary, network.groups, jnp.dtype(network.dtype), images)
    encoder, decoder = (
        networks.Encoder(network, 2 * network.latent_channels),
        networks.Decoder(network, images.channels),
    )
    kl = AutoencoderKl(config, images, encoder, decoder, adversary)
    return GenerativeModel(
        name="autoencoder_kl",
        data=data,
        init=partial(init, kl),
        phases=adversaries.phases(adversary, ("encoder", "decoder"), partial(loss, kl), partial(reconstruct, kl)),
        validate=partial(validate, kl),
        best=("mse", "min"),
        encode=partial(encode, kl),
        decode=partial(decode, kl),
        functions={"encode_continuous": partial(encode_continuous, kl), "decode_continuous": partial(decoded, kl)},
        averages=("encoder", "decoder"),
        why_not={"sample": "its latents are no known distribution: train a latent diffusion on them"},
    )


def init(kl: AutoencoderKl, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_e, key_d, key_disc = jax.random.split(key, 3)
    x = to_float(batch["image"][:1], kl.images.levels)
    roles = {"encoder": kl.encoder.init(key_e, x)["params"]}
    roles["decoder"] = kl.decoder.init(key_d, jnp.zeros((1, *kl.latent_shape)))["params"]
    if kl.adversary.exists:
        roles["disc"] = kl.adversary.network.init(key_disc, x)["params"]
    return roles, {"adversary": adversaries.start_gradients(roles["decoder"])} if kl.adversary.exists else {}


def posterior(kl: AutoencoderKl, params: Roles, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance of z, (B, h, w, c) each, of images in [-1, 1]."""
    mean, logvar = jnp.split(kl.encoder.apply({"params": params["encoder"]}, x), 2, axis=-1)
    return mean, jnp.clip(logvar, *LOGVAR)


def draw(kl: AutoencoderKl, keys: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """z."""
    return mean + jnp.exp(0.5 * logvar) * rng.normal(keys, kl.latent_shape)


def decoded(kl: AutoencoderKl, params: Roles, ctx: Context, z: jax.Array) -> jax.Array:
    """x_hat, float32 (B, H, W, C), of latents."""
    return kl.decoder.apply({"params": params["decoder"]}, z)


def encode_continuous(kl: AutoencoderKl, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array) -> jax.Array:
    """A draw of z, float32 (B, h, w, c), of images in [-1, 1]."""
    return draw(kl, keys, *posterior(kl, params, x))


def reconstruct(
    kl: AutoencoderKl, params: Roles, ctx: Context, keys: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """x and x_hat."""
    x = to_float(batch["image"], kl.images.levels)
    return x, decoded(kl, params, ctx, encode_continuous(kl, params, ctx, keys, x))


def loss(kl: AutoencoderKl, has_adversary: bool, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    x = to_float(batch["image"], kl.images.levels)
    mean, logvar = posterior(kl, params, x)
    z = draw(kl, keys, mean, logvar)
    x_hat = decoded(kl, params, ctx, z)

    def error(x_hat: jax.Array) -> jax.Array:
        return reconstruction_error(x, x_hat, kl.config.perceptual_weight)[0]

    total, metrics = reconstruction_error(x, x_hat, kl.config.perceptual_weight)
    metrics["kl"] = jnp.mean(normal_kl(mean, logvar, 0.0, 0.0))
    total += kl.config.kl_weight * metrics["kl"]
    new_extra: Roles = {}
    if has_adversary:
        of_last_step = ctx.extra["adversary"]
        term, logged, new_extra["adversary"] = adversaries.score_term(
            kl.adversary, kl.decoder, params, of_last_step, error, z, x_hat
        )
        total, metrics = total + term, metrics | logged
    return total, (metrics, new_extra)


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
