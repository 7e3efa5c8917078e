"""Diffusion samplers as tables of coefficients: one evaluation of the denoiser per row, in one compiled scan.

Nearly every sampler steps from one time to the next by a linear combination of the noisy image, its denoised estimates
D and fresh noise, with coefficients that depend on the times only. A `Table` holds them, computed in float64 on the
host; `run` is the loop. In row i, D_i = D(x, t_i), then

    corrected  y_i = new D_i + keep x + base y_{i-1} + sum_j old_j D_{i-1-j}    (y_i = x without a corrector)
    predicted  x  <- step y_i + sum_j denoised_j D_{i-j} + noise z_i,  z_i ~ N(0, I)

The last row of every method gives D_i itself: a sampler ends at clean data (`ddim` at any time).

Below, from t to s: alpha, sigma at both; lambda = log(alpha / sigma), h = lambda_s - lambda_t.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.errors import require, require_choice
from jgen.prob.diffusion_bound import VARIANCES, clean_at_zero, posterior_of, reverse_variance
from jgen.prob.process import Denoiser, Process, half_log_snr, library, rates, time_of


class Corrector(NamedTuple):
    """Coefficients of y_i, one row per time; `old` (n, K)."""

    new: Any
    keep: Any
    base: Any
    old: Any


class Table(NamedTuple):
    """The times (n,) at which the denoiser is evaluated, and the coefficients of each row; `denoised` (n, K)."""

    t: Any
    step: Any
    denoised: Any
    noise: Any = None
    corrector: Corrector | None = None


def run(denoiser: Denoiser, table: Table, x: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The data x_0 that a table gives from noise x at its first time, and the estimate at every step.

    Args:
      x: float (B, H, W, C); keys: (B,), for the noise.
    Returns:
      float (B, H, W, C), and float (n, B, H, W, C), the denoised images of each evaluation.
    """
    rows = jax.tree.map(lambda column: jnp.asarray(column, x.dtype), table)
    history = jnp.zeros((rows.denoised.shape[1], *x.shape), x.dtype)

    def body(carry: tuple[jax.Array, ...], scanned: tuple[jax.Array, Table]) -> tuple[tuple, jax.Array]:
        x, base, history = carry
        number, row = scanned
        estimate = denoiser(x, jnp.full(x.shape[:1], row.t))
        if row.corrector is not None:
            c = row.corrector
            x = c.new * estimate + c.keep * x + c.base * base + jnp.tensordot(c.old, history, 1)
        history = jnp.concatenate([estimate[None], history[:-1]])
        predicted = row.step * x + jnp.tensordot(row.denoised, history, 1)
        if row.noise is not None:
            predicted = predicted + row.noise * rng.normal(rng.fold_in(keys, number), x.shape[1:], x.dtype)
        return (predicted, x, history), estimate

    numbers = jnp.arange(len(rows.t))
    (x_0, _, _), estimates = jax.lax.scan(body, (x, x, history), (numbers, rows))
    return x_0, estimates


class Steps(NamedTuple):
    """alpha, sigma and lambda at the times t and at the times s that follow them."""

    t: Any
    s: Any
    alpha_t: Any
    sigma_t: Any
    alpha_s: Any
    sigma_s: Any
    lambda_t: Any
    lambda_s: Any

    @property
    def h(self) -> Any:
        return self.lambda_s - self.lambda_t


def steps_of(process: Process, times: Any, end: float = 0.0) -> Steps:
    """The steps from each of the times to the next, and from the last to the time `end`: 0 is clean data."""
    lib = library(times)
    following = lib.concatenate([times[1:], lib.full_like(times[:1], end)])
    alpha_t, sigma_t = process.alpha(times), process.sigma(times)
    alpha_s, sigma_s = clean_at_zero(process, following)
    lib = library(alpha_t)
    with np.errstate(divide="ignore"):
        lambda_t, lambda_s = lib.log(alpha_t) - lib.log(sigma_t), lib.log(alpha_s) - lib.log(sigma_s)
    return Steps(times, following, alpha_t, sigma_t, alpha_s, sigma_s, lambda_t, lambda_s)


def columns(*each: Any) -> Any:
    """Coefficients (n, K) from K columns."""
    return library(each[0]).stack(each, axis=1)


def ancestral(process: Process, times: Any, variance: str = "beta_tilde") -> Table:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, algorithm 2), on any times.

        x_s = mean of q(x_s | x_t, x_0 = D) + sigma z, and z = 0 in the step to s = 0

    variance: sigma^2 is "beta", "beta_tilde" (the posterior's) or "none" (0: without noise, images collapse towards
    blurred means of the data).
    """
    require_choice("variance", variance, VARIANCES)
    p = steps_of(process, times)
    c = posterior_of(p.alpha_t, p.sigma_t, p.alpha_s, p.sigma_s)
    noise = reverse_variance(c, variance) ** 0.5 * (p.s > 0)
    return Table(times, c.xt, columns(c.x0), None if variance == "none" else noise)


def ddim(process: Process, times: Any, eta: float = 0.0, end: float = 0.0) -> Table:
    """DDIM (Song, Meng & Ermon 2021, arXiv 2010.02502, equation 12).

        x_s = alpha_s D + sqrt(sigma_s^2 - w^2) eps + w z,  eps = (x_t - alpha_t D) / sigma_t,  w^2 = eta^2 beta_tilde

    eta = 0 is deterministic: the exponential integrator of first order of the probability flow, and Euler's method in
    sigma / alpha. eta = 1 is ancestral sampling with variance "beta_tilde", and Euler's ancestral method.
    `end` is the time of the last step's s; 0 is clean data.
    """
    require(0.0 <= eta <= 1.0, f"eta is {eta}: it must be from 0 (deterministic) to 1 (ancestral)")
    p = steps_of(process, times, end)
    lib = library(p.alpha_t)
    w2 = eta**2 * posterior_of(p.alpha_t, p.sigma_t, p.alpha_s, p.sigma_s).beta_tilde
    direction = lib.sqrt(lib.maximum(p.sigma_s**2 - w2, 0.0)) / p.sigma_t
    return Table(times, direction, columns(p.alpha_s - p.alpha_t * direction), lib.sqrt(w2) if eta > 0 else None)


def ddim_inversion(process: Process, times: Any) -> Table:
    """Deterministic `ddim` steps backwards, from the last time to the first (Song, Meng & Ermon 2021, section 4.3).

    x_t = alpha_t D + sigma_t eps,  eps = (x_s - alpha_s D) / sigma_s,  D at x_s, s the time below t
    """
    s, t = times[:0:-1], times[-2::-1]
    direction = process.sigma(t) / process.sigma(s)
    return Table(s, direction, columns(process.alpha(t) - process.alpha(s) * direction))


def flow_rates(process: Process, t: Any) -> tuple[Any, Any]:
    """a and b of the probability flow dx/dt = a x + b D at times (n,)."""

    def at(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        alpha_rate, sigma_rate = rates(process, t, t)
        a = sigma_rate / process.sigma(t)
        return a, alpha_rate - a * process.alpha(t)

    if isinstance(t, jax.Array):
        return at(t)
    with jax.ensure_compile_time_eval():
        a, b = at(jnp.asarray(t))
        return np.asarray(a, np.float64), np.asarray(b, np.float64)


def to_clean_data(lib: Any, step: Any, *denoised: Any) -> tuple[Any, Any]:
    """The coefficients with the last row replaced by that which gives D."""
    last = lib.arange(len(step)) == len(step) - 1
    first, *others = denoised
    zeros = [lib.where(last, 0.0, column) for column in (step, *others)]
    return zeros[0], columns(lib.where(last, 1.0, first), *zeros[1:])


def euler(process: Process, times: Any) -> Table:
    """Euler's method on the probability flow in t."""
    p = steps_of(process, times)
    a, b = flow_rates(process, times)
    length = p.s - p.t
    return Table(times, *to_clean_data(library(a), 1.0 + length * a, length * b))


class Churn(NamedTuple):
    """The noise added between steps (Karras et al. 2022, algorithm 2): S_churn, [S_tmin, S_tmax], S_noise."""

    amount: float
    low: float
    high: float
    noise: float


def heun(process: Process, times: Any, churn: Churn | None = None) -> Table:
    """Heun's method on the probability flow in t (Karras et al. 2022, algorithms 1 and 2): 2 n - 1 evaluations.

    With `churn`, noise is added before each step except the first (unlike in algorithm 2), and the step then begins at
    a later time.
    """
    p = steps_of(process, times)
    start, gain, noise = p.t, np.ones_like(p.t), None
    if churn is not None:
        start, gain, noise = churned(process, p.t, churn)
    lib = library(p.alpha_t)
    length = p.s - start
    n = len(times)
    (a, b), (a_s, b_s) = flow_rates(process, start), flow_rates(process, lib.maximum(p.s, 1e-9))
    half = 0.5 * length
    zero, one = lib.zeros_like(length), lib.ones_like(length)
    step, denoised = to_clean_data(lib, 1.0 + length * a, length * b)

    def interleave(first: Any, second: Any) -> Any:
        """Rows of evaluations alternately at t and at s, without the last one at s."""
        return lib.stack([first, second], axis=1).reshape(2 * n, *first.shape[1:])[:-1]

    corrector = Corrector(
        new=interleave(zero, half * b_s),
        keep=interleave(one, half * a_s),
        base=interleave(zero, 1.0 + half * a),
        old=columns(interleave(zero, half * b)),
    )
    # The noise of a step is added at the end of the one before it.
    following = None if noise is None else lib.concatenate([noise[1:], zero[:1]])
    gains = lib.concatenate([gain[1:], one[:1]])
    return Table(
        t=interleave(start, p.s),
        step=interleave(step, gains),
        denoised=interleave(denoised, columns(zero)),
        noise=None if following is None else interleave(zero, following),
        corrector=corrector,
    )


def churned(process: Process, times: Any, churn: Churn) -> tuple[Any, Any, Any]:
    """The later times, the factors by which x is scaled to reach them, and the standard deviations of the noise
    added."""
    lib = library(times)
    ratio = lib.exp(-half_log_snr(process, times))  # sigma / alpha
    # Sampling begins at the first time itself.
    inside = (ratio >= churn.low) & (ratio <= churn.high) & (lib.arange(len(times)) > 0)
    ratio = lib.where(inside, ratio, 1.0)  # which may be infinite at the first time
    gamma = min(churn.amount / len(times), 2**0.5 - 1)
    later = lib.where(inside, time_of(process, -lib.log(ratio * (1.0 + gamma))), times)
    alpha, alpha_later = (lib.where(inside, process.alpha(t), 1.0) for t in (times, later))
    # Less than requested if the process ends earlier.
    reached = lib.where(inside, process.sigma(later) / alpha_later, ratio)
    noise = churn.noise * alpha_later * lib.sqrt(lib.maximum(reached**2 - ratio**2, 0.0))
    return later, alpha_later / alpha, noise


def later_order(lib: Any, h: Any, lag: int) -> tuple[Any, Any]:
    """h_{i-lag} / h_i, and whether a step has that much history and is not the last; 1 elsewhere."""
    n = len(h)
    number = lib.arange(n)
    earlier = lib.concatenate([lib.ones_like(h[:lag]), h[: max(n - lag, 0)]])[:n]
    usable = (number >= lag) & (number < n - 1) & lib.isfinite(earlier)
    ratio = lib.where(usable, earlier, 1.0) / lib.where(usable, h, 1.0)
    return lib.where(usable, ratio, 1.0), usable


def dpm_solver_2m(process: Process, times: Any, stochastic: bool = False) -> Table:
    """DPM-Solver++ of second order, multistep (Lu et al. 2022, arXiv 2211.01095, algorithm 2), or its SDE form.

        x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^{-h}) ((1 + 1 / 2r) D_i - (1 / 2r) D_{i-1}),  r = h_{i-1} / h
        SDE: e^{-h} (sigma_s / sigma_t) x_t + alpha_s (1 - e^{-2h}) (...) + sigma_s sqrt(1 - e^{-2h}) z

    The first and the last step are of first order.
    """
    p = steps_of(process, times)
    lib = library(p.alpha_t)
    ratio, usable = later_order(lib, p.h, 1)
    weight = lib.where(usable, 0.5 / ratio, 0.0)
    power = 2.0 if stochastic else 1.0
    gain = -p.alpha_s * lib.expm1(-power * p.h)
    step = p.sigma_s / p.sigma_t * (lib.exp(-p.h) if stochastic else 1.0)
    noise = p.sigma_s * lib.sqrt(-lib.expm1(-2.0 * p.h)) if stochastic else None
    return Table(times, step, columns(gain * (1.0 + weight), -gain * weight), noise)


def dpm_solver_3m(process: Process, times: Any) -> Table:
    """DPM-Solver++ of third order, multistep (arXiv 2211.01095, equation 4.1 with its derivatives by differences).

    With phi_1 = e^{-h} - 1, phi_2 = phi_1 / h + 1 and phi_3 = phi_2 / h - 1 / 2,

        x_s = (sigma_s / sigma_t) x_t - alpha_s (phi_1 D - phi_2 h D' + phi_3 h^2 D''),

    where D' and D'' are the derivatives in lambda of the parabola through the last three D. The authors' code, and code
    derived from it, halves the last term, which makes it second order only. The first two steps and the last are of
    lower order.
    """
    p = steps_of(process, times)
    lib = library(p.alpha_t)
    r0, second = later_order(lib, p.h, 1)
    r1, third = later_order(lib, p.h, 2)
    third = third & second
    h = lib.where(lib.isfinite(p.h), p.h, 1.0)
    phi1 = lib.expm1(-p.h)
    phi2 = lib.where(second, lib.expm1(-h) / h + 1.0, 0.0)
    # Of second order, D' is (D_i - D_{i-1}) / r0, and phi_2 is replaced by -phi_1 / 2 as in the method 2M.
    phi2_or_half = lib.where(third, phi2, lib.where(second, -0.5 * phi1, 0.0))
    phi3 = lib.where(third, phi2 / h - 0.5, 0.0)
    first_difference = (1.0 / r0, -1.0 / r0, 0.0 * r0)  # D1_0 in terms of D_i, D_{i-1}, D_{i-2}
    older_difference = (0.0 * r1, 1.0 / r1, -1.0 / r1)
    mix, scale = lib.where(third, r0 / (r0 + r1), 0.0), 2.0 / (r0 + r1)
    denoised = []
    for j, (new, old) in enumerate(zip(first_difference, older_difference)):
        slope, curve = new + mix * (new - old), scale * (new - old)
        denoised.append(p.alpha_s * (-phi1 * (j == 0) + phi2_or_half * slope - phi3 * curve))
    return Table(times, p.sigma_s / p.sigma_t, columns(*denoised))


def unipc(process: Process, times: Any) -> Table:
    """UniPC of second order with B(h) = e^h - 1 (Zhao et al. 2023, arXiv 2302.04867), predicting data.

    The corrector of a step uses the estimate at its end, which the next step needs anyway: one evaluation per step. It
    makes the method third order.
    """
    p = steps_of(process, times)
    lib = library(p.alpha_t)
    ratio, usable = later_order(lib, p.h, 1)
    gain = -p.alpha_s * lib.expm1(-p.h)  # -alpha_s B
    step = p.sigma_s / p.sigma_t
    slope = lib.where(usable, 0.5 / ratio, 0.0)  # D1 = (D_{i-1} - D_i) / r, r = -ratio; its weight is 1 / 2
    predictor = columns(gain * (1.0 + slope), -gain * slope)
    # The corrector's weights: R rho = b with r_1 = -ratio and r_2 = 1.
    h = lib.where(lib.isfinite(p.h), p.h, 1.0)
    phi1 = lib.expm1(-h)
    phi2 = phi1 / -h - 1.0
    b1, b2 = phi2 / phi1, 2.0 * (phi2 / -h - 0.5) / phi1
    rho_old = lib.where(usable, (b1 - b2) / (1.0 + ratio), 0.0)
    rho_new = lib.where(usable, b1 - rho_old, 0.5)
    older = lib.where(usable, rho_old / -ratio, 0.0)
    corrected = (step, gain * (1.0 - rho_new - older), gain * older, gain * rho_new)

    def after(first: float, column: Any) -> Any:
        """A step's corrector coefficients, moved to the row of the evaluation at its end; the first row corrects
        nothing."""
        return lib.concatenate([lib.full_like(column[:1], first), column[:-1]])

    base, last, before, new = (after(0.0, column) for column in corrected)
    corrector = Corrector(new, after(1.0, lib.zeros_like(step)), base, columns(last, before))
    return Table(times, step, predictor, None, corrector)
