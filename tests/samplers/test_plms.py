"""Pseudo linear multistep sampling against a plain loop, and its order; ends with noise, and later times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from gaussians import MEAN, PROCESSES, STD, flow_map, keys_of, pixelwise

from jgen.prob.process import time_of
from jgen.prob.schedules import sampling_times
from jgen.samplers import linear
from jgen.samplers.diffusion import Sampling, check_sampling, draw
from jgen.samplers.plms import plms

CHAIN = PROCESSES["discrete"]


def naive(denoiser, process, times, x, end):
    """Stable Diffusion's loop: noise of earlier steps in a list, the first step taken twice."""
    times = [*times, end]

    def noise(x, t):
        x_0 = np.asarray(denoiser(jnp.asarray(x), jnp.full(len(x), t)))
        return (x - process.alpha(t) * x_0) / process.sigma(t)

    def step(x, e, t, s):
        alpha, sigma = (1.0, 0.0) if s == 0 else (process.alpha(s), process.sigma(s))
        return alpha * (x - process.sigma(t) * e) / process.alpha(t) + sigma * e

    earlier = []
    for i, (t, s) in enumerate(zip(times, times[1:])):
        e = noise(x, t)
        if i == 0 and len(times) > 2:
            mean = (e + noise(step(x, e, t, s), s)) / 2
        else:
            weights = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
            own = weights[min(len(earlier), 3)]
            mean = sum(weight * each for weight, each in zip(own, [e, *reversed(earlier)]))
        earlier.append(e)
        x = step(x, mean, t, s)
    return x


@pytest.mark.parametrize("end", [0.0, 0.001])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_plms_is_the_plain_loop(steps, end):
    times = np.array(sampling_times(1000, steps, "leading", offset=1)) / 1000
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(3, 2, 2, 1))
        ours, estimates = plms(pixelwise(CHAIN), CHAIN, times, jnp.asarray(x), end)
        np.testing.assert_allclose(ours, naive(pixelwise(CHAIN), CHAIN, times, x, end), rtol=0, atol=1e-9)
    assert len(estimates) == steps + (steps > 1)


def test_its_error_falls_with_the_square_of_the_steps():
    """Against the exact flow, which it goes along to its last time but one."""
    process, z, errors = PROCESSES["vp"], np.linspace(-2, 2, 9).reshape(-1, 1, 1, 1), []
    with jax.enable_x64(True):
        for n in (64, 128, 256):
            times = time_of(process, np.linspace(-2.0, 2.0, n + 1))
            alpha, sigma = process.alpha(times[0]), process.sigma(times[0])
            x = alpha * MEAN + np.sqrt(alpha**2 * STD**2 + sigma**2) * z
            ours, _ = plms(pixelwise(process), process, times[:-1], jnp.asarray(x), float(times[-1]))
            errors.append(float(np.max(np.abs(ours - flow_map(process, times[0], times[-1], x)))))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(orders > 1.9), (errors, orders)


@pytest.mark.parametrize("sampler", ["ddim", "plms"])
def test_the_end_at_the_first_step_of_a_chain_has_its_noise(sampler):
    """One step from t to 1 / T is alpha D + sigma e with those of 1 / T, and from there nothing changes."""
    o = Sampling(sampler=sampler, times=(0.5, 0.001), end="first", clip=False)
    x, keys = np.random.default_rng(0).normal(size=(3, 2, 2, 1)), keys_of(3)

    def denoiser(x_t, t, cond):
        return jnp.full_like(x_t, 0.3)

    ours, _ = draw(denoiser, {}, CHAIN, o, jnp.asarray(x, jnp.float32), keys, 1000)
    e = (x - CHAIN.alpha(0.5) * 0.3) / CHAIN.sigma(0.5)
    table = linear.ddim(CHAIN, np.array([0.5, 0.001]), 0.0, 0.001)
    np.testing.assert_allclose([table.step[1], table.denoised[1, 0]], [1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(ours, CHAIN.alpha(0.001) * 0.3 + CHAIN.sigma(0.001) * e, rtol=0, atol=1e-4)


def test_later_times_and_ends_that_cannot_be():
    assert sampling_times(1000, 4, "leading", offset=1) == (752, 502, 252, 2)

    def check(T=1000, **options):
        check_sampling(Sampling(**options), num_timesteps=T, guidable=True, needs="")

    check(spacing="leading", steps=999, offset=1)
    mistake(lambda: check(spacing="leading", steps=1000, offset=1), "offset is 1", "from 0 to 0")
    mistake(lambda: check(spacing="leading", offset=-1), "offset is -1")
    mistake(lambda: check(T=0, end="first"), "end is first", "chain of steps")
