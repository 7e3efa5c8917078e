"""Gaussian diffusion: the forward process, its posterior, and the variational bound.

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,  eps ~ N(0, I)

Ho, Jain & Abbeel 2020 (arXiv 2006.11239), to whose equations the numbers refer.

Glossary: x_0 data in [-1, 1]; x_t noisy data; eps the compound noise; ab_t = alpha_bar_t;
v = sqrt(ab_t) eps - sqrt(1 - ab_t) x_0 (Salimans & Ho 2022, arXiv 2202.00512). Between any two times s < t,
alpha_{t|s} = ab_t / ab_s and beta_{t|s} = 1 - alpha_{t|s}; for s = t - 1 they are alpha_t and beta_t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.prob.likelihoods import discretised_normal_log_prob, normal_kl, sum_image
from jgen.prob.pixels import to_float
from jgen.prob.schedules import Schedule

PREDICTIONS = ("eps", "x0", "v")
VARIANCES = ("beta", "beta_tilde", "none")


class Prediction(NamedTuple):
    """A denoiser's estimates from x_t of the data x_0 and the noise eps, each of the shape of x_t."""

    x0: jax.Array
    eps: jax.Array


Denoiser = Callable[[jax.Array, jax.Array], Prediction]  # (x_t (B, H, W, C), t int32 (B,)) -> Prediction


def per_image(x: jax.Array, like: jax.Array) -> jax.Array:
    """(B,) to (B, 1, ..., 1) with the rank of `like`."""
    return x.reshape(x.shape + (1,) * (like.ndim - 1))


def signal_and_noise(schedule: Schedule, t: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sqrt(ab_t) and sqrt(1 - ab_t) for t (B,), float32, shaped to multiply `like`."""
    signal = jnp.asarray(np.sqrt(schedule.alpha_bar), jnp.float32)
    noise = jnp.asarray(np.sqrt(1 - schedule.alpha_bar), jnp.float32)
    return per_image(signal[t], like), per_image(noise[t], like)


def q_sample(schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """x_t given x_0 and eps (equation 4); t int32 (B,), 0 .. T."""
    signal, noise = signal_and_noise(schedule, t, x_0)
    return signal * x_0 + noise * eps


def target(prediction: str, schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """The regression target at x_t of a network that predicts "eps", "x0" or "v"."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x_0
    signal, noise = signal_and_noise(schedule, t, x_0)
    return signal * eps - noise * x_0


def interpret(
    prediction: str, schedule: Schedule, x_t: jax.Array, t: jax.Array, output: jax.Array, clip: bool
) -> Prediction:
    """The estimates of x_0 and eps that follow from a network's `output` at x_t.

    Args:
      prediction: "eps", "x0" or "v", what the network was trained to predict.
      clip: whether x_0 is clipped to [-1, 1] and eps recomputed from the clipped x_0.
    """
    signal, noise = signal_and_noise(schedule, t, x_t)
    if prediction == "eps":
        x0, eps = (x_t - noise * output) / signal, output
    elif prediction == "x0":
        x0, eps = output, (x_t - signal * output) / noise
    else:
        x0, eps = signal * x_t - noise * output, noise * x_t + signal * output
    if clip:
        x0 = jnp.clip(x0, -1.0, 1.0)
        eps = (x_t - signal * x0) / noise
    return Prediction(x0, eps)


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x0 * x_0 + xt * x_t, beta_tilde), and beta_{t|s}: float64, indexed by pairs (t, s)."""

    x0: np.ndarray
    xt: np.ndarray
    beta: np.ndarray
    beta_tilde: np.ndarray


def posterior(schedule: Schedule, t: np.ndarray, s: np.ndarray) -> Posterior:
    """Coefficients of q(x_s | x_t, x_0) for integer times s < t (equations 6 and 7, where s = t - 1)."""
    ab_t, ab_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
    alpha = ab_t / ab_s
    beta = 1 - alpha
    return Posterior(
        x0=np.sqrt(ab_s) * beta / (1 - ab_t),
        xt=np.sqrt(alpha) * (1 - ab_s) / (1 - ab_t),
        beta=beta,
        beta_tilde=beta * (1 - ab_s) / (1 - ab_t),
    )


def reverse_variance(coefficients: Posterior, variance: str) -> np.ndarray:
    """sigma^2 of the sampler's step t -> s: "beta", "beta_tilde" or "none" (0)."""
    return {
        "beta": coefficients.beta,
        "beta_tilde": coefficients.beta_tilde,
        "none": np.zeros_like(coefficients.beta),
    }[variance]


def prior_kl(schedule: Schedule, x_0: jax.Array) -> jax.Array:
    """L_T = KL(q(x_T | x_0) || N(0, I)), nats per image, (B,)."""
    ab = float(schedule.alpha_bar[-1])
    return sum_image(normal_kl(np.sqrt(ab) * x_0, float(np.log1p(-ab)), 0.0, 0.0))


def variational_bound(
    denoiser: Denoiser, schedule: Schedule, images: jax.Array, keys: jax.Array, levels: int, variance: str
) -> jax.Array:
    """A lower bound on log p(images) in nats (equation 5), with one draw of x_t at each of the T times.

        log p(x_0) >= -L_T - sum_{t=2}^T KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) + log p(x_0 | x_1)

    The last term is the discretised Gaussian (equation 13). It takes T evaluations of the denoiser.

    Args:
      images: uint8 (B, H, W, C), 0 .. levels - 1; keys: (B,).
      variance: of p(x_{t-1} | x_t): "beta" or "beta_tilde"; at t = 1, where beta_tilde is 0, both take beta_1, or
        beta_tilde_2 (Nichol & Dhariwal 2021) for "beta_tilde" when T > 1.
    Returns:
      float32 (B,).
    """
    T = schedule.num_steps
    x_0 = to_float(images, levels)
    times = np.arange(1, T + 1)
    coefficients = posterior(schedule, times, times - 1)
    sigma2 = reverse_variance(coefficients, variance).copy()
    if variance == "beta_tilde":
        sigma2[0] = sigma2[1] if T > 1 else coefficients.beta[0]
    table = {
        "x0": coefficients.x0,
        "xt": coefficients.xt,
        "logvar_p": np.log(sigma2),
        "logvar_q": np.log(np.maximum(coefficients.beta_tilde, 1e-30)),
    }
    rows = {name: jnp.asarray(column, jnp.float32) for name, column in table.items()}

    def predict(t: jax.Array) -> tuple[jax.Array, Prediction]:
        t_batch = jnp.full(x_0.shape[:1], t)
        x_t = q_sample(schedule, x_0, t_batch, rng.normal(rng.fold_in(keys, t), x_0.shape[1:]))
        return x_t, denoiser(x_t, t_batch)

    def kl_term(bound: jax.Array, scanned: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[jax.Array, None]:
        t, row = scanned
        x_t, predicted = predict(t)
        difference = row["x0"] * (x_0 - predicted.x0)  # the two means share the x_t term
        return bound - sum_image(normal_kl(difference, row["logvar_q"], 0.0, row["logvar_p"])), None

    x_1, predicted = predict(jnp.int32(1))
    mean = rows["x0"][0] * predicted.x0 + rows["xt"][0] * x_1
    std = float(np.sqrt(sigma2[0]))
    bound = sum_image(discretised_normal_log_prob(images, mean, std, levels)) - prior_kl(schedule, x_0)
    later = (jnp.arange(2, T + 1), jax.tree.map(lambda column: column[1:], rows))
    return jax.lax.scan(kl_term, bound, later)[0]
