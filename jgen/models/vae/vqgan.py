"""VQGAN (Esser, Rombach & Ommer 2021, arXiv 2012.09841): a VQ-VAE whose reconstructions look real, patch by patch.

    quantise  k = argmin_j || z_e(x) - e_j ||^2,  z_q = e_k,  x_hat = decode(z_e + sg(z_q - z_e))          (equation 2)
    loss      |x - x_hat| + p d(x, x_hat) + commitment mean (z_e - sg(z_q))^2 - w E D(x_hat)           (equations 4, 6)
    adversary D scores patches: jgen/models/vae/patch_adversary.py
    codebook  moving averages of the vectors assigned to each code (jgen/prob/codebook.py)

`encode` gives the codes, int32 (B, h, w, 1), `decode` the images of codes. A prior over them is a second run: a Gated
PixelCNN (jgen/models/vae/vq_prior.py) with this one as its autoencoder. It also provides its latents z_e; samples of a
diffusion over them (jgen/models/diffusion/latent.py) are decoded through the nearest codes, as in LDM-VQ.

Glossary: x image in [-1, 1]; z_e encoder's vectors; z_q their codes' vectors; sg stop-gradient; d a perceptual distance
(jgen/nn/perceptual.py), p its weight.

Differs from the paper: the codebook follows moving averages and dead codes are revived; d is not LPIPS; D has group
normalisation; w is computed from the previous step's gradients; the prior is convolutional.

Measured: perplexity 60.6 of 64 codes on the 8x8 digits, and PSNR 23.88 dB of their reconstructions from 4x4 codes;
1,500 steps of `python train.py configs/vae/vqgan.py:digits`. The discriminator tells real patches from reconstructed
ones no better than by chance there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jgen.core.model import Batch, Cond, Context, DataSpec, Frozen, GenerativeModel, ImageSpec, Loss, Roles
from jgen.core.parts import in_parts
from jgen.errors import require_latents
from jgen.models.vae import patch_adversary as adversaries
from jgen.nn import first_stage as networks
from jgen.nn.perceptual import check_perceptual, reconstruction_error
from jgen.prob.codebook import centres, check_codebook, nearest, quantise, start_at_vectors, straight_through
from jgen.prob.likelihoods import mean_image
from jgen.prob.pixels import to_float, to_uint8

PART = 8  # images encoded at a time before the first step


@dataclass(frozen=True)
class Config:
    """A vector-quantised autoencoder with an adversary."""

    network: networks.Config = field(default_factory=networks.Config)
    num_codes: int = 1024
    """Vectors in the codebook; each has `network.latent_channels` dimensions."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    decay: float = 0.99
    """Decay g of the codebook's averages in each step."""
    revival: float = 0.1
    """Codes used less often than revival / num_codes are moved to an encoded vector; 0: never."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual distance in EfficientNet-Lite0 features; above 0, its package must be installed."""
    adversary: adversaries.Config = adversaries.Config(weight=0.8)


class Vqgan(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`.

    `grid` is the height and width of an image's codes.
    """

    config: Config
    images: ImageSpec
    encoder: networks.Encoder
    decoder: networks.Decoder
    adversary: adversaries.Adversary
    grid: tuple[int, int]


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A VQGAN for the image shape and levels of `data`.

    Raises:
      UserError: sizes that the networks cannot be built with, or options out of their range.
    """
    network, images = config.network, data.image
    networks.check_first_stage(network, images)
    check_codebook(config.num_codes, network.latent_channels, config.commitment, config.decay, config.revival)
    check_perceptual(config.perceptual_weight, images)
    adversary = adversaries.make_adversary(config.adversary, network.groups, jnp.dtype(network.dtype), images)
    encoder, decoder = networks.Encoder(network, network.latent_channels), networks.Decoder(network, images.channels)
    vq = Vqgan(config, images, encoder, decoder, adversary, network.grid(images))
    return GenerativeModel(
        name="vqgan",
        data=data,
        init=partial(init, vq),
        phases=adversaries.phases(adversary, ("encoder", "decoder"), partial(loss, vq), partial(reconstruct, vq)),
        validate=partial(validate, vq),
        best=("mse", "min"),
        encode=partial(encode, vq),
        decode=partial(decode, vq),
        codes=(ImageSpec(*vq.grid, 1, config.num_codes),),
        functions={
            "encode_continuous": partial(encode_continuous, vq),
            "decode_continuous": partial(decode_nearest, vq),
        },
        averages=("encoder", "decoder"),
        why_not={"sample": "its codes are no known distribution: train a vq_prior on them"},
    )


def init(vq: Vqgan, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_e, key_d, key_disc, key_book = jax.random.split(key, 4)
    x = to_float(batch["image"], vq.images.levels)
    roles = {"encoder": vq.encoder.init(key_e, x[:1])["params"]}
    roles["decoder"] = vq.decoder.init(key_d, jnp.zeros((1, *vq.grid, vq.config.network.latent_channels)))["params"]
    if vq.adversary.exists:
        roles["disc"] = vq.adversary.network.init(key_disc, x[:1])["params"]
    z_e = in_parts(partial(encoded, vq, roles), x, PART)  # the batch may be spread over many devices
    extra = {"codebook": start_at_vectors(key_book, z_e, vq.config.num_codes)}
    if vq.adversary.exists:
        extra["adversary"] = adversaries.start_gradients(roles["decoder"])
    return roles, extra


def encoded(vq: Vqgan, params: Roles, x: jax.Array) -> jax.Array:
    """z_e, float32 (B, h, w, c), of images in [-1, 1]."""
    return vq.encoder.apply({"params": params["encoder"]}, x)


def decoded(vq: Vqgan, params: Roles, z: jax.Array) -> jax.Array:
    """x_hat, float32 (B, H, W, C), of quantised latents."""
    return vq.decoder.apply({"params": params["decoder"]}, z)


def encode_continuous(vq: Vqgan, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array) -> jax.Array:
    """z_e of images in [-1, 1]."""
    return encoded(vq, params, x)


def decode_nearest(vq: Vqgan, params: Roles, ctx: Context, z: jax.Array) -> jax.Array:
    """The images of the codes nearest to latents, float32 (B, H, W, C)."""
    e = centres(ctx.extra["codebook"])
    return decoded(vq, params, e[nearest(e, z)])


def reconstruct(vq: Vqgan, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """x and x_hat."""
    x = to_float(batch["image"], vq.images.levels)
    return x, decode_nearest(vq, params, ctx, encoded(vq, params, x))


def loss(vq: Vqgan, has_adversary: bool, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    c = vq.config
    x = to_float(batch["image"], vq.images.levels)
    z_e = encoded(vq, params, x)
    quantised = quantise(ctx.extra["codebook"], keys, z_e, c.decay, c.revival)
    z = straight_through(z_e, quantised.z_q)
    x_hat = decoded(vq, params, z)

    def error(x_hat: jax.Array) -> jax.Array:
        return reconstruction_error(x, x_hat, c.perceptual_weight)[0]

    total, metrics = reconstruction_error(x, x_hat, c.perceptual_weight)
    metrics |= quantised.metrics
    total += c.commitment * quantised.metrics["commitment"]
    new_extra: Roles = {"codebook": quantised.book}
    if has_adversary:
        of_last_step = ctx.extra["adversary"]
        term, logged, new_extra["adversary"] = adversaries.score_term(
            vq.adversary, vq.decoder, params, of_last_step, error, z, x_hat
        )
        total, metrics = total + term, metrics | logged
    return total, (metrics, new_extra)


def validate(vq: Vqgan, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    x, x_hat = reconstruct(vq, params, ctx, keys, batch)
    return {"mse": mean_image((x_hat - x) ** 2)}


def encode(vq: Vqgan, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    z_e = encoded(vq, params, to_float(x, vq.images.levels))
    return nearest(centres(ctx.extra["codebook"]), z_e)[..., None]


def decode(vq: Vqgan, params: Roles, ctx: Context, keys: jax.Array, codes: jax.Array, cond: Cond) -> jax.Array:
    require_latents(codes, (*vq.grid, 1), "codes")
    z_q = centres(ctx.extra["codebook"])[codes[..., 0].astype(jnp.int32)]
    return to_uint8(decoded(vq, params, z_q), vq.images.levels)
