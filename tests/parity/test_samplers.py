"""Schedules and every sampler's steps against diffusers' schedulers, with the same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from jgen.core import keys as rng  # noqa: E402
from jgen.prob.process import discrete, to_x0  # noqa: E402
from jgen.prob.schedules import make_schedule, sampling_times  # noqa: E402
from jgen.samplers import linear  # noqa: E402
from jgen.samplers.guidance import clipped  # noqa: E402

BETA_SCHEDULES = {
    "linear": "linear",
    "quadratic": "scaled_linear",
    "sigmoid": "sigmoid",
    "cosine": "squaredcos_cap_v2",
}
PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
T, SHAPE = 1000, (4, 6, 6, 3)


@pytest.mark.parametrize("kind", BETA_SCHEDULES)
@pytest.mark.parametrize("num", [100, 1000])
def test_schedules(kind, num):
    theirs = diffusers.DDPMScheduler(num, beta_schedule=BETA_SCHEDULES[kind])
    ours = make_schedule(kind, num)
    np.testing.assert_allclose(ours.beta[1:], theirs.betas, rtol=1e-6)
    np.testing.assert_allclose(ours.alpha_bar[1:], theirs.alphas_cumprod, rtol=2e-5)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_times(spacing, steps):
    scheduler = diffusers.DDIMScheduler(T, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert sampling_times(T, steps, spacing) == tuple(int(t) + 1 for t in scheduler.timesteps)


def network(x, t, library):
    """The same arbitrary smooth function in both libraries, t counted from 1."""
    return 0.4 * library.sin(2.0 * x) + 0.001 * t


def start():
    keys = rng.image_keys(jax.random.key(0), jnp.arange(SHAPE[0]))
    return jax.random.normal(jax.random.key(1), SHAPE), keys


def noise_of(keys, steps):
    """The noise that `linear.run` adds in each of its rows."""
    return [np.array(rng.normal(rng.fold_in(keys, i), SHAPE[1:])) for i in range(steps)]


def denoiser(prediction, process, clip):
    def predict(x_t, t):
        output = network(x_t, T * t.reshape(-1, 1, 1, 1), jnp)
        return to_x0(prediction, process, x_t, t, output)

    return clipped(predict) if clip else predict


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(prediction, clip, eta):
    process, times = discrete(make_schedule("linear", T)), sampling_times(T, 10, "leading")
    x_T, keys = start()
    table = linear.ddim(process, np.array(times) / T, eta)
    ours, _ = linear.run(denoiser(prediction, process, clip), table, x_T, keys)
    scheduler = diffusers.DDIMScheduler(T, clip_sample=clip, prediction_type=PREDICTION[prediction])
    scheduler.set_timesteps(10)
    x = torch.from_numpy(np.array(x_T))
    for t, noise in zip(times, noise_of(keys, 10)):
        x = scheduler.step(
            network(x, float(t), torch),
            t - 1,
            x,
            eta=eta,
            use_clipped_model_output=True,
            variance_noise=torch.from_numpy(noise) if eta > 0 else None,
        ).prev_sample
    limit = 1e-4 * max(1.0, float(x.abs().max()))
    np.testing.assert_allclose(ours, x, atol=limit)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_ancestral(prediction, clip, variance, monkeypatch):
    process, times = discrete(make_schedule("linear", T)), sampling_times(T, 10, "leading")
    x_T, keys = start()
    table = linear.ancestral(process, np.array(times) / T, variance)
    ours, _ = linear.run(denoiser(prediction, process, clip), table, x_T, keys)
    kind = {"beta": "fixed_large", "beta_tilde": "fixed_small"}[variance]
    scheduler = diffusers.DDPMScheduler(
        T, clip_sample=clip, prediction_type=PREDICTION[prediction], variance_type=kind, timestep_spacing="leading"
    )
    scheduler.set_timesteps(10)
    noises = dict(zip(times, noise_of(keys, 10)))
    x = torch.from_numpy(np.array(x_T))
    for t in times:
        import diffusers.schedulers.scheduling_ddpm as module

        monkeypatch.setattr(module, "randn_tensor", lambda *a, t=t, **k: torch.from_numpy(noises[t]))
        x = scheduler.step(network(x, float(t), torch), t - 1, x).prev_sample
    limit = 1e-4 * max(1.0, float(x.abs().max()))
    np.testing.assert_allclose(ours, x, atol=limit)
