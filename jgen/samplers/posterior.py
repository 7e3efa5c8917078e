"""Sampling from p(x_0 | y), y a measurement of the image, with a denoiser D(x_t, t) that was trained without
measurements.

All methods take ancestral steps from t to s, x_s ~ N(c_t x_t + c_0 D, beta_tilde) (`jgen.prob.diffusion_bound`), and
differ in how they use y:

    replacement  known pixels of x_s are replaced by q(x_s | y)              (Song et al. 2021, arXiv 2011.13456, I.2)
    repaint      the same, and every step is repeated `repeats` times, going back to t by adding noise, so that the
    unknown
                 pixels come to agree with the known ones  (Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1, with
                 jumps of one step)
    dps          x_s <- x_s - zeta grad 1/2 |y - A D(x_t)|^2, for any linear A, zeta = step_size / |y - A D(x_t)|
                                                             (Chung et al. 2023, arXiv 2209.14687, algorithm 1)

Differs from Chung et al.: zeta is at most 1, so that a step does not pass the point where the error vanishes (images of
few pixels have errors below 1, and with steps of one length their known pixels oscillate); no step is taken where the
error is below the norm of the measurement's noise; and in a process that does not preserve the variance, zeta is
multiplied by alpha_s^2 + sigma_s^2, which makes the step that of the process rescaled to preserve it.

None of these samples the posterior exactly. On three correlated Gaussian pixels of which one is known, in 100 steps of
a cosine process (tests/samplers/test_posterior.py): replacement conditions x_s only on the noisy known pixels of the
same step, and its mean is halfway between the prior's and the posterior's, with the posterior's variance; repaint with
10 repeats gets nine tenths of the way, with three quarters of the variance; dps overshoots by a third, with eight
tenths of the variance.

Glossary: x_t noisy image, y measurement, A degradation, D denoised image, mask true where a pixel is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.errors import require, require_positive
from jgen.prob.degradation import Problem
from jgen.prob.diffusion_bound import posterior_of
from jgen.prob.likelihoods import sum_image
from jgen.prob.process import Denoiser, Process, per_image
from jgen.samplers.diffusion import start_std
from jgen.samplers.linear import steps_of


@dataclass(frozen=True)
class Inpainting:
    """Options of inpaint."""

    method: Literal["replacement", "repaint", "dps"] = "repaint"
    """Method by which known pixels are used."""
    steps: int = 50
    """Number of times; the network is evaluated once at each, with repaint `repeats` times."""
    repeats: int = 10
    """How many times repaint takes every step."""
    step_size: float = 1.0
    """Factor on the gradient of dps."""
    guidance_scale: float = 1.0
    """Strength of guidance by the condition, as in sampling; 1: none."""


@dataclass(frozen=True)
class Restoring:
    """Options of restore."""

    problem: Problem = "super_resolution"
    """The degradation of the images: means of blocks, luma, or only noise."""
    factor: int = 2
    """Side of the blocks of super_resolution."""
    steps: int = 200
    """Number of times at which the network is evaluated, with its gradient."""
    step_size: float = 1.0
    """Factor on the gradient of dps."""
    noise: float = 0.0
    """Standard deviation of the noise in the measurement, in levels; dps does not fit the measurement more closely than
    that."""


def check_inpainting(o: Inpainting) -> None:
    """Raises `UserError` for options out of range."""
    require_positive(steps=o.steps, repeats=o.repeats, step_size=o.step_size)


def check_restoring(o: Restoring) -> None:
    """Raises `UserError` for options out of range; the problem is checked by `jgen.prob.degradation`."""
    require_positive(steps=o.steps, step_size=o.step_size)
    require(0 <= o.noise < math.inf, f"noise is {o.noise}: it must be zero or above, and finite")


Row = dict[str, jax.Array]


def rows_of(process: Process, times: Any) -> Row:
    """The coefficients of ancestral steps through these times, and of the reverse steps that add noise, (n,) each."""
    p = steps_of(process, times)
    c = posterior_of(p.alpha_t, p.sigma_t, p.alpha_s, p.sigma_s)
    columns = {
        "t": p.t,
        "x_t": c.xt,
        "x_0": c.x0,
        "std": c.beta_tilde**0.5 * (p.s > 0),
        "alpha_s": p.alpha_s,
        "sigma_s": p.sigma_s,
        "back": p.alpha_t / p.alpha_s,
        "back_std": c.beta**0.5,
        "scale": p.alpha_s**2 + p.sigma_s**2,
    }
    return {name: jnp.asarray(column, jnp.float32) for name, column in columns.items()}


def by_replacement(
    denoiser: Denoiser, process: Process, times: Any, y: jax.Array, mask: jax.Array, keys: jax.Array, repeats: int = 1
) -> jax.Array:
    """Images whose known pixels are those of y; the methods replacement (repeats 1) and repaint.

    Args:
      times: decreasing in (0, 1], NumPy; y: float (B, H, W, C); mask: bool (B, H, W, 1); keys: (B,).
    Returns:
      x_0, float (B, H, W, C).
    """
    rows = rows_of(process, times)
    key_start, key_steps = rng.split(keys, 2)

    def once(row: Row, carry: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[Any, None]:
        x, x_s = carry
        key_known, key_unknown, key_back = rng.split(rng.fold_in(key_steps, number), 3)
        x = jnp.where(number % repeats == 0, x, row["back"] * x_s + row["back_std"] * rng.normal(key_back, y.shape[1:]))
        D = denoiser(x, jnp.full(x.shape[:1], row["t"]))
        unknown = row["x_t"] * x + row["x_0"] * D + row["std"] * rng.normal(key_unknown, y.shape[1:])
        known = row["alpha_s"] * y + row["sigma_s"] * rng.normal(key_known, y.shape[1:])
        return (x, jnp.where(mask, known, unknown)), None

    def step(x: jax.Array, scanned: tuple[jax.Array, Row]) -> tuple[jax.Array, None]:
        number, row = scanned
        numbers = number * repeats + jnp.arange(repeats)
        (_, x_s), _ = jax.lax.scan(lambda carry, number: once(row, carry, number), (x, x), numbers)
        return x_s, None

    x = rng.normal(key_start, y.shape[1:]) * start_std(process, times[0])
    return jax.lax.scan(step, x, (jnp.arange(len(times)), rows))[0]


def by_gradient(
    denoiser: Denoiser,
    process: Process,
    times: Any,
    y: jax.Array,
    degradation: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    keys: jax.Array,
    step_size: float,
    noise: float = 0.0,
) -> jax.Array:
    """Images whose degradation is near to y: the method dps.

    Args:
      times: decreasing in (0, 1], NumPy; y: float (B, ...), as `degradation` gives it; shape: (H, W, C); keys: (B,).
      noise: standard deviation of the noise in y.
    Returns:
      x_0, float (B, H, W, C).
    """
    rows = rows_of(process, times)
    key_start, key_steps = rng.split(keys, 2)

    noise_norm = noise * math.sqrt(math.prod(y.shape[1:]))

    def half_square(x: jax.Array, t: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        D = denoiser(x, t)
        squares = sum_image((y - degradation(D)) ** 2)
        return 0.5 * jnp.sum(squares), (D, jnp.sqrt(squares + 1e-12))

    def step(x: jax.Array, scanned: tuple[jax.Array, Row]) -> tuple[jax.Array, None]:
        number, row = scanned
        gradient, (D, norm) = jax.grad(half_square, has_aux=True)(x, jnp.full(x.shape[:1], row["t"]))
        rate = jnp.where(norm > noise_norm, jnp.minimum(step_size / norm, 1.0), 0.0)
        z = rng.normal(rng.fold_in(key_steps, number), shape)
        x_s = row["x_t"] * x + row["x_0"] * D + row["std"] * z
        return x_s - row["scale"] * per_image(rate, x) * gradient, None

    x = rng.normal(key_start, shape) * start_std(process, times[0])
    return jax.lax.scan(step, x, (jnp.arange(len(times)), rows))[0]
