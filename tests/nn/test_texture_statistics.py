"""The statistics of a texture, against loops of NumPy and SciPy over the bands of the pyramid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import resample

from jgen.errors import UserError
from jgen.nn import steerable_pyramid as sp
from jgen.nn import texture_statistics as ts
from jgen.nn.texture_statistics import Form

FORM = Form(scales=2, orientations=3, neighbourhood=5)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def image(channels=2, height=32, width=40, seed=0):
    """A picture with skew, and with structure at every scale."""
    noise = np.random.default_rng(seed).normal(size=(height, width, channels))
    smooth = sum(np.roll(noise, (i, j), (0, 1)) for i in range(3) for j in range(5)) / 8
    return np.exp(0.5 * smooth) + 0.3 * noise


def naive_covariance(x, y):
    return np.array([[np.mean((a - a.mean()) * (b - b.mean())) for b in y] for a in x])


def naive_autocorrelation(x, size):
    reach, lags = size // 2, []
    shifts = [(0, j) for j in range(reach + 1)]
    shifts += [(i, j) for i in range(1, reach + 1) for j in range(-reach, reach + 1)]
    for each in x:
        deviation = each - each.mean()
        lags.append([np.mean(deviation * np.roll(deviation, shift, (0, 1))) for shift in shifts])
    return np.array(lags)


def twice(band):
    return resample(resample(band, 2 * band.shape[-2], axis=-2), 2 * band.shape[-1], axis=-1)


def naive_statistics(form, z):
    """All of them, from the coefficients."""
    z = np.moveaxis(z, -1, 0)
    pyramid = sp.build(jnp.asarray(z), form.scales, form.orientations)
    filters = sp.make_filters(*z.shape[1:], form.scales, form.orientations)
    lows = [np.fft.ifft2(np.fft.fft2(z) * filters.low).real]
    for low in filters.lows:
        lows.append(np.fft.ifft2(np.fft.fft2(lows[-1]) * low).real[:, ::2, ::2])

    def marginal(x):
        deviation = [each - each.mean() for each in x]
        powers = (("third", 3), ("fourth", 4))
        moments = {name: np.array([np.mean(d**power) for d in deviation]) for name, power in powers}
        return {**moments, "covariance": naive_covariance(x, x)}

    found = {"pixels": marginal(z) | {"mean": z.mean((1, 2))}}
    found["high"] = {"covariance": naive_covariance(pyramid.high, pyramid.high)}
    found["lows"] = [
        marginal(low) | {"autocorrelation": naive_autocorrelation(low, form.neighbourhood)} for low in lows
    ]
    bands = [np.asarray(band).reshape(-1, *band.shape[-2:]) for band in pyramid.bands]
    found["bands"], found["parents"] = [], []
    for band in bands:
        modulus = np.abs(band)
        own = {"power": np.mean(modulus**2, axis=(1, 2)), "covariance": naive_covariance(modulus, modulus)}
        own["autocorrelation"] = naive_autocorrelation(modulus, form.neighbourhood)
        if len(z) > 1:
            own["real"] = np.array([[np.mean(a.real * b.real) for b in band] for a in band])
        found["bands"].append(own)
    for band, parent in zip(bands, bands[1:]):
        parent = twice(parent)
        doubled = parent**2 / np.abs(parent)
        moduli = naive_covariance(np.abs(band), np.abs(parent))
        phases = [[np.mean(b.real * part) for part in (*doubled.real, *doubled.imag)] for b in band]
        found["parents"].append({"moduli": moduli, "phases": np.array(phases)})
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_loops(channels):
    z = image(channels)
    found = jax.jit(lambda z: ts.statistics(FORM, z))(jnp.asarray(z))
    expected = naive_statistics(FORM, z)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), found, expected)


def test_the_papers_count():
    """710 for 4 scales, 4 orientations and M = 7, once what is here twice or beside them is taken off."""
    form = Form(4, 4, 7)
    found = jax.eval_shape(lambda z: ts.statistics(form, z), jnp.zeros((128, 128, 1)))
    total = sum(leaf.size for leaf in jax.tree.leaves(found))
    symmetric = 4 * 6  # of pairs of bands at a scale
    variances_again = 4 * 4 + 5  # of moduli and of lowpass images, which are also at shift zero
    powers = 4 * 4
    least_and_greatest = 2  # of the paper's pixels, which are apart here
    assert total - symmetric - variances_again - powers + least_and_greatest == 710


@pytest.mark.slow
def test_what_is_shifted_has_the_same_statistics():
    z = image()
    found, shifted = (ts.statistics(FORM, jnp.asarray(x)) for x in (z, np.roll(z, (12, 20), (0, 1))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, shifted)


def test_in_their_units_variances_are_one_and_covariances_are_correlations():
    found = ts.statistics(FORM, jnp.asarray(7 * image() + 3))
    ratio = jax.tree.map(jnp.divide, found, ts.scales_of(found))
    for band in ratio["bands"]:
        np.testing.assert_allclose(np.diag(band["covariance"]), 1)
        assert np.abs(band["covariance"]).max() < 1 + 1e-9 and np.abs(band["autocorrelation"]).max() < 1 + 1e-9
    np.testing.assert_allclose(ratio["lows"][0]["autocorrelation"][:, 0], 1)
    assert np.abs(ratio["parents"][0]["moduli"]).max() < 1 + 1e-9 and np.abs(ratio["parents"][0]["phases"]).max() < 1.5


def powers_of_noise(found, height, width):
    """Powers of all bands, and variances beside them, of white noise with the spectrum, over those of `found`."""
    gain = ts.spectrum(FORM, found, height, width)
    assert gain.shape == (len(found["pixels"]["mean"]), height, width)
    noise = np.random.default_rng(0).normal(size=(200, *gain.shape))
    made = np.moveaxis(np.fft.ifft2(np.fft.fft2(noise) * np.asarray(gain)).real, 1, -1)
    of_noise = jax.jit(jax.vmap(lambda z: ts.statistics(FORM, z)))(jnp.asarray(made))

    def powers(found):
        others = [np.diagonal(each["covariance"], 0, -2, -1) for each in (found["high"], found["lows"][-1])]
        return np.concatenate([*(band["power"] for band in found["bands"]), *others], axis=-1)

    return powers(of_noise).mean(axis=0) / powers(found)


@pytest.mark.slow
def test_noise_with_the_spectrum_has_about_the_powers_of_all_bands():
    found = ts.statistics(FORM, jnp.asarray(image(2, 64, 64)))
    ratio = powers_of_noise(found, 64, 96)
    assert ratio.min() > 0.7 and ratio.max() < 1.4


@pytest.mark.slow
def test_noise_with_the_spectrum_of_noise_is_white():
    noise = 3 * np.random.default_rng(1).normal(size=(100, 32, 32, 1))
    found = jax.tree.map(lambda x: x.mean(axis=0), jax.vmap(lambda z: ts.statistics(FORM, z))(jnp.asarray(noise)))
    np.testing.assert_allclose(ts.spectrum(FORM, found, 64, 48), 3, rtol=0.06)
    np.testing.assert_allclose(powers_of_noise(found, 64, 64), 1, rtol=0.06)


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    z, v = jnp.asarray(image(1)), jnp.asarray(image(1, seed=1))
    target = ts.statistics(FORM, jnp.asarray(image(1, seed=2)))

    def function(z):
        squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), ts.statistics(FORM, z), target)
        return sum(jax.tree.leaves(squares))

    exact = float(jnp.vdot(jax.grad(function)(z), v))
    numeric = float((function(z + 1e-5 * v) - function(z - 1e-5 * v)) / 2e-5)
    assert exact == pytest.approx(numeric, rel=1e-5)


@pytest.mark.slow
def test_an_image_without_any_structure_has_finite_statistics_and_gradients():
    def total(z):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(ts.statistics(FORM, z)))

    value, gradient = jax.value_and_grad(total)(jnp.zeros((32, 32, 1)))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    "form,size,words",
    [
        (Form(2, 3, 4), (32, 32), "neighbourhood is 4: it must be odd"),
        (Form(2, 3, 5), (16, 32), "it is 16x32: a pyramid of 2 scales and neighbourhood 5 needs sides of 20 pixels"),
        (Form(2, 3, 5), (22, 32), "it is 22x32: sides must be multiples of 4"),
    ],
)
def test_what_no_statistics_are_of(form, size, words):
    with pytest.raises(UserError, match=words):
        ts.check_form(form)
        ts.check_size(form, *size, "it")
