"""Guidance of denoisers: D = D_weak + scale (D_strong - D_weak) in place of D_strong.

Guided predictions of x_0, of eps, of v and of a velocity are the same, since each is a line in the others.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) has the model without its condition as the weak one,
autoguidance (Karras et al. 2024, arXiv 2406.02507) a smaller model, or one that was trained less. Outside an interval
of the noise the strong model is better unguided (Kynkaanniemi et al. 2024, arXiv 2404.07724).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core.model import Cond, DataSpec, GenerativeModel
from jgen.errors import UserError, require
from jgen.prob.process import Denoiser, Process, scales

Scale = jax.Array | float
Conditional = Callable[[jax.Array, jax.Array, Cond], jax.Array]  # (x_t, t, cond) -> x_0


def classifier_free(
    denoise: Conditional, cond: Cond, null: Cond, scale: Scale, process: Process, interval: tuple[float, ...]
) -> Denoiser:
    """(x_t, t) -> guided x_0: D(null) + scale (D(cond) - D(null)).

    Scale 1 is the conditional model and scale 0 the unconditional one, with one evaluation per step; any other scale
    evaluates both, in one batch of 2 B.

    Args:
      interval: of sigma / alpha, within which there is guidance, the conditional model outside; (): everywhere.
    """
    known = not isinstance(scale, jax.Array)  # when the program is traced
    if known and scale == 1.0:
        return lambda x_t, t: denoise(x_t, t, cond)
    if known and scale == 0.0 and not interval:
        return lambda x_t, t: denoise(x_t, t, null)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null)

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        stacked = denoise(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both)
        conditional, unconditional = jnp.split(stacked, 2)
        weight = weight_at(process, x_t, t, scale, interval)
        return unconditional + weight * (conditional - unconditional)

    return guided


def autoguided(
    strong: Conditional, weak: Conditional, cond: Cond, scale: Scale, process: Process, interval: tuple[float, ...]
) -> Denoiser:
    """(x_t, t) -> guided x_0: D_weak + scale (D_strong - D_weak), within an interval of sigma / alpha."""
    known = not isinstance(scale, jax.Array)
    if known and scale == 1.0:
        return lambda x_t, t: strong(x_t, t, cond)
    if known and scale == 0.0 and not interval:
        return lambda x_t, t: weak(x_t, t, cond)

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        base = weak(x_t, t, cond)
        return base + weight_at(process, x_t, t, scale, interval) * (strong(x_t, t, cond) - base)

    return guided


def weight_at(process: Process, x_t: jax.Array, t: jax.Array, scale: Scale, interval: tuple[float, ...]) -> Scale:
    """The scale of guidance at times t (B,): 1 outside the interval."""
    if not interval:
        return scale
    alpha, sigma = scales(process, t, x_t)
    low, high = interval
    return jnp.where((sigma >= low * alpha) & (sigma <= high * alpha), scale, 1.0)


def clipped(denoise: Denoiser) -> Denoiser:
    """The same with x_0 clipped to [-1, 1]."""
    return lambda x_t, t: jnp.clip(denoise(x_t, t), -1.0, 1.0)


def check_guidance(scale: float, guidable: bool, needs: str) -> None:
    """Raises `UserError` for guidance out of range, or of a model that has none; `needs` says what it would take."""
    require(0 <= scale < math.inf, f"guidance_scale is {scale}: it must be zero or above, and finite")
    require(guidable or scale == 1.0, f"guidance_scale is {scale}: it must be 1 in a model without {needs}")


def require_same_process(
    role: str, model: GenerativeModel, process: Process, data: DataSpec, conditional: bool
) -> None:
    """Raises `UserError` unless a frozen model lends a denoiser of the same images at the same noise.

    Args:
      conditional: whether this model is conditioned on the class, so that a frozen one may be.
    """
    lends = {"denoise", "process"} <= set(model.functions)
    require(lends, f"{role} is a {model.name}: it must be a diffusion model, which lends denoise and process")
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
