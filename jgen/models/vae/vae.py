"""Variational autoencoders (Kingma & Welling 2014, arXiv 1312.6114; Rezende, Mohamed & Wierstra 2014, 1401.4082).

    model      z ~ N(0, I),  x ~ p(x|z);   encoder  q(z|x) = N(mu, diag(exp(logvar)))
    sampling   z = mu + exp(logvar / 2) eps,  eps ~ N(0, I)                        reparameterisation            (1)
    ELBO       log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || N(0, I))                 KL in closed form             (2)
    IWAE       log p(x) >= E log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x)            Burda et al. 2016, 1509.00519 (3)
    loss       - E_q[log p(x|z)] + weight sum_j max(KL_j, free_bits),
               weight = beta min(1, (step + 1) / kl_warmup_steps)                  Higgins et al. 2017; Sonderby
                                                                                   et al. 2016; Kingma et al. 2016 (4)

Decoders: Bernoulli for binary images; a Gaussian or a logistic with the decoder's mean, cut into the image's levels
(`jgen.prob.likelihoods`), with a scale that is fixed, learned as one number, or answered for every pixel. All three are
probabilities of uint8 images: `log_prob` is the bound (2), and with `samples=K` the bound (3), in nats.

Images: `sample` draws from the model, the decoder's noise included, since that is the distribution that `log_prob`
scores; `mean=True` shows the decoder's mean in place of a draw, which looks smoother. `decode` gives means.

Glossary: x image; z latent; mu, logvar of the encoder; eps standard normal; kl_j divergence of latent dimension j.

Differs from the papers: free bits hold for every image, not for a batch's mean, so that the loss is a mean over
examples; the Gaussian and the logistic are discretised in training too, so that a learned scale cannot run to zero; the
class, where there is one, joins the encoder's features and z.

Measured: bound 89.41 nats (K = 1), 84.36 nats (K = 5000, 500 images) on dynamically binarised MNIST, 60,000 steps of
`python train.py configs/vae/vae.py:mnist_binary`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Context, GenerativeModel, ImageSpec, Phase, Roles
from jgen.errors import (
    defaults_of,
    require,
    require_choice,
    require_labels,
    require_latents,
    require_positive,
    require_temperature,
)
from jgen.nn.autoencoder import ConvDecoder, ConvEncoder, DenseLayers, check_conv
from jgen.prob.importance import importance_weighted_bound
from jgen.prob.likelihoods import (
    bernoulli_log_prob,
    discretised_logistic_log_prob,
    discretised_normal_log_prob,
    flatten,
    normal_kl,
    normal_log_prob,
    sum_image,
)
from jgen.prob.pixels import to_float, to_uint8

AT_ONCE = 1024  # images decoded at once in the importance-weighted bound
MIN_LOG_SCALE = -7.0  # of a learned scale on [-1, 1]: an eighth of the width of one of 256 levels


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    temperature: float = 1.0
    """Standard deviation of the latents drawn: below 1 trades diversity for typical images."""
    mean: bool = False
    """Show the decoder's mean rather than draw pixels from it: smoother, but no draw from the model."""


@dataclass(frozen=True)
class Scoring:
    """Options of log_prob."""

    samples: int = 1
    """Importance samples K: 1 is the ELBO, more a tighter bound."""


@dataclass(frozen=True)
class Config:
    """A variational autoencoder."""

    network: Literal["dense", "conv"] = "conv"
    """Dense layers, or convolutions with residual blocks."""
    widths: tuple[int, ...] = (64, 128)
    """Units of each dense layer (none: a linear model), or channels at 1/2, 1/4, ... of the image's size."""
    blocks: int = 1
    """Residual blocks after each width."""
    hidden: tuple[int, ...] = ()
    """Units of dense layers between the convolutions and the latents; the decoder has them the other way round."""
    latent: int = 32
    """Dimensions of z."""
    decoder: Literal["bernoulli", "gaussian", "logistic"] = "logistic"
    """Distribution of a pixel: Bernoulli (2 levels only), discretised Gaussian or discretised logistic."""
    scale: Literal["fixed", "shared", "pixel"] = "pixel"
    """Scale of the Gaussian or logistic: fixed, one learned number, or the network's answer for every pixel."""
    initial_scale: float = 0.1
    """The fixed scale, or where a learned one starts; the image's range is [-1, 1]."""
    objective: Literal["elbo", "iwae"] = "elbo"
    """The bound that is trained."""
    num_samples: int = 1
    """Latents drawn for an image in training, K."""
    beta: float = 1.0
    """Weight of the KL divergence in the loss."""
    free_bits: float = 0.0
    """Nats of KL divergence a latent dimension that cost nothing (elbo only)."""
    kl_warmup_steps: int = 0
    """Steps over which the weight of the KL divergence rises from zero to beta."""
    class_conditional: bool = False
    """Condition on the label."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's arithmetic; parameters, latents and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)
    scoring: Scoring = field(default_factory=Scoring)


class Encoder(nn.Module):
    """(x (B, H, W, C) in [-1, 1], label (B,) or None) to mu and logvar, float32 (B, latent)."""

    config: Config
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        if c.network == "conv":
            h = ConvEncoder(c.widths, c.blocks, dtype, name="layers")(x)
            h = with_class(h.reshape(h.shape[0], -1), label, self.num_classes)
            h = DenseLayers(c.hidden, 0, dtype, name="hidden")(h)
        else:
            h = with_class(x.reshape(x.shape[0], -1), label, self.num_classes)
            h = DenseLayers(c.widths, c.blocks, dtype, name="layers")(h)
        out = nn.Dense(2 * c.latent, dtype=jnp.float32, name="out")(h)
        mu, logvar = jnp.split(out, 2, axis=-1)
        return mu, logvar


class Decoder(nn.Module):
    """(z (B, latent), label (B,) or None) to float32 (B, H, W, C or 2 C): what `pixel_parameters` reads."""

    config: Config
    images: ImageSpec

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None) -> jax.Array:
        c, spec, dtype = self.config, self.images, jnp.dtype(self.config.dtype)
        has_scale = c.decoder != "bernoulli" and c.scale == "pixel"
        channels = spec.channels * (2 if has_scale else 1)
        h = with_class(z, label, spec.num_classes)
        if c.network == "conv":
            factor = 2 ** len(c.widths)
            height, width = spec.height // factor, spec.width // factor
            h = DenseLayers(c.hidden[::-1], 0, dtype, name="hidden")(h)
            h = nn.Dense(height * width * c.widths[-1], dtype=dtype, name="in")(h)
            h = h.reshape(h.shape[0], height, width, c.widths[-1])
            out = ConvDecoder(c.widths, c.blocks, channels, dtype, name="layers")(h)
        else:
            h = DenseLayers(c.widths[::-1], c.blocks, dtype, name="layers")(h)
            h = nn.Dense(spec.height * spec.width * channels, dtype=jnp.float32, name="out")(h)
            out = h.reshape(h.shape[0], spec.height, spec.width, channels)
        if c.decoder != "bernoulli" and c.scale == "shared":
            log_scale = self.param("log_scale", nn.initializers.zeros, ())
            out = jnp.concatenate([out, jnp.full_like(out, 1.0) * log_scale], axis=-1)
        return out


def with_class(h: jax.Array, label: jax.Array | None, num_classes: int) -> jax.Array:
    """(B, n) and the class as one-hot, (B, n + num_classes); h itself without a class."""
    return h if label is None else jnp.concatenate([h, jax.nn.one_hot(label, num_classes, dtype=h.dtype)], axis=-1)


class PixelDistribution(NamedTuple):
    """A decoder's distribution of pixels: mean and scale (B, H, W, C) on [-1, 1]; of a Bernoulli the logits."""

    decoder: str
    levels: int
    mean: jax.Array
    scale: Any

    def flat(self) -> tuple[jax.Array, Any]:
        """Mean and scale, (B, H W C), of a scale for all pixels the scale itself."""
        for_all = getattr(self.scale, "ndim", 0) == 0
        return flatten(self.mean), self.scale if for_all else flatten(self.scale)

    def log_prob(self, images: jax.Array) -> jax.Array:
        """Nats of uint8 images, float32 (B,)."""
        x, mean, scale = flatten(images), *self.flat()
        if self.decoder == "bernoulli":
            return sum_image(bernoulli_log_prob(x.astype(jnp.float32), mean))
        of_level = discretised_normal_log_prob if self.decoder == "gaussian" else discretised_logistic_log_prob
        return sum_image(of_level(x, mean, scale, self.levels))

    def draw(self, keys: jax.Array) -> jax.Array:
        """uint8 images drawn pixel by pixel. The nearest level is the bin that `log_prob` speaks of."""
        mean, scale = self.flat()
        if self.decoder == "gaussian":
            drawn = to_uint8(mean + scale * rng.normal(keys, mean.shape[1:]), self.levels)
        else:
            noise = jax.vmap(lambda key: jax.random.logistic(key, mean.shape[1:]))(keys)
            binary = self.decoder == "bernoulli"
            drawn = (mean + noise > 0).astype(jnp.uint8) if binary else to_uint8(mean + scale * noise, self.levels)
        return drawn.reshape(self.mean.shape)

    def show(self) -> jax.Array:
        """uint8 images of the mean, to the nearest level."""
        x = 2.0 * jax.nn.sigmoid(self.mean) - 1.0 if self.decoder == "bernoulli" else self.mean
        return to_uint8(x, self.levels)


def make(config: Config, images: ImageSpec, axis_name: str | None = None) -> GenerativeModel:
    """A VAE over images of that shape, number of levels and classes.

    Args:
      axis_name: the device axis to synchronise batch statistics over; a VAE has none and ignores it.
    Raises:
      UserError: sizes that the network cannot be built with, or options out of their range.
    """
    check_config(config, images)
    encoder, decoder = Encoder(config, images.num_classes), Decoder(config, images)
    latent = config.latent

    def init(key: jax.Array, batch: Batch) -> tuple[Roles, Roles]:
        key_e, key_d = jax.random.split(key)
        label = batch["label"][:1] if config.class_conditional else None
        x = to_float(batch["image"][:1], images.levels)
        enc = encoder.init(key_e, x, label)["params"]
        return {"encoder": enc, "decoder": decoder.init(key_d, jnp.zeros((1, latent)), label)["params"]}, {}

    def posterior(params: Roles, x: jax.Array, label: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return encoder.apply({"params": params["encoder"]}, to_float(x, images.levels), label)

    def pixels(params: Roles, z: jax.Array, label: jax.Array | None) -> PixelDistribution:
        out = decoder.apply({"params": params["decoder"]}, z, label)
        scale: Any = config.initial_scale
        if config.decoder != "bernoulli" and config.scale != "fixed":
            out, log_scale = jnp.split(out, 2, axis=-1)
            scale = jnp.exp(jnp.maximum(log_scale + math.log(config.initial_scale), MIN_LOG_SCALE))
        return PixelDistribution(config.decoder, images.levels, out, scale)

    def decoded_log_prob(
        params: Roles, mu: jax.Array, logvar: jax.Array, eps: jax.Array, x: jax.Array, label: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """log p(x|z) and log p(z) - log q(z|x), float32 (K, B), at the latents of the noise eps (K, B, latent)."""
        num = eps.shape[0]
        z = mu[None, :, :] + jnp.exp(0.5 * logvar)[None, :, :] * eps  # equation 1
        repeated = lambda a: jnp.broadcast_to(a[None], (num, *a.shape)).reshape(-1, *a.shape[1:])
        labels = None if label is None else repeated(label)
        found = pixels(params, z.reshape(-1, latent), labels).log_prob(repeated(x)).reshape(num, -1)
        # The density of z under q is that of eps, divided by the standard deviation.
        log_ratio = normal_log_prob(z, 0.0, 0.0) - normal_log_prob(eps, 0.0, 0.0) + 0.5 * logvar[None, :, :]
        return found, jnp.sum(log_ratio, axis=-1)

    def draw_eps(keys: jax.Array, numbers: jax.Array) -> jax.Array:
        """Noise (K, B, latent) of the samples with these numbers, int32 (K,)."""
        return jax.vmap(lambda k: rng.normal(rng.fold_in(keys, k), (latent,)))(numbers)

    def parts(params: Roles, keys: jax.Array, x: jax.Array, label: jax.Array | None, num: int) -> dict[str, jax.Array]:
        """The terms of both bounds for every image, from `num` latents: (B,), kl by dimension, ratios by latent."""
        mu, logvar = posterior(params, x, label)
        eps = draw_eps(keys, jnp.arange(num))
        log_p_x, log_ratio = decoded_log_prob(params, mu, logvar, eps, x, label)
        kl = normal_kl(mu, logvar, 0.0, 0.0)
        return {"log_p_x": log_p_x, "log_ratio": log_ratio, "kl": kl}

    def label_of(batch: Batch) -> jax.Array | None:
        return batch["label"] if config.class_conditional else None

    def loss(params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> tuple[jax.Array, tuple[dict, Roles]]:
        found = parts(params, keys, batch["image"], label_of(batch), config.num_samples)
        weight = config.beta * jnp.ones(())
        if config.kl_warmup_steps:
            weight = weight * jnp.minimum(1.0, (ctx.step + 1) / config.kl_warmup_steps)
        reconstruction, kl = jnp.mean(found["log_p_x"], axis=0), jnp.sum(found["kl"], axis=-1)
        if config.objective == "elbo":  # equation 4
            paid = jnp.sum(jnp.maximum(found["kl"], config.free_bits), axis=-1)
            losses = weight * paid - reconstruction
        else:  # equation 3
            log_w = found["log_p_x"] + weight * found["log_ratio"]
            losses = math.log(config.num_samples) - jax.nn.logsumexp(log_w, axis=0)
        metrics = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        return jnp.mean(losses), ({name: jnp.mean(value) for name, value in metrics.items()}, {})

    def validate(params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        found = parts(params, keys, batch["image"], label_of(batch), config.num_samples)
        reconstruction, kl = jnp.mean(found["log_p_x"], axis=0), jnp.sum(found["kl"], axis=-1)
        scores = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        if config.num_samples > 1:
            log_w = found["log_p_x"] + found["log_ratio"]
            scores["iwae"] = jax.nn.logsumexp(log_w, axis=0) - math.log(config.num_samples)
        return scores

    def log_prob(
        params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, label: jax.Array | None, **options: Any
    ) -> jax.Array:
        num = replace(config.scoring, **options).samples
        require_positive(samples=num)
        if num == 1:  # equation 2
            found = parts(params, keys, x, label, 1)
            return found["log_p_x"][0] - jnp.sum(found["kl"], axis=-1)
        mu, logvar = posterior(params, x, label)

        def log_weights(numbers: jax.Array) -> jax.Array:
            return sum(decoded_log_prob(params, mu, logvar, draw_eps(keys, numbers), x, label))

        return importance_weighted_bound(log_weights, num, min(num, max(1, AT_ONCE // x.shape[0])))

    def sample(params: Roles, ctx: Context, keys: jax.Array, label: jax.Array | None, **options: Any) -> jax.Array:
        o = replace(config.sampling, **options)
        require_temperature(o.temperature)
        key_z, key_x = rng.split(keys, 2)
        found = pixels(params, o.temperature * rng.normal(key_z, (latent,)), label)
        return found.show() if o.mean else found.draw(key_x)

    def encode(params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, label: jax.Array | None) -> jax.Array:
        return posterior(params, x, label)[0]

    def decode(params: Roles, ctx: Context, keys: jax.Array, z: jax.Array, label: jax.Array | None) -> jax.Array:
        require_latents(z, (latent,))
        return pixels(params, z, label).show()

    return GenerativeModel(
        name="vae",
        images=images,
        init=init,
        phases=(Phase(trains=("encoder", "decoder"), loss=loss),),
        sample=sample,
        sampling=config.sampling,
        validate=validate,
        log_prob=log_prob,
        scoring=config.scoring,
        likelihood="lower_bound",
        encode=encode,
        decode=decode,
        conditional=config.class_conditional,
    )


def check_config(config: Config, images: ImageSpec) -> None:
    """Raises `UserError` for a configuration that no VAE can be made of."""
    require_choice("network", config.network, ("dense", "conv"))
    require_choice("decoder", config.decoder, ("bernoulli", "gaussian", "logistic"))
    require_choice("scale", config.scale, ("fixed", "shared", "pixel"))
    require_choice("objective", config.objective, ("elbo", "iwae"))
    require_choice("dtype", config.dtype, ("float32", "bfloat16"))
    require_positive(latent=config.latent, num_samples=config.num_samples, initial_scale=config.initial_scale)
    if config.network == "conv":
        check_conv(images.height, images.width, config.widths, config.blocks)
        require(all(h > 0 for h in config.hidden), f"hidden is {config.hidden}: every width must be above zero")
    else:
        require(not config.hidden, f"hidden is {config.hidden}: it is for conv; a dense network's layers are widths")
        require(all(w > 0 for w in config.widths), f"widths is {config.widths}: every width must be above zero")
        require(config.blocks >= 0, f"blocks is {config.blocks}: it must be zero or above")
    require(
        images.levels == 2 or config.decoder != "bernoulli",
        f"decoder is bernoulli, but images have {images.levels} levels: it is for 2; set --data.binarise or a decoder",
    )
    for name in ("beta", "free_bits", "kl_warmup_steps"):
        value = getattr(config, name)
        require(0 <= value < math.inf, f"{name} is {value}: it must be zero or above, and finite")
    require(
        config.objective == "elbo" or config.free_bits == 0,
        f"free_bits is {config.free_bits}: the iwae objective has no KL divergence by dimension; leave it at 0",
    )
    with defaults_of("scoring"):
        require_positive(samples=config.scoring.samples)
    with defaults_of("sampling"):
        require_temperature(config.sampling.temperature)
    require_labels(images.num_classes, "class_conditional", config.class_conditional, False)
