"""Variational diffusion models (Kingma, Salimans, Poole & Ho 2021, arXiv 2107.00630).

    z_t = alpha_t x + sigma_t eps,  sigma_t^2 = sigmoid(gamma(t)),  alpha_t^2 = sigmoid(-gamma(t))    (section 3)
    -log p(x) <= KL(q(z_1 | x) || N(0, I)) - E log p(x | z_0) + L                                      (equation 11)
    L = 1/2 E_{t, eps} gamma'(t) || eps - eps_theta(z_t, gamma(t)) ||^2,  t uniform on [0, 1]          (equation 17)
    p(x | z_0) = prod_i softmax over the levels of -1/2 e^{-gamma(0)} (z_0 / alpha_0 - level)^2        (appendix B)

gamma increases with t. Its ends are trained by the bound, which does not depend on the interior of the schedule; the
interior is trained to minimise the variance of the bound's estimate, E (per-image loss)^2 (appendix I.2). Times of a
batch are evenly spaced from a shared random offset (appendix I.1).

Glossary: x data in [-1, 1]; z_t noisy data; eps noise; gamma = -log(alpha^2 / sigma^2); t as in the paper, 0 for data.

Differs from the paper: the U-Net is DDPM's (jgen/nn/unet.py); classes and classifier-free guidance are added; a sample
is the denoised image at the last time, not a draw from p(x | z_0).

Measured: bound 1.852 bits/dim on the 8x8 digits in 17 levels, Fréchet distance 23.1 (FD-digits); 2,000 steps of
`python train.py configs/diffusion/vdm.py:digits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, Frozen, GenerativeModel, Loss, Phase, Roles
from jgen.errors import defaults_of, require, require_positive
from jgen.nn import unet as networks
from jgen.nn.conditional_network import ConditionalNetwork, check_label_dropout, make_conditional_network
from jgen.prob.likelihoods import flatten, normal_kl, sum_image
from jgen.prob.pixels import to_float
from jgen.prob.process import Process, from_log_snr, per_image
from jgen.samplers.diffusion import Sampling
from jgen.samplers.system import denoising_by_class, with_samplers

TIME_SCALE = 1000.0  # of (gamma - gamma_0) / (gamma_1 - gamma_0), for an embedding that is designed for steps 1 .. 1000


@dataclass(frozen=True)
class Scoring:
    """Options of the bound."""

    times: int = 64
    """Number of times at which an image's bound is estimated, one in each of that many equal parts of [0, 1]."""


@dataclass(frozen=True)
class Config:
    """Diffusion with a learned noise schedule and a tight bound."""

    network: networks.Config = field(default_factory=networks.Config)
    class_conditional: bool = True
    """Condition on the class label."""
    label_dropout: float = 0.1
    """Probability of training without the label, for classifier-free guidance."""
    gamma_0: float = -13.3
    """Initial value of gamma(0), which is learned: almost no noise."""
    gamma_1: float = 5.0
    """Initial value of gamma(1), which is learned: almost only noise."""
    schedule_features: int = 1024
    """Width of the monotone network that gives gamma between its ends."""
    fourier: tuple[int, ...] = (7, 8)
    """Powers n of the features sin and cos of 2^n pi z that the network also sees."""
    scoring: Scoring = Scoring()
    sampling: Sampling = Sampling(sampler="ancestral", steps=250)


class Schedule(nn.Module):
    """A function of t (n,) that increases from 0 to 1: sums of sigmoids with positive weights (appendix H)."""

    features: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        slope = self.param("slope", nn.initializers.constant(math.log(math.e - 1.0)), ())
        inner = self.param("inner", nn.initializers.normal(1.0), (self.features,))
        bias = self.param("bias", nn.initializers.normal(1.0), (self.features,))
        outer = self.param("outer", nn.initializers.normal(1.0), (self.features,))

        def rising(t: jax.Array) -> jax.Array:
            hidden = jnp.tanh(0.5 * ((2.0 * t[:, None] - 1.0) * nn.softplus(inner)[None] + bias[None]))
            return nn.softplus(slope) * 2.0 * t + hidden @ nn.softplus(outer) / self.features

        start, end = rising(jnp.zeros(1)), rising(jnp.ones(1))
        return (rising(t) - start) / (end - start)


class Vdm(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`."""

    config: Config
    network: ConditionalNetwork
    schedule: Schedule


def make(config: Config, data: DataSpec, *, classifier: GenerativeModel | None = None) -> GenerativeModel:
    """A VDM for the image shape, levels and classes of `data`.

    Args:
      classifier: a classifier of noisy images, for classifier guidance.
    Raises:
      UserError: sizes that the U-Net cannot be built with, or options out of their range.
    """
    check_config(config)
    network = make_conditional_network(config, data)
    vdm = Vdm(config, network, Schedule(config.schedule_features))
    model = GenerativeModel(
        name="vdm",
        data=data,
        init=partial(init, vdm),
        phases=(Phase(trains=("unet", "ends", "schedule"), loss=partial(loss, vdm), name="bound"),),
        conditions=network.conditions,
        validate=partial(validate, vdm),
        best=("bits_per_dim", "min"),
        log_prob=partial(log_prob, vdm),
        scoring=config.scoring,
        likelihood="lower_bound",
    )
    where = network, config, partial(denoise, vdm), partial(process_of, vdm)
    return with_samplers(model, denoising_by_class(*where, classifier=classifier))


def init(vdm: Vdm, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_unet, key_schedule = rng.split_key(key, 2)
    ends = {"gamma_0": jnp.float32(vdm.config.gamma_0), "gamma_1": jnp.float32(vdm.config.gamma_1)}
    return {
        "unet": vdm.network.init(key_unet, batch, inputs=partial(features, vdm)),
        "ends": ends,
        "schedule": vdm.schedule.init(key_schedule, jnp.ones(1))["params"],
    }, {}


def gamma_of(vdm: Vdm, params: Roles) -> Callable[[Any], jax.Array]:
    """gamma(t) of times (n,)."""
    low, high = params["ends"]["gamma_0"], params["ends"]["gamma_1"]

    def gamma(t: Any) -> jax.Array:
        flat = jnp.asarray(t, jnp.float32).reshape(-1)
        return (low + (high - low) * vdm.schedule.apply({"params": params["schedule"]}, flat)).reshape(jnp.shape(t))

    return gamma


def process_of(vdm: Vdm, params: Roles) -> Process:
    """The process with the learned schedule."""
    gamma = gamma_of(vdm, params)
    return from_log_snr(lambda t: -gamma(t))


def features(vdm: Vdm, z: jax.Array) -> jax.Array:
    """z and its Fourier features (appendix C), (B, H, W, C (1 + 2 F))."""
    angles = [2.0**n * math.pi * z for n in vdm.config.fourier]
    return jnp.concatenate([z, *(f(a) for a in angles for f in (jnp.sin, jnp.cos))], axis=-1)


def predict_noise(
    vdm: Vdm, params: Roles, z: jax.Array, gamma: jax.Array, cond: Cond, key_drop: jax.Array | None
) -> jax.Array:
    """eps_theta(z_t, gamma); gamma (B,)."""
    low, high = params["ends"]["gamma_0"], params["ends"]["gamma_1"]
    time = TIME_SCALE * jax.lax.stop_gradient((gamma - low) / (high - low))
    return z + vdm.network(params, features(vdm, z), time, cond, key_drop)  # at most times z is mostly noise


def diffusion_loss(
    vdm: Vdm,
    params: Roles,
    keys: jax.Array,
    gamma: jax.Array,
    rate: jax.Array,
    x: jax.Array,
    cond: Cond,
    key_drop: jax.Array | None,
) -> jax.Array:
    """1/2 gamma' || eps - eps_theta ||^2 where gamma and its rate are given, (B,): nats per image, float32 (B,)."""
    eps = rng.normal(keys, vdm.network.images.shape)
    alpha, sigma = jax.nn.sigmoid(-gamma) ** 0.5, jax.nn.sigmoid(gamma) ** 0.5
    z = per_image(alpha, x) * x + per_image(sigma, x) * eps
    return 0.5 * rate * sum_image((eps - predict_noise(vdm, params, z, gamma, cond, key_drop)) ** 2)


def schedule_at(vdm: Vdm, params: Roles, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """gamma and its rate at times t (B,)."""
    return jax.jvp(gamma_of(vdm, params), (t,), (jnp.ones_like(t),))


def diffusion_and_variance(
    vdm: Vdm, params: Roles, keys: jax.Array, t: jax.Array, x: jax.Array, cond: Cond, key_drop: jax.Array
) -> jax.Array:
    """The mean of the diffusion losses, in nats, with the gradient that trains each role.

    The network and the ends of gamma get the gradient of the mean loss, and the interior of gamma that of the mean
    squared loss, scaled: an image's loss depends on gamma at its own time only, so one backward pass gives d loss_i / d
    gamma_i, and 2 loss_i d loss_i / d gamma_i is the other gradient (appendix I.2).
    """
    trained = {"unet": params["unet"], "ends": params["ends"]}
    fixed = jax.lax.stop_gradient(params["schedule"])

    def losses(trained: Roles, gamma_offset: jax.Array, rate_offset: jax.Array) -> jax.Array:
        all_params = {**trained, "schedule": fixed}
        gamma, rate = schedule_at(vdm, all_params, t)
        return diffusion_loss(vdm, all_params, keys, gamma + gamma_offset, rate + rate_offset, x, cond, key_drop)

    zeros = jnp.zeros_like(t)
    values, pullback = jax.vjp(losses, trained, zeros, zeros)
    gradients, by_gamma, by_rate = jax.lax.stop_gradient(pullback(jnp.full_like(values, 1.0 / len(values))))
    weight = 2.0 * jax.lax.stop_gradient(values) / (vdm.network.images.size * math.log(2.0))
    gamma, rate = schedule_at(vdm, {**jax.lax.stop_gradient(trained), "schedule": params["schedule"]}, t)
    schedule_term = jnp.sum(weight * (by_gamma * gamma + by_rate * rate))
    linear = sum(jnp.vdot(g, p) for g, p in zip(jax.tree.leaves(gradients), jax.tree.leaves(trained)))
    surrogate = linear + schedule_term
    # The value is the mean of the losses, the gradient that of the surrogate, which is linear in the parameters.
    return jax.lax.stop_gradient(jnp.mean(values)) + surrogate - jax.lax.stop_gradient(surrogate)


def end_losses(vdm: Vdm, params: Roles, keys: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """KL(q(z_1 | x) || N(0, I)) and -log p(x | z_0) with one draw of z_0: nats per image, (B,) each."""
    levels = vdm.network.images.levels
    gamma_0, gamma_1 = params["ends"]["gamma_0"], params["ends"]["gamma_1"]
    x = to_float(images, levels)
    prior = sum_image(normal_kl(jax.nn.sigmoid(-gamma_1) ** 0.5 * x, jax.nn.log_sigmoid(gamma_1), 0.0, 0.0))
    # z_0 / alpha_0 = x + e^{gamma_0 / 2} eps
    reading = flatten(x + jnp.exp(0.5 * gamma_0) * rng.normal(keys, vdm.network.images.shape))
    values = to_float(jnp.arange(levels), levels)
    logits = jax.nn.log_softmax(-0.5 * jnp.exp(-gamma_0) * (reading[..., None] - values[None, None]) ** 2)
    log_p = jnp.take_along_axis(logits, flatten(images).astype(jnp.int32)[..., None], axis=-1)
    return prior, -jnp.sum(log_p, axis=(1, 2))


def loss(vdm: Vdm, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    """The bound, in bits per dimension."""
    key_eps, key_ends, key_drop, key_label = rng.split(keys, 4)
    cond = vdm.network.cond_for_training(key_label, batch, vdm.config.label_dropout)
    x = to_float(batch["image"], vdm.network.images.levels)
    diffusion = diffusion_and_variance(vdm, params, key_eps, spread_times(ctx, batch), x, cond, key_drop)
    prior, reconstruction = (jnp.mean(part) for part in end_losses(vdm, params, key_ends, batch["image"]))
    parts = {"prior": prior, "reconstruction": reconstruction, "diffusion": diffusion}
    metrics = {name: part / (vdm.network.images.size * math.log(2.0)) for name, part in parts.items()}
    return sum(metrics.values(), jnp.float32(0.0)), (metrics, {})


def spread_times(ctx: Context, batch: Batch) -> jax.Array:
    """Times (B,), evenly spaced over the global batch from a random offset that all examples share."""
    return (jax.random.uniform(ctx.key) + batch["position"]) % 1.0


def bound(vdm: Vdm, params: Roles, keys: jax.Array, images: jax.Array, cond: Cond, times: int) -> jax.Array:
    """The lower bound on log p(images) in nats, float32 (B,), with one time in each of `times` parts of [0, 1]."""
    key_ends, key_times = rng.split(keys, 2)
    x = to_float(images, vdm.network.images.levels)

    def part(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        key_t, key_eps = rng.split(rng.fold_in(key_times, number), 2)
        gamma, rate = schedule_at(vdm, params, (number + rng.uniform(key_t, ())) / times)
        return total + diffusion_loss(vdm, params, key_eps, gamma, rate, x, cond, None) / times, None

    diffusion, _ = jax.lax.scan(part, jnp.zeros(len(x)), jnp.arange(times))
    prior, reconstruction = end_losses(vdm, params, key_ends, images)
    return -(prior + reconstruction + diffusion)


def validate(vdm: Vdm, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    nats = bound(vdm, params, keys, batch["image"], vdm.network.cond(batch), times=8)
    return {"bits_per_dim": -nats / (vdm.network.images.size * math.log(2.0))}


def log_prob(
    vdm: Vdm, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    o = replace(vdm.config.scoring, **options)
    require_positive(times=o.times)
    return bound(vdm, params, keys, x, cond, o.times)


def denoise(vdm: Vdm, params: Roles, ctx: Context, x_t: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
    """(z_t - sigma_t eps_theta) / alpha_t, at times t (B,) in (0, 1]."""
    gamma = gamma_of(vdm, params)(t)
    alpha, sigma = jax.nn.sigmoid(-gamma) ** 0.5, jax.nn.sigmoid(gamma) ** 0.5
    eps = predict_noise(vdm, params, x_t, gamma, cond, None)
    return (x_t - per_image(sigma, x_t) * eps) / per_image(alpha, x_t)


def check_config(config: Config) -> None:
    """Raises `UserError` if the configuration is invalid."""
    check_label_dropout(config.label_dropout)
    require(config.gamma_0 < config.gamma_1, f"gamma_0 is {config.gamma_0}: it must be below gamma_1, {config.gamma_1}")
    require_positive(schedule_features=config.schedule_features)
    require(all(n >= 0 for n in config.fourier), f"fourier is {config.fourier}: its powers must be zero or above")
    with defaults_of("scoring"):
        require_positive(times=config.scoring.times)
