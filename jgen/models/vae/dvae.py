"""Discrete VAE with Gumbel-softmax codes, the first stage of DALL-E (Ramesh et al. 2021, arXiv 2102.12092).

    encoder       logits l(x) (h, w, K);  q(k | x) = softmax(l), independently at each position
    relaxed       z = softmax((l + g) / tau),  g Gumbel noise; decoder reads z E, E the K vectors      (section 2.1)
    likelihood    f(y; m, b) = 1 / (2 b y (1 - y)) exp(-|logit(y) - m| / b),  y = (1 - 2 eps) x + eps  (appendix A.3)
                  or a normal one, N(logit(y); m, b^2) / (y (1 - y))
    loss          [ -log f(y; m, b) + beta KL(q(k | x) || uniform) ] / (H W C)                         (appendix A.2)
    schedules     tau from 1 to 1/16 by a cosine, beta from 0 to its value by a line
    codes         k = argmax l(x);  x_hat = (sigmoid(m) - eps) / (1 - 2 eps)

Glossary: x an image in [0, 1]; y the same away from 0 and 1, where logits are finite; m, b location and scale, of each
value; tau the relaxation's temperature; beta the weight of the divergence.

`encode` gives the codes, int32 (B, h, w, 1), `decode` the images of codes; `sample` draws codes from the model's own
prior, which is uniform, so its images only illustrate the codebook. A prior over the codes is a second run
(`jgen.models.vae.vq_prior`, or with a text before them `jgen.models.text_to_image.dalle1`).

Differs from the paper: halving and doubling go through channels (`jgen.nn.autoencoder`), and residual blocks use SiLU
and start at zero; b has a lower limit, which natural images do not need; beta is 1 by default instead of 6.6. The
likelihood is a density and not normalised over uint8 images, so there is no `log_prob`.

Measured: PSNR 20.25 dB of 297 test images of the 8x8 digits from their likeliest codes, perplexity 21.2 of 64; 1,500
steps of `python train.py configs/vae/dvae.py:digits`. On the shapes, mean squared error 0.0050 of images in
[-1, 1], 512 held out, after 1,500 steps of `python train.py configs/vae/dvae.py:shapes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, Frozen, GenerativeModel, ImageSpec, Loss, Phase, Roles
from jgen.errors import require, require_latents, require_positive
from jgen.nn.autoencoder import ConvDecoder, ConvEncoder, check_conv
from jgen.prob.likelihoods import mean_image, normal_log_prob, sum_image
from jgen.prob.pixels import to_float, to_uint8
from jgen.prob.relaxed import gumbel_softmax, kl_from_uniform

EPS = 0.1  # of y = (1 - 2 EPS) x + EPS


@dataclass(frozen=True)
class Config:
    """An autoencoder with relaxed discrete codes."""

    widths: tuple[int, ...] = (64, 128)
    """Channels at 1/2, 1/4, ... of the image's size; the last is the resolution of the codes."""
    blocks: int = 2
    """Residual blocks of each level."""
    num_codes: int = 256
    """Vectors in the codebook."""
    kl_weight: float = 1.0
    """Weight beta of the divergence from uniform codes, at the end of its warm-up."""
    kl_warmup: int = 1000
    """Steps over which that weight rises linearly from 0."""
    temperature: float = 1 / 16
    """Temperature tau of the relaxation at the end; at the start it is 1."""
    temperature_steps: int = 3000
    """Steps over which the temperature falls, along a cosine."""
    likelihood: Literal["laplace", "normal"] = "laplace"
    """Distribution of a value's logit: laplace, the paper's, or normal. The Laplace location m is a median, which
    ignores what is rare on a flat background."""
    scale: float = 0.0
    """Scale b of a value's likelihood, in units of logits; 0: learned, which tends to make a flat background ever more
    exact at the expense of the rest."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, logits of codes and losses stay float32."""


class Encoder(nn.Module):
    """x (B, H, W, C) in [-1, 1] to the logits of codes, float32 (B, h, w, num_codes)."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        h = ConvEncoder(c.widths, c.blocks, dtype, name="layers")(x)
        # Large compared with the noise: a decoder of random codes would learn to ignore them.
        init = nn.initializers.variance_scaling(100.0, "fan_in", "normal")
        return nn.Dense(c.num_codes, kernel_init=init, name="out")(h.astype(jnp.float32))


class Decoder(nn.Module):
    """z (B, h, w, num_codes), points of the simplex, to m and log b, float32 (B, H, W, C) each."""

    config: Config
    channels: int

    @nn.compact
    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        init = nn.initializers.normal(1.0)  # vectors of a codebook, of which a one-hot z takes one
        h = nn.Dense(c.widths[-1], dtype=dtype, kernel_init=init, name="codebook")(z)
        m, log_b = jnp.split(ConvDecoder(c.widths, c.blocks, 2 * self.channels, dtype, name="layers")(h), 2, axis=-1)
        return m, jnp.full_like(log_b, math.log(c.scale)) if c.scale else log_b


class Dvae(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`.

    `grid` is the height and width of an image's codes.
    """

    config: Config
    images: ImageSpec
    encoder: Encoder
    decoder: Decoder
    grid: tuple[int, int]


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A discrete VAE for the image shape and levels of `data`.

    Raises:
      UserError: sizes that the network cannot be built with, or options out of their range.
    """
    images = data.image
    check_config(config, images)
    factor = 2 ** len(config.widths)
    grid = (images.height // factor, images.width // factor)
    dvae = Dvae(config, images, Encoder(config), Decoder(config, images.channels), grid)
    return GenerativeModel(
        name="dvae",
        data=data,
        init=partial(init, dvae),
        phases=(Phase(trains=("encoder", "decoder"), loss=partial(loss, dvae)),),
        sample=partial(sample, dvae),
        validate=partial(validate, dvae),
        best=("mse", "min"),
        encode=partial(encode, dvae),
        decode=partial(decode, dvae),
        codes=(ImageSpec(*grid, 1, config.num_codes),),
        why_not={"log_prob": "its likelihood is a density: mse of `validate` tells how near reconstructions are"},
    )


def init(dvae: Dvae, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_e, key_d = rng.split_key(key, 2)
    x = to_float(batch["image"][:1], dvae.images.levels)
    z = jnp.zeros((1, *dvae.grid, dvae.config.num_codes))
    return {"encoder": dvae.encoder.init(key_e, x)["params"], "decoder": dvae.decoder.init(key_d, z)["params"]}, {}


def logits_of(dvae: Dvae, params: Roles, x: jax.Array) -> jax.Array:
    """l, float32 (B, h, w, num_codes), of uint8 images."""
    return dvae.encoder.apply({"params": params["encoder"]}, to_float(x, dvae.images.levels))


def log_likelihood(config: Config, x: jax.Array, m: jax.Array, log_b: jax.Array) -> jax.Array:
    """log f(y; m, b) of images in [-1, 1], elementwise, nats."""
    y = (1 - 2 * EPS) * (x + 1) / 2 + EPS
    logit = jnp.log(y) - jnp.log1p(-y)
    log_dy = -jnp.log(y) - jnp.log1p(-y)  # the logit's derivative
    if config.likelihood == "normal":
        return normal_log_prob(logit, m, 2 * log_b) + log_dy
    return -math.log(2.0) - log_b - jnp.abs(logit - m) * jnp.exp(-log_b) + log_dy


def mean_of(m: jax.Array) -> jax.Array:
    """x_hat, in [-1, 1] up to the likelihood's margin EPS."""
    return 2 * (jax.nn.sigmoid(m) - EPS) / (1 - 2 * EPS) - 1


def temperature_at(config: Config, step: jax.Array) -> jax.Array:
    """tau."""
    part = jnp.clip(step / config.temperature_steps, 0.0, 1.0)
    return config.temperature + (1 - config.temperature) * 0.5 * (1 + jnp.cos(jnp.pi * part))


def kl_weight_at(config: Config, step: jax.Array) -> jax.Array:
    """beta."""
    return config.kl_weight * jnp.clip(step / max(config.kl_warmup, 1), 0.0, 1.0)


def loss(dvae: Dvae, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    c, x = dvae.config, to_float(batch["image"], dvae.images.levels)
    logits = logits_of(dvae, params, batch["image"])
    tau, beta = temperature_at(c, ctx.step), kl_weight_at(c, ctx.step)
    m, log_b = dvae.decoder.apply({"params": params["decoder"]}, gumbel_softmax(keys, logits, tau))
    nll = -jnp.mean(log_likelihood(c, x, m, log_b))
    kl = jnp.mean(kl_from_uniform(logits))  # of a code
    total = nll + beta * kl * (dvae.grid[0] * dvae.grid[1] / dvae.images.size)
    mse = jnp.mean((mean_of(m) - x) ** 2)
    return total, ({"nll": nll, "kl": kl, "mse": mse, "temperature": tau, "kl_weight": beta}, {})


def validate(dvae: Dvae, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """For the likeliest codes, the mean squared error and -log f in nats per image; and the divergence per code."""
    x, logits = to_float(batch["image"], dvae.images.levels), logits_of(dvae, params, batch["image"])
    m, log_b = dvae.decoder.apply({"params": params["decoder"]}, one_hot(dvae, jnp.argmax(logits, axis=-1)))
    return {
        "mse": mean_image((mean_of(m) - x) ** 2),
        "nll": -sum_image(log_likelihood(dvae.config, x, m, log_b)),
        "kl": mean_image(kl_from_uniform(logits)),
    }


def one_hot(dvae: Dvae, codes: jax.Array) -> jax.Array:
    """float32 (B, h, w, num_codes)."""
    return jax.nn.one_hot(codes, dvae.config.num_codes)


def encode(dvae: Dvae, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    return jnp.argmax(logits_of(dvae, params, x), axis=-1).astype(jnp.int32)[..., None]


def decode(dvae: Dvae, params: Roles, ctx: Context, keys: jax.Array, codes: jax.Array, cond: Cond) -> jax.Array:
    require_latents(codes, (*dvae.grid, 1), "codes")
    m, _ = dvae.decoder.apply({"params": params["decoder"]}, one_hot(dvae, codes[..., 0].astype(jnp.int32)))
    return to_uint8(mean_of(m), dvae.images.levels)


def sample(dvae: Dvae, params: Roles, ctx: Context, keys: jax.Array, cond: Cond) -> jax.Array:
    codes = rng.randint(keys, 0, dvae.config.num_codes, dvae.grid)
    return decode(dvae, params, ctx, keys, codes[..., None], cond)


def check_config(config: Config, images: ImageSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    check_conv(images.height, images.width, config.widths, config.blocks)
    require_positive(num_codes=config.num_codes, temperature_steps=config.temperature_steps)
    require(0 <= config.kl_weight < math.inf, f"kl_weight is {config.kl_weight}: it must be zero or above, and finite")
    require(0 <= config.scale < math.inf, f"scale is {config.scale}: it must be zero or above, and finite")
    require(config.kl_warmup >= 0, f"kl_warmup is {config.kl_warmup}: it must be zero or above")
    in_range = 0 < config.temperature <= 1
    require(in_range, f"temperature is {config.temperature}: it must be above 0 and at most 1, where it starts")
