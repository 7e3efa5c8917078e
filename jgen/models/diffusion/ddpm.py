"""Denoising diffusion probabilistic models (Ho, Jain & Abbeel 2020, arXiv 2006.11239).

    forward   x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,  eps ~ N(0, I)          (equation 4)
    loss      E_{t, x_0, eps} || eps - eps_theta(x_t, t) ||^2, t uniform on 1 .. T             (equation 14)
    sampling  x_{t-1} = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps_theta) / sqrt(alpha_t) + sigma_t z   (algorithm 2)
    log_prob  the variational bound with the discretised Gaussian at t = 1                     (equations 5, 13)

Glossary: x_0 data in [-1, 1]; x_t noisy data; eps the compound noise; v = sqrt(ab_t) eps - sqrt(1 - ab_t) x_0.

Differs from the paper: the loss is a mean over pixels, not a sum; the network may predict x_0 or v instead of eps;
class conditioning with classifier-free guidance (arXiv 2207.12598), DDIM sampling (arXiv 2010.02502) and the cosine,
quadratic and sigmoid schedules are added; attention has several heads; every random draw has a key of its example.

Measured: bound 3.259 bits/dim on the 8x8 digits in 17 levels, a classifier assigns 99.9 % of samples to
the class that they were conditioned on, 2,000 steps of `python train.py configs/diffusion/ddpm.py:digits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, GenerativeModel, ImageSpec, Phase, Roles, select
from jgen.errors import defaults_of, require, require_labels
from jgen.nn.unet import UNet, check_unet
from jgen.prob import gaussian_diffusion as gd
from jgen.prob.likelihoods import mean_image
from jgen.prob.pixels import to_float, to_uint8
from jgen.prob.schedules import Schedule, make_schedule, sampling_times
from jgen.samplers.diffusion import ancestral, check_eta, check_times, classifier_free_guidance, ddim


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    sampler: Literal["ddim", "ancestral"] = "ddim"
    """DDIM, or ancestral sampling (algorithm 2)."""
    steps: int = 50
    """Evaluations of the network an image (twice that with guidance); 1 to T."""
    spacing: Literal["trailing", "linspace", "leading"] = "trailing"
    """Spacing of the steps within 1 .. T: ending at T, evenly from 1 to T, or starting at 1."""
    times: tuple[int, ...] = ()
    """Explicit times, decreasing, in place of steps and spacing."""
    eta: float = 0.0
    """Noise of DDIM: 0 is deterministic, 1 is ancestral. The ancestral sampler ignores it."""
    variance: Literal["beta", "beta_tilde", "none"] = "beta_tilde"
    """Variance of an ancestral step. DDIM ignores it."""
    guidance_scale: float = 1.0
    """Classifier-free guidance: 1 is none, above 1 trades diversity for class fidelity."""
    clip: bool = True
    """Clip the predicted image to [-1, 1] in every step."""


@dataclass(frozen=True)
class Config:
    """Denoising diffusion with a U-Net."""

    channels: tuple[int, ...] = (128, 256, 256, 256)
    """Width of each U-Net level, from full resolution down."""
    blocks: int = 2
    """Residual blocks of each level."""
    attention: tuple[int, ...] = (16,)
    """Heights of the feature maps that have self-attention."""
    head_dim: int = 64
    """Width of an attention head."""
    groups: int = 32
    """Groups of group normalisation."""
    dropout: float = 0.1
    """Dropout rate in the residual blocks."""
    class_conditional: bool = True
    """Condition on the label."""
    label_dropout: float = 0.1
    """Probability of training without the label, for classifier-free guidance."""
    num_timesteps: int = 1000
    """T, the steps of the forward process."""
    schedule: Literal["linear", "cosine", "quadratic", "sigmoid"] = "linear"
    """Noise schedule."""
    beta_1: float = 1e-4
    """First variance (all schedules but cosine)."""
    beta_T: float = 0.02
    """Last variance (all schedules but cosine)."""
    prediction: Literal["eps", "x0", "v"] = "eps"
    """What the network predicts."""
    bound_variance: Literal["beta", "beta_tilde"] = "beta"
    """Variance of the reverse process in log_prob."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's arithmetic; parameters, statistics and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


class Ddpm(NamedTuple):
    """What `make` binds the functions below to; `null_label` is the label that stands for "no class"."""

    config: Config
    images: ImageSpec
    schedule: Schedule
    unet: UNet
    conditions: tuple[str, ...]
    null_label: int


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A DDPM over images of the shape, the number of levels and the classes of `data`.

    Raises:
      UserError: sizes that the U-Net cannot be built with, or options out of their range.
    """
    schedule = check_config(config, data)
    unet = UNet(
        channels=config.channels,
        blocks=config.blocks,
        attention=config.attention,
        head_dim=config.head_dim,
        groups=config.groups,
        dropout_rate=config.dropout,
        num_classes=data.num_classes + 1 if config.class_conditional else 0,
        out_channels=data.image.channels,
        dtype=jnp.dtype(config.dtype),
    )
    conditions = ("label",) if config.class_conditional else ()
    ddpm = Ddpm(config, data.image, schedule, unet, conditions, data.num_classes)
    return GenerativeModel(
        name="ddpm",
        data=data,
        init=partial(init, ddpm),
        phases=(Phase(trains=("unet",), loss=partial(loss, ddpm)),),
        sample=partial(sample, ddpm),
        sampling=config.sampling,
        conditions=conditions,
        validate=partial(validate, ddpm),
        best=("mse", "min"),
        log_prob=partial(log_prob, ddpm),
        likelihood="lower_bound",
    )


def init(ddpm: Ddpm, key: jax.Array, batch: Batch, frozen: Any) -> tuple[Roles, Roles]:
    x = to_float(batch["image"][:1], ddpm.images.levels)
    label = select(batch, ddpm.conditions).get("label")
    label = None if label is None else label[:1]
    return {"unet": ddpm.unet.init(key, x, jnp.ones(1), label, None)["params"]}, {}


def errors(
    ddpm: Ddpm, params: Roles, keys: jax.Array, batch: Batch, label: jax.Array | None, key_drop: jax.Array | None
) -> jax.Array:
    """Squared error of the network's output at a random t, mean over pixels: float32 (B,)."""
    key_t, key_eps = rng.split(keys, 2)
    schedule, prediction = ddpm.schedule, ddpm.config.prediction
    x_0 = to_float(batch["image"], ddpm.images.levels)
    t = rng.randint(key_t, 1, schedule.num_steps + 1)
    eps = rng.normal(key_eps, ddpm.images.shape)
    x_t = gd.q_sample(schedule, x_0, t, eps)
    output = ddpm.unet.apply({"params": params["unet"]}, x_t, t, label, key_drop)
    return mean_image((output - gd.target(prediction, schedule, x_0, t, eps)) ** 2)


def loss(
    ddpm: Ddpm, params: Roles, ctx: Context, keys: jax.Array, batch: Batch
) -> tuple[jax.Array, tuple[dict, Roles]]:
    key_error, key_drop, key_label = rng.split(keys, 3)
    label = select(batch, ddpm.conditions).get("label")
    if label is not None:
        label = jnp.where(rng.bernoulli(key_label, ddpm.config.label_dropout), ddpm.null_label, label)
    return jnp.mean(errors(ddpm, params, key_error, batch, label, key_drop)), ({}, {})


def validate(ddpm: Ddpm, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    label = select(batch, ddpm.conditions).get("label")
    return {"mse": errors(ddpm, params, keys, batch, label, None)}


def make_denoiser(ddpm: Ddpm, params: Roles, cond: Cond, guidance_scale: float, clip: bool) -> gd.Denoiser:
    """A function of (x_t, t) that returns the predicted x_0 and eps, with classifier-free guidance."""
    label = cond.get("label")

    def network(x_t: jax.Array, t: jax.Array, label: jax.Array | None) -> jax.Array:
        return ddpm.unet.apply({"params": params["unet"]}, x_t, t, label, None)

    guided: Callable[..., jax.Array] = partial(network, label=None)
    if label is not None:
        guided = classifier_free_guidance(network, label, ddpm.null_label, guidance_scale)

    def denoise(x_t: jax.Array, t: jax.Array) -> gd.Prediction:
        return gd.interpret(ddpm.config.prediction, ddpm.schedule, x_t, t, guided(x_t, t), clip)

    return denoise


def sample(ddpm: Ddpm, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    o = replace(ddpm.config.sampling, **options)
    times = check_sampling(o, ddpm.config, ddpm.schedule)
    key_start, key_steps = rng.split(keys, 2)
    x_T = rng.normal(key_start, ddpm.images.shape)
    denoise = make_denoiser(ddpm, params, cond, o.guidance_scale, o.clip)
    if o.sampler == "ddim":
        x_0 = ddim(denoise, ddpm.schedule, x_T, key_steps, times, o.eta)
    else:
        x_0 = ancestral(denoise, ddpm.schedule, x_T, key_steps, times, o.variance)
    return to_uint8(x_0, ddpm.images.levels)


def log_prob(ddpm: Ddpm, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    denoise = make_denoiser(ddpm, params, cond, guidance_scale=1.0, clip=True)
    return gd.variational_bound(denoise, ddpm.schedule, x, keys, ddpm.images.levels, ddpm.config.bound_variance)


def check_sampling(o: Sampling, config: Config, schedule: Schedule) -> tuple[int, ...]:
    """The times of sampling with these options. Raises `UserError` for options that the model cannot sample with."""
    times = o.times or sampling_times(schedule.num_steps, o.steps, o.spacing)
    check_times(schedule, times)
    check_eta(o.eta)
    scale = o.guidance_scale
    require(0 <= scale < math.inf, f"guidance_scale is {scale}: it must be zero or above, and finite")
    guidable = config.class_conditional and config.label_dropout > 0
    require(
        guidable or scale == 1.0,
        f"guidance_scale is {scale}: it must be 1 in a model without class_conditional and label_dropout",
    )
    return times


def check_config(config: Config, data: DataSpec) -> Schedule:
    """The noise schedule. Raises `UserError` for a configuration that no DDPM can be made of."""
    height, width = data.image.shape[:2]
    check_unet(height, width, config.channels, config.blocks, config.attention, config.head_dim, config.groups)
    require(0 <= config.dropout < 1, f"dropout is {config.dropout}: it must be at least 0 and below 1")
    require(
        0 <= config.label_dropout < 1, f"label_dropout is {config.label_dropout}: it must be at least 0 and below 1"
    )
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
    schedule = make_schedule(config.schedule, config.num_timesteps, config.beta_1, config.beta_T)
    with defaults_of("sampling"):
        check_sampling(config.sampling, config, schedule)
    return schedule
