"""The joint statistics of a texture's steerable pyramid (Portilla & Simoncelli 2000, sections 3 and 4.1).

For an image z (H, W, C) with periodic boundaries and its pyramid (`jgen.nn.steerable_pyramid`), means over positions:

    pixels   mean, covariance of the channels, third and fourth central moments
    high     covariance of the channels of the highpass band
    lows     of the image that each scale cuts into bands, and of the last lowpass image: central M x M samples of the
             autocorrelation, third and fourth moments, covariance of the channels
    bands    of the moduli |b| of each scale: M x M samples of their autocorrelations, covariances of all bands of the
             scale; power, the mean of |b|^2
    parents  of each scale but the coarsest, with the bands p of the next one at twice their size: covariances of |b|
             with |p|, and of Re b with the real and the imaginary part of p^2 / |p|, whose phase runs as fast as b's

The autocorrelation of a real image is even: (M^2 + 1) / 2 of its samples determine all. An image of one channel, in 4
scales and 4 orientations with M = 7, has 710 statistics in the paper; here covariances of pairs occur twice, some
variances are repeated, the powers are added, and the range of the pixels is left to the synthesis.

`scales_of` gives the unit of each, from the variances among them: in these units all statistics are of order one, and
covariances are correlations. `spectrum` is the gain at each frequency that gives white noise the powers of the bands.

Differs from the paper: lowpass images are those that are cut into bands, where the paper has sums of bands; the moduli
of p are those of the interpolated band, where the paper interpolates the moduli; there are no covariances of the
coarsest bands with the last lowpass image, which only the authors' code has. Several channels, which the paper does not
have, are treated as separate bands.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.errors import require
from jgen.nn import steerable_pyramid

Tree = Any
TINY = 1e-12  # added to |b|^2 under a root, for images of unit variance


class Form(NamedTuple):
    """scales, orientations: of the pyramid; neighbourhood: M, odd, samples of an autocorrelation along each side."""

    scales: int
    orientations: int
    neighbourhood: int


def check_form(form: Form) -> None:
    """Raises `UserError` for invalid numbers of the pyramid."""
    steerable_pyramid.check_pyramid(form.scales, form.orientations)
    size = form.neighbourhood
    require(size >= 1 and size % 2 == 1, f"neighbourhood is {size}: it must be odd and above zero")


def check_size(form: Form, height: int, width: int, what: str) -> None:
    """Raises `UserError` for image sizes that the pyramid does not support: `what` names the images."""
    step = 1 << form.scales
    least = step * form.neighbourhood
    of = f"of {form.scales} scales and neighbourhood {form.neighbourhood}"
    require(
        min(height, width) >= least, f"{what} is {height}x{width}: a pyramid {of} needs sides of {least} pixels or more"
    )
    fits = height % step == 0 and width % step == 0
    require(fits, f"{what} is {height}x{width}: sides must be multiples of {step}, 2 to the number of scales")


def statistics(form: Form, z: jax.Array) -> dict[str, Tree]:
    """All statistics of one image z, float (H, W, C), as a tree of arrays."""
    z = jnp.moveaxis(z, -1, 0)
    pixels = moments(z) | {"covariance": covariance(z, z), "mean": jnp.mean(z, axis=(1, 2))}
    spectra = steerable_pyramid.spectra(z, form.scales, form.orientations)
    high = jnp.fft.ifft2(spectra.high).real
    found: dict[str, Tree] = {"pixels": pixels, "high": {"covariance": covariance(high, high)}}
    lows = [jnp.fft.ifft2(low).real for low in spectra.lows]
    found["lows"] = [
        moments(low) | {"covariance": covariance(low, low), "autocorrelation": autocorrelation(low, form.neighbourhood)}
        for low in lows
    ]
    bands, parents = [], []
    fine: tuple[jax.Array, jax.Array] | None = None
    for scale, transform in enumerate(spectra.bands):
        channels = transform.shape[0] * transform.shape[1]
        if scale > 0:
            transform = steerable_pyramid.doubled(transform)
        band = jnp.fft.ifft2(transform).reshape(channels, *transform.shape[-2:])
        modulus = jnp.sqrt(band.real**2 + band.imag**2 + TINY)
        if fine is not None:
            twice = band * band / modulus
            phases = jnp.concatenate([twice.real, twice.imag])
            parents.append({"moduli": covariance(fine[0], modulus), "phases": products(fine[1], phases)})
            band, modulus = band[:, ::2, ::2], modulus[:, ::2, ::2]
        own = {"power": jnp.mean(modulus**2, axis=(1, 2)), "covariance": covariance(modulus, modulus)}
        own["autocorrelation"] = autocorrelation(modulus, form.neighbourhood)
        if len(z) > 1:  # for one channel, they are in the images' autocorrelations
            own["real"] = products(band.real, band.real)
        bands.append(own)
        fine = modulus, band.real
    return found | {"bands": bands, "parents": parents}


def scales_of(found: dict[str, Tree]) -> dict[str, Tree]:
    """The units, above zero, of the statistics of an image, or of their means over several: a tree like theirs."""

    def of_images(own: dict[str, jax.Array]) -> dict[str, jax.Array]:
        variance = variances(own)
        units = {"third": variance**1.5, "fourth": jnp.maximum(own["fourth"], TINY), "covariance": pairs(variance)}
        if "autocorrelation" in own:
            units["autocorrelation"] = jnp.broadcast_to(variance[:, None], own["autocorrelation"].shape)
        units["mean"] = jnp.sqrt(variance)
        return {name: units[name] for name in own}

    def of_bands(own: dict[str, jax.Array]) -> dict[str, jax.Array]:
        variance, power = variances(own), jnp.maximum(own["power"], TINY)
        units = {"power": power, "covariance": pairs(variance), "real": 0.5 * pairs(power)}
        units["autocorrelation"] = jnp.broadcast_to(variance[:, None], own["autocorrelation"].shape)
        return {name: units[name] for name in own}

    units = {"pixels": of_images(found["pixels"]), "lows": [of_images(low) for low in found["lows"]]}
    bands, parents = found["bands"], []
    for own, parent in zip(bands, bands[1:]):
        powers = [jnp.maximum(each["power"], TINY) / 2 for each in (own, parent)]
        phases = jnp.sqrt(powers[0][:, None] * jnp.tile(powers[1], 2)[None, :])
        moduli = jnp.sqrt(variances(own)[:, None] * variances(parent)[None, :])
        parents.append({"moduli": moduli, "phases": phases})
    high = {"covariance": pairs(variances(found["high"]))}
    return units | {"high": high, "bands": [of_bands(own) for own in bands], "parents": parents}


def variances(own: dict[str, jax.Array]) -> jax.Array:
    return jnp.maximum(jnp.diagonal(own["covariance"]), TINY)


def pairs(variance: jax.Array) -> jax.Array:
    """Products of standard deviations, (n, n)."""
    deviation = jnp.sqrt(variance)
    return deviation[:, None] * deviation[None, :]


def spectrum(form: Form, found: dict[str, Tree], height: int, width: int) -> jax.Array:
    """The gain (C, height, width) at each frequency that gives white noise of unit variance approximately the powers of
    all bands; it is exact if overlapping bands have equal powers."""
    filters = steerable_pyramid.make_filters(height, width, form.scales, form.orientations)
    channels = len(found["pixels"]["mean"])
    high = variances(found["high"]) / np.mean(filters.high**2)
    power = high[:, None, None] * jnp.asarray(filters.high**2, high.dtype)[None]
    passed, level = filters.low, 1.0  # amplitude that has come to a scale, and the variance of white noise there
    for own, band, low in zip(found["bands"], filters.bands, filters.lows):
        noise_power = level * np.mean(np.abs(passed * band) ** 2, axis=(1, 2))
        ratio = own["power"].reshape(channels, -1) / noise_power[None, :]
        squares = np.abs(passed * steerable_pyramid.both_halves(band)) ** 2
        power = power + at_full_size(jnp.einsum("ck,khw->chw", ratio, jnp.asarray(squares, ratio.dtype)), height)
        rows, columns = (steerable_pyramid.kept_frequencies(n) for n in low.shape)
        passed, level = (passed * low)[rows][:, columns], level / 4
    ratio = variances(found["lows"][-1]) / (level * np.mean(passed**2))
    squares = jnp.asarray(passed**2, ratio.dtype)
    return jnp.sqrt(power + at_full_size(ratio[:, None, None] * squares[None], height))


def at_full_size(response: jax.Array, height: int) -> jax.Array:
    """A response (C, h, w) at the frequencies of a scale, extended by zeros to the frequencies of the image."""
    while response.shape[1] < height:
        response = steerable_pyramid.doubled(response) / 4
    return response


def centred(x: jax.Array) -> jax.Array:
    return x - jnp.mean(x, axis=(1, 2), keepdims=True)


def products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean products of images (n, h, w) and (m, h, w), (n, m)."""
    return x.reshape(len(x), -1) @ y.reshape(len(y), -1).T / (x.shape[1] * x.shape[2])


def covariance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Covariances of images (n, h, w) and (m, h, w), (n, m)."""
    return products(centred(x), centred(y))


def moments(x: jax.Array) -> dict[str, jax.Array]:
    """Third and fourth central moments (n,) of images (n, h, w)."""
    deviation = centred(x)
    return {name: jnp.mean(deviation**power, axis=(1, 2)) for name, power in (("third", 3), ("fourth", 4))}


def autocorrelation(x: jax.Array, size: int) -> jax.Array:
    """The mean products of deviations from the mean at shifts up to (size - 1) / 2, of images (n, h, w).

    Returns:
      (n, (size^2 + 1) / 2): shift (0, 0) first, then those to the right, then row by row of those below.
    """
    height, width = x.shape[1:]
    transform = jnp.fft.fft2(centred(x)) / float(height * width)
    power = transform.real**2 + transform.imag**2
    reach = size // 2
    rows, columns = np.arange(reach + 1), np.arange(-reach, reach + 1)
    turn_rows = jnp.asarray(np.exp(2j * np.pi * np.outer(rows, np.fft.fftfreq(height))), power.dtype.type(0) + 0j)
    turn_columns = jnp.asarray(np.exp(2j * np.pi * np.outer(np.fft.fftfreq(width), columns)), turn_rows.dtype)
    lags = (turn_rows[None] @ power.astype(turn_rows.dtype) @ turn_columns[None]).real
    return jnp.concatenate([lags[:, 0, reach:], lags[:, 1:].reshape(len(x), -1)], axis=1)
