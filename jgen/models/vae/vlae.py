"""Variational lossy autoencoder (Chen et al. 2017, arXiv 1611.02731).

    decoder   p(x|z) = prod_i p(x_i | z, x_j for j before i in a window around i), each a softmax  (section 3.1)
    prior     eps ~ N(0, I),  z = f(eps):  log p(z) = log N(eps; 0, I) + log |det d eps / d z|,  f autoregressive, so
              that eps = f^-1(z) is one evaluation of a network                                    (section 3.2)
    encoder   q(z|x) = N(mu, diag(exp(logvar)))
    ELBO      log p(x) >= E_q[log p(x|z) + log p(z) - log q(z|x)], the negative of the expected length of a bits-back
              code of x                                                                            (section 2)
    IWAE      log p(x) >= E log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x)                   Burda et al. 2016
    loss      (- E_q[log p(x|z)] + max(log q(z|x) - log p(z), free_bits)) / (H W C)
    sampling  eps ~ N(0, temperature^2 I), z = f(eps) one dimension after another, then the pixels one after another,
              x_i ~ softmax(logits_i / pixel_temperature)

The latents need not encode what the decoder can predict from its window: with a small window, z keeps only global
structure; with one that covers the whole image, z would be unused. Equivalently, the flow prior on z with the Gaussian
q(z|x) is a prior N(0, I) on eps with an inverse autoregressive flow as posterior, q(eps|x) = q(z|x) |det d z / d eps|;
the bound is the same for every draw (section 3.2).

Latents: `encode` gives eps = f^-1(mu), float32 (B, latent), whose prior is N(0, I). Decoding is stochastic: `decode`,
and hence reconstruction and interpolation, samples from p(x|z) at `pixel_temperature`; a different key gives different
details.

Glossary: x image; z latent, eps the noise that the prior maps to z; mu, logvar of the encoder; f the flow
(`jgen.nn.autoregressive_flow`); for the window see `jgen.nn.local_pixelcnn`.

Differs from the paper: z is a vector on every data set; the decoder reads its window by one convolution, where the
paper stacks small ones; a class, if there is one, is given to encoder, prior and decoder; pixels with more than two
levels use a softmax; free bits apply to each image's single draw, not to the batch mean, so that the loss is a mean
over examples.

Measured: bound 1.726 bits/dim on the 8x8 digits in 17 levels (K = 1, given the class), a classifier assigns 98.1 % of
samples to the class they were conditioned on, FD 22.7 (22.6 for training images), 1,500 steps of
`python train.py configs/vae/vlae.py:digits`. A smaller window leaves more to z: with `--model.window 1` the KL
divergence of validation images is 5.0 nats instead of 3.0, the bound 1.753 bits/dim, FD 25.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import (
    Batch,
    Cond,
    Context,
    DataSpec,
    Frozen,
    GenerativeModel,
    Loss,
    Phase,
    Roles,
    select,
    select_first,
)
from jgen.errors import (
    defaults_of,
    require,
    require_labels,
    require_latents,
    require_positive,
    require_temperature,
)
from jgen.models.vae.bounds import Scoring, bound, check_options
from jgen.nn.autoencoder import check_conv
from jgen.nn.autoregressive_flow import AutoregressiveFlow
from jgen.nn.local_pixelcnn import LocalPixelCNN
from jgen.nn.vae import Decoder, Encoder
from jgen.prob.autoregressive import categorical_log_prob
from jgen.prob.likelihoods import normal_log_prob
from jgen.prob.pixels import bits_per_dim, to_float
from jgen.samplers.autoregressive import sample_raster

AT_ONCE = 128  # latents decoded at once, over all images, in the importance-weighted bound


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    temperature: float = 1.0
    """Standard deviation of the prior's noise: 1 samples from the model, below 1 favours typical latents."""
    pixel_temperature: float = 1.0
    """Divisor of the pixels' logits; below 1 favours likelier values. Must be positive. Also used by `decode`."""


@dataclass(frozen=True)
class Config:
    """A variational lossy autoencoder."""

    widths: tuple[int, ...] = (64, 128)
    """Channels of encoder and decoder at 1/2, 1/4, ... of the image's size."""
    blocks: int = 1
    """Residual blocks of each width."""
    hidden: tuple[int, ...] = ()
    """Units of dense layers between the convolutions and the latents; the decoder has them in reverse order."""
    latent: int = 32
    """Dimensions of z."""
    context: int = 32
    """Features per pixel that the decoder computes from z; the PixelCNN reads them together with its window."""
    window: int = 2
    """Receptive field: `window` rows above, `window` columns on each side, and `window` pixels to the left."""
    pixel_features: int = 64
    """Width of the layers that read the window; a multiple of the images' channels."""
    pixel_blocks: int = 3
    """Residual blocks of 1x1 convolutions after the window convolution."""
    dropout: float = 0.0
    """Dropout rate on the decoder features and in the `pixel_blocks`."""
    flow_layers: int = 2
    """Autoregressive layers of the prior; 0: a standard normal."""
    flow_units: int = 16
    """Units per dimension in each hidden layer of the prior's networks."""
    flow_depth: int = 2
    """Hidden layers in each of the prior's networks."""
    free_bits: float = 0.0
    """Nats of an image's KL divergence that are not penalised. The paper's 0.01 nats per data dimension correspond to
    0.01 H W C."""
    class_conditional: bool = False
    """Condition on the class label."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the encoder's and decoder's computation; parameters, latents, prior and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)
    scoring: Scoring = field(default_factory=Scoring)


class Vlae(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`. `decoder` maps z to features of
    every pixel, (B, H, W, context)."""

    config: Config
    data: DataSpec
    encoder: Encoder
    prior: AutoregressiveFlow
    decoder: Decoder
    pixelcnn: LocalPixelCNN

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("label",) if self.config.class_conditional else ()


class Terms(NamedTuple):
    """The terms of the bounds from one draw of the latents: log p(x|z) and log p(z) - log q(z|x), float32 (B,)."""

    log_p_x: jax.Array
    log_ratio: jax.Array

    @property
    def elbo(self) -> jax.Array:
        """The single-sample ELBO, (B,), which equals the log importance weight of the draw."""
        return self.log_p_x + self.log_ratio


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A VLAE for the image shape, levels and classes of `data`.

    Raises:
      UserError: sizes that the network cannot be built with, or options out of their range.
    """
    check_config(config, data)
    vlae = make_networks(config, data)
    return GenerativeModel(
        name="vlae",
        data=data,
        init=partial(init, vlae),
        phases=(Phase(trains=("encoder", "prior", "decoder", "pixelcnn"), loss=partial(loss, vlae)),),
        sample=partial(sample, vlae),
        sampling=config.sampling,
        conditions=vlae.conditions,
        validate=partial(validate, vlae),
        best=("elbo", "max"),
        log_prob=partial(log_prob, vlae),
        scoring=config.scoring,
        likelihood="lower_bound",
        encode=partial(encode, vlae),
        decode=partial(decode, vlae),
    )


def make_networks(config: Config, data: DataSpec) -> Vlae:
    c, spec, dtype = config, data.image, jnp.dtype(config.dtype)
    num_classes = data.num_classes if c.class_conditional else 0
    sizes: dict[str, Any] = {"network": "conv", "widths": c.widths, "blocks": c.blocks, "hidden": c.hidden}
    sizes |= {"num_classes": num_classes, "dtype": dtype}
    context = replace(spec, channels=c.context)
    return Vlae(
        config,
        data,
        encoder=Encoder(latent=c.latent, **sizes),
        prior=AutoregressiveFlow(c.latent, c.flow_units, c.flow_depth, c.flow_layers, num_classes),
        decoder=Decoder(images=context, scale="none", **sizes),
        pixelcnn=LocalPixelCNN(
            spec.levels, spec.channels, c.pixel_features, c.pixel_blocks, c.window, c.dropout, dtype
        ),
    )


def init(vlae: Vlae, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_e, key_f, key_d, key_p = jax.random.split(key, 4)
    label, x = select_first(batch, vlae.conditions).get("label"), batch["image"][:1]
    z = jnp.zeros((1, vlae.config.latent))
    context, decoder = vlae.decoder.init_with_output(key_d, z, label)
    params = {
        "encoder": vlae.encoder.init(key_e, to_float(x, vlae.data.image.levels), label),
        "prior": vlae.prior.init(key_f, z, label),
        "decoder": decoder,
        "pixelcnn": vlae.pixelcnn.init(key_p, x, context),
    }
    return {role: variables.get("params", {}) for role, variables in params.items()}, {}


def posterior(vlae: Vlae, params: Roles, x: jax.Array, cond: Cond) -> tuple[jax.Array, jax.Array]:
    """mu and logvar of q(z|x), float32 (B, latent), of uint8 images."""
    x = to_float(x, vlae.data.image.levels)
    return vlae.encoder.apply({"params": params["encoder"]}, x, cond.get("label"))


def to_eps(vlae: Vlae, params: Roles, z: jax.Array, cond: Cond) -> tuple[jax.Array, jax.Array]:
    """eps = f^-1(z), (B, latent), and log |det d eps / d z|, (B,). `AutoregressiveFlow` maps z to eps."""
    return vlae.prior.apply({"params": params["prior"]}, z, cond.get("label"))


def to_z(vlae: Vlae, params: Roles, eps: jax.Array, cond: Cond) -> jax.Array:
    """z = f(eps), (B, latent): the inverse of the module, one dimension at a time."""
    return vlae.prior.apply({"params": params["prior"]}, eps, cond.get("label"), method="inverse")


def decoder_features(vlae: Vlae, params: Roles, z: jax.Array, cond: Cond) -> jax.Array:
    """Decoder features of z, float32 (B, H, W, context)."""
    return vlae.decoder.apply({"params": params["decoder"]}, z, cond.get("label"))


def decoded_log_prob(
    vlae: Vlae, params: Roles, z: jax.Array, x: jax.Array, cond: Cond, key_drop: jax.Array | None = None
) -> jax.Array:
    """log p(x|z), float32 (B,), of uint8 images."""
    context = decoder_features(vlae, params, z, cond)
    logits = vlae.pixelcnn.apply({"params": params["pixelcnn"]}, x, context, key_drop)
    return categorical_log_prob(logits, x)


def bound_terms(
    vlae: Vlae,
    params: Roles,
    keys: jax.Array,
    q: tuple[jax.Array, jax.Array],
    x: jax.Array,
    cond: Cond,
    key_drop: jax.Array | None = None,
) -> Terms:
    """The terms of the bounds from one draw of z with `keys` from q, the `posterior`."""
    mu, logvar = q
    noise = rng.normal(keys, mu.shape[1:])
    z = mu + jnp.exp(0.5 * logvar) * noise
    eps, log_det = to_eps(vlae, params, z, cond)
    # The density of z under q is that of the noise, divided by the standard deviation.
    log_ratio = normal_log_prob(eps, 0.0, 0.0) - normal_log_prob(noise, 0.0, 0.0) + 0.5 * logvar
    log_p_x = decoded_log_prob(vlae, params, z, x, cond, key_drop)
    return Terms(log_p_x, jnp.sum(log_ratio, axis=-1) + log_det)


def scores(vlae: Vlae, terms: Terms) -> dict[str, jax.Array]:
    """ELBO, reconstruction and KL divergence of every image from one draw, (B,), nats; the bound in bits/dim."""
    values = {"elbo": terms.elbo, "reconstruction": terms.log_p_x, "kl": -terms.log_ratio}
    return values | {"bits_per_dim": bits_per_dim(terms.elbo, vlae.data.image.size)}


def loss(vlae: Vlae, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    key_z, key_drop = rng.split(keys, 2)
    x, cond = batch["image"], select(batch, vlae.conditions)
    terms = bound_terms(vlae, params, key_z, posterior(vlae, params, x, cond), x, cond, key_drop)
    losses = jnp.maximum(-terms.log_ratio, vlae.config.free_bits) - terms.log_p_x
    metrics = {name: jnp.mean(value) for name, value in scores(vlae, terms).items()}
    return jnp.mean(losses) / vlae.data.image.size, (metrics, {})


def validate(vlae: Vlae, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    x, cond = batch["image"], select(batch, vlae.conditions)
    return scores(vlae, bound_terms(vlae, params, keys, posterior(vlae, params, x, cond), x, cond))


def log_prob(
    vlae: Vlae, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    q = posterior(vlae, params, x, cond)

    def elbo() -> jax.Array:
        return bound_terms(vlae, params, keys, q, x, cond).elbo

    @jax.vmap
    def log_weights(number: jax.Array) -> jax.Array:
        return bound_terms(vlae, params, rng.fold_in(keys, number), q, x, cond).elbo

    return bound(vlae.config.scoring, options, elbo, log_weights, AT_ONCE // x.shape[0])


def draw_pixels(
    vlae: Vlae, params: Roles, keys: jax.Array, eps: jax.Array, cond: Cond, temperature: float
) -> jax.Array:
    """uint8 images from p(x|z), z = f(eps), their logits divided by the temperature."""
    require_positive(pixel_temperature=temperature)
    spec, context = vlae.data.image, decoder_features(vlae, params, to_z(vlae, params, eps, cond), cond)
    drawn = sample_raster(vlae.pixelcnn, params["pixelcnn"], keys, context, spec.shape, spec.levels, temperature)
    return drawn.astype(jnp.uint8)


def sample(vlae: Vlae, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    o = replace(vlae.config.sampling, **options)
    require_temperature(o.temperature)
    key_eps, key_x = rng.split(keys, 2)
    eps = o.temperature * rng.normal(key_eps, (vlae.config.latent,))
    return draw_pixels(vlae, params, key_x, eps, cond, o.pixel_temperature)


def encode(vlae: Vlae, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    """eps of the posterior's mean, float32 (B, latent)."""
    return to_eps(vlae, params, posterior(vlae, params, x, cond)[0], cond)[0]


def decode(vlae: Vlae, params: Roles, ctx: Context, keys: jax.Array, eps: jax.Array, cond: Cond) -> jax.Array:
    """A draw from p(x|z) at the default `pixel_temperature`, for each eps (B, latent)."""
    require_latents(eps, (vlae.config.latent,))
    return draw_pixels(vlae, params, keys, eps, cond, vlae.config.sampling.pixel_temperature)


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    c, channels = config, data.image.channels
    check_conv(data.image.height, data.image.width, c.widths, c.blocks)
    require(all(h > 0 for h in c.hidden), f"hidden is {c.hidden}: every width must be above zero")
    require_positive(latent=c.latent, context=c.context, window=c.window, pixel_features=c.pixel_features)
    require(
        c.pixel_features % channels == 0,
        f"pixel_features is {c.pixel_features}: it must be divisible by the images' {channels} channels",
    )
    require(0 <= c.dropout < 1, f"dropout is {c.dropout}: it must be at least 0 and below 1")
    require_positive(flow_units=c.flow_units, flow_depth=c.flow_depth)
    for name in ("pixel_blocks", "flow_layers", "free_bits"):
        value = getattr(c, name)
        require(0 <= value < math.inf, f"{name} is {value}: it must be zero or above, and finite")
    check_options(config)
    with defaults_of("sampling"):
        require_positive(pixel_temperature=c.sampling.pixel_temperature)
    require_labels(data.num_classes, "class_conditional", c.class_conditional, False)
