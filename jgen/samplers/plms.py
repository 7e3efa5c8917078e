"""Pseudo linear multistep sampling (Liu, Ren, Lin & Zhao 2022, arXiv 2202.09778): Adams-Bashforth on predicted noise.

    x_s = (alpha_s / alpha_t) x_t + (sigma_s - sigma_t alpha_s / alpha_t) e
    e   = (55 e_i - 59 e_{i-1} + 37 e_{i-2} - 9 e_{i-3}) / 24                                   (equations 11 and 12)

where e_i = (x - alpha D) / sigma is the noise predicted at step i. Where the paper begins with Runge-Kutta steps, this
begins as Stable Diffusion's sampler does: with lower orders, and after the first step, x' = step(x, e_0), that step is
repeated with (e_0 + e(x')) / 2. This takes one evaluation of the denoiser more than there are steps.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgen.prob.process import Denoiser, Process
from jgen.samplers.linear import steps_of

# Weights of e_i, e_{i-1}, ... by the number of earlier ones; MEAN is for the first step when it is repeated.
MEAN = (0.5, 0.5, 0.0, 0.0)
ADAMS_BASHFORTH = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms(denoiser: Denoiser, process: Process, times: Any, x: jax.Array, end: float = 0.0) -> tuple[jax.Array, Any]:
    """The data x_0 (or x at the time `end`) obtained from noise x at the first time, and the estimate at every step.

    Args:
      x: float (B, H, W, C); times: (n,), decreasing.
    Returns:
      float (B, H, W, C), and float (n + 1, B, H, W, C), the denoised images of each evaluation (1 of one step).
    """
    p, n = steps_of(process, times, end), len(times)
    again = n > 1
    # The row of an evaluation: its time, the step that follows, and whether that step is the first one repeated.
    at = np.array([0, *[1] * again, *range(1, n)])
    step = np.array([0, *[0] * again, *range(1, n)])
    repeats = np.arange(len(at)) == 1
    weights = [ADAMS_BASHFORTH[min(i, 3)] for i in range(n)]
    weights[1:1] = [MEAN] * again
    ratio = p.alpha_s / p.alpha_t
    columns = (p.t[at], p.alpha_t[at], p.sigma_t[at], ratio[step], (p.sigma_s - p.sigma_t * ratio)[step])
    rows = tuple(jnp.asarray(column, x.dtype) for column in columns)
    scanned = (*rows, jnp.asarray(weights, x.dtype), jnp.asarray(repeats))

    def body(carry: tuple[jax.Array, ...], row: tuple[jax.Array, ...]) -> tuple[tuple, jax.Array]:
        x, start, history = carry
        t, alpha, sigma, gain, gain_e, weight, is_again = row
        estimate = denoiser(x, jnp.full(x.shape[:1], t))
        e = (x - alpha * estimate) / sigma
        mixed = jnp.tensordot(weight, jnp.concatenate([e[None], history]), 1)
        begin = jnp.where(is_again, start, x)
        history = jnp.where(is_again, history, jnp.concatenate([e[None], history[:-1]]))
        return (gain * begin + gain_e * mixed, begin, history), estimate

    history = jnp.zeros((3, *x.shape), x.dtype)
    (x, _, _), estimates = jax.lax.scan(body, (x, x, history), scanned)
    return x, estimates
