"""Noise schedules of the forward process q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), t = 1 .. T.

With u = (t - 1) / (T - 1) (0 where T = 1), as in Ho, Jain & Abbeel 2020 (arXiv 2006.11239) and later work:

    linear     beta_t = beta_1 + u (beta_T - beta_1)
    quadratic  beta_t = [sqrt(beta_1) + u (sqrt(beta_T) - sqrt(beta_1))]^2
    sigmoid    beta_t = beta_1 + (beta_T - beta_1) / (1 + exp(r (1 - 2 u))),  r = 6
    cosine     alpha_bar_t = f(t) / f(0),  f(t) = cos^2(((t / T + s) / (1 + s)) pi / 2),  s = 0.008,
               beta_t = min(1 - alpha_bar_t / alpha_bar_{t-1}, 0.999)      (Nichol & Dhariwal 2021, arXiv 2102.09672)

and alpha_bar_t = prod_{s <= t} (1 - beta_s). Everything is float64 on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jgen.errors import require, require_choice

KINDS = ("linear", "cosine", "quadratic", "sigmoid")
SPACINGS = ("leading", "linspace", "trailing")
SIGMOID_R, COSINE_S = 6.0, 0.008


class Schedule(NamedTuple):
    """`beta` and `alpha_bar`, float64 (T + 1,), indexed by t; t = 0 is data: beta[0] = 0, alpha_bar[0] = 1."""

    beta: np.ndarray
    alpha_bar: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.beta) - 1


def make_schedule(
    kind: str = "linear",
    num_steps: int = 1000,
    beta_1: float = 1e-4,
    beta_T: float = 0.02,
) -> Schedule:
    """The noise schedule `kind` with T = `num_steps`.

    Raises:
      UserError: an unknown kind, T below 1, or betas that are not 0 < beta_1 <= beta_T < 1.
    """
    require_choice("schedule", kind, KINDS)
    require(num_steps >= 1, f"num_timesteps is {num_steps}: the forward process has at least 1 step")
    require(0 < beta_1 <= beta_T < 1, f"beta_1 = {beta_1}, beta_T = {beta_T}: they must be 0 < beta_1 <= beta_T < 1")
    t = np.arange(1, num_steps + 1, dtype=np.float64)
    u = (t - 1) / max(num_steps - 1, 1)
    if kind == "linear":
        beta = beta_1 + u * (beta_T - beta_1)
    elif kind == "quadratic":
        beta = (np.sqrt(beta_1) + u * (np.sqrt(beta_T) - np.sqrt(beta_1))) ** 2
    elif kind == "sigmoid":
        beta = beta_1 + (beta_T - beta_1) / (1 + np.exp(SIGMOID_R * (1 - 2 * u)))
    else:
        grid = np.arange(num_steps + 1, dtype=np.float64) / num_steps
        f = np.cos((grid + COSINE_S) / (1 + COSINE_S) * np.pi / 2) ** 2
        beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
    beta = np.concatenate([[0.0], beta])
    return Schedule(beta, np.cumprod(1 - beta))


def sampling_times(num_timesteps: int, steps: int, spacing: str = "trailing", offset: int = 0) -> tuple[int, ...]:
    """`steps` of the times 1 .. T, decreasing; a sampler steps from each to the next, and from the last to t = 0.

    leading   1, 1 + r, 1 + 2 r, ... with r = T // steps (starts below T), each plus `offset`
    linspace  evenly from 1 to T, both included
    trailing  T, T - T / steps, ..., rounded (starts at T)

    The first two are those of diffusers, whose times count from 0 where these count from 1. So is the third if steps
    divides T; otherwise diffusers' times may differ by one, or include one more, which would be t = 0 here.

    Raises:
      UserError: `steps` outside 1 .. T, an unknown spacing, or an offset that moves times below 1 or above T.
    """
    require_choice("spacing", spacing, SPACINGS)
    require(1 <= steps <= num_timesteps, f"steps is {steps}: it must be from 1 to {num_timesteps}, the model's T")
    if spacing == "leading":
        times = np.arange(steps, dtype=np.float64) * (num_timesteps // steps) + 1 + offset
        most = num_timesteps - int(times[-1]) + offset
        message = f"offset is {offset}: with {steps} steps of {num_timesteps} it must be from 0 to {most}"
        require(0 <= offset <= most, message)
    elif spacing == "linspace":
        times = np.round(np.linspace(0, num_timesteps - 1, steps)) + 1
    else:
        times = np.round(num_timesteps - np.arange(steps)[::-1] * (num_timesteps / steps))
    return tuple(int(t) for t in times[::-1])
