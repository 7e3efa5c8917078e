"""Drawing images with the options of sampling, of data whose denoiser is known."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussians import MEAN, PROCESSES, STD, keys_of, mixture, pixelwise

from jgen.core import keys as rng
from jgen.prob.process import prior_std
from jgen.samplers import linear
from jgen.samplers.diffusion import Sampler, Sampling, draw, evaluations, table_of, times_of
from jgen.samplers.guidance import clipped

SAMPLERS = typing.get_args(Sampler)
SHAPE = (2, 2, 1)


def drawn(denoiser, process, o, keys, shape):
    """Images of a denoiser without a condition, from noise of the keys."""
    key_start, key_steps = rng.split(keys, 2)
    return draw(lambda x_t, t, cond: denoiser(x_t, t), {}, process, o, rng.normal(key_start, shape), key_steps)


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
@pytest.mark.parametrize("clip", [False, True])
def test_a_draw_is_its_table_from_noise_of_the_first_time(sampler, clip):
    process = PROCESSES["ve"]
    o = Sampling(sampler=sampler, steps=5, spacing="karras", eta=0.5, churn=2.0, clip=clip)
    images, estimates = drawn(pixelwise(process, std=3.0), process, o, keys_of(3), SHAPE)
    key_start, key_steps = rng.split(keys_of(3), 2)
    times = times_of(o, process)
    x = rng.normal(key_start, SHAPE) * np.float32(np.hypot(1.0, process.sigma(times[0])))
    denoiser = pixelwise(process, std=3.0)
    wanted, _ = linear.run(clipped(denoiser) if clip else denoiser, table_of(o, process, times), x, key_steps)
    np.testing.assert_allclose(images, wanted, atol=1e-5)
    np.testing.assert_allclose(estimates[-1], images, atol=1e-6)
    assert len(estimates) == evaluations(o) and (np.abs(images).max() <= 1) == clip


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_the_same_beside_others_and_explicit_times_are_those_of_the_steps(sampler):
    process = PROCESSES["vp"]
    o, times = Sampling(sampler=sampler, steps=4, churn=2.0), (1.0, 0.75, 0.5, 0.25)
    asked = []

    def denoiser(x_t, t):
        jax.debug.callback(lambda t: asked.append(float(t)), t[0])
        return pixelwise(process)(x_t, t)

    def run(denoiser, keys, o):
        return jax.jit(lambda keys: drawn(denoiser, process, o, keys, SHAPE)[0])(keys)

    plain, explicit = pixelwise(process), Sampling(sampler=sampler, times=times, churn=2.0)
    four = run(plain, keys_of(4), o)
    np.testing.assert_allclose(run(plain, keys_of(2), explicit), four[:2], atol=1e-5)
    run(denoiser, keys_of(1), o)
    jax.effects_barrier()
    assert len(asked) == evaluations(o) or (sampler == "ode" and len(asked) > 4)


@pytest.mark.slow
def test_predictor_corrector_keeps_the_covariance_of_images():
    """Of smooth 8x8 images, along each eigenvector of their covariance and on average, by standard errors.

    Ancestral steps that are not infinitely small take three percent of the variance; the corrector gives some back.
    """
    at = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)
    distance = np.sum((at[:, None] - at[None]) ** 2, -1)
    covariance = 0.04 * np.exp(-distance / 8) + 0.01 * np.eye(64)
    mean, n = 0.3 * np.cos(np.arange(64)), 400
    for name in ("vp", "ve"):
        process = PROCESSES[name]
        o = Sampling(sampler="predictor_corrector", steps=250, spacing="log_snr", clip=False)
        denoiser = mixture(process, np.ones(1), mean[None], covariance)

        def run(keys, denoiser=denoiser, process=process, o=o):
            return drawn(denoiser, process, o, keys, (8, 8, 1))[0]

        x = np.asarray(jax.jit(run, compiler_options={"xla_backend_optimization_level": 2})(keys_of(n)), np.float64)
        values, vectors = np.linalg.eigh(covariance)
        z = (x.reshape(n, 64) - mean) @ vectors / np.sqrt(values)
        np.testing.assert_array_less(np.abs(z.mean(0)), 5 / np.sqrt(n) + 0.03)
        variance = z.var(0)
        np.testing.assert_array_less(np.abs(variance - 1), 5 * np.sqrt(2 / n) + 0.03)
        assert abs(variance.mean() - 1) < 5 * np.sqrt(2 / (64 * n)) + 0.03, variance.mean()
        correlation = np.corrcoef(z.T) - np.eye(64)
        np.testing.assert_array_less(np.abs(correlation), 6 / np.sqrt(n))  # the largest of two thousand


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s not in ("ode", "predictor_corrector", "plms")])
def test_every_sampler_works_on_a_process_of_arrays(sampler):
    """Times and coefficients that JAX computes, as those of a learned process are, give what the host's give."""
    process, times = PROCESSES["log_snr"], np.linspace(1.0, 0.2, 5)
    o = Sampling(sampler=sampler, churn=2.0, eta=0.3)
    host, device = (table_of(o, process, t) for t in (times, jnp.asarray(times, jnp.float32)))
    for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(device), strict=True):
        assert isinstance(b, jax.Array)
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("sampler", ["predictor_corrector", "ode"])
def test_the_others_recover_mean_and_deviation_on_every_process(sampler, name):
    """By standard errors, and three percent for steps that are not infinitely small."""
    process, n = PROCESSES[name], 2000
    o = Sampling(sampler=sampler, steps=250, spacing="log_snr", clip=False)
    x = jax.jit(lambda keys: drawn(pixelwise(process), process, o, keys, SHAPE)[0])(keys_of(n))
    z = (np.asarray(x, np.float64) - MEAN) / STD
    assert abs(z.mean()) < 5 / np.sqrt(z.size) + 0.03 and abs(z.var() - 1) < 5 * np.sqrt(2 / z.size) + 0.06
    assert float(prior_std(process)) >= 0.9
