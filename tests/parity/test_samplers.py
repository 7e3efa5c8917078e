"""Schedules and every sampler's steps against diffusers' schedulers, with the same noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from jgen.core import keys as rng  # noqa: E402
from jgen.prob.process import discrete, edm, to_x0  # noqa: E402
from jgen.prob.process import linear as straight  # noqa: E402
from jgen.prob.schedules import SPACINGS, make_schedule, sampling_times  # noqa: E402
from jgen.samplers import linear  # noqa: E402
from jgen.samplers.guidance import clipped  # noqa: E402
from jgen.samplers.times import make_times  # noqa: E402

BETA_SCHEDULES = {
    "linear": "linear",
    "quadratic": "scaled_linear",
    "sigmoid": "sigmoid",
    "cosine": "squaredcos_cap_v2",
}
PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
T, SHAPE = 1000, (4, 6, 6, 3)
CHAIN = discrete(make_schedule("linear", T))


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


def scaled(process, times):
    """sigma / alpha at the times and at the end: the noise that most of diffusers' schedulers count in."""
    return np.append(process.sigma(times) / process.alpha(times), 0.0)


def ours(table, keys, x):
    return np.asarray(linear.run(denoiser("eps", CHAIN, False), table, x, keys)[0])


def close(actual, expected):
    """To the rounding of the x that have the largest noise, of a few dozen steps."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("ancestral", [False, True])
def test_euler_is_ddim(spacing, ancestral, monkeypatch):
    """Euler's method in x / alpha and sigma / alpha, and its ancestral form, on every spacing of a chain."""
    steps = 10
    times = make_times(CHAIN, spacing, steps, num_timesteps=T)
    x, keys = start()
    name = "EulerAncestralDiscreteScheduler" if ancestral else "EulerDiscreteScheduler"
    scheduler = getattr(diffusers, name)(T, 1e-4, 0.02, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(scheduler.sigmas, scaled(CHAIN, times), rtol=1e-4)
    noises = iter(noise_of(keys, steps))
    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    monkeypatch.setattr(module, lambda *a, **k: torch.from_numpy(next(noises)))
    y = torch.from_numpy(np.array(x / CHAIN.alpha(times[0]), np.float32))
    for time, t in zip(times, scheduler.timesteps):
        x_t = scheduler.scale_model_input(y, t)
        y = scheduler.step(network(x_t, T * time, torch), t, y).prev_sample
    close(ours(linear.ddim(CHAIN, times, float(ancestral)), keys, x), y)


SOLVERS = {
    "2m": ({"solver_order": 2}, linear.dpm_solver_2m),
    "2m, sde": (
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
        partial(linear.dpm_solver_2m, stochastic=True),
    ),
    "3m": ({"solver_order": 3}, linear.dpm_solver_3m),
}


def missing_curve(scheduler):
    """What a step of third order lacks in diffusers: its last term is half of that of the parabola through three D."""
    i = scheduler.step_index - 1  # of the step just taken
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas.double())
    half = torch.log(alpha) - torch.log(sigma)
    h, h_0, h_1 = (half[i + 1 - k] - half[i - k] for k in range(3))
    m2, m1, m0 = scheduler.model_outputs
    curve = h**2 / (h_0 + h_1) * ((m0 - m1) / h_0 - (m1 - m2) / h_1)
    phi_3 = (torch.expm1(-h) + h) / h**2 - 0.5
    return -(alpha[i + 1] * phi_3 * curve).float()


@pytest.mark.parametrize("steps", [16, 40])
@pytest.mark.parametrize("solver", SOLVERS)
def test_dpm_solver(solver, steps):
    options, make = SOLVERS[solver]
    scheduler = diffusers.DPMSolverMultistepScheduler(T, **options)
    scheduler.set_timesteps(steps)
    times = (scheduler.timesteps.numpy() + 1) / T
    x, keys = start()
    y = torch.from_numpy(np.array(x))
    for i, (t, noise) in enumerate(zip(scheduler.timesteps, noise_of(keys, steps))):
        output = network(y, float(t + 1), torch)
        y = scheduler.step(output, t, y, variance_noise=torch.from_numpy(noise)).prev_sample
        if solver == "3m" and 2 <= i < steps - 1:
            y = y + missing_curve(scheduler)
    close(ours(make(CHAIN, times), keys, x), y)


@pytest.mark.parametrize("steps", [2, 10, 40])
def test_unipc(steps):
    scheduler = diffusers.UniPCMultistepScheduler(T, solver_type="bh2", solver_order=2, predict_x0=True)
    scheduler.set_timesteps(steps)
    times = (scheduler.timesteps.numpy() + 1) / T
    x, keys = start()
    y = torch.from_numpy(np.array(x))
    for t in scheduler.timesteps:
        y = scheduler.step(network(y, float(t + 1), torch), t, y).prev_sample
    close(ours(linear.unipc(CHAIN, times), keys, x), y)


def test_heun_on_edms_process():
    """diffusers goes through sigma / alpha of a chain, with Karras' spacing: those of a process with alpha = 1."""
    scheduler = diffusers.HeunDiscreteScheduler(T, 1e-4, 0.02, prediction_type="sample", use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.numpy()[[0, *range(1, 23, 2)]].astype(np.float64)
    process = edm(float(sigmas[0]))
    times = make_times(process, "karras", 12, low=float(sigmas[-1]))
    np.testing.assert_allclose(process.sigma(times), sigmas, rtol=1e-4)
    x, keys = start()
    x = x * np.float32(sigmas[0])

    def denoise(x, library):
        return 0.9 * library.sin(0.7 * x)

    x_0, estimates = linear.run(lambda x, t: denoise(x, jnp), linear.heun(process, times), x, keys)
    y = torch.from_numpy(np.array(x))
    for t in scheduler.timesteps:
        y = scheduler.step(denoise(y, torch), t, y).prev_sample
    close(x_0, y)
    assert len(estimates) == len(scheduler.timesteps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(T, shift=shift)
    uniform = 1.0 - np.arange(10) / 10
    scheduler.set_timesteps(sigmas=list(uniform))
    times, process = make_times(straight(), "shifted", 10, shift=shift), straight()
    np.testing.assert_allclose(scheduler.sigmas, np.append(times, 0.0), rtol=1e-5)
    x, keys = start()

    def predict(x_t, t):
        return to_x0("velocity", process, x_t, t, network(x_t, T * t.reshape(-1, 1, 1, 1), jnp))

    x_0, _ = linear.run(predict, linear.euler(process, times), x, keys)
    y = torch.from_numpy(np.array(x))
    for time, t in zip(times, scheduler.timesteps):
        y = scheduler.step(network(y, T * time, torch), t, y).prev_sample
    close(x_0, y)
