"""Variational autoencoders (Kingma & Welling 2014, arXiv 1312.6114; Rezende, Mohamed & Wierstra 2014, 1401.4082).

    model      z ~ N(0, I),  x ~ p(x|z);   encoder  q(z|x) = N(mu, diag(exp(logvar)))
    sampling   z = mu + exp(logvar / 2) eps,  eps ~ N(0, I)                        reparameterisation            (1)
    ELBO       log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || N(0, I))                 KL in closed form             (2)
    IWAE       log p(x) >= E log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x)            Burda et al. 2016, 1509.00519 (3)
    loss       - E_q[log p(x|z)] + weight sum_j max(KL_j, free_bits),
               weight = beta min(1, (step + 1) / kl_warmup_steps)                  Higgins et al. 2017; Sonderby
                                                                                   et al. 2016; Kingma et al. 2016 (4)

Decoders: Bernoulli for binary images; a Gaussian or a logistic with the decoder's mean, cut into the image's levels
(`jgen.prob.likelihoods`), with a scale that is fixed, learned as one number, or predicted for every pixel. All three
are probabilities of uint8 images: `log_prob` is the bound (2), and with `samples=K` the bound (3), in nats.

Images: `sample` draws from the model, including the decoder's noise, since `log_prob` scores that distribution;
`mean=True` returns the decoder's mean instead of a draw, which looks smoother. `decode` returns means.

Glossary: x image; z latent; mu, logvar of the encoder; eps standard normal; kl_j divergence of latent dimension j.

Differs from the papers: free bits apply to each image, not to a batch's mean, so that the loss is a mean over examples;
the Gaussian and the logistic are discretised in training too, so that a learned scale cannot collapse to zero; the
class, if there is one, is concatenated with the encoder's features and with z.

Measured: bound 89.41 nats (K = 1), 84.36 nats (K = 5000, 500 images) on dynamically binarised MNIST, 60,000 steps of
`python train.py configs/vae/vae.py:mnist_binary`. On MNIST in 256 levels, given the class, bound 1.560 bits/dim; a
classifier assigns 98.3 % of samples to the class they were conditioned on; FD 44; 10,000 steps of
`python train.py configs/vae/vae.py:mnist`, a third of its length: to step 8,735 with the learning rates of
`--train.steps 15000`, from there on with those of 10000.
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
from jgen.errors import require, require_labels, require_latents, require_positive, require_temperature
from jgen.models.vae.bounds import Sampling, Scoring, bound, check_options
from jgen.nn.autoencoder import check_layers
from jgen.nn.vae import Decoder, Encoder
from jgen.prob.likelihoods import normal_kl, normal_log_prob
from jgen.prob.pixel_distribution import PixelDistribution
from jgen.prob.pixels import to_float
from jgen.samplers import gibbs

AT_ONCE = 1024  # images decoded at once in the importance-weighted bound
MIN_LOG_SCALE = -7.0  # of a learned scale on [-1, 1]: an eighth of the width of one of 256 levels


@dataclass(frozen=True)
class Config:
    """A variational autoencoder."""

    network: Literal["dense", "conv"] = "conv"
    """Dense layers, or convolutions with residual blocks."""
    widths: tuple[int, ...] = (64, 128)
    """Units of each dense layer (none: a linear model), or channels at 1/2, 1/4, ... of the image's size."""
    blocks: int = 1
    """Residual blocks of each width."""
    hidden: tuple[int, ...] = ()
    """Units of dense layers between the convolutions and the latents; the decoder has them in reverse order."""
    latent: int = 32
    """Dimensions of z."""
    decoder: Literal["bernoulli", "gaussian", "logistic"] = "logistic"
    """Distribution of a pixel: Bernoulli (2 levels only), discretised Gaussian or discretised logistic."""
    scale: Literal["fixed", "shared", "pixel"] = "pixel"
    """Scale of the Gaussian or logistic: fixed, one learned number, or predicted by the network for every pixel."""
    initial_scale: float = 0.1
    """The fixed scale, or the initial value of a learned one; the image's range is [-1, 1]."""
    objective: Literal["elbo", "iwae"] = "elbo"
    """The bound that training maximises."""
    num_samples: int = 1
    """Latents drawn per image in training, K."""
    beta: float = 1.0
    """Weight of the KL divergence in the loss."""
    free_bits: float = 0.0
    """Nats of KL divergence per latent dimension that are not penalised (elbo only)."""
    kl_warmup_steps: int = 0
    """Steps over which the weight of the KL divergence rises from zero to beta."""
    class_conditional: bool = False
    """Condition on the class label."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, latents and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)
    scoring: Scoring = field(default_factory=Scoring)


class Vae(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`."""

    config: Config
    data: DataSpec
    encoder: Encoder
    decoder: Decoder

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("label",) if self.config.class_conditional else ()


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A VAE for the image shape, levels and classes of `data`.

    Raises:
      UserError: sizes that the network cannot be built with, or options out of their range.
    """
    check_config(config, data)
    vae = Vae(config, data, *make_networks(config, data))
    return GenerativeModel(
        name="vae",
        data=data,
        init=partial(init, vae),
        phases=(Phase(trains=("encoder", "decoder"), loss=partial(loss, vae)),),
        sample=partial(sample, vae),
        sampling=config.sampling,
        conditions=vae.conditions,
        validate=partial(validate, vae),
        best=("iwae", "max") if config.num_samples > 1 else ("elbo", "max"),
        log_prob=partial(log_prob, vae),
        scoring=config.scoring,
        likelihood="lower_bound",
        encode=partial(encode, vae),
        decode=partial(decode, vae),
        functions=noise_functions(vae),
        inpaint=partial(inpaint, vae),
        inpainting=gibbs.Inpainting(),
    )


def noise_functions(vae: Vae) -> dict[str, Any]:
    """The functions that an energy on top of this VAE needs (`jgen.models.energy.vaebm`); {} for a Bernoulli decoder,
    which has no continuous pixels."""
    if vae.config.decoder == "bernoulli":
        return {}
    return {"draw_noise": partial(draw_noise, vae), "pixels_of_noise": partial(pixels_of_noise, vae)}


def draw_noise(vae: Vae, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Standard normal noise of the latents (B, latent) and of the pixels (B, H, W, C)."""
    key_z, key_x = rng.split(keys, 2)
    return rng.normal(key_z, (vae.config.latent,)), rng.normal(key_x, vae.data.image.shape)


def pixels_of_noise(
    vae: Vae, params: Roles, ctx: Context, eps_z: jax.Array, eps_x: jax.Array, cond: Cond
) -> tuple[jax.Array, jax.Array]:
    """The unrounded pixels for noise from `draw_noise`, and their means, float (B, H, W, C)."""
    distribution = pixels(vae, params, eps_z, cond.get("label"))
    return distribution.at_noise(eps_x), distribution.mean


def make_networks(config: Config, data: DataSpec) -> tuple[Encoder, Decoder]:
    """The encoder, and the decoder, whose last channels are the log scale if it is learned."""
    kind = "none" if config.decoder == "bernoulli" else config.scale
    sizes: dict[str, Any] = {"network": config.network, "widths": config.widths, "blocks": config.blocks}
    sizes |= {"hidden": config.hidden, "num_classes": data.num_classes, "dtype": jnp.dtype(config.dtype)}
    return Encoder(latent=config.latent, **sizes), Decoder(images=data.image, scale=kind, **sizes)


def init(vae: Vae, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_e, key_d = jax.random.split(key)
    label = select_first(batch, vae.conditions).get("label")
    x = to_float(batch["image"][:1], vae.data.image.levels)
    enc = vae.encoder.init(key_e, x, label)["params"]
    dec = vae.decoder.init(key_d, jnp.zeros((1, vae.config.latent)), label)["params"]
    return {"encoder": enc, "decoder": dec}, {}


def posterior(vae: Vae, params: Roles, x: jax.Array, cond: Cond) -> tuple[jax.Array, jax.Array]:
    """mu and logvar of q(z|x), float32 (B, latent)."""
    x = to_float(x, vae.data.image.levels)
    return vae.encoder.apply({"params": params["encoder"]}, x, cond.get("label"))


def pixels(vae: Vae, params: Roles, z: jax.Array, label: jax.Array | None) -> PixelDistribution:
    """p(x|z) of latents (B, latent)."""
    c = vae.config
    out = vae.decoder.apply({"params": params["decoder"]}, z, label)
    scale: Any = c.initial_scale
    if c.decoder != "bernoulli" and c.scale != "fixed":
        out, log_scale = jnp.split(out, 2, axis=-1)
        scale = jnp.exp(jnp.maximum(log_scale + math.log(c.initial_scale), MIN_LOG_SCALE))
    return PixelDistribution(c.decoder, vae.data.image.levels, out, scale)


def decoded_log_prob(
    vae: Vae, params: Roles, mu: jax.Array, logvar: jax.Array, eps: jax.Array, x: jax.Array, cond: Cond
) -> tuple[jax.Array, jax.Array]:
    """log p(x|z) and log p(z) - log q(z|x), float32 (K, B), at the latents of the noise eps (K, B, latent)."""
    num = eps.shape[0]
    z = mu[None, :, :] + jnp.exp(0.5 * logvar)[None, :, :] * eps  # equation 1

    def repeated(a: jax.Array) -> jax.Array:
        return jnp.broadcast_to(a[None], (num, *a.shape)).reshape(-1, *a.shape[1:])

    label = cond.get("label")
    distribution = pixels(vae, params, z.reshape(-1, vae.config.latent), None if label is None else repeated(label))
    log_p_x = distribution.log_prob(repeated(x)).reshape(num, -1)
    # The density of z under q is that of eps, divided by the standard deviation.
    log_ratio = normal_log_prob(z, 0.0, 0.0) - normal_log_prob(eps, 0.0, 0.0) + 0.5 * logvar[None, :, :]
    return log_p_x, jnp.sum(log_ratio, axis=-1)


def draw_eps(vae: Vae, keys: jax.Array, numbers: jax.Array) -> jax.Array:
    """Noise (K, B, latent); sample k of an image uses the image's key folded with `numbers[k]`, int32 (K,)."""
    return jax.vmap(lambda k: rng.normal(rng.fold_in(keys, k), (vae.config.latent,)))(numbers)


def bound_terms(
    vae: Vae, params: Roles, keys: jax.Array, q: tuple[jax.Array, jax.Array], x: jax.Array, cond: Cond, num: int
) -> dict[str, jax.Array]:
    """The terms of both bounds from `num` latents per image, drawn from `q`, the `posterior`: log_p_x and log_ratio (K,
    B), kl (B, latent)."""
    mu, logvar = q
    eps = draw_eps(vae, keys, jnp.arange(num))
    log_p_x, log_ratio = decoded_log_prob(vae, params, mu, logvar, eps, x, cond)
    return {"log_p_x": log_p_x, "log_ratio": log_ratio, "kl": normal_kl(mu, logvar, 0.0, 0.0)}


def elbo_terms(terms: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """ELBO, reconstruction and KL divergence of every image, (B,)."""
    reconstruction, kl = jnp.mean(terms["log_p_x"], axis=0), jnp.sum(terms["kl"], axis=-1)
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


def loss(vae: Vae, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    c = vae.config
    x, cond = batch["image"], select(batch, vae.conditions)
    terms = bound_terms(vae, params, keys, posterior(vae, params, x, cond), x, cond, c.num_samples)
    weight = c.beta * (jnp.minimum(1.0, (ctx.step + 1) / c.kl_warmup_steps) if c.kl_warmup_steps else 1.0)
    metrics = elbo_terms(terms)
    if c.objective == "elbo":  # equation 4
        losses = weight * jnp.sum(jnp.maximum(terms["kl"], c.free_bits), axis=-1) - metrics["reconstruction"]
    else:  # equation 3
        log_w = terms["log_p_x"] + weight * terms["log_ratio"]
        losses = math.log(c.num_samples) - jax.nn.logsumexp(log_w, axis=0)
    return jnp.mean(losses), ({name: jnp.mean(value) for name, value in metrics.items()}, {})


def validate(vae: Vae, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    num, x, cond = vae.config.num_samples, batch["image"], select(batch, vae.conditions)
    terms = bound_terms(vae, params, keys, posterior(vae, params, x, cond), x, cond, num)
    scores = elbo_terms(terms)
    if num > 1:
        scores["iwae"] = jax.nn.logsumexp(terms["log_p_x"] + terms["log_ratio"], axis=0) - math.log(num)
    return scores


def log_prob(
    vae: Vae, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    q = posterior(vae, params, x, cond)

    def elbo() -> jax.Array:  # equation 2
        terms = bound_terms(vae, params, keys, q, x, cond, 1)
        return terms["log_p_x"][0] - jnp.sum(terms["kl"], axis=-1)

    def log_weights(numbers: jax.Array) -> jax.Array:
        log_p_x, log_ratio = decoded_log_prob(vae, params, *q, draw_eps(vae, keys, numbers), x, cond)
        return log_p_x + log_ratio

    return bound(vae.config.scoring, options, elbo, log_weights, AT_ONCE // x.shape[0])


def sample(vae: Vae, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    o = replace(vae.config.sampling, **options)
    require_temperature(o.temperature)
    key_z, key_x = rng.split(keys, 2)
    z = o.temperature * rng.normal(key_z, (vae.config.latent,))
    distribution = pixels(vae, params, z, cond.get("label"))
    return distribution.show() if o.mean else distribution.draw(key_x)


def encode(vae: Vae, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    return posterior(vae, params, x, cond)[0]


def decode(vae: Vae, params: Roles, ctx: Context, keys: jax.Array, z: jax.Array, cond: Cond) -> jax.Array:
    require_latents(z, (vae.config.latent,))
    return pixels(vae, params, z, cond.get("label")).show()


def inpaint(
    vae: Vae,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    images: jax.Array,
    mask: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    """By the model's conditional distribution: see `jgen.samplers.gibbs`."""
    known, label = mask[..., None], cond.get("label")
    key_start, key_steps = rng.split(keys, 2)

    def propose(keys: jax.Array, z: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mu, logvar = posterior(vae, params, x, cond)
        eps = jnp.stack([rng.normal(keys, z.shape[1:]), (z - mu) * jnp.exp(-0.5 * logvar)])
        log_p_x, log_ratio = decoded_log_prob(vae, params, mu, logvar, eps, x, cond)
        log_w = log_p_x + log_ratio
        return mu + jnp.exp(0.5 * logvar) * eps[0], log_w[0] - log_w[1]

    def draw(keys: jax.Array, z: jax.Array) -> jax.Array:
        return pixels(vae, params, z, label).draw(keys)

    z = rng.normal(key_start, (vae.config.latent,))
    x = jnp.where(known, images, pixels(vae, params, z, label).show())
    z, x = gibbs.complete(key_steps, (z, x), images, mask, propose, draw, gibbs.Inpainting(**options))
    shown = pixels(vae, params, z, label).show() if vae.config.sampling.mean else x
    return jnp.where(known, images, shown)


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    images = data.image
    require_positive(latent=config.latent, num_samples=config.num_samples, initial_scale=config.initial_scale)
    check_layers(config.network, images.height, images.width, config.widths, config.blocks, config.hidden)
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
    check_options(config)
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
