"""Texture synthesis by alternating projections onto sets of statistics (Portilla & Simoncelli 2000, section 4).

A round decomposes the image, adjusts each set of statistics by the smallest change along its gradients, from the
coarsest scale to the finest, and reconstructs the image:

    low       autocorrelation, third and fourth moments of the lowpass image                          (1), (2)
    a scale   covariances of the moduli, and with the coarser ones; autocorrelations of each; mean    (3), (1)
              products of real parts with the coarser bands of doubled phase; powers                  (4)
              the lowpass image that these bands and the coarser one make: as `low`
    pixels    variance of the highpass band; mean, variance, third and fourth moments, range          (2)

    (1)  y = H x with the zero-phase |H|^2 = 1 + sum_l h_l cos(l f), sum_m h_m A(l - m) = A* - A at every lag l
    (2)  y = x + t g, standardised: g the gradient of the moment, without its part along mean and variance
    (3)  x = B p + e with p the coarser moduli:  y = B* p + M e, with M the symmetric map that gives e its covariance
    (4)  y = x + (D* - D) P^-1 p

Projections onto one set change the others: rounds bring the statistics near to the source's but do not converge to
them.

Glossary: A autocorrelation, D covariances with p, P covariance of p, * of the source; e what p does not explain.

Differs from the paper: t of (2) is found by Newton's method instead of as the root of a polynomial; (1) is regularised,
as float32 requires; M changes e as little as possible, where the paper chooses a rotation to that end; there is no
extrapolation from round to round. Statistics are those of `jgen.nn.texture_statistics`, for one channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgen.nn import steerable_pyramid as pyramid
from jgen.nn import texture_statistics as ts

Tree = Any
RIDGE = 1e-4  # of (1), relative to the variance
NEWTON_STEPS = 8
FAINT = 1e-3  # a lowpass image with a smaller part of the pixels' variance is only scaled, as in the authors' code
TINY = ts.TINY


def project(form: ts.Form, target: dict[str, Tree], least: jax.Array, greatest: jax.Array, z: jax.Array) -> jax.Array:
    """One round of projections of an image z (H, W) towards the statistics `target` of one channel, with pixels kept
    between `least` and `greatest`."""
    filters = pyramid.make_filters(*z.shape, form.scales, form.orientations)
    parts = pyramid.build(z, form.scales, form.orientations)
    total = ts.variances(target["pixels"])[0]

    def lowpass(x: jax.Array, own: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(target["pixels"]["mean"]) + adjust_lowpass(x - jnp.mean(x), own, form.neighbourhood, total)

    y = lowpass(parts.low, target["lows"][-1])
    parent: jax.Array | None = None
    for scale in reversed(range(form.scales)):
        across = target["parents"][scale] if parent is not None else None
        real = adjust_bands(parts.bands[scale], target["bands"][scale], parent, across, form.neighbourhood)
        adjoint = jnp.asarray(pyramid.both_halves(filters.bands[scale]).conj(), jnp.result_type(z, jnp.complex64))
        transform = pyramid.doubled(jnp.fft.fft2(y)) * jnp.asarray(filters.lows[scale], z.dtype)
        transform = transform + jnp.sum(jnp.fft.fft2(real) * adjoint, axis=0)
        y = lowpass(jnp.fft.ifft2(transform).real, target["lows"][scale])
        if scale:
            parent = jnp.fft.ifft2(pyramid.doubled(analytic(real)))
    high = parts.high * jnp.sqrt(ts.variances(target["high"])[0] / jnp.maximum(jnp.var(parts.high), TINY))
    transform = jnp.fft.fft2(y) * jnp.asarray(filters.low, z.dtype)
    z = jnp.fft.ifft2(transform + jnp.fft.fft2(high) * jnp.asarray(filters.high, z.dtype)).real
    z = target["pixels"]["mean"][0] + with_moments(z - jnp.mean(z), target["pixels"])
    return jnp.clip(z, least, greatest)


def adjust_lowpass(x: jax.Array, own: dict[str, jax.Array], size: int, total: jax.Array) -> jax.Array:
    """(1) and (2) of an image of mean zero, or only its variance if that is small relative to the pixels' variance
    `total`."""
    variance = ts.variances(own)[0]
    scaled = x * jnp.sqrt(variance / jnp.maximum(jnp.var(x), TINY))
    adjusted = with_moments(with_autocorrelation(scaled, own["autocorrelation"][0], size), own)
    return jnp.where(variance > FAINT * total, adjusted, scaled)


def adjust_bands(
    bands: jax.Array, own: dict[str, jax.Array], parent: jax.Array | None, across: Any, size: int
) -> jax.Array:
    """The real parts (K, h, w) of complex bands after (3), (1) and (4).

    Args:
      own, across: the statistics of this scale, and those across it and the coarser one; parent: the coarser bands at
      this size.
    """
    modulus = jnp.abs(bands)
    spread = ts.variances(own)
    explained = None if parent is None else ts.centred(jnp.abs(parent))
    wanted = None if parent is None else across["moduli"]
    moved = with_covariances(ts.centred(modulus), own["covariance"], explained, wanted)
    moved = jax.vmap(lambda x, lags: with_autocorrelation(x, lags, size))(moved, own["autocorrelation"])
    mean = jnp.sqrt(jnp.maximum(own["power"] - spread, 0.0))
    real = (bands * jnp.maximum(moved + mean[:, None, None], 0.0) / jnp.maximum(modulus, 1e-6)).real
    if parent is not None:
        doubled = parent * parent / jnp.maximum(jnp.abs(parent), 1e-6)
        p = jnp.concatenate([doubled.real, doubled.imag])
        gain = divided(across["phases"] - ts.products(real, p), ts.products(p, p))
        real = real + jnp.einsum("nm,mhw->nhw", gain, p)
    return real * jnp.sqrt(0.5 * own["power"] / jnp.maximum(jnp.mean(real**2, axis=(1, 2)), TINY))[:, None, None]


def analytic(real: jax.Array) -> jax.Array:
    """The transforms of the complex bands (K, h, w) whose real parts are given: one half of all frequencies each."""
    num, height, width = real.shape
    theta, _, _ = pyramid.polar(height, width, 0.5)
    angles = theta[None] - np.pi * np.arange(num)[:, None, None] / num
    return jnp.fft.fft2(real) * jnp.asarray(2.0 * (np.cos(angles) > 1e-9), real.dtype)


def with_covariances(x: jax.Array, wanted: jax.Array, p: jax.Array | None, with_p: Any) -> jax.Array:
    """Images (n, h, w) of mean zero with the covariance `wanted`, and the covariances `with_p` with images p: (3)."""
    if p is None:
        return transported(x, ts.products(x, x), wanted)
    own = ts.products(p, p)
    before, after = (divided(cross, own) for cross in (ts.products(x, p), with_p))
    rest = x - jnp.einsum("nm,mhw->nhw", before, p)
    explained = jnp.einsum("nm,mhw->nhw", after, p)
    return explained + transported(rest, ts.products(rest, rest), wanted - after @ own @ after.T)


def divided(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b^-1 of a symmetric b, regularised."""
    return jnp.linalg.solve(b + 1e-5 * jnp.trace(b) / len(b) * jnp.eye(len(b), dtype=b.dtype), a.T).T


def transported(x: jax.Array, covariance: jax.Array, wanted: jax.Array) -> jax.Array:
    """M x with M = W (W C W)^-1/2 W, W = wanted^1/2: among all maps to the covariance, the one that changes x least."""
    root = power_of(wanted, 0.5)
    return jnp.einsum("nm,mhw->nhw", root @ power_of(root @ covariance @ root, -0.5) @ root, x)


def power_of(matrix: jax.Array, power: float) -> jax.Array:
    """The power of a symmetric matrix, with negative eigenvalues replaced by small positive ones."""
    values, axes = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
    least = 1e-6 * jnp.maximum(values[-1], TINY)
    return (axes * jnp.maximum(values, least)[None, :] ** power) @ axes.T


def with_autocorrelation(x: jax.Array, wanted: jax.Array, size: int) -> jax.Array:
    """An image (h, w) of mean zero with approximately the samples `wanted` of the autocorrelation: (1).

    Args:
      wanted: ((size^2 + 1) / 2,), in the order of `texture_statistics.autocorrelation`.
    """
    height, width = x.shape
    reach = size // 2
    lags = np.array([(0, j) for j in range(reach + 1)]
                    + [(i, j) for i in range(1, reach + 1) for j in range(-reach, reach + 1)])  # fmt: skip
    transform = jnp.fft.fft2(x)
    table = jnp.fft.ifft2(jnp.abs(transform) ** 2).real / (height * width)

    def at(shift: np.ndarray) -> jax.Array:
        return table[shift[..., 0] % height, shift[..., 1] % width]

    mirrored = np.any(lags != 0, axis=1)  # each lag except zero also represents its opposite
    matrix = at(lags[:, None] - lags[None]) + mirrored[None] * at(lags[:, None] + lags[None])
    ridge = RIDGE * table[0, 0] + TINY
    h = jnp.linalg.solve(matrix + ridge * jnp.eye(len(lags), dtype=x.dtype), wanted - at(lags))
    fy, fx = np.fft.fftfreq(height), np.fft.fftfreq(width)
    phases = 2 * np.pi * (lags[:, 0, None, None] * fy[None, :, None] + lags[:, 1, None, None] * fx[None, None, :])
    waves = jnp.asarray(np.cos(phases) * (1 + mirrored)[:, None, None], x.dtype)
    squared = 1.0 + jnp.einsum("l,lhw->hw", h, waves)
    return jnp.fft.ifft2(transform * jnp.sqrt(jnp.maximum(squared, 0.0))).real


def with_moments(x: jax.Array, own: dict[str, jax.Array]) -> jax.Array:
    """An image (h, w) of mean zero with the variance, and about the third and fourth moments, of `own`: (2)."""
    variance = ts.variances(own)[0]

    def moment(x: jax.Array, power: int) -> jax.Array:
        return jnp.mean(x**power)

    x = standardised(x)
    x = along(x, x**2 - 1.0 - moment(x, 3) * x, lambda y: moment(y, 3), own["third"][0] / variance**1.5)
    g = x**3 - moment(x, 4) * x - moment(x, 3)
    return jnp.sqrt(variance) * along(x, g, lambda y: moment(y, 4), own["fourth"][0] / variance**2)


def standardised(x: jax.Array) -> jax.Array:
    deviation = x - jnp.mean(x)
    return deviation / jnp.sqrt(jnp.maximum(jnp.mean(deviation**2), TINY))


def along(x: jax.Array, g: jax.Array, moment: Callable[[jax.Array], jax.Array], wanted: jax.Array) -> jax.Array:
    """x + t g, standardised, with the moment closest to the wanted one that Newton's method finds from t = 0."""

    def error(t: jax.Array) -> jax.Array:
        return moment(standardised(x + t * g)) - wanted

    def step(carry: tuple[jax.Array, jax.Array, jax.Array], _: Any) -> tuple[Any, None]:
        t, best, least = carry
        value, slope = jax.jvp(error, (t,), (jnp.ones_like(t),))
        nearer = jnp.abs(value) < least
        best, least = jnp.where(nearer, t, best), jnp.where(nearer, jnp.abs(value), least)
        move = jnp.clip(-value / jnp.where(jnp.abs(slope) > 1e-6, slope, 1e-6), -0.2, 0.2)
        return (t + move, best, least), None

    zero = jnp.zeros((), x.dtype)
    (_, best, _), _ = jax.lax.scan(step, (zero, zero, jnp.full_like(zero, jnp.inf)), None, length=NEWTON_STEPS)
    return standardised(x + best * g)
