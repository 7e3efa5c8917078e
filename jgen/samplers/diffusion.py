"""Sampling from a denoiser D(x_t, t) -> x_0 and its process, for every system that has a denoiser.

Options are those of `Sampling`. A sampler steps through explicit times, or chooses its steps per image ("ode"), and
ends with an evaluation of the denoiser at its last time. Each image has one key, for its initial noise and for the
noise added in the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.core.model import Cond
from jgen.errors import UserError, require
from jgen.prob.diffusion_bound import interpolated, log_variances, posterior_of
from jgen.prob.process import Denoiser, Process, prior_std, time_of
from jgen.prob.process import linear as straight
from jgen.samplers import linear
from jgen.samplers.guidance import Conditional, check_guidance
from jgen.samplers.ode import adaptive, check_ode
from jgen.samplers.plms import plms
from jgen.samplers.times import check_times, make_times

Sampler = Literal[
    "ancestral",
    "ddim",
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "unipc",
    "plms",
    "predictor_corrector",
    "ode",
]


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    sampler: Sampler = "ddim"
    """Sampling method."""
    steps: int = 50
    """Number of times at which the network is evaluated (twice at each for heun and predictor_corrector; guidance
    doubles the evaluations)."""
    spacing: Literal["uniform", "shifted", "log_snr", "karras", "trailing", "leading", "linspace"] = "uniform"
    """Spacing of the times; karras: EDM's, with rho 7; trailing, leading and linspace are for models trained on a chain
    of steps."""
    times: tuple[float, ...] = ()
    """Explicit times, decreasing within (0, 1], instead of `steps` and `spacing`."""
    shift: float = 1.0
    """Shift s of the spacing `shifted`; above 1: more steps at high noise."""
    offset: int = 0
    """Number of chain steps added to the times of the spacing `leading` (steps_offset in diffusers)."""
    end: Literal["data", "first"] = "data"
    """End point of ddim and plms: clean data, or the first step of the chain with its noise (set_alpha_to_one=False in
    diffusers)."""
    low: float = 0.01
    """Noise level, as sigma / alpha, at the last time of the spacings karras and log_snr, and at the end of ode: EDM's
    sigma_min."""
    eta: float = 0.0
    """Stochasticity of ddim: 0 is deterministic, 1 is ancestral."""
    variance: Literal["beta", "beta_tilde", "none", "learned"] = "beta_tilde"
    """Variance of the noise that an ancestral step adds; learned: predicted by the network."""
    churn: float = 0.0
    """Amount of noise that heun adds between its steps (S_churn)."""
    churn_range: tuple[float, ...] = ()
    """Smallest and largest sigma / alpha at which heun adds noise (S_tmin, S_tmax); none: everywhere."""
    churn_noise: float = 1.0
    """Standard deviation of the noise that heun adds (S_noise)."""
    corrector_snr: float = 0.16
    """Signal-to-noise ratio of a step of Langevin dynamics in predictor_corrector."""
    tolerance: float = 1e-3
    """Absolute and relative error tolerance per step of ode."""
    guidance_scale: float = 1.0
    """Guidance scale: 1 is none, above 1 trades diversity for fidelity to the condition."""
    guidance_interval: tuple[float, ...] = ()
    """Smallest and largest sigma / alpha at which guidance is applied; none: everywhere."""
    guidance_channels: int = 0
    """Number of channels, from the first, that are guided; 0: all."""
    classifier_scale: float = 1.0
    """Scale of the guidance by a run of role classifier, if there is one; 0: none."""
    clip: bool = True
    """Clip the predicted image to [-1, 1] in every step."""


@dataclass(frozen=True)
class Editing(Sampling):
    """Options of editing: those of sampling, and how much noise it starts from."""

    strength: float = 0.6
    """Fraction of the steps that are taken, starting from the image with added noise: 1 keeps nothing of the image,
    near 0 nearly all."""


@dataclass(frozen=True)
class Inversion:
    """Options of inversion, from an image to noise, and of decoding, back to an image, both by deterministic DDIM."""

    steps: int = 50
    """Number of times at which the network is evaluated; more steps reconstruct the image more accurately."""
    guidance_scale: float = 1.0
    """Guidance scale; inversion is most accurate with 1, no guidance."""


@dataclass(frozen=True)
class Decoding(Inversion):
    """Options of decoding noise to an image."""

    eta: float = 0.0
    """Stochasticity: 0 gives the image that belongs to the noise, above 0, up to 1, variations of it."""


def editing_of(o: Sampling) -> Editing:
    """The editing defaults, from a model's sampling defaults; ode, which can only start from pure noise, becomes
    ddim."""
    return Editing(**vars(o) | {"sampler": "ddim" if o.sampler == "ode" else o.sampler})


def last_times(times: Any, strength: float) -> Any:
    """The times at which an image is edited: the last ones, at least one."""
    return times[len(times) - max(1, round(strength * len(times))) :]


def check_editing(o: Editing) -> None:
    """Raises `UserError` for a strength out of range, or the sampler that chooses its own steps."""
    require(0.0 < o.strength <= 1.0, f"strength is {o.strength}: it must be above 0 and at most 1")
    require(o.sampler != "ode", "sampler is ode, which begins with noise alone: edit takes any other")


def check_sampling(o: Sampling, *, num_timesteps: int = 0, guidable: bool, needs: str) -> None:
    """Raises `UserError` for options out of range, or not supported by a model.

    Args:
      num_timesteps: T, the number of discrete training timesteps; 0 in continuous time.
      guidable: whether the model supports guidance; needs: options that guidance requires.
    """
    if o.times:
        check_times(o.times)
    else:
        times_of(o, straight(), num_timesteps)
    require(0.0 <= o.eta <= 1.0, f"eta is {o.eta}: it must be from 0 (deterministic) to 1 (ancestral)")
    require(0.0 < o.low < 1.0, f"low is {o.low}: it must be above 0 and below 1")
    chain = o.end == "data" or num_timesteps > 0
    require(chain, "end is first: only a model that was trained on a chain of steps has a first one")
    for name in ("churn", "churn_noise"):
        require(0 <= getattr(o, name) < math.inf, f"{name} is {getattr(o, name)}: it must be zero or above, and finite")
    require(0 < o.corrector_snr < 10, f"corrector_snr is {o.corrector_snr}: it must be above 0 and below 10")
    check_ode(o.tolerance)
    check_interval("churn_range", o.churn_range)
    check_interval("guidance_interval", o.guidance_interval)
    check_guidance(o.guidance_scale, guidable, needs)


# Which samplers, or spacings of the times, use an option; all use the others.
READ_BY_SAMPLER: dict[str, tuple[Sampler, ...]] = {
    "eta": ("ddim",),
    "variance": ("ancestral",),
    "end": ("ddim", "plms"),
    "churn": ("heun",),
    "churn_range": ("heun",),
    "churn_noise": ("heun",),
    "corrector_snr": ("predictor_corrector",),
    "tolerance": ("ode",),
}
READ_BY_SPACING = {"shift": ("shifted",), "low": ("karras", "log_snr"), "offset": ("leading",)}
TIMES = ("times", "steps", "spacing", "shift", "offset")


def check_unused(o: Sampling, defaults: Sampling) -> None:
    """Raises `UserError` for an option that differs from the model's default and would have no effect."""

    def refuse(name: str, reader: str, readers: tuple[str, ...]) -> None:
        raise UserError(f"{name} is {getattr(o, name)}: {reader} does not read it, {' and '.join(readers)} would")

    for name in (name for name, value in vars(defaults).items() if getattr(o, name) != value):
        if o.sampler not in READ_BY_SAMPLER.get(name, (o.sampler,)):
            refuse(name, f"sampler {o.sampler}", tuple(f"sampler {reader}" for reader in READ_BY_SAMPLER[name]))
        elif o.sampler == "ode" and name in TIMES:
            refuse(name, "sampler ode, whose steps are its own,", ("every other sampler",))
        elif o.times and name in TIMES[1:]:
            refuse(name, "a sampler with times", ("one without",))
        elif o.sampler != "ode" and name in READ_BY_SPACING and o.spacing not in READ_BY_SPACING[name]:
            refuse(name, f"spacing {o.spacing}", tuple(f"spacing {reader}" for reader in READ_BY_SPACING[name]))


def check_path(o: Sampling) -> None:
    """Raises `UserError` for the sampler whose steps differ from image to image."""
    paths = ", ".join(name for name in get_args(Sampler) if name != "ode")
    require(o.sampler != "ode", f"sampler is ode, whose steps differ from image to image: trajectory takes {paths}")


def check_interval(name: str, interval: tuple[float, ...]) -> None:
    """Raises `UserError` unless an interval of noise levels is empty, or two numbers that are not negative."""
    fits = not interval or (len(interval) == 2 and 0 <= interval[0] < interval[1])
    require(fits, f"{name} is {interval}: it must be two numbers from 0, the second above the first, or none")


def times_of(o: Sampling, process: Process, num_timesteps: int = 0) -> Any:
    """The times of sampling with these options."""
    if o.times:
        return check_times(o.times)
    sizes: dict[str, Any] = {"shift": o.shift, "low": o.low, "offset": o.offset}
    return make_times(process, o.spacing, o.steps, num_timesteps=num_timesteps, **sizes)


def draw(
    denoise: Conditional,
    cond: Cond,
    process: Process,
    o: Sampling,
    noise: jax.Array,
    keys: jax.Array,
    num_timesteps: int = 0,
) -> tuple[jax.Array, jax.Array | None]:
    """The images that a denoiser makes from noise, and its denoised images at each step.

    Args:
      denoise: (x_t, t, cond) -> x_0, or [x_0, v] in 2 C channels where the variance is learned; cond: a tree of arrays
        (B, ...), {} for none.
      noise: standard normal (B, H, W, C); keys: (B,), one per image, for the noise added in the steps.
      num_timesteps: T, the number of discrete training timesteps; 0 in continuous time.
    Returns:
      x_0, float (B, H, W, C), in about [-1, 1], and float (n, B, H, W, C), or None for "ode".
    """
    if o.sampler == "ode":
        return draw_adaptively(denoise, cond, process, o, noise)[0], None
    times = times_of(o, process, num_timesteps)
    return draw_from(denoise, cond, process, o, times, noise * start_std(process, times[0]), keys, num_timesteps)


def draw_from(
    denoise: Conditional,
    cond: Cond,
    process: Process,
    o: Sampling,
    times: Any,
    x: jax.Array,
    keys: jax.Array,
    num_timesteps: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """`draw` through given times, from x at the first of them."""

    def denoiser(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return clip_if(o, denoise(x_t, t, cond))

    if o.sampler == "ancestral" and o.variance == "learned":
        return ancestral_of_learned_variance(denoise, cond, process, times, x, keys, o)
    if o.sampler == "predictor_corrector":
        return predictor_corrector(denoiser, process, times, x, keys, o.corrector_snr)
    end = 1.0 / num_timesteps if o.end == "first" else 0.0
    if o.sampler == "plms":
        return plms(denoiser, process, times, x, end)
    return linear.run(denoiser, table_of(o, process, times, end), x, keys)


def draw_adaptively(
    denoise: Conditional, cond: Cond, process: Process, o: Sampling, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`draw` of the sampler "ode": x_0, and how often the denoiser was evaluated for each image, int32 (B,)."""

    def estimate(x_t: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        return clip_if(o, denoise(x_t, t, cond))

    end = time_of(process, -np.log(np.array([o.low])))[0]
    return adaptive(estimate, process, noise * start_std(process, 1.0), cond, o.tolerance, end)


def clip_if(o: Sampling, x_0: jax.Array) -> jax.Array:
    return jnp.clip(x_0, -1.0, 1.0) if o.clip else x_0


def start_std(process: Process, t: Any) -> jax.Array:
    return jnp.asarray(prior_std(process, t), jnp.float32)


def table_of(o: Sampling, process: Process, times: Any, end: float = 0.0) -> linear.Table:
    """The coefficients of a sampler with given times, ddim to the time `end`, the others to clean data."""
    low, high = o.churn_range or (0.0, math.inf)
    churn = linear.Churn(o.churn, low, high, o.churn_noise) if o.churn else None
    make = {
        "ancestral": lambda: linear.ancestral(process, times, o.variance),
        "ddim": lambda: linear.ddim(process, times, o.eta, end),
        "euler": lambda: linear.euler(process, times),
        "euler_ancestral": lambda: linear.ddim(process, times, 1.0),
        "heun": lambda: linear.heun(process, times, churn),
        "dpmpp_2m": lambda: linear.dpm_solver_2m(process, times),
        "dpmpp_2m_sde": lambda: linear.dpm_solver_2m(process, times, stochastic=True),
        "dpmpp_3m": lambda: linear.dpm_solver_3m(process, times),
        "unipc": lambda: linear.unipc(process, times),
    }
    return make[o.sampler]()


def evaluations(o: Sampling) -> int:
    """How often a sampler evaluates the denoiser for an image; 0 for "ode", where it depends on the image."""
    steps = len(o.times) or o.steps
    others = {"ode": 0, "heun": 2 * steps - 1, "predictor_corrector": 2 * steps, "plms": steps + (steps > 1)}
    return others.get(o.sampler, steps)


def predictor_corrector(
    denoiser: Denoiser, process: Process, times: Any, x: jax.Array, keys: jax.Array, snr: float
) -> tuple[jax.Array, jax.Array]:
    """Ancestral steps, each after a step of Langevin dynamics (Song et al. 2021, arXiv 2011.13456, algorithms 2 to 5).

        x <- x + e score + sqrt(2 e) z,  e = 2 r^2 (snr sigma_t)^2,  r^2 = alpha_t^2 / alpha_s^2

    The paper has |z| / |score| instead of sigma_t, averaged over a batch in the authors' code; the two are close where
    noise dominates. With sigma_t an image does not depend on its batch, and the step size is not random: with norms per
    image, 8x8 images of Gaussian pixels came out with a tenth too much variance.
    Two evaluations of the denoiser at each time.
    """
    p = linear.steps_of(process, times)
    c = posterior_of(p.alpha_t, p.sigma_t, p.alpha_s, p.sigma_s)
    e = 2.0 * shrinkage(p) * (snr * p.sigma_t) ** 2
    columns = (p.t, p.alpha_t, p.sigma_t, e, c.xt, c.x0, c.beta_tilde**0.5 * (p.s > 0))
    rows = tuple(jnp.asarray(column, x.dtype) for column in columns)

    def step(x: jax.Array, scanned: Any) -> tuple[jax.Array, jax.Array]:
        number, (t, alpha, sigma, e, c_x, c_0, noise) = scanned
        t = jnp.full(x.shape[:1], t)
        z, z_step = (rng.normal(key, x.shape[1:]) for key in rng.split(rng.fold_in(keys, number), 2))
        score = (alpha * denoiser(x, t) - x) / sigma**2
        x = x + e * score + jnp.sqrt(2.0 * e) * z
        estimate = denoiser(x, t)
        return c_x * x + c_0 * estimate + noise * z_step, estimate

    return jax.lax.scan(step, x, (jnp.arange(len(rows[0])), rows))


def ancestral_of_learned_variance(
    denoise: Conditional, cond: Cond, process: Process, times: Any, x: jax.Array, keys: jax.Array, o: Sampling
) -> tuple[jax.Array, jax.Array]:
    """Ancestral sampling with a variance that the network predicts (Nichol & Dhariwal 2021, arXiv 2102.09672).

    Args:
      denoise: (x_t, t, cond) -> [x_0, v], (B, H, W, 2 C); see `diffusion_bound.interpolated`.
    """
    p = linear.steps_of(process, times)
    c = posterior_of(p.alpha_t, p.sigma_t, p.alpha_s, p.sigma_s)
    columns = (p.t, c.xt, c.x0, *log_variances(c), 1.0 * (p.s > 0))
    rows = tuple(jnp.asarray(column, x.dtype) for column in columns)

    def step(x: jax.Array, scanned: Any) -> tuple[jax.Array, jax.Array]:
        number, (t, c_x, c_0, log_beta, log_beta_tilde, adds_noise) = scanned
        estimate, v = jnp.split(denoise(x, jnp.full(x.shape[:1], t), cond), 2, axis=-1)
        estimate = clip_if(o, estimate)
        std = adds_noise * jnp.exp(0.5 * interpolated(v, log_beta, log_beta_tilde))
        z = rng.normal(rng.fold_in(keys, number), x.shape[1:])
        return c_x * x + c_0 * estimate + std * z, estimate

    return jax.lax.scan(step, x, (jnp.arange(len(rows[0])), rows))


def shrinkage(p: linear.Steps) -> Any:
    """alpha_t^2 / alpha_s^2 of each step: 1 - beta of a chain; 1 where the variance explodes."""
    return (p.alpha_t / p.alpha_s) ** 2
