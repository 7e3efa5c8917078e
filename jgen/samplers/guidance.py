"""Guidance of denoisers: D = D_weak + scale (D_strong - D_weak) instead of D_strong.

Guiding x_0, eps, v or a velocity is equivalent, since each is an affine function of the others.

In classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) the weak model is the model without its condition, in
autoguidance (Karras et al. 2024, arXiv 2406.02507) a smaller or less trained model. Outside an interval of noise levels
the strong model is better unguided (Kynkaanniemi et al. 2024, arXiv 2404.07724).

Classifier guidance (Dhariwal & Nichol 2021, arXiv 2105.05233, algorithm 2) uses a classifier of noisy images instead of
a weak model, and so the score of p(x_t) p(y | x_t)^scale, D + scale sigma^2 / alpha grad log p(y | x_t).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core.model import Cond, DataSpec, GenerativeModel
from jgen.errors import UserError, require
from jgen.prob.process import Denoiser, Process, half_log_snr, per_image, prior_std, scales

NOISE_RANGE = 7.0  # the largest |lambda| at which a classifier of noisy images is evaluated

Scale = jax.Array | float
Conditional = Callable[[jax.Array, jax.Array, Cond], jax.Array]  # (x_t, t, cond) -> x_0


class Guidance(NamedTuple):
    """How strongly, and where, a weak model guides.

    scale:    1 is the strong model, 0 the weak one.
    interval: of sigma / alpha in which guidance is applied; outside, the strong model alone; (): everywhere.
    channels: the number of channels, from the first, that are guided; 0: all.
    """

    scale: Scale
    interval: tuple[float, ...] = ()
    channels: int = 0


def classifier_free(denoise: Conditional, cond: Cond, null: Cond, process: Process, guidance: Guidance) -> Denoiser:
    """(x_t, t) -> guided x_0: D(null) + scale (D(cond) - D(null)).

    Scale 1 is the conditional model and scale 0 the unconditional one, with one evaluation per step; any other scale
    evaluates both, in one batch of 2 B.
    """
    if is_static_scale(guidance, 1.0):
        return lambda x_t, t: denoise(x_t, t, cond)
    if is_static_scale(guidance, 0.0):
        return lambda x_t, t: denoise(x_t, t, null)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null)

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        stacked = denoise(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both)
        conditional, unconditional = jnp.split(stacked, 2)
        return mixed(conditional, unconditional, process, x_t, t, guidance)

    return guided


def autoguided(strong: Conditional, weak: Conditional, cond: Cond, process: Process, guidance: Guidance) -> Denoiser:
    """(x_t, t) -> guided x_0: D_weak + scale (D_strong - D_weak)."""
    if is_static_scale(guidance, 1.0):
        return lambda x_t, t: strong(x_t, t, cond)
    if is_static_scale(guidance, 0.0):
        return lambda x_t, t: weak(x_t, t, cond)

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return mixed(strong(x_t, t, cond), weak(x_t, t, cond), process, x_t, t, guidance)

    return guided


def is_static_scale(guidance: Guidance, scale: float) -> bool:
    """Whether the scale is a Python number equal to `scale`, applied at all noise levels and channels."""
    known = not isinstance(guidance.scale, jax.Array) and guidance.scale == scale
    return known and (scale == 1.0 or not (guidance.interval or guidance.channels))


def mixed(
    strong: jax.Array, weak: jax.Array, process: Process, x_t: jax.Array, t: jax.Array, guidance: Guidance
) -> jax.Array:
    """weak + scale (strong - weak) at times t (B,); the strong model outside the interval and the channels."""
    weight = guidance.scale
    if guidance.interval:
        alpha, sigma = scales(process, t, x_t)
        low, high = guidance.interval
        weight = jnp.where((sigma >= low * alpha) & (sigma <= high * alpha), weight, 1.0)
    if guidance.channels:
        guided = jnp.arange(strong.shape[-1]).reshape(1, 1, 1, -1) < guidance.channels
        weight = jnp.where(guided, weight, 1.0)
    return weak + weight * (strong - weak)


def by_classifier(
    denoiser: Denoiser,
    logits: Callable[[jax.Array, jax.Array], jax.Array],
    label: jax.Array,
    process: Process,
    scale: Scale,
) -> Denoiser:
    """(x_t, t) -> x_0 + scale sigma^2 / alpha grad log p(label | x_t).

    At the ends of the process, where alpha or sigma is 0, the classifier is evaluated at |lambda| = NOISE_RANGE, with
    alpha and sigma of that noise level. Outputs of the denoiser beyond the channels of x_t are unchanged.

    Args:
      logits: (x, lambda) -> (B, classes), of noisy images scaled to the variance of data, at half the log
        signal-to-noise ratio lambda (B,); label: (B,).
    """

    def log_prob(x: jax.Array, log_snr: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits(x, log_snr))
        return jnp.sum(jnp.take_along_axis(log_p, label[:, None], axis=1))

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        log_snr = jnp.clip(half_log_snr(process, t), -NOISE_RANGE, NOISE_RANGE)
        x = x_t / per_image(jnp.asarray(prior_std(process, t)), x_t)  # alpha and sigma of x have squares of sum 1
        alpha, sigma2 = jnp.sqrt(jax.nn.sigmoid(2.0 * log_snr)), jax.nn.sigmoid(-2.0 * log_snr)
        shift = scale * per_image(sigma2 / alpha, x) * jax.grad(log_prob)(x, log_snr)
        x_0, rest = jnp.split(denoiser(x_t, t), [x_t.shape[-1]], axis=-1)
        return jnp.concatenate([x_0 + shift, rest], axis=-1)

    return guided


def clipped(denoise: Denoiser, channels: int | None = None) -> Denoiser:
    """The denoiser with x_0 clipped to [-1, 1]: the first `channels` of the output, None for all."""

    def clip(x_t: jax.Array, t: jax.Array) -> jax.Array:
        output = denoise(x_t, t)
        x_0 = jnp.clip(output[..., :channels], -1.0, 1.0)
        return x_0 if channels is None else jnp.concatenate([x_0, output[..., channels:]], axis=-1)

    return clip


def check_guidance(scale: float, guidable: bool, needs: str) -> None:
    """Raises `UserError` for guidance out of range, or of a model without guidance; `needs` says what guidance
    requires."""
    require(0 <= scale < math.inf, f"guidance_scale is {scale}: it must be zero or above, and finite")
    require(guidable or scale == 1.0, f"guidance_scale is {scale}: it must be 1 in a model without {needs}")


def require_same_process(
    role: str, model: GenerativeModel, process: Process, data: DataSpec, conditional: bool
) -> None:
    """Raises `UserError` unless a frozen model provides a denoiser for the same images and noise process.

    Args:
      conditional: whether this model is class-conditional, so that a frozen one may be, too.
    """
    provides = {"denoise", "process"} <= set(model.functions)
    require(provides, f"{role} is a {model.name}: it must be a diffusion model, which provides denoise and process")
    shapes = model.images.shape == data.image.shape
    require(shapes, f"{role} is of images {model.images.shape}: they must be {data.image.shape}, as in the data")
    known = {"label"} if conditional else set()
    others = ", ".join(sorted(set(model.conditions) - known))
    require(not others, f"{role} is conditioned on {others}, which this model is not")
    t = np.linspace(0.01, 1.0, 5)
    try:
        own = model.functions["process"]({}, None)
    except KeyError:
        raise UserError(f"{role} is a {model.name}, whose process is learned: it must be that of this model") from None
    same = all(np.allclose(f(t), g(t), rtol=1e-6) for f, g in zip(own, process))
    require(same, f"{role} is of another process: the noise at each time must be that of this model")
