"""The steerable pyramid: a tight frame, whose bands are what their names say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import resample

from jgen.errors import UserError
from jgen.nn import steerable_pyramid as sp

SHAPES = [(64, 48, 3, 4), (32, 32, 2, 3), (8, 8, 1, 2), (24, 40, 3, 5), (12, 20, 2, 4)]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def images(height, width, num=2):
    return np.random.default_rng(0).normal(size=(num, height, width))


@pytest.mark.parametrize("height,width,scales,orientations", SHAPES)
def test_the_pyramid_reconstructs(height, width, scales, orientations):
    x = images(height, width)
    pyramid = jax.jit(sp.build, static_argnums=(1, 2))(jnp.asarray(x), scales, orientations)
    assert [band.shape[-3:] for band in pyramid.bands] == [
        (orientations, height >> scale, width >> scale) for scale in range(scales)
    ]
    assert np.abs(sp.reconstruct(pyramid) - x).max() < 1e-12


@pytest.mark.slow
def test_the_pyramid_reconstructs_in_single_precision():
    x = images(64, 64).astype(np.float32)
    back = sp.reconstruct(sp.build(jnp.asarray(x), 4, 4))
    assert back.dtype == jnp.float32 and np.abs(back - x).max() < 2e-6


@pytest.mark.parametrize("height,width,scales,orientations", SHAPES)
def test_squares_of_the_filters_sum_to_one(height, width, scales, orientations):
    filters = sp.make_filters(height, width, scales, orientations)
    np.testing.assert_allclose(filters.high**2 + filters.low**2, 1, atol=1e-14)
    passed = [np.sum(np.abs(sp.both_halves(band)) ** 2, axis=0) for band in filters.bands]
    for band, low in zip(passed, filters.lows):
        # On the Nyquist lines a real band of odd order is zero; nothing comes there from the lowpass filter before.
        inside = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, band.shape), indexing="ij")) < 0.5
        np.testing.assert_allclose((band + low**2)[inside], 1, atol=1e-14)
        assert low[0, 0] == 1 and band[0, 0] < 1e-30
    np.testing.assert_allclose(filters.high**2 + filters.low**2 * (passed[0] + filters.lows[0] ** 2), 1, atol=1e-14)


def test_energy_is_kept():
    x = images(64, 48)
    pyramid = sp.build(jnp.asarray(x), 3, 4)
    energy = np.sum(pyramid.high**2) + 4**3 * np.sum(pyramid.low**2)
    energy += sum(4**scale * np.sum(band.real**2) for scale, band in enumerate(pyramid.bands))
    assert energy == pytest.approx(np.sum(x**2), rel=1e-12)


def test_shifts_by_whole_coefficients_commute_with_the_transform():
    x = images(32, 32, 1)
    pyramid, shifted = (sp.build(jnp.asarray(y), 2, 4) for y in (x, np.roll(x, (8, 4), (1, 2))))
    for scale, (band, other) in enumerate(zip(pyramid.bands, shifted.bands)):
        np.testing.assert_allclose(np.roll(band, (8 >> scale, 4 >> scale), (-2, -1)), other, atol=1e-12)


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("scale", [0, 1])
def test_a_grating_is_in_the_band_of_its_frequency_and_orientation(k, scale):
    """Its angle is that of pi k / 4, to the nearest frequency of the grid, and the band's modulus is flat: what is
    in quadrature is the same cosine a quarter of its period later."""
    radius, angle = (28, 14)[scale], np.pi * k / 4  # of 128 pixels: each scale has the most at half of its Nyquist
    fy, fx = round(radius * np.sin(angle)), round(radius * np.cos(angle))
    y, x = np.mgrid[:128, :128]
    pyramid = sp.build(jnp.asarray(np.cos(2 * np.pi * (fy * y + fx * x) / 128)), 2, 4)
    power = np.array([[np.mean(np.abs(band[j]) ** 2) for j in range(4)] for band in pyramid.bands])
    assert np.unravel_index(np.argmax(power), power.shape) == (scale, k)
    modulus = np.abs(pyramid.bands[scale][k])
    assert modulus.std() < 1e-10 * modulus.mean()


def test_halving_and_doubling_are_those_of_scipy():
    coarse = images(6, 10, 1)[0]
    # SciPy splits the Nyquist frequency between both signs, which the pyramid's images do not have.
    for axis in (0, 1):
        spectrum = np.fft.fft(coarse, axis=axis)
        spectrum[(slice(None),) * axis + (coarse.shape[axis] // 2,)] = 0
        coarse = np.fft.ifft(spectrum, axis=axis).real
    fine = resample(resample(coarse, 12, axis=0), 20, axis=1)
    np.testing.assert_allclose(np.fft.ifft2(sp.doubled(jnp.fft.fft2(jnp.asarray(coarse)))).real, fine, atol=1e-12)
    halved = np.fft.ifft2(sp.halved(jnp.fft.fft2(jnp.asarray(fine)))).real
    np.testing.assert_allclose(halved, fine[::2, ::2], atol=1e-12)


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    x, v = images(16, 16)

    def function(x):
        pyramid = sp.build(x, 2, 3)
        return sum(jnp.sum(jnp.abs(band) ** 4) for band in pyramid.bands) + jnp.sum(pyramid.high**3)

    exact = jnp.vdot(jax.grad(function)(jnp.asarray(x)), v)
    numeric = (function(jnp.asarray(x + 1e-5 * v)) - function(jnp.asarray(x - 1e-5 * v))) / 2e-5
    assert float(exact) == pytest.approx(float(numeric), rel=1e-6)
    assert float(jax.jvp(function, (jnp.asarray(x),), (jnp.asarray(v),))[1]) == pytest.approx(float(exact), rel=1e-10)


@pytest.mark.parametrize("numbers,words", [((0, 4), "scales is 0"), ((4, 1), "orientations is 1: it must be from 2")])
def test_numbers_that_no_pyramid_has(numbers, words):
    with pytest.raises(UserError, match=words):
        sp.check_pyramid(*numbers)
