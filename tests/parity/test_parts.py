"""Parts of the U-Net and single steps of the samplers beside those of PyTorch and diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core import keys as rng
from jgen.nn.embeddings import sinusoidal_embedding
from jgen.nn.normalization import group_norm
from jgen.nn.unet import UNet
from jgen.prob.process import add_noise, discrete, from_x0, per_image, to_x0
from jgen.prob.schedules import make_schedule, sampling_times
from jgen.samplers import linear
from jgen.samplers.guidance import clipped

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
torch.set_num_threads(2)

PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SHAPE = (4, 4, 4, 3)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape,groups", [((3, 8, 8, 32), 8), ((2, 4, 4, 64), 32), ((2, 5, 3, 16), 1)])
def test_group_norm_and_its_gradients(shape, groups, silu):
    draw = np.random.default_rng(0).standard_normal
    x, g = 0.5 + 2 * draw(shape, np.float32), draw(shape, np.float32)
    scale, bias = 1 + draw(shape[-1:], np.float32), draw(shape[-1:], np.float32)
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, scale, bias)]
    y = torch.nn.functional.group_norm(tensors[0].permute(0, 3, 1, 2), groups, tensors[1], tensors[2], 1e-5)
    y = (torch.nn.functional.silu(y) if silu else y).permute(0, 2, 3, 1)
    (y * torch.from_numpy(g)).sum().backward()

    def loss(*inputs):
        out = group_norm(*inputs, groups, 1e-5, silu)
        return jnp.sum(out * g), out

    (_, output), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    np.testing.assert_allclose(output, y.detach().numpy(), atol=1e-5)
    for name, gradient, tensor in zip(("x", "scale", "bias"), gradients, tensors):
        wanted = tensor.grad.numpy()
        np.testing.assert_allclose(gradient, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()), err_msg=name)


@pytest.mark.parametrize("dim", [4, 32, 33, 128])
def test_sinusoidal_embedding(dim):
    from diffusers.models.embeddings import get_timestep_embedding

    t = np.array([0, 1, 2, 17, 500, 999, 1000], np.int32)
    wanted = get_timestep_embedding(torch.from_numpy(t), dim, flip_sin_to_cos=False, downscale_freq_shift=1)
    # At t = 1000 the angle itself is rounded to 3e-5 in single precision.
    np.testing.assert_allclose(sinusoidal_embedding(jnp.asarray(t), dim), wanted.numpy(), atol=1e-4)


PROCESS = discrete(make_schedule("linear", 1000))


def case(prediction, clip, t):
    """A plausible x_t, a fixed network output at it, the noise of jgen's step from t, and jgen's denoiser.

    The denoiser answers x_t itself at every other time, which makes the step to 0 hand it through unchanged: a sampler
    over (t, s) then returns its x_s.
    """
    draw = np.random.default_rng(t).standard_normal
    x_0, eps = draw(SHAPE, np.float32), draw(SHAPE, np.float32)
    time = jnp.full(SHAPE[:1], t / 1000)
    x_t = add_noise(PROCESS, x_0, time, eps)
    output = from_x0(prediction, PROCESS, x_t, time, x_0) + 0.1 * draw(SHAPE, np.float32)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(SHAPE[0]))
    z = np.array(rng.normal(rng.fold_in(keys, 0), SHAPE[1:]))

    def predict(x, now):
        return to_x0(prediction, PROCESS, x, now, output)

    def denoiser(x, now):
        here = per_image(jnp.abs(now - t / 1000) < 1e-6, x)
        return jnp.where(here, (clipped(predict) if clip else predict)(x, now), x)

    return x_t, output, keys, z, denoiser


def close(actual, expected, rtol=1e-4):
    expected = expected.numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * max(1.0, np.abs(expected).max()))


STEPS = [(1000, 999), (1000, 751), (500, 499), (40, 20), (2, 1), (20, 0), (1, 0)]


def tensor(x):
    return torch.from_numpy(np.array(x))


@pytest.mark.parametrize("t,s", STEPS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", PREDICTION)
def test_one_ancestral_step(prediction, clip, t, s, monkeypatch):
    x_t, output, keys, z, denoiser = case(prediction, clip, t)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: torch.from_numpy(z))
    times = (t, s) if s else (t,)
    for variance, theirs in {"beta": "fixed_large", "beta_tilde": "fixed_small"}.items():
        samples, _ = linear.run(denoiser, linear.ancestral(PROCESS, np.array(times) / 1000, variance), x_t, keys)
        scheduler = diffusers.DDPMScheduler(
            1000, clip_sample=clip, prediction_type=PREDICTION[prediction], variance_type=theirs
        )
        scheduler.set_timesteps(timesteps=[time - 1 for time in times])
        wanted = scheduler.step(tensor(output), t - 1, tensor(x_t)).prev_sample
        if s or t == 1:
            close(samples, wanted)
        else:  # diffusers adds noise in the last step when it leaves from above its time 0; jgen never does
            mean = wanted - torch.sqrt(scheduler._get_variance(t - 1)) * torch.from_numpy(z)
            close(samples, mean)


@pytest.mark.parametrize("t,s", [(981, 961), (1000, 980), (500, 480), (21, 1), (1, 0)])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", PREDICTION)
def test_one_ddim_step(prediction, clip, t, s):
    x_t, output, keys, z, denoiser = case(prediction, clip, t)
    scheduler = diffusers.DDIMScheduler(1000, clip_sample=clip, prediction_type=PREDICTION[prediction])
    scheduler.set_timesteps(50)
    for eta in (0.0, 0.5, 1.0):
        times = np.array((t, s) if s else (t,)) / 1000
        samples, _ = linear.run(denoiser, linear.ddim(PROCESS, times, eta), x_t, keys)
        noise = {"variance_noise": torch.from_numpy(z)} if eta else {}
        wanted = scheduler.step(
            tensor(output), t - 1, tensor(x_t), eta=eta, use_clipped_model_output=clip, **noise
        ).prev_sample
        close(samples, wanted)


@pytest.mark.parametrize("T,steps", [(1000, 30), (1000, 999), (999, 250), (100, 7), (100, 100), (10, 9)])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_times_of_other_lengths(T, steps, spacing):
    """Trailing may differ by one where T - k T / steps ends in a half, or have a superfluous time 0 in diffusers."""
    scheduler = diffusers.DDIMScheduler(T, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    wanted = [int(time) + 1 for time in scheduler.timesteps]
    times = sampling_times(T, steps, spacing)
    if spacing == "trailing":
        np.testing.assert_allclose(times, wanted[:steps], rtol=0, atol=1)
        assert wanted[steps:] in ([], [0])
    else:
        assert times == tuple(wanted)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_no_parameter_is_left_over(change):
    import peers

    unet = UNet((32, 64), 1, (8,), 8, 8, 0.0, 3, 3)
    x, one = jnp.zeros((1, 8, 8, 3)), jnp.ones(1, jnp.int32)
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), x, one, one, None))["params"]
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), dict(shapes))
    peer = peers.make_peer((32, 64), 1, (8,), 8, 8, 8, 3, 3)
    peers.copy_unet_weights(peer, params)
    assert sum(p.numel() for p in peer.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert all(bool((p == 1).all()) for p in peer.parameters())
    if change == "missing":
        del params["middle_block0"]
    else:
        params["down7_block0"] = params["middle_block0"]
    with pytest.raises((AssertionError, KeyError, RuntimeError)):
        peers.copy_unet_weights(peer, params)
