"""The posterior of a Gaussian diffusion, and the variational bound for a sequence of times.

    q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, beta_tilde)  for s < t, with alpha_{t|s} = alpha_t / alpha_s:
    beta = sigma_t^2 - alpha_{t|s}^2 sigma_s^2,  beta_tilde = beta sigma_s^2 / sigma_t^2,
    c_0 = alpha_s beta / sigma_t^2,  c_t = alpha_{t|s} sigma_s^2 / sigma_t^2

Equation numbers refer to Ho, Jain & Abbeel 2020 (arXiv 2006.11239), where s = t - 1 and alpha^2 = alpha_bar. This form
is that of Kingma et al. 2021 (arXiv 2107.00630), appendix A.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.prob.likelihoods import discretised_normal_log_prob, normal_kl, normal_log_prob, sum_image
from jgen.prob.pixels import to_float
from jgen.prob.process import Denoiser, Process, add_noise, library, prior_std

VARIANCES = ("beta", "beta_tilde", "none")
SMALLEST = 1e-30  # of a variance before its logarithm


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x0 * x_0 + xt * x_t, beta_tilde), and beta, for pairs of times (t, s)."""

    x0: Any
    xt: Any
    beta: Any
    beta_tilde: Any


def posterior(process: Process, t: Any, s: Any) -> Posterior:
    """The coefficients of q(x_s | x_t, x_0) for arrays of times s < t (equations 6 and 7); s = 0 is clean data."""
    return posterior_of(process.alpha(t), process.sigma(t), *clean_at_zero(process, s))


def clean_at_zero(process: Process, s: Any) -> tuple[Any, Any]:
    """alpha and sigma at times s; 1 and 0 at s = 0, even if the process has a little noise there."""
    alpha, sigma = process.alpha(s), process.sigma(s)
    lib = library(alpha)
    return lib.where(s > 0, alpha, lib.ones_like(alpha)), lib.where(s > 0, sigma, lib.zeros_like(sigma))


def posterior_of(alpha_t: Any, sigma_t: Any, alpha_s: Any, sigma_s: Any) -> Posterior:
    """The coefficients of q(x_s | x_t, x_0) from alpha and sigma at both times."""
    lib = library(alpha_t)
    with np.errstate(divide="ignore"):
        step = lib.log(alpha_t) - lib.log(sigma_t) - lib.log(alpha_s) + lib.log(sigma_s)
    gain = -lib.expm1(2.0 * step)  # 1 - (alpha_t sigma_s / (alpha_s sigma_t))^2, without cancellation
    beta = sigma_t**2 * gain
    return Posterior(
        x0=alpha_s * gain,
        xt=alpha_t / alpha_s * (sigma_s / sigma_t) ** 2,
        beta=beta,
        beta_tilde=sigma_s**2 * gain,
    )


def reverse_variance(coefficients: Posterior, variance: str) -> Any:
    """sigma^2 of the sampler's step t -> s: "beta", "beta_tilde" or "none" (0)."""
    return {"beta": coefficients.beta, "beta_tilde": coefficients.beta_tilde, "none": 0.0 * coefficients.beta}[variance]


def log_variances(coefficients: Posterior, first: int = -1) -> tuple[Any, Any]:
    """log beta and log beta_tilde of a chain of steps; beta_tilde of the step to clean data, which is 0, is taken to be
    that of the step before it in the chain, or beta if there is none (Nichol & Dhariwal 2021, arXiv 2102.09672).

    Args:
      first: the entry of the step to clean data: -1 where times decrease, 0 where they increase.
    """
    lib = library(coefficients.beta)
    n = len(coefficients.beta)
    is_first = lib.arange(n) == first % n
    neighbour = coefficients.beta_tilde[1 if first == 0 else -2] if n > 1 else coefficients.beta[0]
    beta_tilde = lib.where(is_first, neighbour, coefficients.beta_tilde)
    return lib.log(lib.maximum(coefficients.beta, SMALLEST)), lib.log(lib.maximum(beta_tilde, SMALLEST))


def interpolated(v: jax.Array, log_beta: Any, log_beta_tilde: Any) -> jax.Array:
    """The log-variance that a network's v encodes: log beta at v = 1, log beta_tilde at v = -1 (Nichol & Dhariwal 2021,
    arXiv 2102.09672, equation 15)."""
    weight = 0.5 * (v + 1.0)
    return weight * log_beta + (1.0 - weight) * log_beta_tilde


def chain_term(
    images: jax.Array, x_0: jax.Array, estimate: jax.Array, row: dict[str, Any], logvar: jax.Array, levels: int
) -> jax.Array:
    """-log p(x_0 | x_t) of the step to clean data, else KL(q(x_s | x_t, x_0) || p(x_s | x_t)): nats per image, (B,).

    Where levels is 0, x_0 are latents, and p(x_0 | x_t) is a density.

    Args:
      row: of each step, (B, 1, 1, 1) each: x0, the coefficient of x_0; logvar_q; is_first, whether s = 0.
      logvar: of p, (B, H, W, C).
    """
    difference = row["x0"] * (x_0 - estimate)  # the two means share the x_t term
    kl = normal_kl(difference, row["logvar_q"], 0.0, logvar)
    if levels == 0:
        decoded = normal_log_prob(x_0, estimate, logvar)
    else:
        decoded = discretised_normal_log_prob(images, estimate, jnp.exp(0.5 * logvar), levels)
    return sum_image(jnp.where(row["is_first"], -decoded, kl))


def prior_kl(process: Process, x_0: jax.Array) -> jax.Array:
    """KL(q(x_1 | x_0) || p(x_1)), nats per image, (B,); p is the normal distribution that sampling begins with."""
    end = np.ones(1)
    alpha, sigma = (jnp.asarray(f(end), jnp.float32)[0] for f in (process.alpha, process.sigma))
    logvar = float(2.0 * np.log(prior_std(process)))
    return sum_image(normal_kl(alpha * x_0, 2.0 * jnp.log(sigma), 0.0, logvar))


def variational_bound(
    denoiser: Denoiser,
    process: Process,
    times: np.ndarray,
    images: jax.Array,
    keys: jax.Array,
    levels: int,
    variance: str,
) -> jax.Array:
    """A lower bound on log p(images) in nats (equation 5), with one draw of x_t at each of the n times.

        log p(x_0) >= -KL(q(x_1 | x_0) || p(x_1)) - sum_i KL(q(x_{t_{i-1}} | x_{t_i}, x_0) || p) + log p(x_0 | x_{t_1})

    The last term is the discretised Gaussian (equation 13). It takes n evaluations of the denoiser.

    Args:
      times: increasing, from the first above 0 to 1; images: uint8 (B, H, W, C), 0 .. levels - 1; keys: (B,).
      variance: of the reverse process: "beta", "beta_tilde" (see `log_variances`), or "learned", with which the
        denoiser gives [x_0, v] in 2 C channels.
    Returns:
      float32 (B,).
    """
    n = len(times)
    x_0 = to_float(images, levels)
    coefficients = posterior(process, times, np.append(0.0, times[:-1]))
    log_beta, log_beta_tilde = log_variances(coefficients, first=0)
    table = {
        "t": times,
        "x0": coefficients.x0,
        "log_beta": log_beta,
        "log_beta_tilde": log_beta_tilde,
        "logvar_q": np.log(np.maximum(coefficients.beta_tilde, SMALLEST)),
    }
    rows = {name: jnp.asarray(column, jnp.float32) for name, column in table.items()}

    def predict(number: jax.Array, row: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """x_0 and the log-variance of the reverse step."""
        t = jnp.full(x_0.shape[:1], row["t"])
        eps = rng.normal(rng.fold_in(keys, number), x_0.shape[1:])
        output = denoiser(add_noise(process, x_0, t, eps), t)
        if variance != "learned":
            return output, row[f"log_{variance}"]
        estimate, v = jnp.split(output, 2, axis=-1)
        return estimate, interpolated(v, row["log_beta"], row["log_beta_tilde"])

    def kl_term(bound: jax.Array, scanned: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[jax.Array, None]:
        number, row = scanned
        estimate, logvar = predict(number, row)
        difference = row["x0"] * (x_0 - estimate)  # the two means share the x_t term
        return bound - sum_image(normal_kl(difference, row["logvar_q"], 0.0, logvar)), None

    mean, logvar = predict(jnp.int32(1), jax.tree.map(lambda column: column[0], rows))
    decoded = discretised_normal_log_prob(images, mean, jnp.exp(0.5 * logvar), levels)
    bound = sum_image(decoded) - prior_kl(process, x_0)
    later = (jnp.arange(2, n + 1), jax.tree.map(lambda column: column[1:], rows))
    return jax.lax.scan(kl_term, bound, later)[0]
