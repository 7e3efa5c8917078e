"""The complex steerable pyramid: bands of an image by scale and orientation (Portilla & Simoncelli 2000, section 2).

In polar frequency coordinates, r = 1 at half a cycle per pixel (equivalent to equations 1 to 3 of the appendix):

    x    = H0-band + L0-image,        H0(r)^2 + L0(r)^2 = 1,   L0 falls from 1 to 0 between r = 1/2 and r = 1
    level s: an image y is cut into K bands and a lowpass image, which has half the size and is the next level's y

    B_k(r, theta) = H(r) G_k(theta),  H(r)^2 + L(r)^2 = 1,     L falls from 1 to 0 between r = 1/4 and r = 1/2
    G_k(theta)    = 2 a (-i)^(K-1) cos(theta - pi k / K)^(K-1) where the cosine is positive, else 0,
                    a = 2^(K-1) (K-1)! / sqrt(K (2 (K-1))!)

so that the squares of all filters sum to one at every frequency (a tight frame), and halving does not alias. A band is
complex: its real and imaginary parts are a quadrature pair, its modulus the local amplitude. Boundaries are periodic,
and the transform commutes with shifts by 2^scales pixels.

Arrays are (..., H, W); the sides are multiples of 2^scales. Glossary: K orientations; bands (..., K, h, w).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.errors import require


class Pyramid(NamedTuple):
    """high: (..., H, W), the highest frequencies, which are in no band; bands: of each scale, complex (..., K, h, w),
    fine to coarse; low: (..., h, w), half the size of the last scale."""

    high: jax.Array
    bands: tuple[jax.Array, ...]
    low: jax.Array


class Filters(NamedTuple):
    """Transfer functions, NumPy arrays of double precision.

    high, low: H0 and L0, (H, W); bands: of each scale, complex (K, h, w); lows: L of each scale, (h, w).
    """

    high: np.ndarray
    low: np.ndarray
    bands: tuple[np.ndarray, ...]
    lows: tuple[np.ndarray, ...]


class Spectra(NamedTuple):
    """Discrete Fourier transforms: of `high`, of the image that each scale cuts into bands and of the last lowpass
    image, and of the bands."""

    high: jax.Array
    lows: tuple[jax.Array, ...]
    bands: tuple[jax.Array, ...]


def check_pyramid(scales: int, orientations: int) -> None:
    """Raises `UserError` for invalid numbers of scales or orientations."""
    require(scales >= 1, f"scales is {scales}: it must be above zero")
    require(2 <= orientations <= 16, f"orientations is {orientations}: it must be from 2 to 16")


@lru_cache(maxsize=16)
def make_filters(height: int, width: int, scales: int, orientations: int) -> Filters:
    """The filters of images (height, width), whose sides are multiples of 2^scales."""
    _, high, low = polar(height, width, 1.0)
    bands, lows = [], []
    for scale in range(scales):
        theta, band_pass, low_pass = polar(height >> scale, width >> scale, 0.5)
        bands.append(band_pass * np.stack([angular(theta, k, orientations) for k in range(orientations)]))
        lows.append(low_pass)
    return Filters(high, low, tuple(bands), tuple(lows))


def polar(height: int, width: int, edge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The angle of each frequency, and the radial highpass and lowpass filters, (height, width).

    Args:
      edge: the radius at which the low filter reaches 0; it is 1 up to half of that.
    """
    fy, fx = np.meshgrid(2 * np.fft.fftfreq(height), 2 * np.fft.fftfreq(width), indexing="ij")
    octave = np.clip(np.log2(np.maximum(np.hypot(fy, fx), 1e-12) / edge), -1.0, 0.0)
    return np.arctan2(fy, fx), np.cos(np.pi / 2 * octave), np.sin(-np.pi / 2 * octave)


def angular(theta: np.ndarray, k: int, orientations: int) -> np.ndarray:
    """G_k at these angles."""
    order = orientations - 1
    a = 2.0**order * math.factorial(order) / math.sqrt(orientations * math.factorial(2 * order))
    cosine = np.maximum(np.cos(theta - np.pi * k / orientations), 0.0)
    return 2 * a * (-1j) ** order * cosine**order


def both_halves(band: np.ndarray) -> np.ndarray:
    """The transfer function (..., h, w) that gives the real part of a band."""
    mirrored = np.roll(np.flip(band, (-2, -1)), 1, (-2, -1))
    return 0.5 * (band + mirrored.conj())


def spectra(x: jax.Array, scales: int, orientations: int) -> Spectra:
    """The transforms of everything in the pyramid of x (..., H, W)."""
    filters = make_filters(x.shape[-2], x.shape[-1], scales, orientations)
    real = x.dtype
    complexes = jnp.result_type(real, jnp.complex64)
    lead = (None,) * (x.ndim - 2)
    transform = jnp.fft.fft2(x)
    y = transform * jnp.asarray(filters.low, real)[lead]
    lows, bands = [y], []
    for band, low in zip(filters.bands, filters.lows):
        bands.append(y[..., None, :, :] * jnp.asarray(band, complexes)[lead])
        y = halved(y * jnp.asarray(low, real)[lead])
        lows.append(y)
    return Spectra(transform * jnp.asarray(filters.high, real)[lead], tuple(lows), tuple(bands))


def halved(y: jax.Array) -> jax.Array:
    """From the transform of a lowpass image, (..., h, w), that of every second pixel, (..., h / 2, w / 2)."""
    rows, columns = map(kept_frequencies, y.shape[-2:])
    return 0.25 * y[..., rows, :][..., columns]


def kept_frequencies(size: int) -> np.ndarray:
    """Indices, among the frequencies of `size` pixels, of the frequencies of half as many pixels."""
    places = np.arange(size // 2)
    return np.where(places < (size // 2 + 1) // 2, places, places + size // 2)


def doubled(y: jax.Array) -> jax.Array:
    """The transform of an image interpolated to twice the size, (..., h, w) to (..., 2 h, 2 w)."""
    for axis in (-2, -1):
        n = y.shape[axis]
        first, second = jnp.split(y, [(n + 1) // 2], axis=axis)
        shape = list(y.shape)
        shape[axis] = n
        y = jnp.concatenate([first, jnp.zeros(shape, y.dtype), second], axis=axis)
    return 4 * y


def build(x: jax.Array, scales: int, orientations: int) -> Pyramid:
    """The pyramid of images x, float (..., H, W)."""
    high, lows, bands = spectra(x, scales, orientations)
    return Pyramid(jnp.fft.ifft2(high).real, tuple(map(jnp.fft.ifft2, bands)), jnp.fft.ifft2(lows[-1]).real)


def reconstruct(pyramid: Pyramid) -> jax.Array:
    """The images (..., H, W) of a pyramid: the adjoint filters, of the bands' real parts."""
    height, width = pyramid.high.shape[-2:]
    filters = make_filters(height, width, len(pyramid.bands), pyramid.bands[0].shape[-3])
    real, lead = pyramid.high.dtype, (None,) * (pyramid.high.ndim - 2)
    y = jnp.fft.fft2(pyramid.low)
    for coefficients, band, low in reversed(list(zip(pyramid.bands, filters.bands, filters.lows))):
        adjoint = jnp.asarray(both_halves(band).conj(), coefficients.dtype)[lead]
        y = doubled(y) * jnp.asarray(low, real)[lead]
        y = y + jnp.sum(jnp.fft.fft2(coefficients.real) * adjoint, axis=-3)
    y = y * jnp.asarray(filters.low, real)[lead]
    y = y + jnp.fft.fft2(pyramid.high) * jnp.asarray(filters.high, real)[lead]
    return jnp.fft.ifft2(y).real
