"""Gaussian diffusion processes in continuous time, and conversions between the quantities that a network may predict.

    x_t = alpha(t) x_0 + sigma(t) eps,  eps ~ N(0, I),  t in [0, 1]

t = 0 is data. Everything else follows from alpha and sigma: half the log signal-to-noise ratio, lambda(t) =
log(alpha(t) / sigma(t)), which falls with t, and the probability flow, dx/dt = alpha' x_0 + sigma' eps.

    variance preserving  alpha^2 = exp(-int_0^t beta),  sigma^2 = 1 - alpha^2     (Song et al. 2021, arXiv 2011.13456)
    sub-VP               the same alpha,  sigma = 1 - alpha^2                     (the same, equation 29)
    variance exploding   alpha = 1,  sigma = sigma_min (sigma_max / sigma_min)^t  (the same, equation 30)
    cosine               alpha = cos(pi t / 2),  sigma = sin(pi t / 2)            (Nichol & Dhariwal 2021, no offset)
    linear               alpha = 1 - t,  sigma = t                                (Lipman et al. 2023, arXiv 2210.02747)
    EDM                  alpha = 1,  sigma = sigma_max t                          (Karras et al. 2022, arXiv 2206.00364)
    discrete             the points t = i / T of a chain of T steps               (Ho et al. 2020, arXiv 2006.11239)

Glossary: x_0 data in [-1, 1]; eps the noise; v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv 2202.00512);
velocity = alpha' x_0 + sigma' eps; score = -eps / sigma.

The functions of a process take JAX arrays, or NumPy arrays, for which they compute in float64 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.errors import require, require_choice, require_positive
from jgen.prob.schedules import Schedule

PREDICTIONS = ("eps", "x0", "v", "velocity", "score")

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]  # (x_t (B, H, W, C), t float (B,)) -> x_0 (B, H, W, C)


class Process(NamedTuple):
    """alpha(t) and sigma(t), elementwise functions of arrays of times in [0, 1]."""

    alpha: Callable[[Any], Any]
    sigma: Callable[[Any], Any]


def library(x: Any) -> ModuleType:
    """The library whose arrays `x` is one of: jax.numpy or numpy."""
    return jnp if isinstance(x, jax.Array) else np


def variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """beta(t) = beta_min + t (beta_max - beta_min). Raises `UserError` unless 0 < beta_min <= beta_max."""
    require_positive(beta_min=beta_min, beta_max=beta_max)
    require(beta_min <= beta_max, f"beta_min is {beta_min}: it must be at most beta_max, {beta_max}")
    return from_integral(lambda t: t * beta_min + 0.5 * t**2 * (beta_max - beta_min))


def from_integral(integral: Callable[[Any], Any]) -> Process:
    """The variance-preserving process with int_0^t beta = integral(t)."""
    return Process(
        alpha=lambda t: library(t).exp(-0.5 * integral(t)),
        sigma=lambda t: library(t).sqrt(-library(t).expm1(-integral(t))),
    )


def sub_variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """The sub-VP process, sigma = 1 - alpha^2. Raises `UserError` as `variance_preserving` does."""
    preserving = variance_preserving(beta_min, beta_max)
    return Process(preserving.alpha, lambda t: preserving.sigma(t) ** 2)


def variance_exploding(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Process:
    """A geometric sequence of noise. Raises `UserError` unless 0 < sigma_min < sigma_max."""
    require_positive(sigma_min=sigma_min, sigma_max=sigma_max)
    require(sigma_min < sigma_max, f"sigma_min is {sigma_min}: it must be below sigma_max, {sigma_max}")
    ratio = math.log(sigma_max / sigma_min)
    return Process(lambda t: library(t).ones_like(t), lambda t: sigma_min * library(t).exp(ratio * t))


def cosine() -> Process:
    """A quarter of a circle from data to noise."""
    return Process(lambda t: library(t).cos(0.5 * math.pi * t), lambda t: library(t).sin(0.5 * math.pi * t))


def linear() -> Process:
    """The straight line from data to noise."""
    return Process(lambda t: 1.0 - t, lambda t: 1.0 * t)


def edm(sigma_max: float = 80.0) -> Process:
    """Noise in proportion to the time. Raises `UserError` unless sigma_max is above zero."""
    require_positive(sigma_max=sigma_max)
    return Process(lambda t: library(t).ones_like(t), lambda t: sigma_max * t)


def discrete(schedule: Schedule) -> Process:
    """A chain of T steps: its alpha_bar at t = i / T, interpolated with constant beta in between."""
    steps = np.arange(schedule.num_steps + 1, dtype=np.float64)
    table = -np.log(schedule.alpha_bar)

    def integral(t: Any) -> Any:
        own = library(t)
        if own is np:
            return np.interp(t * schedule.num_steps, steps, table)
        # New arrays in the current precision: JAX 0.10 may reuse an array that was converted to the other precision.
        kind = jnp.result_type(float)
        return jnp.interp(t * schedule.num_steps, steps.astype(kind), table.astype(kind))

    return from_integral(integral)


def from_log_snr(log_snr: Callable[[Any], Any]) -> Process:
    """The variance-preserving process with log(alpha^2 / sigma^2) = log_snr(t)."""

    def sigmoid_root(x: Any) -> Any:
        return library(x).exp(-0.5 * library(x).logaddexp(0.0, -x))

    return Process(lambda t: sigmoid_root(log_snr(t)), lambda t: sigmoid_root(-log_snr(t)))


def half_log_snr(process: Process, t: Any) -> Any:
    """lambda(t) = log(alpha / sigma); infinite where either is zero."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    lib = library(alpha)
    with np.errstate(divide="ignore"):
        return lib.log(alpha) - lib.log(sigma)


def time_of(process: Process, half_log_snr_value: Any, iterations: int = 60) -> Any:
    """The times in [0, 1] at which lambda has the given values, by bisection; an end of [0, 1] for values beyond its
    range."""
    lib = library(process.alpha(half_log_snr_value))  # a learned process returns JAX arrays
    low, high = lib.zeros_like(half_log_snr_value), lib.ones_like(half_log_snr_value)
    for _ in range(iterations):
        middle = 0.5 * (low + high)
        before = half_log_snr(process, middle) > half_log_snr_value  # the time is after the middle
        low, high = lib.where(before, middle, low), lib.where(before, high, middle)
    return 0.5 * (low + high)


def per_image(x: jax.Array, like: jax.Array) -> jax.Array:
    """(B,) to (B, 1, ..., 1) with the rank of `like`."""
    return x.reshape(x.shape + (1,) * (like.ndim - 1))


def scales(process: Process, t: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha and sigma at times t (B,), shaped to multiply `like`."""
    return per_image(process.alpha(t), like), per_image(process.sigma(t), like)


def rates(process: Process, t: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The derivatives alpha' and sigma' at times t (B,), shaped to multiply `like`."""
    ones = jnp.ones_like(t)
    alpha_rate, sigma_rate = jax.jvp(process.alpha, (t,), (ones,))[1], jax.jvp(process.sigma, (t,), (ones,))[1]
    return per_image(alpha_rate, like), per_image(sigma_rate, like)


def add_noise(process: Process, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """x_t given x_0 and eps; t (B,)."""
    alpha, sigma = scales(process, t, x_0)
    return alpha * x_0 + sigma * eps


def noise_of(process: Process, x_t: jax.Array, t: jax.Array, x_0: jax.Array) -> jax.Array:
    """The eps that turns x_0 into x_t."""
    alpha, sigma = scales(process, t, x_t)
    return (x_t - alpha * x_0) / sigma


def prior_std(process: Process, t: Any = 1.0) -> Any:
    """The standard deviation of x_t for data of unit variance, which sampling begins with; 1 if variance is
    preserved."""
    t = np.asarray(t, np.float64) if not isinstance(t, jax.Array) else t
    return (process.alpha(t) ** 2 + process.sigma(t) ** 2) ** 0.5


def from_x0(prediction: str, process: Process, x_t: jax.Array, t: jax.Array, x_0: jax.Array) -> jax.Array:
    """The output at x_t, for data x_0, of a network that predicts `prediction`, one of `PREDICTIONS`.

    With the true x_0 it is the regression target.
    """
    require_choice("prediction", prediction, PREDICTIONS)
    if prediction == "x0":
        return x_0
    eps = noise_of(process, x_t, t, x_0)
    alpha, sigma = scales(process, t, x_t)
    if prediction == "eps":
        return eps
    if prediction == "score":
        return -eps / sigma
    if prediction == "v":
        return alpha * eps - sigma * x_0
    alpha_rate, sigma_rate = rates(process, t, x_t)
    return alpha_rate * x_0 + sigma_rate * eps


def to_x0(prediction: str, process: Process, x_t: jax.Array, t: jax.Array, output: jax.Array) -> jax.Array:
    """The x_0 that follows from the `output` at x_t of a network that predicts `prediction`."""
    require_choice("prediction", prediction, PREDICTIONS)
    if prediction == "x0":
        return output
    alpha, sigma = scales(process, t, x_t)
    if prediction == "eps":
        return (x_t - sigma * output) / alpha
    if prediction == "score":
        return (x_t + sigma**2 * output) / alpha
    if prediction == "v":
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
    alpha_rate, sigma_rate = rates(process, t, x_t)
    return (sigma_rate * x_t - sigma * output) / (sigma_rate * alpha - sigma * alpha_rate)
