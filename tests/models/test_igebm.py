"""The energy-based model: its density by quadrature and enumeration, composition, its buffer, bad input."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from contract_cases import make_case, make_run, step_batch
from enumeration import all_images
from specs import data_of

import train
from jgen.core import failures
from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.models.energy.igebm import Config, Scoring, make
from jgen.nn.energy import EnergyNetwork
from jgen.train.step import gather_state

DATA = data_of(2, 1, 1, 3, num_classes=2)
CONFIG = Config(channels=(8, 8), blocks=1, convolutional=False, step_size=0.02, noise=0.1, buffer_size=8)


@pytest.fixture(scope="module")
def small():
    """A model of images of two pixels, its parameters, and a context."""
    model = make(replace(CONFIG, scoring=Scoring(samples=100, chains=100, steps=100)), DATA)
    batch = {"image": np.zeros((4, 2, 1, 1), np.uint8), "label": np.array([0, 1, 1, 0], np.int32)}
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    params = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    return model, params, Context(jnp.int32(0), jax.random.key(5), params, extra)


def test_the_input_scale_is_that_of_the_networks_argument(small):
    model, params, ctx = small
    scaled = make(replace(CONFIG, input_scale=0.5), DATA)
    keys, labels = rng.image_keys(jax.random.key(1), jnp.arange(3)), {"label": jnp.array([0, 1, 1])}
    # The middle of three levels is at x = 0, and of the two others, at +-2/3, a network of half the scale sees +-1/3.
    images = jnp.array([[0, 1], [2, 0], [1, 2]], jnp.uint8).reshape(3, 2, 1, 1)
    x = (images.astype(jnp.float32) - 1) / 3
    state = {"params": params["energy"], "batch_stats": ctx.extra["spectral"]}
    network = EnergyNetwork(CONFIG.channels, CONFIG.blocks, CONFIG.convolutional)
    wanted = network.apply(state, x, jax.nn.one_hot(labels["label"], 2), False) / (0.1**2 / (2 * 0.02))
    np.testing.assert_allclose(scaled.energy(params, ctx, keys, images, labels), wanted, rtol=1e-5)
    assert not np.allclose(model.energy(params, ctx, keys, images, labels), wanted, rtol=1e-2)


@pytest.mark.slow
def test_images_have_the_probabilities_of_quadrature_and_sum_to_one(small):
    model, params, ctx = small
    images = all_images(model.images)
    extra = jax.jit(model.prepare_scoring)(params, ctx)
    scored = ctx._replace(extra={**ctx.extra, **extra})
    keys = rng.image_keys(jax.random.key(1), jnp.arange(len(images)))
    log_prob = jax.jit(lambda label: model.log_prob(params, scored, keys, images, {"label": label}))
    energy = jax.jit(lambda label: model.energy(params, ctx, keys, images, {"label": label}))
    network = energies_of(model, params, ctx)
    for label in (0, 1):
        density, log_z = network(label)
        cells = density.reshape(3, 50, 3, 50).sum(axis=(1, 3)).ravel()
        labels = np.full(len(images), label, np.int32)
        log_w = np.asarray(extra["normaliser"]["log_weights"][:, label], np.float64)
        w = np.exp(log_w - log_w.max())
        error = w.std() / w.mean() / np.sqrt(len(w))
        assert error < 0.05 and abs(float(extra["normaliser"]["log_z"][label]) - log_z) < 4 * error
        p = np.exp(np.asarray(log_prob(labels), np.float64))
        np.testing.assert_allclose(p, cells, rtol=0.15)  # 100 draws of the noise in each cell
        assert abs(p.sum() - 1) < 0.05 + 4 * error
        assert np.argmin(energy(labels)) == np.argmax(cells)
    assert np.ptp(network(0)[0]) > 1e-4 and not np.allclose(network(0)[0], network(1)[0], rtol=0.1)


def energies_of(model, params, ctx):
    """label to (density on a grid, log Z), by quadrature of the model's energy of an image of many levels."""
    fine = make(CONFIG, data_of(2, 1, 1, 150, num_classes=2))
    images = all_images(fine.images)
    keys = rng.image_keys(jax.random.key(1), jnp.arange(len(images)))
    run = jax.jit(lambda label: fine.energy(params, ctx, keys, images, {"label": label}))

    def at(label):
        p = np.exp(-np.asarray(run(np.full(len(images), label, np.int32)), np.float64))
        return (p / p.sum()).reshape(150, 150), np.log(p.sum() * (3 / 150) ** 2)

    return at


@pytest.mark.slow
def test_the_normaliser_is_the_same_inside_log_prob(small):
    model, params, ctx = small
    images, options = all_images(model.images)[:3], {"chains": 3, "steps": 4, "samples": 2}
    keys, cond = rng.image_keys(jax.random.key(1), jnp.arange(3)), {"label": np.array([0, 1, 0])}

    @jax.jit
    def both(params, ctx):
        extra = {**ctx.extra, **model.prepare_scoring(params, ctx, **options)}
        scored = ctx._replace(extra=extra)
        return [model.log_prob(params, c, keys, images, cond, **options) for c in (ctx, scored)]

    np.testing.assert_allclose(*both(params, ctx), rtol=1e-5)


def test_energies_add_up_where_classes_are_composed(small):
    """A class composed with itself is a network of twice the output; with another one it is neither of them."""
    model, params, ctx = small
    keys, cond = rng.image_keys(jax.random.key(1), jnp.arange(40)), {"label": np.zeros(40, np.int32)}
    doubled = {"energy": {**params["energy"], "dense": jax.tree.map(lambda x: 2 * x, params["energy"]["dense"])}}
    fine = make(CONFIG, data_of(2, 1, 1, 256, num_classes=2))

    @jax.jit
    def draw():
        cases = [(params, (0,)), (doubled, ()), (params, (1,)), (params, ())]
        return [fine.sample(p, ctx, keys, cond, steps=20, compose=compose) for p, compose in cases]

    twice, double, other, alone = (np.asarray(images, np.int32) for images in draw())
    assert np.abs(twice - double).max() <= 1
    assert np.abs(twice - other).max() > 1 and np.abs(alone - double).max() > 1


@pytest.mark.slow
def test_a_step_moves_one_chain_of_every_example_and_its_class_stays():
    case = make_case("igebm")
    state, step = make_run(case)
    start = jax.device_get(gather_state(case.model, state).extra["buffer"])
    state, _ = step(state, {}, step_batch(case.model))
    end = gather_state(case.model, state).extra["buffer"]
    moved = np.any(start["x"] != end["x"], axis=(2, 3, 4))
    np.testing.assert_array_equal(moved.sum(axis=1), 1)
    assert np.all(start["label"][~moved] == end["label"][~moved]) and np.abs(end["x"]).max() <= 1


TINY = "configs/energy/igebm.py:tiny"


@pytest.mark.parametrize(
    "options,words",
    [
        (["--model.buffer-size", "15"], ["buffer_size is 15", "at least train.batch_size, 16"]),
        (["--model.step-size", "1e9"], ["not finite", "Langevin steps of size 1e+09 may diverge", "--model.step-size"]),
        (["--model.steps", "0"], ["steps is 0"]),
        (["--model.noise", "0"], ["noise is 0"]),
        (["--model.restart", "1.5"], ["restart is 1.5", "0 to 1"]),
        (["--model.alpha", "-1"], ["alpha is -1", "zero or above"]),
        (["--model.channels", "4", "4", "4", "4", "4"], ["5 entries, images are 8x8", "16"]),
        (["--model.sampling.compose", "10"], ["compose has 10", "0 to 9", "set --model.sampling.compose"]),
        (["--model.sampling.temperature", "0"], ["temperature is 0", "set --model.sampling.temperature"]),
        (["--model.scoring.chains", "0"], ["chains is 0", "set --model.scoring.chains"]),
    ],
)
def test_bad_input(cache, tmp_path, options, words):
    mistake(lambda: train.command([TINY, "--workdir", str(tmp_path / "run"), *options]), *words)


def test_samples_whose_chains_diverge_are_named():
    model = make(replace(CONFIG, step_size=1e9), DATA)
    batch = {"image": np.zeros((4, 2, 1, 1), np.uint8), "label": np.array([0, 1, 1, 0], np.int32)}
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    keys = rng.image_keys(jax.random.key(1), jnp.arange(4))
    with failures.collect() as reports:
        model.sample(params, Context(jnp.int32(0), None, params, extra), keys, {"label": batch["label"]}, steps=2)
    mistake(lambda: failures.check(jax.device_get(reports), np.arange(4)), "size 1e+09 diverge", "images 0, 1, 2, 3")
