"""Inpainting and restoration with a denoiser known in closed form: what each method has of the conditional
distribution, and by how much it differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussians import PROCESSES, keys_of, mixture

from jgen.core import keys as rng
from jgen.core.model import ImageSpec
from jgen.errors import UserError
from jgen.prob.degradation import LUMA, make_degradation
from jgen.samplers import linear, posterior
from jgen.samplers.diffusion import start_std
from jgen.samplers.times import make_times

N = 2000
MEAN = np.array([0.1, 0.2, -0.1])
COVARIANCE = np.array([[1, 0.6, 0.3], [0.6, 1, 0.5], [0.3, 0.5, 1]]) * 0.3**2
KNOWN = 0.5  # the value of the first of three pixels
SPREAD = 5 * np.sqrt(0.09 / N)  # of a mean over N draws


def conditional():
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    return MEAN[1:] + gain * (KNOWN - MEAN[0]), COVARIANCE[1:, 1:] - np.outer(gain, COVARIANCE[0, 1:])


def draws(method, process="cosine", steps=100):
    process = PROCESSES[process]
    times = make_times(process, "uniform", steps)
    denoiser = mixture(process, np.ones(1), MEAN[None], COVARIANCE)
    mask = jnp.zeros((N, 1, 3, 1), bool).at[:, 0, 0].set(True)

    def draw(keys):
        if method == "dps":
            y = jnp.where(mask, KNOWN, 0.0)
            return posterior.by_gradient(denoiser, process, times, y, lambda x: mask * x, (1, 3, 1), keys, 1.0)
        return posterior.by_replacement(denoiser, process, times, jnp.full((N, 1, 3, 1), KNOWN), mask, keys, method)

    return np.asarray(jax.jit(draw)(keys_of(N)))[:, 0, :, 0]


def progress(x):
    """How far the mean of the unknown pixels has come from the prior's (0) to the conditional's (1)."""
    way = conditional()[0] - MEAN[1:]
    return (x[:, 1:].mean(axis=0) - MEAN[1:]) @ way / (way @ way)


@pytest.fixture(scope="module")
def samples():
    return {method: draws(method) for method in (1, 10, "dps")}


def test_known_pixels_are_kept(samples):
    for method in (1, 10):
        np.testing.assert_allclose(samples[method][:, 0], KNOWN, atol=1e-6)
    np.testing.assert_allclose(samples["dps"][:, 0], KNOWN, atol=0.02)


def test_repeats_lead_from_half_of_the_way_to_nearly_all_of_it(samples):
    """Replacement alone moves the mean half of the way to the conditional's, ten repeats nine tenths."""
    error = SPREAD / np.linalg.norm(conditional()[0] - MEAN[1:])
    assert 0.4 < progress(samples[1]) < 0.65
    assert 0.85 < progress(samples[10]) < 1.0 + error


def test_the_gradient_of_dps_leads_past_the_mean(samples):
    assert 1.1 < progress(samples["dps"]) < 1.6


def test_covariances_are_near_the_conditionals(samples):
    """All are below it by up to 30 %, the part that steps of finite length take away included."""
    wanted = np.trace(conditional()[1])
    ratios = {method: np.trace(np.cov(x[:, 1:].T)) / wanted for method, x in samples.items()}
    assert 0.95 < ratios[1] < 1.1 and 0.7 < ratios[10] < 0.95 and 0.7 < ratios["dps"] < 1.0, ratios


def test_without_known_pixels_samples_are_those_of_ancestral_steps():
    process = PROCESSES["edm"]
    times = make_times(process, "karras", 60)
    denoiser = mixture(process, np.ones(1), MEAN[None], COVARIANCE)
    nothing = jnp.zeros((N, 1, 3, 1), bool)
    made = posterior.by_replacement(denoiser, process, times, jnp.zeros((N, 1, 3, 1)), nothing, keys_of(N), 1)
    noise = rng.normal(keys_of(N, 7), (1, 3, 1)) * start_std(process, times[0])
    plain, _ = linear.run(denoiser, linear.ancestral(process, times), noise, keys_of(N, 8))
    x, wanted = (np.asarray(each)[:, 0, :, 0] for each in (made, plain))
    assert np.all(np.abs(x.mean(axis=0) - MEAN) < SPREAD)
    np.testing.assert_allclose(np.cov(x.T), np.cov(wanted.T), atol=5 * 0.09 * np.sqrt(2 * 2 / N))


def test_noise_in_the_measurement_is_not_followed():
    """Where all that is measured is within the noise, samples are the prior's."""
    process = PROCESSES["cosine"]
    denoiser = mixture(process, np.ones(1), MEAN[None], COVARIANCE)
    where = denoiser, process, make_times(process, "uniform", 60), jnp.full((N, 1, 3, 1), KNOWN), lambda x: x, (1, 3, 1)
    x = np.asarray(posterior.by_gradient(*where, keys_of(N), 1.0, noise=10.0))[:, 0, :, 0]
    assert np.all(np.abs(x.mean(axis=0) - MEAN) < SPREAD)
    near = np.asarray(posterior.by_gradient(*where, keys_of(N), 1.0))[:, 0, :, 0]
    np.testing.assert_allclose(near, KNOWN, atol=0.02)


def test_degradations_by_numpy():
    x = np.random.default_rng(0).uniform(size=(2, 4, 6, 3)).astype(np.float32)
    spec = ImageSpec(4, 6, 3, 256)
    small = [[[x[n, i : i + 2, j : j + 2].mean((0, 1)) for j in (0, 2, 4)] for i in (0, 2)] for n in (0, 1)]
    np.testing.assert_allclose(make_degradation("super_resolution", spec, 2)(x), small, rtol=1e-5)
    np.testing.assert_allclose(make_degradation("colourisation", spec)(x)[..., 0], x @ np.array(LUMA), rtol=1e-5)
    assert sum(LUMA) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "given,words",
    [
        (("super_resolution", ImageSpec(4, 6, 3, 256), 3), "factor is 3: it must be 2 or above and divide the sides"),
        (("colourisation", ImageSpec(4, 6, 1, 256)), "problem is colourisation: images have 1 channel, it takes 3"),
    ],
)
def test_problems_that_images_do_not_have(given, words):
    with pytest.raises(UserError, match=words):
        make_degradation(*given)


@pytest.mark.parametrize(
    "check,words",
    [
        (lambda: posterior.check_inpainting(posterior.Inpainting(repeats=0)), "repeats is 0"),
        (lambda: posterior.check_inpainting(posterior.Inpainting(steps=0)), "steps is 0"),
        (lambda: posterior.check_restoring(posterior.Restoring(noise=-1.0)), "noise is -1.0"),
    ],
)
def test_options_out_of_range(check, words):
    with pytest.raises(UserError, match=words):
        check()
