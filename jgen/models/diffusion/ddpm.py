"""Denoising diffusion probabilistic models (Ho, Jain & Abbeel 2020, arXiv 2006.11239).

    forward   x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,  eps ~ N(0, I)          (equation 4)
    loss      E_{t, x_0, eps} || eps - eps_theta(x_t, t) ||^2, t uniform on 1 .. T             (equation 14)
    sampling  x_{t-1} = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps_theta) / sqrt(alpha_t) + sigma_t z   (algorithm 2)
    log_prob  the variational bound with the discretised Gaussian at t = 1                     (equations 5, 13)

Glossary: x_0 data in [-1, 1]; x_t noisy data; eps the compound noise; v = sqrt(ab_t) eps - sqrt(1 - ab_t) x_0.

Differs from the paper: the loss is a mean over pixels, not a sum; the network may answer x_0 or v instead of eps;
class conditioning with classifier-free guidance (arXiv 2207.12598), DDIM sampling (arXiv 2010.02502) and the cosine,
quadratic and sigmoid schedules are added; attention has several heads; every draw belongs to an example.

Measured: bound 3.259 bits/dim on the 8x8 digits in 17 levels, 99.9 % of samples read as the class asked for,
2,000 steps of `python train.py configs/diffusion/ddpm.py:digits`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Context, GenerativeModel, ImageSpec, Phase, Roles
from jgen.errors import defaults_of, require, require_choice, require_labels
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
    """How the steps are chosen from 1 .. T: starting at T, over 1 .. T evenly, or counted from 1."""
    times: tuple[int, ...] = ()
    """The times themselves, decreasing, in place of steps and spacing."""
    eta: float = 0.0
    """DDIM's noise: 0 is deterministic, 1 is ancestral. Of no effect on the ancestral sampler."""
    variance: Literal["beta", "beta_tilde", "none"] = "beta_tilde"
    """Variance of an ancestral step. Of no effect on DDIM."""
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
    """Residual blocks a level."""
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
    """What the network answers."""
    bound_variance: Literal["beta", "beta_tilde"] = "beta"
    """Variance of the reverse process in log_prob."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's arithmetic; parameters, statistics and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, images: ImageSpec, axis_name: str | None = None) -> GenerativeModel:
    """A DDPM over images of that shape, number of levels and classes.

    Args:
      axis_name: the device axis to synchronise batch statistics over; a DDPM has none and ignores it.
    Raises:
      UserError: sizes that the U-Net cannot be built with, or options out of their range.
    """
    schedule = check_config(config, images)
    T = config.num_timesteps
    null_label = images.num_classes  # the class of "no class"
    unet = UNet(
        channels=config.channels,
        blocks=config.blocks,
        attention=config.attention,
        head_dim=config.head_dim,
        groups=config.groups,
        dropout_rate=config.dropout,
        num_classes=images.num_classes + 1 if config.class_conditional else 0,
        out_channels=images.channels,
        dtype=jnp.dtype(config.dtype),
    )

    def init(key: jax.Array, batch: Batch) -> tuple[Roles, Roles]:
        x = to_float(batch["image"][:1], images.levels)
        return {"unet": unet.init(key, x, jnp.ones(1), batch["label"][:1], None)["params"]}, {}

    def errors(params: Roles, keys: jax.Array, batch: Batch, label: jax.Array, key_drop: jax.Array | None) -> jax.Array:
        """The squared error of the network's answer at a random t, mean over pixels: float32 (B,)."""
        key_t, key_eps = rng.split(keys, 2)
        x_0 = to_float(batch["image"], images.levels)
        t = rng.randint(key_t, 1, T + 1)
        eps = rng.normal(key_eps, images.shape)
        output = unet.apply({"params": params["unet"]}, gd.q_sample(schedule, x_0, t, eps), t, label, key_drop)
        return mean_image((output - gd.target(config.prediction, schedule, x_0, t, eps)) ** 2)

    def loss(params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> tuple[jax.Array, tuple[dict, Roles]]:
        key_error, key_drop, key_label = rng.split(keys, 3)
        label = jnp.where(rng.bernoulli(key_label, config.label_dropout), null_label, batch["label"])
        mse = jnp.mean(errors(params, key_error, batch, label, key_drop))
        return mse, ({}, {})

    def validate(params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"mse": errors(params, keys, batch, batch["label"], None)}

    def denoiser(params: Roles, label: jax.Array | None, guidance_scale: float, clip: bool) -> gd.Denoiser:
        def network(x_t: jax.Array, t: jax.Array, label: jax.Array | None) -> jax.Array:
            return unet.apply({"params": params["unet"]}, x_t, t, label, None)

        guided = network
        if config.class_conditional:
            guided = classifier_free_guidance(network, label, null_label, guidance_scale)
        else:
            guided = lambda x_t, t: network(x_t, t, None)
        return lambda x_t, t: gd.interpret(config.prediction, schedule, x_t, t, guided(x_t, t), clip)

    def sample(params: Roles, ctx: Context, keys: jax.Array, label: jax.Array | None, **options: Any) -> jax.Array:
        o = replace(config.sampling, **options)
        times = check_sampling(o, config, schedule)
        key_start, key_steps = rng.split(keys, 2)
        x_T = rng.normal(key_start, images.shape)
        denoise = denoiser(params, label, o.guidance_scale, o.clip)
        if o.sampler == "ddim":
            x_0 = ddim(denoise, schedule, x_T, key_steps, times, o.eta)
        else:
            x_0 = ancestral(denoise, schedule, x_T, key_steps, times, o.variance)
        return to_uint8(x_0, images.levels)

    def log_prob(params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, label: jax.Array | None) -> jax.Array:
        denoise = denoiser(params, label, guidance_scale=1.0, clip=True)
        return gd.variational_bound(denoise, schedule, x, keys, images.levels, config.bound_variance)

    return GenerativeModel(
        name="ddpm",
        images=images,
        init=init,
        phases=(Phase(trains=("unet",), loss=loss),),
        sample=sample,
        sampling=config.sampling,
        validate=validate,
        log_prob=log_prob,
        likelihood="lower_bound",
        conditional=config.class_conditional,
    )


def check_sampling(o: Sampling, config: Config, schedule: Schedule) -> tuple[int, ...]:
    """The times that a model of `config` samples at. Raises `UserError` for options that it cannot sample with."""
    require_choice("sampler", o.sampler, ("ddim", "ancestral"))
    require_choice("variance", o.variance, gd.VARIANCES)
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


def check_config(config: Config, images: ImageSpec) -> Schedule:
    """The noise schedule. Raises `UserError` for a configuration that no DDPM can be made of."""
    check_unet(
        images.height, images.width, config.channels, config.blocks, config.attention, config.head_dim, config.groups
    )
    require(0 <= config.dropout < 1, f"dropout is {config.dropout}: it must be at least 0 and below 1")
    require(
        0 <= config.label_dropout < 1, f"label_dropout is {config.label_dropout}: it must be at least 0 and below 1"
    )
    require_choice("prediction", config.prediction, gd.PREDICTIONS)
    require_choice("bound_variance", config.bound_variance, gd.VARIANCES[:2])
    require_choice("dtype", config.dtype, ("float32", "bfloat16"))
    require_labels(images.num_classes, "class_conditional", config.class_conditional, False)
    schedule = make_schedule(config.schedule, config.num_timesteps, config.beta_1, config.beta_T)
    with defaults_of("sampling"):
        check_sampling(config.sampling, config, schedule)
    return schedule
