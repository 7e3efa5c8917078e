"""Differential equations of images, solved by diffrax with separate step sizes for each image, and their densities.

    dx/dt = alpha' D(x, t) + sigma' (x - alpha D(x, t)) / sigma      the probability flow of a diffusion
    d log p(x_t)/dt = -div(dx/dt)                                    (Chen et al. 2018, arXiv 1806.07366)

The divergence is estimated with random probes, of +1 and -1 or Gaussian (Grathwohl et al. 2019, arXiv 1810.01367; Song
et al. 2021, arXiv 2011.13456, section D.2), or computed exactly. The solver is Dormand and Prince's of order 5, or
Bogacki and Shampine's of order 3 for large tolerances; it keeps the error of a step below the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import backend
from jgen.core import keys as rng
from jgen.core.model import Cond
from jgen.errors import require
from jgen.prob.likelihoods import mean_image, normal_log_prob, sum_image
from jgen.prob.pixels import dequantise_to_float
from jgen.prob.process import Denoiser, Process, noise_of, prior_std, rates, time_of

MAX_STEPS = 4096
LOW_ORDER_FROM = 1e-2  # the tolerance from which on the solver of order 3 is used


@dataclass(frozen=True)
class Scoring:
    """Options of the likelihood from the probability flow."""

    tolerance: float = 1e-4
    """Absolute and relative error tolerance of a solver step."""
    probes: int = 1
    """Random probe vectors for the divergence; 0: the exact divergence, which takes H W C derivatives."""
    low: float = 0.001
    """Noise level, as sigma / alpha, that dequantised images are assumed to have; unrelated to the `low` of
    sampling."""


Conditional = Callable[..., jax.Array]  # (x_t, t, cond=...) -> x_0
Field = Callable[[jax.Array, jax.Array], jax.Array]  # (x (B, H, W, C), t (B,)) -> dx/dt


def probability_flow(denoiser: Denoiser, process: Process) -> Field:
    """dx/dt at x_t and t."""

    def field(x: jax.Array, t: jax.Array) -> jax.Array:
        x_0 = denoiser(x, t)
        alpha_rate, sigma_rate = rates(process, t, x)
        return alpha_rate * x_0 + sigma_rate * noise_of(process, x, t, x_0)

    return field


def solve(
    derivative: Callable[[Any, Any, Any], Any], start: Any, t_0: float, t_1: float, tolerance: float, args: Any
) -> tuple[Any, jax.Array]:
    """The solution at t_1 of dy/dt = derivative(t, y, args) for each entry of a batch, and how many steps each took.

    If an image's solution does not converge within `MAX_STEPS` steps, it is NaN.

    Args:
      start, args: trees of arrays (B, ...), of which `derivative` sees one entry.
    Returns:
      a tree of arrays (B, ...), and int32 (B,).
    """
    import diffrax

    method = diffrax.Dopri5() if tolerance < LOW_ORDER_FROM else diffrax.Bosh3()
    term = diffrax.ODETerm(derivative)
    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)

    def one(start: Any, args: Any) -> tuple[Any, jax.Array]:
        solution = diffrax.diffeqsolve(
            term,
            method,
            t_0,
            t_1,
            dt0=None,
            y0=start,
            args=args,
            stepsize_controller=controller,
            max_steps=MAX_STEPS,
            throw=False,
            adjoint=diffrax.ForwardMode(),
        )
        converged = solution.result == diffrax.RESULTS.successful
        end = jax.tree.map(lambda y: jnp.where(converged, y[-1], jnp.nan), solution.ys)
        return end, solution.stats["num_steps"]

    return jax.vmap(one)(start, args)


def runge_kutta(derivative: Callable[[jax.Array, Any], Any], state: Any, t_0: float, t_1: float, steps: int) -> Any:
    """The state at t_1, a tree of arrays, from that at t_0, by equal steps of the classical Runge-Kutta method of order
    4."""
    h, dtype = (t_1 - t_0) / steps, jax.tree.leaves(state)[0].dtype

    def advanced(state: Any, rate: Any, step: float) -> Any:
        return jax.tree.map(lambda a, b: a + step * b, state, rate)

    def one(state: Any, t: jax.Array) -> tuple[Any, None]:
        k_1 = derivative(t, state)
        k_2 = derivative(t + h / 2, advanced(state, k_1, h / 2))
        k_3 = derivative(t + h / 2, advanced(state, k_2, h / 2))
        k_4 = derivative(t + h, advanced(state, k_3, h))
        rate = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k_1, k_2, k_3, k_4)
        return advanced(state, rate, h), None

    return jax.lax.scan(one, state, t_0 + jnp.arange(steps, dtype=dtype) * h)[0]


def one_image(cond: Cond) -> Cond:
    """The condition of one image as that of a batch of one."""
    return jax.tree.map(lambda value: value[None], cond)


def adaptive(
    denoise: Conditional, process: Process, x: jax.Array, cond: Cond, tolerance: float, low: float
) -> tuple[jax.Array, jax.Array]:
    """The data that the probability flow maps noise x at t = 1 to; the last part, from t = low, is one evaluation of D.

    Args:
      denoise: (x_t, t, cond) -> x_0; cond: {field: (B, ...)}, {} for none.
    Returns:
      float (B, H, W, C), NaN where the solver did not converge, and the number of evaluations of D for each, int32
      (B,).
    """

    def derivative(t: jax.Array, y: jax.Array, cond: Cond) -> jax.Array:
        field = probability_flow(partial(denoise, cond=one_image(cond)), process)
        return field(y[None], jnp.asarray(t, y.dtype)[None])[0]

    end, steps = solve(derivative, x, 1.0, low, tolerance, cond)
    # Dormand and Prince's step evaluates the field 6 times, Bogacki and Shampine's 3; the initial step size takes two.
    evaluations = (6 if tolerance < LOW_ORDER_FROM else 3) * steps + 3
    return denoise(end, jnp.full(x.shape[:1], low, x.dtype), cond), evaluations


def probe_directions(
    keys: jax.Array, shape: tuple[int, ...], probes: int, kind: Literal["rademacher", "gaussian"] = "rademacher"
) -> jax.Array:
    """Probe vectors v for a divergence, (B, probes, *shape), with E v v^T = I.

    With probes 0 they are all unit vectors, and the sum of v^T J v is the exact divergence.
    """
    if not probes:
        size = math.prod(shape)
        whole = jnp.eye(size).reshape(size, *shape)
        return jnp.broadcast_to(whole, (keys.shape[0], *whole.shape))
    if kind == "gaussian":
        return rng.normal(keys, (probes, *shape))
    return jnp.sign(rng.uniform(keys, (probes, *shape)) - 0.5)


def pushforwards(flow: Callable[[jax.Array], jax.Array], x: jax.Array, directions: jax.Array) -> tuple[Any, Any]:
    """flow(x), and J v of its Jacobian for each of the directions v, (n, *x.shape)."""
    with backend.plain_forms():
        velocity, pushforward = jax.linearize(flow, x)
        return velocity, jax.vmap(pushforward)(directions)


def transport(
    field: Callable[[jax.Array, jax.Array, Cond], jax.Array],
    x: jax.Array,
    cond: Cond,
    keys: jax.Array,
    tolerance: float,
    t_0: float,
    t_1: float,
    probes: int,
    kind: Literal["rademacher", "gaussian"] = "rademacher",
) -> tuple[jax.Array, jax.Array]:
    """The point that the flow takes x at t_0 to at t_1, and the integral of the field's divergence: the log_det of the
    map.

    Args:
      field: (x (B, H, W, C), t (B,), cond) -> dx/dt.
      keys, probes, kind: see `probe_directions`.
    Returns:
      float (B, H, W, C) and (B,), NaN where the solver did not converge.
    """
    weight = 1.0 / probes if probes else 1.0

    def derivative(t: jax.Array, y: tuple[jax.Array, jax.Array], args: Any) -> tuple[jax.Array, jax.Array]:
        directions, cond = args

        def flow(x: jax.Array) -> jax.Array:
            return field(x[None], jnp.asarray(t, x.dtype)[None], one_image(cond))[0]

        velocity, pushed = pushforwards(flow, y[0], directions)
        return velocity, weight * jnp.sum(jax.vmap(jnp.vdot)(directions, pushed))

    directions = probe_directions(keys, x.shape[1:], probes, kind).astype(x.dtype)
    start = (x, jnp.zeros(x.shape[:1], x.dtype))
    return solve(derivative, start, t_0, t_1, tolerance, (directions, cond))[0]


class Terms(NamedTuple):
    """A state of the flow, and the integrals so far of the trace, ||f||^2 / D and ||J v||^2 / D, each (B,)."""

    x: jax.Array
    trace: jax.Array
    kinetic: jax.Array
    jacobian: jax.Array


def integrate(field: Field, x: jax.Array, v: jax.Array, steps: int) -> Terms:
    """The flow from t = 0 to 1 in equal steps of the classical Runge-Kutta method of order 4, differentiable, with the
    terms of its regularisation by Finlay et al. 2020 (arXiv 2002.02798).

    Args:
      v: the probe of each image, of x's shape.
    """

    def derivative(t: jax.Array, state: Terms) -> Terms:
        times = jnp.full(x.shape[:1], t, x.dtype)
        f, pushed = pushforwards(lambda x: field(x, times), state.x, v[None])
        return Terms(f, sum_image(v * pushed[0]), mean_image(f**2), mean_image(pushed[0] ** 2))

    zeros = jnp.zeros(x.shape[:1], x.dtype)
    return runge_kutta(derivative, Terms(x, zeros, zeros, zeros), 0.0, 1.0, steps)


def log_density(
    denoise: Conditional,
    process: Process,
    x: jax.Array,
    cond: Cond,
    keys: jax.Array,
    tolerance: float,
    low: float,
    probes: int,
) -> jax.Array:
    """log p(x) in nats, float32 (B,), of the density that the probability flow transports from t = 1 to t = low.

    Args:
      x: float (B, H, W, C), taken as x_t at t = low; keys: (B,), of the probes.
      probes: random vectors for the divergence; 0 computes it exactly, with H W C derivatives.
    """

    def field(x: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        return probability_flow(partial(denoise, cond=cond), process)(x, t)

    end, divergence = transport(field, x, cond, keys, tolerance, low, 1.0, probes)
    logvar = 2.0 * jnp.log(jnp.asarray(prior_std(process), jnp.float32))
    return sum_image(normal_log_prob(end, 0.0, logvar)) + divergence


def log_prob(
    denoise: Conditional, process: Process, images: jax.Array, cond: Cond, keys: jax.Array, levels: int, o: Scoring
) -> jax.Array:
    """An estimate of log P(images) in nats, float32 (B,): the log-density of uniformly dequantised images in [-1, 1].

    In expectation over the dequantisation, the exact solution would be a lower bound on log P (Theis et al. 2016).

    Args:
      images: uint8 (B, H, W, C), 0 .. levels - 1; keys: (B,), of the dequantisation and the probes.
    """
    check_ode(o.tolerance, o.probes)
    key_noise, key_probes = rng.split(keys, 2)
    low = time_of(process, -np.log(np.array([o.low])))[0]
    x = dequantise_to_float(key_noise, images, levels)
    size = math.prod(images.shape[1:])
    density = log_density(denoise, process, x, cond, key_probes, o.tolerance, low, o.probes)
    return density + size * math.log(2 / (levels - 1))


def check_ode(tolerance: float, probes: int = 1) -> None:
    """Raises `UserError` for a tolerance that is not above zero, or a negative number of probes."""
    require(0 < tolerance < 1, f"tolerance is {tolerance}: it must be above 0 and below 1")
    require(probes >= 0, f"probes is {probes}: it must be zero (the exact divergence) or above")
