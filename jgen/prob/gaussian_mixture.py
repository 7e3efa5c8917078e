"""Gaussian mixtures fitted by stepwise EM, whose state is the mean sufficient statistics.

    density      p(x | h) = sum_k pi_hk N(x; mu_k, S_k)                                                          (1)
    E-step       r_k = pi_hk N(x; mu_k, S_k) / p(x | h)                                                          (2)
    statistics   s <- (1 - g) s + g mean[E[s(x, k, y) | x, h]],  g = (step + 2)^-power
                 Cappe & Moulines 2009, arXiv 0712.4273                                                          (3)
    M-step       the parameters that maximise the expected log-likelihood with the statistics s                  (4)

All rows h (classes) share the components, and each row has its own weights; a weight of zero stays zero. There are
three forms of S_k, each with its own statistics beside w_hk = mean[1(h) r_k] and w_k = sum_h w_hk:

    full       m_k = mean[r_k x], M_k = mean[r_k x x^T]:     mu_k = m_k / w_k,  S_k = M_k / w_k - mu_k mu_k^T
    diagonal   m_k, mean[r_k x^2]:                           the same on the diagonal
    low_rank   S_k = W_k W_k^T + diag(psi_k), x = W_k y + mu_k + noise with y ~ N(0, I) of `rank` dimensions: mixtures
               of factor analysers, Ghahramani & Hinton 1996 (CRG-TR-96-1). With u = (y, 1),
               C_k = mean[r_k x u^T], Y_k = mean[r_k u u^T]:  (W_k, mu_k) = C_k Y_k^-1,
               psi_k = (mean[r_k x^2] - diag((W_k, mu_k) C_k^T)) / w_k

A floor is added to all variances after the M-step.

Glossary: x (B, D); h the row of each example, int (B,); k component; r responsibilities (B, K); y factors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.prob.likelihoods import LOG_2PI

HIGHEST = jax.lax.Precision.HIGHEST  # covariances are differences of statistics, which GPUs would round to ten bits
SMALLEST = 1e-12  # lower limit of a component's weight before division by it
START_LOADING = 0.3  # standard deviation of the initial W_k relative to the data's: zero is a stationary point of EM

Statistics = dict[str, jax.Array]


class Mixture(NamedTuple):
    """weights (H, K), a row per class; means (K, D); shape, the arrays of the form of covariance.

    full: Cholesky factors, lower, (K, D, D); diagonal: standard deviations (K, D); low_rank: (W (K, D, q), psi (K, D)).
    """

    weights: jax.Array
    means: jax.Array
    shape: Any


class Covariance(NamedTuple):
    """A form of covariance: see `full`, `diagonal` and `low_rank`.

    start:      (weights (H, K), means (K, D), variances (D,), key) -> the statistics of a mixture with these weights
                and means whose covariances are about diag(variances).
    statistics: (mixture, r (B, K), x (B, D)) -> means over the examples of all statistics but the weights.
    mixture_of: (statistics, floor) -> the mixture: the M-step.
    log_normal: (mixture, x (B, D)) -> log N(x; mu_k, S_k), float32 (B, K).
    noise:      (mixture, k (B,), keys (B,)) -> a draw of N(0, S_k), (B, D).
    matrices:   (mixture) -> S_k, (K, D, D).
    """

    start: Callable[..., Statistics]
    statistics: Callable[..., Statistics]
    mixture_of: Callable[[Statistics, float], Mixture]
    log_normal: Callable[[Mixture, jax.Array], jax.Array]
    noise: Callable[[Mixture, jax.Array, jax.Array], jax.Array]
    matrices: Callable[[Mixture], jax.Array]


def full() -> Covariance:
    """Any covariance matrix."""
    return Covariance(full_start, full_statistics, full_mixture, full_log_normal, full_noise, full_matrices)


def diagonal() -> Covariance:
    """Independent dimensions within a component."""
    return Covariance(
        diagonal_start,
        diagonal_statistics,
        diagonal_mixture,
        diagonal_log_normal,
        lambda mixture, k, keys: mixture.shape[k] * rng.normal(keys, mixture.means.shape[1:]),
        lambda mixture: jax.vmap(jnp.diag)(mixture.shape**2),
    )


def low_rank(rank: int) -> Covariance:
    """A diagonal matrix plus one of rank `rank`."""
    return Covariance(
        partial(low_rank_start, rank),
        low_rank_statistics,
        low_rank_mixture,
        low_rank_log_normal,
        low_rank_noise,
        low_rank_matrices,
    )


def log_joint(covariance: Covariance, mixture: Mixture, x: jax.Array, row: jax.Array) -> jax.Array:
    """log pi_hk + log N(x; mu_k, S_k), float32 (B, K)."""
    return log_weights(mixture, row) + covariance.log_normal(mixture, x)


def log_weights(mixture: Mixture, row: jax.Array) -> jax.Array:
    """log pi_hk of the rows h, (B, K); -inf for a component with weight zero in the row."""
    return jnp.log(mixture.weights[row])


def log_density(covariance: Covariance, mixture: Mixture, x: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p(x | h), nats (B,), and the responsibilities (B, K): equations 1 and 2."""
    joint = log_joint(covariance, mixture, x, row)
    log_p = jax.nn.logsumexp(joint, axis=-1)
    return log_p, jnp.exp(joint - log_p[:, None])


def move(
    covariance: Covariance,
    old: Statistics,
    mixture: Mixture,
    responsibilities: jax.Array,
    x: jax.Array,
    row: jax.Array,
    step_size: jax.Array | float,
) -> Statistics:
    """The statistics after a step of EM on these examples: equation 3."""
    num, rows = len(x), len(mixture.weights)
    weight = jnp.matmul(jax.nn.one_hot(row, rows).T, responsibilities, precision=HIGHEST) / num
    new = {"weight": weight, **covariance.statistics(mixture, responsibilities, x)}
    return jax.tree.map(lambda old, new: (1.0 - step_size) * old + step_size * new, old, new)


def step_size(step: Any, power: float) -> Any:
    """g of equation 3; 1 for power 0, which is EM on each batch alone."""
    return (step + 2.0) ** -power


def sample(covariance: Covariance, mixture: Mixture, keys: jax.Array, row: jax.Array, temperature: float) -> jax.Array:
    """x (B, D) of the rows (B,), the components' standard deviations multiplied by `temperature`."""
    key_component, key_eps = rng.split(keys, 2)
    k = jax.vmap(jax.random.categorical)(key_component, log_weights(mixture, row))
    return mixture.means[k] + temperature * covariance.noise(mixture, k, key_eps)


def weights_of(statistics: Statistics) -> tuple[jax.Array, jax.Array]:
    """pi_hk (H, K) and w_k (K,), above zero. A row without examples gets the weights pooled over all rows."""
    weight = statistics["weight"]
    row_totals, total = jnp.sum(weight, axis=1, keepdims=True), jnp.sum(weight, axis=0)
    own = weight / jnp.maximum(row_totals, SMALLEST)
    weights = jnp.where(row_totals > SMALLEST, own, (total / jnp.sum(total))[None, :])
    return weights, jnp.maximum(total, SMALLEST)


def full_start(weights: jax.Array, means: jax.Array, variances: jax.Array, key: jax.Array) -> Statistics:
    total = jnp.sum(weights, axis=0)
    second = means[:, :, None] * means[:, None, :] + jnp.diag(variances)[None, :, :]
    return {"weight": weights, "first": total[:, None] * means, "second": total[:, None, None] * second}


def full_statistics(mixture: Mixture, r: jax.Array, x: jax.Array) -> Statistics:
    return {
        "first": jnp.matmul(r.T, x, precision=HIGHEST) / len(x),
        "second": jnp.einsum("bk,bi,bj->kij", r, x, x, precision=HIGHEST) / len(x),
    }


def full_mixture(statistics: Statistics, floor: float) -> Mixture:
    weights, total = weights_of(statistics)
    means = statistics["first"] / total[:, None]
    second = statistics["second"] / total[:, None, None]
    covariances = second - means[:, :, None] * means[:, None, :] + floor * jnp.eye(means.shape[1])[None, :, :]
    return Mixture(weights, means, jnp.linalg.cholesky(covariances))


def full_log_normal(mixture: Mixture, x: jax.Array) -> jax.Array:
    factors = mixture.shape
    identity = jnp.broadcast_to(jnp.eye(x.shape[-1])[None, :, :], factors.shape)
    inverse = jax.lax.linalg.triangular_solve(factors, identity, left_side=True, lower=True)
    difference = x[:, None, :] - mixture.means[None, :, :]
    whitened = jnp.einsum("kij,bkj->bki", inverse, difference, precision=HIGHEST)
    log_det = jnp.sum(jnp.log(jnp.diagonal(factors, axis1=1, axis2=2)), axis=-1)
    return normal(jnp.sum(whitened**2, axis=-1), 2.0 * log_det, x.shape[-1])


def normal(distance: jax.Array, log_det: jax.Array, dim: int) -> jax.Array:
    """log N of squared Mahalanobis distances (B, K) and log |S_k| (K,)."""
    return -0.5 * (distance + dim * LOG_2PI + log_det[None, :])


def full_noise(mixture: Mixture, k: jax.Array, keys: jax.Array) -> jax.Array:
    eps = rng.normal(keys, mixture.means.shape[1:])
    return jnp.einsum("bij,bj->bi", mixture.shape[k], eps, precision=HIGHEST)


def full_matrices(mixture: Mixture) -> jax.Array:
    return jnp.einsum("kij,klj->kil", mixture.shape, mixture.shape, precision=HIGHEST)


def diagonal_start(weights: jax.Array, means: jax.Array, variances: jax.Array, key: jax.Array) -> Statistics:
    total = jnp.sum(weights, axis=0)[:, None]
    return {"weight": weights, "first": total * means, "square": total * (means**2 + variances[None, :])}


def diagonal_statistics(mixture: Mixture, r: jax.Array, x: jax.Array) -> Statistics:
    parts = {"first": x, "square": x**2}
    return {name: jnp.matmul(r.T, part, precision=HIGHEST) / len(x) for name, part in parts.items()}


def diagonal_mixture(statistics: Statistics, floor: float) -> Mixture:
    weights, total = weights_of(statistics)
    means = statistics["first"] / total[:, None]
    variances = jnp.maximum(statistics["square"] / total[:, None] - means**2, 0.0) + floor
    return Mixture(weights, means, jnp.sqrt(variances))


def diagonal_log_normal(mixture: Mixture, x: jax.Array) -> jax.Array:
    whitened = (x[:, None, :] - mixture.means[None, :, :]) / mixture.shape[None, :, :]
    return normal(jnp.sum(whitened**2, axis=-1), 2.0 * jnp.sum(jnp.log(mixture.shape), axis=-1), x.shape[-1])


def low_rank_start(rank: int, weights: jax.Array, means: jax.Array, variances: jax.Array, key: jax.Array) -> Statistics:
    num, dim = means.shape
    total = jnp.sum(weights, axis=0)[:, None, None]
    std = jnp.sqrt(variances)[None, :, None]
    loadings = START_LOADING * std * jax.random.normal(key, (num, dim, rank)) / rank**0.5
    cross = jnp.concatenate([loadings, means[:, :, None]], axis=-1)
    square = jnp.sum(cross**2, axis=-1) + variances[None, :]
    factors = jnp.broadcast_to(jnp.eye(rank + 1)[None, :, :], (num, rank + 1, rank + 1))
    return {"weight": weights, "cross": total * cross, "factors": total * factors, "square": total[..., 0] * square}


def solve(matrices: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A^-1 right and log |A| of positive definite matrices (K, q, q) and right sides (K, q, n).

    By Cholesky factorisation: on CPU, JAX 0.10 hangs in batched LU factorisation inside a loop.
    """
    lower = jnp.linalg.cholesky(matrices)
    half = jax.lax.linalg.triangular_solve(lower, right, left_side=True, lower=True)
    solved = jax.lax.linalg.triangular_solve(lower, half, left_side=True, lower=True, transpose_a=True)
    return solved, 2.0 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=1, axis2=2)), axis=-1)


def posterior_factors(mixture: Mixture, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For y given x and k: the means (B, K, q), the precisions I + W^T psi^-1 W (K, q, q), and W^T psi^-1 (x - mu)."""
    W, psi = mixture.shape
    scaled = W / psi[:, :, None]
    precision = jnp.einsum("kdi,kdj->kij", W, scaled, precision=HIGHEST) + jnp.eye(W.shape[-1])[None, :, :]
    projected = jnp.einsum("kdi,bkd->kib", scaled, x[:, None, :] - mixture.means[None], precision=HIGHEST)
    means, _ = solve(precision, projected)
    return means.transpose(2, 0, 1), precision, projected.transpose(2, 0, 1)


def low_rank_statistics(mixture: Mixture, r: jax.Array, x: jax.Array) -> Statistics:
    y, precision, _ = posterior_factors(mixture, x)
    u = jnp.concatenate([y, jnp.ones((*y.shape[:2], 1), y.dtype)], axis=-1)
    inverse, _ = solve(precision, jnp.broadcast_to(jnp.eye(precision.shape[-1])[None, :, :], precision.shape))
    covariance = jnp.pad(inverse, ((0, 0), (0, 1), (0, 1)))
    factors = jnp.einsum("bk,bki,bkj->kij", r, u, u, precision=HIGHEST) / len(x)
    return {
        "cross": jnp.einsum("bd,bki->kdi", x, r[:, :, None] * u, precision=HIGHEST) / len(x),
        "factors": factors + jnp.mean(r, axis=0)[:, None, None] * covariance,
        "square": jnp.matmul(r.T, x**2, precision=HIGHEST) / len(x),
    }


def low_rank_mixture(statistics: Statistics, floor: float) -> Mixture:
    weights, total = weights_of(statistics)
    cross, factors = (statistics[name] / total[:, None, None] for name in ("cross", "factors"))
    tiny = 1e-9 * jnp.eye(factors.shape[-1])[None, :, :]  # of a component without examples
    maps = solve(factors + tiny, cross.transpose(0, 2, 1))[0].transpose(0, 2, 1)
    psi = jnp.maximum(statistics["square"] / total[:, None] - jnp.sum(maps * cross, axis=-1), 0.0) + floor
    return Mixture(weights, maps[..., -1], (maps[..., :-1], psi))


def low_rank_log_normal(mixture: Mixture, x: jax.Array) -> jax.Array:
    psi = mixture.shape[1]
    y, precision, projected = posterior_factors(mixture, x)
    whitened = (x[:, None, :] - mixture.means[None, :, :]) / jnp.sqrt(psi)[None, :, :]
    distance = jnp.sum(whitened**2, axis=-1) - jnp.sum(y * projected, axis=-1)
    identity = jnp.broadcast_to(jnp.eye(precision.shape[-1])[None, :, :], precision.shape)
    log_det = jnp.sum(jnp.log(psi), axis=-1) + solve(precision, identity)[1]
    return normal(distance, log_det, x.shape[-1])


def low_rank_noise(mixture: Mixture, k: jax.Array, keys: jax.Array) -> jax.Array:
    W, psi = mixture.shape
    key_y, key_eps = rng.split(keys, 2)
    y, eps = rng.normal(key_y, W.shape[-1:]), rng.normal(key_eps, psi.shape[-1:])
    return jnp.einsum("bdi,bi->bd", W[k], y, precision=HIGHEST) + jnp.sqrt(psi[k]) * eps


def low_rank_matrices(mixture: Mixture) -> jax.Array:
    W, psi = mixture.shape
    return jnp.einsum("kdi,kei->kde", W, W, precision=HIGHEST) + jax.vmap(jnp.diag)(psi)


def spread_out(key: jax.Array, x: jax.Array, num: int, weight: jax.Array | None = None) -> jax.Array:
    """`num` of the points x (n, D): each drawn in proportion to its squared distance from those chosen before
    (k-means++, Arthur & Vassilvitskii 2007), and to its weight (n,), if there are any."""
    keys = jax.random.split(key, num)
    log_weight = 0.0 if weight is None else jnp.log(weight)
    if weight is None:
        first = x[jax.random.randint(keys[0], (), 0, x.shape[0])]
    else:
        first = x[jax.random.categorical(keys[0], log_weight)]

    def choose(distance: jax.Array, step_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = x[jax.random.categorical(step_key, jnp.log(distance + 1e-12) + log_weight)]
        return jnp.minimum(distance, jnp.sum((x - chosen[None, :]) ** 2, axis=-1)), chosen

    distance = jnp.sum((x - first[None, :]) ** 2, axis=-1)
    _, rest = jax.lax.scan(choose, distance, keys[1:])
    return jnp.concatenate([first[None, :], rest])


def k_means(key: jax.Array, x: jax.Array, num: int, weight: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """Centres (num, D) of the points x (n, D) with weights (n,), by Lloyd's algorithm from `spread_out`, and the mean
    squared distance from the nearest centre in each dimension, (D,)."""

    def nearest(centres: jax.Array) -> jax.Array:
        product = jnp.matmul(x, centres.T, precision=HIGHEST)
        return jnp.argmin(jnp.sum(centres**2, axis=-1)[None, :] - 2.0 * product, axis=-1)

    def step(_: Any, centres: jax.Array) -> jax.Array:
        members = jax.nn.one_hot(nearest(centres), num) * weight[:, None]
        count = jnp.sum(members, axis=0)[:, None]
        means = jnp.matmul(members.T, x, precision=HIGHEST) / jnp.maximum(count, SMALLEST)
        return jnp.where(count > 0, means, centres)

    centres = jax.lax.fori_loop(0, iterations, step, spread_out(key, x, num, weight))
    squares = (x - centres[nearest(centres)]) ** 2
    return centres, jnp.sum(weight[:, None] * squares, axis=0) / jnp.maximum(jnp.sum(weight), SMALLEST)


def complete(
    means: jax.Array,
    matrices: jax.Array,
    logits: jax.Array,
    x: jax.Array,
    known: jax.Array,
    keys: jax.Array,
    temperature: float,
) -> jax.Array:
    """Draws the unknown dimensions of x given the known ones: exact, one example at a time.

    Args:
      means (K, D), matrices (K, D, D): of the components; logits (B, K): log-weights of each example.
      x (B, D), known bool (B, D): where x is given; keys (B,).
      temperature: factor on the standard deviations of the conditional normal distribution.
    """
    dim = means.shape[1]

    def one(example: tuple[jax.Array, ...]) -> jax.Array:
        logits, x, known, key_component, key_eps = example
        o = known.astype(x.dtype)
        # Unknown dimensions are replaced by independent ones of unit variance at their mean.
        observed = matrices * (o[:, None] * o[None, :])[None, :, :] + jnp.diag(1.0 - o)[None, :, :]
        factors = jnp.linalg.cholesky(observed)
        difference = (x[None, :] - means) * o[None, :]
        whitened = jax.lax.linalg.triangular_solve(factors, difference[:, :, None], left_side=True, lower=True)[..., 0]
        log_det = jnp.sum(jnp.log(jnp.diagonal(factors, axis1=1, axis2=2)), axis=-1)
        k = jax.random.categorical(key_component, logits - 0.5 * jnp.sum(whitened**2, axis=-1) - log_det)
        # A draw from the joint distribution, corrected by regression on its error in the known dimensions.
        joint = temperature * jnp.linalg.cholesky(matrices[k]) @ jax.random.normal(key_eps, (dim,))
        error = (x - means[k] - joint) * o
        solved = jax.scipy.linalg.cho_solve((factors[k], True), error) * o
        drawn = means[k] + joint + jnp.matmul(matrices[k], solved, precision=HIGHEST)
        return jnp.where(known, x, drawn)

    return jax.lax.map(one, (logits, x, known, *rng.split(keys, 2)))
