"""Projections onto statistics of textures: each alone by NumPy, and a round on an image that has them all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.nn import steerable_pyramid as sp
from jgen.nn import texture_projections as tp
from jgen.nn import texture_statistics as ts

FORM = ts.Form(2, 3, 5)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def image(seed=0, size=32):
    """Smooth noise, skewed, with some white noise."""
    noise = np.random.default_rng(seed).normal(size=(2, size, size))
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    smooth = np.fft.ifft2(np.fft.fft2(noise[0]) / (0.05 + np.hypot(fy, 2 * fx))).real
    return jnp.asarray(np.exp(0.5 * smooth / smooth.std()) + 0.1 * noise[1])


def bands_of(seed, num):
    return jnp.stack([image(seed + i) - jnp.mean(image(seed + i)) for i in range(num)])


def test_covariances_are_the_wanted_ones_alone_and_with_other_images():
    x, p, other = bands_of(0, 3), bands_of(10, 2), bands_of(20, 5)
    other = other + 0.5 * jnp.roll(other, 1, axis=0)
    wanted, with_p = ts.covariance(other[:3], other[:3]), ts.covariance(other[:3], other[3:])
    # Covariances with p that images may have: those of images that are regressed on others of p's covariance.
    with_p = with_p @ jnp.linalg.inv(ts.covariance(other[3:], other[3:])) @ ts.covariance(p, p)
    with_p = with_p * 0.2
    alone = tp.with_covariances(x, wanted, None, None)
    np.testing.assert_allclose(ts.covariance(alone, alone), wanted, rtol=1e-6)
    both = tp.with_covariances(x, wanted, p, with_p)
    np.testing.assert_allclose(ts.covariance(both, p), with_p, rtol=1e-3)
    np.testing.assert_allclose(ts.covariance(both, both), wanted, rtol=1e-3)
    same = tp.with_covariances(x, ts.covariance(x, x), p, ts.covariance(x, p))
    np.testing.assert_allclose(same, x, atol=1e-4)


def test_of_all_maps_to_a_covariance_the_symmetric_one_moves_least():
    x, other = bands_of(0, 2), bands_of(20, 2)
    wanted = ts.covariance(other, other)
    least = np.mean((tp.with_covariances(x, wanted, None, None) - x) ** 2)
    start = np.linalg.inv(np.linalg.cholesky(ts.covariance(x, x)))
    for angle in np.linspace(0, np.pi, 13):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        moved = np.einsum("nm,mhw->nhw", np.linalg.cholesky(wanted) @ turn @ start, x)
        np.testing.assert_allclose(ts.covariance(jnp.asarray(moved), jnp.asarray(moved)), wanted, rtol=1e-8)
        assert np.mean((moved - x) ** 2) >= least * (1 - 1e-9)


def test_an_autocorrelation_comes_near_to_the_wanted_one():
    x, other = image(0) - jnp.mean(image(0)), image(1)
    wanted = ts.autocorrelation(other[None], 5)[0]
    before, after = (ts.autocorrelation(y[None], 5)[0] for y in (x, tp.with_autocorrelation(x, wanted, 5)))
    assert np.abs(after - wanted).max() < 0.02 * wanted[0] < 0.2 * np.abs(before - wanted).max()
    np.testing.assert_allclose(tp.with_autocorrelation(x, before, 5), x, atol=1e-9)


def test_moments_are_the_wanted_ones():
    x, other = image(0) - jnp.mean(image(0)), jnp.sqrt(image(1) + 1)[None]
    own = {**ts.moments(other), "covariance": ts.covariance(other, other)}
    y = tp.with_moments(x, own)
    assert abs(float(jnp.mean(y))) < 1e-12
    np.testing.assert_allclose(jnp.mean(y**2), own["covariance"][0, 0], rtol=1e-9)
    np.testing.assert_allclose(jnp.mean(y**4), own["fourth"][0], rtol=1e-3)
    third, before = own["third"][0] / own["covariance"][0, 0] ** 1.5, jnp.mean(tp.standardised(x) ** 3)
    assert abs(jnp.mean(tp.standardised(y) ** 3) - third) < 0.5 * abs(before - third)


def test_the_complex_bands_of_their_real_parts():
    bands = sp.build(image(), 2, 3).bands[0]
    np.testing.assert_allclose(jnp.fft.ifft2(tp.analytic(bands.real)), bands, atol=1e-10)


def test_an_image_that_has_the_statistics_stays():
    z = image()
    target = ts.statistics(FORM, z[..., None])
    round_ = jax.jit(lambda z: tp.project(FORM, target, jnp.min(z), jnp.max(z), z))
    np.testing.assert_allclose(round_(z), z, atol=1e-3 * float(jnp.std(z)))
