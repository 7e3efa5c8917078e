"""Divergences of known distributions: exact for tables of probabilities, estimated from samples for densities.

    KL(p, q) = E_p log p/q;  JS = (KL(p, m) + KL(q, m)) / 2, m = (p + q) / 2;  TV = 1/2 int |p - q|
    W1(p, q) = inf E |x - y| over couplings;  MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

KL and JS are in nats, W1 in the unit of x. Estimates from log-densities are (value, standard error); those from samples
alone are a single value.
"""

from __future__ import annotations

import numpy as np

from jgen.errors import require
from jgen.metrics.frechet import check_features
from jgen.metrics.neighbours import squared_distances


def check_tables(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Raises `UserError` unless both are probabilities over the same outcomes."""
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    require(p.shape == q.shape, f"p has shape {p.shape}, q {q.shape}: they must be over the same outcomes")
    for name, table in (("p", p), ("q", q)):
        require(bool(np.all(table >= 0)), f"{name} has probabilities below zero")
        require(abs(table.sum() - 1) < 1e-6, f"{name} sums to {table.sum():.6g}: it must sum to 1")
    return p, q


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL of tables; infinite if q is zero where p is not."""
    p, q = check_tables(p, q)
    if np.any((q == 0) & (p > 0)):
        return float("inf")
    some = p > 0
    return float(np.sum(p[some] * (np.log(p[some]) - np.log(q[some]))))


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """JS of tables: 0 to log 2."""
    p, q = check_tables(p, q)
    middle = (p + q) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """TV of tables: 0 to 1."""
    p, q = check_tables(p, q)
    return float(np.abs(p - q).sum() / 2)


def wasserstein1(p: np.ndarray, q: np.ndarray, places: np.ndarray) -> float:
    """W1 of tables (n,) over numbers `places` (n,): the area between their cumulative distribution functions.

    Raises:
      UserError: tables that are not probabilities, or places that are not one finite number per outcome.
    """
    p, q = check_tables(p, q)
    at = np.asarray(places, np.float64)
    require(at.shape == p.shape and p.ndim == 1, f"places have shape {at.shape}: p has {p.shape}, a place each")
    require(bool(np.isfinite(at).all()), "places are not finite")
    order = np.argsort(at)
    gaps = np.diff(at[order])
    return float(np.sum(np.abs(np.cumsum((p - q)[order]))[:-1] * gaps))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    x = np.asarray(values, np.float64)
    require(len(x) >= 2, f"there are {len(x)} samples: an estimate with an error needs at least 2")
    require(bool(np.isfinite(x).all()), "log-densities are not finite")
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x)))


def kl_estimate(log_p: np.ndarray, log_q: np.ndarray) -> tuple[float, float]:
    """KL from log-densities (n,) at samples of p."""
    return mean_and_error(np.asarray(log_p, np.float64) - np.asarray(log_q, np.float64))


def jensen_shannon_estimate(
    log_p_at_p: np.ndarray, log_q_at_p: np.ndarray, log_p_at_q: np.ndarray, log_q_at_q: np.ndarray
) -> tuple[float, float]:
    """JS from log-densities (n,) at samples of p, and (m,) at samples of q."""
    first = mean_and_error(log_p_at_p - np.logaddexp(log_p_at_p, log_q_at_p) + np.log(2))
    second = mean_and_error(log_q_at_q - np.logaddexp(log_p_at_q, log_q_at_q) + np.log(2))
    return (first[0] + second[0]) / 2, float(np.hypot(first[1], second[1]) / 2)


def total_variation_estimate(log_p: np.ndarray, log_q: np.ndarray) -> tuple[float, float]:
    """TV = E_p max(0, 1 - q/p), from log-densities (n,) at samples of p."""
    return mean_and_error(np.clip(-np.expm1(np.minimum(np.asarray(log_q) - np.asarray(log_p), 0.0)), 0, None))


def wasserstein1_estimate(x: np.ndarray, y: np.ndarray) -> float:
    """W1 from samples (n,) and (m,) of two distributions of numbers. Raises `UserError` for non-finite values."""
    x, y = (check_features(np.reshape(z, (-1, 1)), 1, "samples")[:, 0] for z in (x, y))
    both = np.concatenate([x, y])
    places, inverse = np.unique(both, return_inverse=True)
    p, q = (np.bincount(at, minlength=len(places)) / len(at) for at in (inverse[: len(x)], inverse[len(x) :]))
    return wasserstein1(p, q, places)


def mmd2_estimate(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """MMD^2, unbiased, from samples (n, D) and (m, D), with the kernel exp(-|x - y|^2 / (2 bandwidth^2))."""
    require(bandwidth > 0, f"bandwidth is {bandwidth}: it must be above zero")
    x, y = check_features(x, 2, "samples"), check_features(y, 2, "samples")
    require(x.shape[1] == y.shape[1], f"samples are {x.shape[1]} and {y.shape[1]} wide: they must be the same")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-squared_distances(a, b) / (2 * bandwidth**2))

    xx, yy, (n, m) = kernel(x, x), kernel(y, y), (len(x), len(y))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())
