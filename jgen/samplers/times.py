"""The times at which a diffusion sampler evaluates its denoiser: n of them, decreasing within (0, 1].

    uniform   t_i = 1 - i / n
    shifted   s t / (1 + (s - 1) t) of the uniform times                       (Esser et al. 2024, arXiv 2403.03206)
    log_snr   log(alpha / sigma) evenly spaced                                 (Lu et al. 2022, arXiv 2206.00927)
    karras    (sigma / alpha)^(1 / rho) evenly spaced, rho = 7                 (Karras et al. 2022, arXiv 2206.00364)
    leading, linspace, trailing: the points i / T of a chain of T steps, see `jgen.prob.schedules.sampling_times`

log_snr and karras end where sigma / alpha is `low`, the others one step before t = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jgen.errors import require, require_choice
from jgen.prob.process import Process, half_log_snr, library, time_of
from jgen.prob.schedules import SPACINGS as CHAIN_SPACINGS
from jgen.prob.schedules import sampling_times

CONTINUOUS_SPACINGS = ("uniform", "shifted", "log_snr", "karras")
KARRAS_RHO = 7.0
NOISE_ALONE = -16.0  # log(alpha / sigma) below which alpha is 0 up to rounding


def make_times(
    process: Process,
    spacing: str,
    steps: int,
    *,
    num_timesteps: int = 0,
    shift: float = 1.0,
    low: float = 0.002,
    offset: int = 0,
) -> Any:
    """`steps` times in (0, 1], decreasing: float64 on the host, or a JAX array if the process is learned.

    Args:
      num_timesteps: T of the chain that the model was trained on; 0 in continuous time.
      shift: s of the spacing "shifted".
      low: sigma / alpha at the last of the times "log_snr" and "karras".
      offset: number of chain steps added to the times "leading".
    Raises:
      UserError: a spacing that the model's time does not support, or numbers out of range.
    """
    fitting = CONTINUOUS_SPACINGS + CHAIN_SPACINGS * (num_timesteps > 0)
    require_choice("spacing", spacing, fitting)
    require(steps >= 1, f"steps is {steps}: it must be above zero")
    if spacing in CHAIN_SPACINGS:
        return np.array(sampling_times(num_timesteps, steps, spacing, offset), np.float64) / num_timesteps
    uniform = 1.0 - np.arange(steps, dtype=np.float64) / steps
    if spacing == "uniform":
        return uniform
    if spacing == "shifted":
        require(shift > 0, f"shift is {shift}: it must be above zero")
        return shift * uniform / (1.0 + (shift - 1.0) * uniform)
    return times_by_noise(process, spacing, steps, low)


def times_by_noise(process: Process, spacing: str, steps: int, low: float) -> Any:
    """Times from 1 to where sigma / alpha is `low`, evenly spaced in a function of sigma / alpha."""
    require(low > 0, f"low is {low}: it must be above zero")
    # If alpha(1) is 0, sigma / alpha is infinite there: times are then spaced from just before 1.
    ends = [half_log_snr(process, np.array([t]))[0] for t in (1.0, 0.999)]
    lib = library(ends[0])
    first = lib.where(ends[0] < NOISE_ALONE, ends[1], ends[0])
    last = lib.minimum(-math.log(low), half_log_snr(process, np.array([0.0]))[0])  # some noise may stay at t = 0
    fractions = np.arange(steps, dtype=np.float64) / max(steps - 1, 1)
    if spacing == "log_snr":
        values = first + fractions * (last - first)
    else:
        high, end = lib.exp(-first / KARRAS_RHO), lib.exp(-last / KARRAS_RHO)
        values = -KARRAS_RHO * lib.log(high + fractions * (end - high))
    times = time_of(process, values)
    return lib.concatenate([lib.ones_like(times[:1]), times[1:]])


def check_times(times: Sequence[float]) -> np.ndarray:
    """The times as an array. Raises `UserError` unless they decrease strictly within (0, 1]."""
    array = np.asarray(times, dtype=np.float64)
    decreasing = array.ndim == 1 and array.size > 0 and bool(np.all(np.diff(array) < 0))
    inside = decreasing and array[0] <= 1 and array[-1] > 0
    require(inside, f"times are {tuple(times)}: they must decrease strictly, from 1 at most to above 0")
    return array
