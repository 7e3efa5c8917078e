"""What systems of a denoiser have in common: the images on the way, the evaluations, failures that are named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from specs import data_of
from stub_network import CTX, PARAMS, stub_network

from jgen.core.generate import resolve_options, run_over, sample_batches, sample_images
from jgen.core.model import FrozenModel
from jgen.models.diffusion import consistency, ddgan, edm, flow_matching, mean_flow, score_sde
from jgen.nn import unet
from jgen.prob.pixels import to_uint8
from jgen.prob.process import linear
from jgen.samplers import system
from jgen.samplers.diffusion import Sampling

DATA = data_of(4, 4, 1, 256, 3)
KEY = jax.random.key(0)
HEUN = {"sampler": "heun", "steps": 3}


@pytest.fixture
def network(monkeypatch):
    stub = stub_network(monkeypatch)
    stub.answer = lambda x, t, label: 0.3 * x + (0.0 if label is None else 0.1 * label[:, None, None, None])
    return stub


def trajectory(model, params, n, **options):
    return np.concatenate(list(sample_batches(model, params, CTX, KEY, n, "trajectory", **options)))


@pytest.mark.parametrize(
    "module,options,steps",
    [(edm, HEUN, 6), (flow_matching, HEUN, 6), (score_sde, {"steps": 5}, 6), (consistency, {}, 2)]
    + [(mean_flow, {"steps": 3}, 3)],
    ids=lambda value: getattr(value, "__name__", "").rpartition(".")[2],
)
def test_a_trajectory_ends_in_the_sample(network, module, options, steps):
    model = module.make(module.Config(network=unet.TINY), DATA)
    path = trajectory(model, PARAMS, 5, **options)
    assert path.shape == (5, steps, 4, 4, 1) and path.dtype == np.uint8
    np.testing.assert_array_equal(path[:, -1], sample_images(model, PARAMS, CTX, KEY, 5, **options))
    assert len(np.unique(path.reshape(5 * steps, -1), axis=0)) > 5  # they change on the way
    few = trajectory(model, PARAMS, 2, start=3, **options)
    np.testing.assert_array_equal(few, path[3:])


@pytest.mark.slow
def test_a_trajectory_of_a_chain_of_gans():
    model = ddgan.make(ddgan.Config(network=unet.TINY, disc_channels=(8, 8), num_timesteps=2), DATA)
    batch = {"image": np.zeros((1, 4, 4, 1), np.uint8), "label": np.zeros(1, np.int32)}
    params, _ = jax.jit(model.init)(KEY, batch, {})
    path = trajectory(model, params, 3)
    assert path.shape == (3, 2, 4, 4, 1) and model.evaluations(model.sampling) == 2
    np.testing.assert_array_equal(path[:, -1], sample_images(model, params, CTX, KEY, 3))


@pytest.mark.parametrize("sampler", ["ddim", "heun", "predictor_corrector", "dpmpp_2m"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_evaluations_are_those_of_the_network(network, sampler, guidance_scale):
    """Counted as the images that pass through it, in a loop that is not compiled."""
    model = flow_matching.make(flow_matching.Config(network=unet.TINY), DATA)
    options = {"sampler": sampler, "steps": 3, "guidance_scale": guidance_scale}
    keys, cond = jax.random.split(KEY, 2), {"label": jnp.array([0, 1])}
    with jax.disable_jit():
        model.sample(PARAMS, CTX, keys, cond, **options)
    images = sum(len(call[0]) for call in network.calls)
    assert images == 2 * model.evaluations(dataclasses.replace(model.sampling, **options))


@pytest.mark.slow
def test_a_solver_that_does_not_converge_is_named(network):
    """One class in three has no solution: no image of it is returned as if it were one."""
    network.answer = lambda x, t, label: jnp.where(label[:, None, None, None] == 1, jnp.nan, x)
    model = flow_matching.make(flow_matching.Config(network=unet.TINY), DATA)
    options = {"sampler": "ode", "tolerance": 1e-2}
    wanted = "images 1, 4 failed: the solver of sampler ode did not converge at tolerance 0.01"
    mistake(lambda: sample_images(model, PARAMS, CTX, KEY, 6, **options), wanted)
    good = sample_images(model, PARAMS, CTX, KEY, 4, cond={"label": np.array([0, 2, 2, 0])}, **options)
    assert good.shape == (4, 4, 4, 1)
    mistake(lambda: sample_images(model, PARAMS, CTX, KEY, 6, steps=2), "images 1, 4 failed: sampler heun")
    arrays = {"image": good, "index": np.arange(4, dtype=np.int32), "cond": {"label": np.array([0, 1, 1, 2])}}
    scored = {"options": model.scoring}
    wanted = "images 1, 2 failed: the solver of the likelihood did not converge"
    mistake(lambda: run_over(model, "log_prob", PARAMS, CTX, KEY, arrays, **scored), wanted)


@pytest.mark.parametrize("guide", [None, "weak"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_samples_are_guided_by_the_condition_or_by_a_weak_model(scale, guide):
    """With denoisers that answer an image of their own, the guided one is a line through the two."""

    def denoise(params, ctx, x_t, t, cond):
        return jnp.broadcast_to(cond["label"][:, None, None, None], x_t.shape)

    def weak(params, ctx, x_t, t, cond):
        return 0.0 * x_t

    sampling = Sampling(steps=3, guidance_scale=scale)
    nothing = {"label": jnp.array([-0.1, -0.1])}
    model = (
        None if guide is None else edm.make(edm.Config(network=unet.TINY), DATA)._replace(functions={"denoise": weak})
    )
    where = {"images": DATA.image, "sampling": sampling, "guidable": True, "guidance_needs": "", "guide": model}
    denoising = system.Denoising(denoise, lambda params: linear(), without_class=lambda cond: nothing, **where)
    frozen = {"guide": FrozenModel({}, {})}
    sampled = system.sample(
        denoising, {}, CTX._replace(frozen=frozen), jax.random.split(KEY, 2), {"label": jnp.array([0.1, 0.3])}
    )
    base = -0.1 if guide is None else 0.0
    expected = base + scale * (np.array([0.1, 0.3]).reshape(2, 1, 1, 1) - base) * np.ones((2, *DATA.image.shape))
    np.testing.assert_array_equal(sampled, to_uint8(jnp.asarray(expected, jnp.float32), 256))


def test_options_that_do_not_fit_name_those_that_do(network):
    model = edm.make(edm.Config(network=unet.TINY), DATA)
    mistake(lambda: trajectory(model, PARAMS, 2, sampler="ode"), "sampler is ode", "ancestral, ddim")

    def sample(**options):
        return sample_images(model, PARAMS, CTX, KEY, 2, **options)

    mistake(lambda: sample(sampler="leapfrog"), "sampler", "heun")
    mistake(lambda: sample(spacing="trailing"), "spacing is 'trailing'", "karras")
    mistake(lambda: sample(times=(0.5, 0.7)), "times")
    mistake(lambda: sample(tolerance=0.0), "tolerance is 0.0")
    unguided = edm.make(edm.Config(network=unet.TINY, class_conditional=False), DATA)
    wrong = {"guidance_scale": 2.0}
    mistake(lambda: sample_images(unguided, PARAMS, CTX, KEY, 2, **wrong), "guidance_scale is 2.0", "or a guide")


@pytest.mark.parametrize("options,words", [
    ({"sampler": "dpmpp_2m", "churn": 4.0}, "churn is 4.0: sampler dpmpp_2m does not read it, sampler heun would"),
    ({"sampler": "ddim", "variance": "beta"}, "variance is beta: sampler ddim does not read it, sampler ancestral"),
    ({"sampler": "ancestral", "eta": 0.5}, "eta is 0.5: sampler ancestral does not read it, sampler ddim would"),
    ({"sampler": "euler", "tolerance": 1e-5}, "tolerance is 1e-05: sampler euler does not read it, sampler ode would"),
    ({"sampler": "ode", "steps": 7}, "steps is 7: sampler ode, whose steps are its own, does not read it"),
    ({"spacing": "uniform", "low": 0.1}, "low is 0.1: spacing uniform does not read it, spacing karras and"),
    ({"spacing": "karras", "shift": 2.0}, "shift is 2.0: spacing karras does not read it, spacing shifted would"),
    ({"times": (0.9, 0.5), "steps": 7}, "steps is 7: a sampler with times does not read it"),
])  # fmt: skip
def test_an_option_that_nothing_would_read_is_a_mistake(network, options, words):
    model = flow_matching.make(flow_matching.Config(network=unet.TINY, sampling=Sampling(sampler="heun")), DATA)
    mistake(lambda: resolve_options(model, "sample", options), words)


def test_a_models_defaults_may_be_ones_that_another_sampler_does_not_read(network):
    sampling = Sampling(sampler="heun", churn=2.0, spacing="karras", low=0.05)
    model = flow_matching.make(flow_matching.Config(network=unet.TINY, sampling=sampling), DATA)
    assert resolve_options(model, "sample", {"sampler": "ddim", "spacing": "uniform"}).churn == 2.0
    assert resolve_options(model, "sample", {"sampler": "ode", "low": 0.1, "tolerance": 1e-2}).low == 0.1
