"""Inpainting, editing and inversion by a denoiser whose every answer is known: that of independent Gaussian pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from stub_network import CTX, keys_of

from jgen.core.model import GenerativeModel, ImageSpec
from jgen.prob.process import cosine, edm, linear, per_image
from jgen.samplers import system
from jgen.samplers.diffusion import Editing, Sampling

MEAN, STD = 0.1, 0.4
SPEC = ImageSpec(4, 4, 3, 0)  # floats, so that nothing is rounded
PROCESSES = {"cosine": cosine(), "linear": linear(), "EDM": edm(10.0)}
IMAGES = np.random.default_rng(0).normal(MEAN, STD, (5, 4, 4, 3)).astype(np.float32)


def make(process, spec=SPEC, **options):
    """A model of Gaussian pixels: the mean of x_0 given x_t is the denoiser's answer."""

    def denoise(params, ctx, x_t, t, cond):
        alpha, sigma = per_image(process.alpha(t), x_t), per_image(process.sigma(t), x_t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (x_t - alpha * MEAN)

    sampling = Sampling(**{"clip": False, "steps": 16} | options)
    denoising = system.Denoising(denoise, lambda params: process, spec, sampling, lambda cond: cond, False, "nothing")
    data = dataclasses.make_dataclass("Data", ["image"])(spec)
    model = GenerativeModel(name="gaussian", data=data, init=None, phases=())
    return system.with_samplers(model, denoising)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_way_back_from_an_inversion_ends_at_the_image_the_nearer_the_more_steps(name):
    options = {"spacing": "log_snr", "low": 0.01} if name == "EDM" else {}
    model = make(PROCESSES[name], **options)

    def error(steps):
        @jax.jit
        def there_and_back(images):
            noise = model.invert({}, CTX, keys_of(5), images, {}, steps=steps)
            return noise, model.decode({}, CTX, keys_of(5), noise, {}, steps=steps)

        noise, images = there_and_back(IMAGES)
        return noise, np.sqrt(np.mean((images - IMAGES) ** 2)) / STD

    (_, few), (noise, many) = error(40), error(160)
    assert many < 0.05 and many < 0.45 * few  # of first order, with what the last time's noise leaves
    flat = np.corrcoef(noise.ravel(), IMAGES.ravel())[0, 1]
    assert flat > 0.999  # the flow of independent Gaussians moves each pixel along a line
    np.testing.assert_allclose(np.std(noise), np.std(IMAGES) / STD, rtol=0.1)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "ancestral", "dpmpp_2m"])
def test_editing_at_full_strength_is_sampling_and_at_none_returns_the_image(sampler):
    model = make(cosine(), sampler=sampler)

    @jax.jit
    def run(images):
        whole = model.edit({}, CTX, keys_of(5), images, {}, strength=1.0)
        part, least = (model.edit({}, CTX, keys_of(5), images, {}, strength=s) for s in (0.5, 0.01))
        return whole, model.sample({}, CTX, keys_of(5), {}), part, least

    whole, samples, part, least = run(IMAGES)
    np.testing.assert_allclose(whole, samples, atol=1e-5)
    near, far = (np.sqrt(np.mean((x - IMAGES) ** 2)) for x in (least, part))
    assert near < 0.15 < far < np.sqrt(np.mean((whole - IMAGES) ** 2))


@pytest.mark.parametrize("method", ["replacement", "repaint", "dps"])
def test_what_is_kept_is_returned_and_the_rest_is_drawn(method):
    model = make(linear(), ImageSpec(4, 4, 3, 256))
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), np.uint8)
    mask = np.arange(16).reshape(4, 4)[None] % 3 == np.arange(5)[:, None, None] % 3
    made = np.asarray(
        jax.jit(lambda *x: model.inpaint({}, CTX, keys_of(5), *x, {}, method=method, steps=8))(images, mask)
    )
    np.testing.assert_array_equal(made[mask], images[mask])
    free = made[~mask] / 127.5 - 1.0
    assert abs(free.mean() - MEAN) < 5 * STD / np.sqrt(free.size) and 0.2 < free.std() < 0.6


def test_bad_options():
    model = make(linear())
    for strength in (0.0, 1.1, -1.0):
        mistake(
            lambda s=strength: model.check_sampling(Editing(clip=False, steps=16, strength=s)),
            f"strength is {strength}",
        )
    mistake(lambda: model.check_sampling(Editing(clip=False, steps=16, sampler="ode")), "sampler is ode")
    mistake(lambda: model.decode({}, CTX, keys_of(2), jnp.zeros((2, 3, 3, 1)), {}), "latents have shape")
