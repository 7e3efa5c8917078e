"""Vector-quantised variational autoencoder (van den Oord, Vinyals & Kavukcuoglu 2017, arXiv 1711.00937).

    quantise      k = argmin_j || z_e(x) - e_j ||^2,  z_q = e_k                                 (equations 1, 2)
    straight through  the decoder reads z_e + sg(z_q - z_e): its gradient reaches z_e as if z_q were z_e
    loss          mean (x_hat - x)^2 + commitment mean (z_e - sg(z_q))^2                        (equation 3)
    codebook      N_j <- g N_j + (1 - g) n_j,  m_j <- g m_j + (1 - g) s_j,  e_j = m_j / N_j     (appendix A.1)
                  n_j the part of all encoded vectors that took code j, s_j their sum over the number of all
    perplexity    exp(- sum_j p_j log p_j), p_j = N_j / sum N: the number of codes in use, were all used alike; a code
                  that was revived counts for nothing until vectors take it

`encode` gives the codes, int32 (B, h, w, 1), `decode` the images of codes. Alone, a VQ-VAE has no good distribution
over codes: `sample` draws every code by itself, alike or by how often it is used, and its images show what the codebook
knows, not what images are like. A prior over the codes is a second run.

Dead codes: a code whose average use falls below `revival` / num_codes is put where an encoded vector is. Everything
that `extra` holds is a mean over examples, so that devices and accumulation steps need not talk: each vector is offered
to one code at random, with a random weight so unequal (its smallest uniform decides) that a code's weighted mean lies
next to one vector; the next step moves its dead codes there.

Glossary: z_e encoder's vectors; z_q their codes' vectors; sg stop-gradient; g decay.

Differs from the paper: the codebook starts at encoded vectors; dead codes are revived; the residual blocks use SiLU;
halving and doubling go through channels (`jgen.nn.autoencoder`); the errors are not divided by the data's variance, as
the authors' code does, so that on images in [-1, 1] commitment weighs about four times as much; images are encoded by
averaged weights, whereas the codebook follows the trained ones: let the learning rate fall, and the two meet.

Measured: on MNIST's test images perplexity 76.4 of 128 codes, all of them used, and mean squared error 0.0020 of images
in [0, 1]; 15,000 steps of `python train.py configs/vae/vq_vae.py:mnist`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, GenerativeModel, ImageSpec, Phase, Roles
from jgen.errors import require, require_latents, require_positive
from jgen.nn.autoencoder import ConvDecoder, ConvEncoder, check_conv
from jgen.prob.likelihoods import mean_image
from jgen.prob.pixels import to_float, to_uint8

Book = dict[str, jax.Array]  # the codebook's averages: see `start_book`


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    codes: Literal["used", "uniform"] = "used"
    """Every code by itself: as often as training used it, or all alike."""


@dataclass(frozen=True)
class Config:
    """A vector-quantised autoencoder."""

    widths: tuple[int, ...] = (64, 128)
    """Channels at 1/2, 1/4, ... of the image's size; codes stand at the last."""
    blocks: int = 2
    """Residual blocks a level."""
    num_codes: int = 256
    """Vectors in the codebook."""
    code_dim: int = 32
    """Dimensions of a vector."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    decay: float = 0.99
    """Decay of the codebook's averages, a step."""
    revival: float = 0.1
    """Codes used less than this part of an even share are moved to an encoded vector; 0: never."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's arithmetic; parameters, codebook and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


class Encoder(nn.Module):
    """x (B, H, W, C) in [-1, 1] to z_e, float32 (B, h, w, code_dim)."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        h = ConvEncoder(c.widths, c.blocks, dtype, name="layers")(x)
        return nn.Dense(c.code_dim, dtype=dtype, name="out")(h).astype(jnp.float32)


class Decoder(nn.Module):
    """z_q (B, h, w, code_dim) to x_hat, float32 (B, H, W, C)."""

    config: Config
    channels: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        h = nn.Dense(c.widths[-1], dtype=dtype, name="in")(z)
        return ConvDecoder(c.widths, c.blocks, self.channels, dtype, name="layers")(h)


def start_book(vectors: jax.Array) -> Book:
    """A codebook of these vectors (K, D), as averages of even use.

    count (K,), sum (K, D): N and m; use (K,): N without what revival adds, to report and to sample from;
    offer_weight (K,), offer_sum (K, D): weights and weighted sum of what the last step offers to each code.
    """
    even = 1.0 / vectors.shape[0]
    zeros = jnp.zeros(vectors.shape[0])
    return {
        "count": jnp.full(vectors.shape[0], even, jnp.float32),
        "sum": vectors * even,
        "use": jnp.full(vectors.shape[0], even, jnp.float32),
        "offer_weight": zeros,
        "offer_sum": jnp.zeros_like(vectors),
    }


def centres(book: Book) -> jax.Array:
    """e (K, D) = m / N."""
    return book["sum"] / jnp.maximum(book["count"], 1e-30)[:, None]


def revive(book: Book, threshold: float) -> tuple[Book, jax.Array]:
    """The codebook with its dead codes moved to their offers, and which were, bool (K,). It reads the book alone."""
    even = 1.0 / book["count"].shape[0]
    dead = (book["count"] < threshold * even) & (book["offer_weight"] > 0)
    offer = book["offer_sum"] / jnp.maximum(book["offer_weight"], 1e-30)[:, None]
    count = jnp.where(dead, even, book["count"])
    return {**book, "count": count, "sum": jnp.where(dead[:, None], offer * even, book["sum"])}, dead


def usage(book: Book, threshold: float) -> jax.Array:
    """The part of the codes that are used, and not less than `revive` lets them: a scalar."""
    use = book["use"]
    return jnp.mean(((use >= threshold / use.shape[0]) & (use > 0)).astype(jnp.float32))


def nearest(vectors: jax.Array, z_e: jax.Array) -> jax.Array:
    """Codes int32 (...) of z_e (..., D): the nearest of the vectors (K, D), the first of equals."""
    # ||z||^2 is the same for every code and left out. Full float32: near ties must fall alike everywhere.
    flat = z_e.reshape(-1, z_e.shape[-1])
    products = jnp.matmul(flat, vectors.T, precision=jax.lax.Precision.HIGHEST)
    distance = jnp.sum(vectors**2, axis=-1)[None, :] - 2.0 * products
    return jnp.argmin(distance, axis=-1).astype(jnp.int32).reshape(z_e.shape[:-1])


def offers(keys: jax.Array, z_e: jax.Array, num_codes: int) -> tuple[jax.Array, jax.Array]:
    """Weights (K,) and weighted sums (K, D) of the vectors z_e (B, h, w, D), each offered to one code at random.

    Weights are u^-4 with u uniform: the largest of n such is about three quarters of their sum, whatever n is.
    """
    key_slot, key_weight = rng.split(keys, 2)
    shape = z_e.shape[1:-1]
    slot = rng.randint(key_slot, 0, num_codes, shape)
    weight = jnp.maximum(rng.uniform(key_weight, shape), 1e-6) ** -4
    spread = (jax.nn.one_hot(slot, num_codes) * weight[..., None]).reshape(-1, num_codes)
    total = jnp.matmul(spread.T, z_e.reshape(-1, z_e.shape[-1]), precision=jax.lax.Precision.HIGHEST)
    return jnp.mean(spread, axis=0), total / spread.shape[0]


def update(book: Book, keys: jax.Array, z_e: jax.Array, codes: jax.Array, decay: float) -> Book:
    """The codebook's averages after these vectors (B, h, w, D) took these codes (B, h, w): means over the vectors."""
    num = book["count"].shape[0]
    flat = z_e.reshape(-1, z_e.shape[-1])
    one_hot = jax.nn.one_hot(codes.reshape(-1), num)
    count = jnp.mean(one_hot, axis=0)
    total = jnp.matmul(one_hot.T, flat, precision=jax.lax.Precision.HIGHEST)  # a code is a quotient: rounded alike
    means = {"count": count, "sum": total / flat.shape[0], "use": count}
    new = {name: decay * book[name] + (1 - decay) * mean for name, mean in means.items()}
    weight, offered = offers(keys, z_e, num)
    return {**new, "offer_weight": weight, "offer_sum": offered}


class VqVae(NamedTuple):
    """What the functions of a VQ-VAE are bound to; `grid` is the height and width of an image's codes."""

    config: Config
    images: ImageSpec
    encoder: Encoder
    decoder: Decoder
    grid: tuple[int, int]


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A VQ-VAE over images of that shape and number of levels.

    Raises:
      UserError: sizes that the network cannot be built with, or options out of their range.
    """
    images = data.image
    check_config(config, images)
    factor = 2 ** len(config.widths)
    grid = (images.height // factor, images.width // factor)
    vq = VqVae(config, images, Encoder(config), Decoder(config, images.channels), grid)
    return GenerativeModel(
        name="vq_vae",
        data=data,
        init=partial(init, vq),
        phases=(Phase(trains=("encoder", "decoder"), loss=partial(loss, vq)),),
        sample=partial(sample, vq),
        sampling=config.sampling,
        validate=partial(validate, vq),
        best=("mse", "min"),
        encode=partial(encode, vq),
        decode=partial(decode, vq),
        codes=(ImageSpec(*grid, 1, config.num_codes),),
    )


def init(vq: VqVae, key: jax.Array, batch: Batch, frozen: Any) -> tuple[Roles, Roles]:
    c = vq.config
    key_e, key_d, key_book = jax.random.split(key, 3)
    x = to_float(batch["image"], vq.images.levels)
    enc = vq.encoder.init(key_e, x[:1])["params"]
    dec = vq.decoder.init(key_d, jnp.zeros((1, *vq.grid, c.code_dim)))["params"]
    z_e = vq.encoder.apply({"params": enc}, x).reshape(-1, c.code_dim)
    chosen = jax.random.choice(key_book, z_e.shape[0], (c.num_codes,), replace=z_e.shape[0] < c.num_codes)
    return {"encoder": enc, "decoder": dec}, {"codebook": start_book(z_e[chosen])}


def encoded(vq: VqVae, params: Roles, x: jax.Array) -> jax.Array:
    """z_e, float32 (B, h, w, code_dim), of uint8 images."""
    return vq.encoder.apply({"params": params["encoder"]}, to_float(x, vq.images.levels))


def decoded(vq: VqVae, params: Roles, z: jax.Array) -> jax.Array:
    """x_hat, float32 (B, H, W, C)."""
    return vq.decoder.apply({"params": params["decoder"]}, z)


def loss(vq: VqVae, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> tuple[jax.Array, tuple[dict, Roles]]:
    c, before = vq.config, ctx.extra["codebook"]
    book, revived = revive(before, c.revival)
    z_e = encoded(vq, params, batch["image"])
    codes = nearest(centres(book), z_e)
    z_q = centres(book)[codes]
    x_hat = decoded(vq, params, straight_through(z_e, z_q))
    error = jnp.mean((x_hat - to_float(batch["image"], vq.images.levels)) ** 2)
    commitment = jnp.mean((z_e - z_q) ** 2)
    new = update(book, keys, jax.lax.stop_gradient(z_e), codes, c.decay)
    p = before["use"] / jnp.sum(before["use"])
    metrics = {
        "mse": error,
        "commitment": commitment,
        "perplexity": jnp.exp(jnp.sum(jax.scipy.special.entr(p))),
        "usage": usage(before, c.revival),
        "revived": jnp.sum(revived.astype(jnp.float32)),
    }
    return error + c.commitment * commitment, (metrics, {"codebook": new})


def validate(vq: VqVae, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    e, z_e = centres(ctx.extra["codebook"]), encoded(vq, params, batch["image"])
    z_q = e[nearest(e, z_e)]
    error = (decoded(vq, params, z_q) - to_float(batch["image"], vq.images.levels)) ** 2
    return {"mse": mean_image(error), "commitment": mean_image((z_e - z_q) ** 2)}


def encode(vq: VqVae, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    return nearest(centres(ctx.extra["codebook"]), encoded(vq, params, x))[..., None]


def decode(vq: VqVae, params: Roles, ctx: Context, keys: jax.Array, codes: jax.Array, cond: Cond) -> jax.Array:
    require_latents(codes, (*vq.grid, 1), "codes")
    z_q = centres(ctx.extra["codebook"])[codes[..., 0].astype(jnp.int32)]
    return to_uint8(decoded(vq, params, z_q), vq.images.levels)


def sample(vq: VqVae, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    o = replace(vq.config.sampling, **options)
    if o.codes == "uniform":
        codes = rng.randint(keys, 0, vq.config.num_codes, vq.grid)
    else:
        logits = jnp.log(jnp.maximum(ctx.extra["codebook"]["use"], 1e-30))
        codes = jax.vmap(lambda key: jax.random.categorical(key, logits, shape=vq.grid))(keys)
    return decode(vq, params, ctx, keys, codes[..., None], cond)


def straight_through(z_e: jax.Array, z_q: jax.Array) -> jax.Array:
    """z_q forwards; backwards its gradient goes to z_e whole, and z_q gets none."""
    return z_e + jax.lax.stop_gradient(z_q - z_e)


def check_config(config: Config, images: ImageSpec) -> None:
    """Raises `UserError` for a configuration that no VQ-VAE can be made of."""
    check_conv(images.height, images.width, config.widths, config.blocks)
    require_positive(num_codes=config.num_codes, code_dim=config.code_dim)
    require(0 <= config.decay < 1, f"decay is {config.decay}: it must be at least 0 and below 1")
    require(0 <= config.revival < 1, f"revival is {config.revival}: it must be at least 0 and below 1")
    fits = 0 <= config.commitment < math.inf
    require(fits, f"commitment is {config.commitment}: it must be zero or above, and finite")
