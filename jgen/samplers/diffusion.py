"""Samplers of Gaussian diffusion, each one compiled scan over explicit times.

A sampler takes a denoiser (x_t, t) -> (x0, eps), initial noise x_T, one key per image, and a decreasing tuple of times;
it steps from each time to the next and from the last one to t = 0, which is data. Times need not be evenly spaced, nor
start at T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.errors import require, require_choice
from jgen.prob.gaussian_diffusion import VARIANCES, Denoiser, posterior, reverse_variance
from jgen.prob.schedules import Schedule

Network = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x_t, t, label) -> output


def check_times(schedule: Schedule, times: Sequence[int]) -> np.ndarray:
    """The times as an array. Raises `UserError` unless they decrease strictly within 1 .. T."""
    array = np.asarray(times, dtype=np.int64)
    decreasing = array.ndim == 1 and array.size > 0 and bool(np.all(np.diff(array) < 0))
    inside = decreasing and array[0] <= schedule.num_steps and array[-1] >= 1
    require(inside, f"times are {tuple(times)}: they must decrease strictly, from {schedule.num_steps} at most to 1")
    return array


def check_eta(eta: float) -> None:
    """Raises `UserError` unless eta is from 0 to 1."""
    require(0.0 <= eta <= 1.0, f"eta is {eta}: it must be from 0 (deterministic) to 1 (ancestral)")


def ancestral(
    denoiser: Denoiser, schedule: Schedule, x_T: jax.Array, keys: jax.Array, times: Sequence[int], variance: str
) -> jax.Array:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), on any decreasing subset of the times.

        x_s = mean of q(x_s | x_t, x_0 predicted) + sigma z,  z ~ N(0, I), and z = 0 in the step to s = 0

    For s = t - 1 and an unclipped x_0 the mean is (x_t - beta_t / sqrt(1 - ab_t) eps) / sqrt(alpha_t).

    Args:
      x_T: float (B, H, W, C), noise at times[0]; keys: (B,).
      variance: sigma^2 is "beta" (beta_{t|s}), "beta_tilde" (the posterior's) or "none" (0: without noise, images
        collapse towards blurred means of the data).
    Returns:
      x_0, float (B, H, W, C).
    """
    require_choice("variance", variance, VARIANCES)
    t = check_times(schedule, times)
    s = np.append(t[1:], 0)
    coefficients = posterior(schedule, t, s)
    sigma = np.sqrt(reverse_variance(coefficients, variance)) * (s > 0)
    rows = [jnp.asarray(column, jnp.float32) for column in (coefficients.x0, coefficients.xt, sigma)]

    def step(x_t: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        t, c_x0, c_xt, sigma = row
        x0, _ = denoiser(x_t, jnp.full(x_t.shape[:1], t))
        z = rng.normal(rng.fold_in(keys, t), x_t.shape[1:])
        return c_x0 * x0 + c_xt * x_t + sigma * z, None

    return jax.lax.scan(step, x_T, (jnp.asarray(t, jnp.int32), *rows))[0]


def ddim(
    denoiser: Denoiser, schedule: Schedule, x_T: jax.Array, keys: jax.Array, times: Sequence[int], eta: float
) -> jax.Array:
    """DDIM (Song, Meng & Ermon 2021, arXiv 2010.02502, equation 12).

        x_s = sqrt(ab_s) x_0 + sqrt(1 - ab_s - sigma^2) eps + sigma z
        sigma^2 = eta^2 (1 - ab_s) / (1 - ab_t) (1 - ab_t / ab_s)

    eta = 0 is deterministic; eta = 1 is ancestral sampling with variance "beta_tilde".

    Args:
      x_T: float (B, H, W, C), noise at times[0]; keys: (B,).
      eta: 0 to 1.
    Returns:
      x_0, float (B, H, W, C).
    """
    check_eta(eta)
    t = check_times(schedule, times)
    s = np.append(t[1:], 0)
    ab_s = schedule.alpha_bar[s]
    sigma2 = eta**2 * posterior(schedule, t, s).beta_tilde
    columns = (np.sqrt(ab_s), np.sqrt(np.maximum(1 - ab_s - sigma2, 0)), np.sqrt(sigma2))
    rows = [jnp.asarray(column, jnp.float32) for column in columns]

    def step(x_t: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        t, signal, noise, sigma = row
        x0, eps = denoiser(x_t, jnp.full(x_t.shape[:1], t))
        x_s = signal * x0 + noise * eps
        if eta > 0:
            x_s = x_s + sigma * rng.normal(rng.fold_in(keys, t), x_t.shape[1:])
        return x_s, None

    return jax.lax.scan(step, x_T, (jnp.asarray(t, jnp.int32), *rows))[0]


def classifier_free_guidance(
    network: Network, label: jax.Array, null_label: int, scale: float
) -> Callable[..., jax.Array]:
    """(x_t, t) -> guided output: out(null) + scale (out(label) - out(null)) (Ho & Salimans 2022, arXiv 2207.12598).

    scale = 1 is the conditional network and scale = 0 the unconditional one, with one evaluation per step; any other
    scale evaluates both, in one batch of 2 B.
    """
    if scale == 1.0:
        return lambda x_t, t: network(x_t, t, label)
    null = jnp.full_like(label, null_label)
    if scale == 0.0:
        return lambda x_t, t: network(x_t, t, null)

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        both = (jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), jnp.concatenate([label, null]))
        conditional, unconditional = jnp.split(network(*both), 2)
        return unconditional + scale * (conditional - unconditional)

    return guided
