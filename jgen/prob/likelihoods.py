"""Log-probabilities and KL divergences: Bernoulli, Gaussian, discretised Gaussian and discretised logistic."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from numpy.typing import ArrayLike

from jgen.errors import require

LOG_2PI = math.log(2.0 * math.pi)


def flatten(x: jax.Array) -> jax.Array:
    """(B, ...) to (B, n). On CPU, XLA vectorises over the last axis: exp and log of (B, H, W, 1) take 15 times as long
    as of (B, n)."""
    return x.reshape(x.shape[0], -1)


def sum_image(x: jax.Array) -> jax.Array:
    """Sum over all axes but the first: (B, ...) to (B,)."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


def mean_image(x: jax.Array) -> jax.Array:
    """Mean over all axes but the first: (B, ...) to (B,)."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def normal_log_prob(x: jax.Array, mean: Any, logvar: Any) -> Any:
    """Elementwise log N(x; mean, exp(logvar)), nats."""
    return -0.5 * (LOG_2PI + logvar + (x - mean) ** 2 * jnp.exp(-logvar))


def normal_kl(mean_q: Any, logvar_q: Any, mean_p: Any, logvar_p: Any) -> Any:
    """Elementwise KL(N(mean_q, exp(logvar_q)) || N(mean_p, exp(logvar_p))), nats."""
    ratio = jnp.exp(logvar_q - logvar_p) + (mean_q - mean_p) ** 2 * jnp.exp(-logvar_p)
    return 0.5 * (logvar_p - logvar_q + ratio - 1.0)


def discretised_normal_log_prob(level: jax.Array, mean: jax.Array, std: Any, levels: int) -> jax.Array:
    """Elementwise log-probability of a level 0 .. levels - 1 under a Gaussian on [-1, 1] cut into bins.

    Level k has the bin of width 2 / (levels - 1) around 2 k / (levels - 1) - 1; the first and the last bin reach to
    infinity, so the levels' probabilities sum to 1 (Ho et al. 2020, equation 13).

    Args:
      level: integers; mean: float, same shape; std: a scalar or an array of the same shape, above 0.
    """
    width = 2.0 / (levels - 1)
    x = level.astype(jnp.float32) * width - 1.0
    upper = (x - mean + 0.5 * width) / std
    lower = (x - mean - 0.5 * width) / std
    # Bins above the mean are mirrored: in the lower tail both log-cdfs have full relative precision.
    mirror = upper + lower > 0
    high = jnp.where(mirror, -lower, upper)
    low = jnp.where(mirror, -upper, lower)
    log_high = log_ndtr(high)
    gap = jnp.minimum(log_ndtr(low) - log_high, -1e-30)
    # log(1 - e^gap), in the form that is exact on either side of -log 2 (Maechler 2012).
    log_mass = log_high + jnp.where(gap > -math.log(2.0), jnp.log(-jnp.expm1(gap)), jnp.log1p(-jnp.exp(gap)))
    # A bin much narrower than std: the difference of cdfs cancels; the density's second-order expansion does not.
    middle, h = 0.5 * (upper + lower), upper - lower
    narrow = -0.5 * (LOG_2PI + middle**2) + jnp.log(h) + (middle**2 - 1.0) * h**2 / 24.0
    inside = jnp.where((h < 0.02) & (jnp.abs(middle) < 5.0), narrow, log_mass)
    tails = jnp.where(level == 0, log_ndtr(upper), log_ndtr(-lower))
    return jnp.where((level == 0) | (level == levels - 1), tails, inside)


def bernoulli_log_prob(x: jax.Array, logits: jax.Array) -> jax.Array:
    """Elementwise log-probability of x in {0, 1}, where 1 has the probability sigmoid(logits)."""
    # softplus as max(l, 0) + log(1 + exp(-|l|)), which XLA computes in half the time of log1p and logaddexp.
    # minimum(l, -l), not -|l|: with JAX's gradient of abs at 0 that of the sum would be wrong there.
    return x * logits - jnp.maximum(logits, 0.0) - jnp.log(1.0 + jnp.exp(jnp.minimum(logits, -logits)))


def discretised_logistic_log_prob(level: jax.Array, mean: jax.Array, scale: Any, levels: int) -> jax.Array:
    """Elementwise log-probability of a level 0 .. levels - 1 under a logistic on [-1, 1] cut into bins.

    The bins are those of `discretised_normal_log_prob`: the levels' probabilities sum to 1. With u and l the bin's ends
    in units of the scale, sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)), which has no cancellation.

    Args:
      level: integers; mean: float, same shape; scale: a scalar or an array of the same shape, above 0.
    """
    width = 2.0 / (levels - 1)
    x = level.astype(jnp.float32) * width - 1.0
    below = jax.nn.log_sigmoid((x - mean + 0.5 * width) / scale)
    above = jax.nn.log_sigmoid(-(x - mean - 0.5 * width) / scale)
    inside = below + above + jnp.log(-jnp.expm1(-width / scale))
    return jnp.where(level == 0, below, jnp.where(level == levels - 1, above, inside))


def log_prior(prior: ArrayLike | None, num: int) -> np.ndarray:
    """The logarithms of class probabilities, float64 (num,), uniform for None. Raises `UserError` unless there are
    `num` that sum to 1."""
    weights = np.full(num, 1.0 / num) if prior is None else np.asarray(prior, np.float64)
    fits = weights.shape == (num,) and bool(np.all(weights >= 0)) and abs(weights.sum() - 1.0) < 1e-3
    require(fits, f"prior is {prior!s}: it must be {num} probabilities, which sum to 1")
    with np.errstate(divide="ignore"):
        return np.log(weights)
