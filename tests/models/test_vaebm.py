"""VAEBM: the noise that makes an image, the energy of the noise, the normaliser, bad input."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from contract_cases import SYSTEMS, make_batch, make_case, make_run, step_batch
from scipy.stats import kstest, logistic, norm

from jgen.cli import import_config
from jgen.core import keys as rng
from jgen.core.model import Context, frozen_context
from jgen.models.energy.vaebm import Config, Product, Sampling, energy_of, make
from jgen.nn.energy import EnergyNetwork
from jgen.prob.pixel_distribution import PixelDistribution
from jgen.prob.pixels import to_float
from jgen.train.step import gather_state

CASE = make_case("vaebm")
VAE = make_case("vae").model
SMALL = Config(channels=(4, 4), blocks=1)


@pytest.mark.parametrize("decoder", ["gaussian", "logistic"])
def test_noise_makes_pixels_of_the_decoders_distribution(decoder):
    mean, scale = jnp.full((1, 4000, 1, 1), 0.3), jnp.full((1, 4000, 1, 1), 0.2)
    eps = jax.random.normal(jax.random.key(0), (1, 4000, 1, 1))
    x = PixelDistribution(decoder, 17, mean, scale).at_noise(eps)
    wanted = (norm if decoder == "gaussian" else logistic)(0.3, 0.2)
    assert kstest(np.ravel(x), wanted.cdf).pvalue > 1e-3
    assert np.all(np.diff(np.ravel(x)[np.argsort(np.ravel(eps))]) >= 0)


@pytest.mark.slow
def test_without_an_energy_the_model_is_the_vae():
    """E of a constant: log Z is minus the constant, the bound the VAE's, whose samples are drawn at 0 steps."""
    batch, keys = make_batch(CASE.model), rng.image_keys(jax.random.key(1), jnp.arange(8))
    params, extra = jax.jit(CASE.model.init)(jax.random.key(0), batch, CASE.frozen)
    dense = {"kernel": jnp.zeros((4, 1)), "bias": jnp.full(1, 3.0)}
    params = {"energy": {**params["energy"], "dense": dense}}
    ctx, cond = Context(jnp.int32(0), jax.random.key(2), params, extra, CASE.frozen), CASE.model.condition(batch)

    @jax.jit
    def compared(ctx):
        frozen, inner = frozen_context(ctx, "vae")
        eps = VAE.functions["draw_noise"](keys)
        return {
            "log_z": CASE.model.prepare_scoring(params, ctx)["normaliser"]["log_z"],
            "bound": CASE.model.log_prob(params, ctx, keys, batch["image"], cond),
            "vae": VAE.log_prob(frozen, inner, keys, batch["image"], cond),
            "means": CASE.model.sample(params, ctx, keys, cond, steps=0, mean=True),
            "drawn": CASE.model.sample(params, ctx, keys, cond, steps=0, mean=False),
            "pixels": VAE.functions["pixels_of_noise"](frozen, inner, *eps, cond),
        }

    out = jax.device_get(compared(ctx))
    np.testing.assert_allclose(out["log_z"], -3.0, rtol=1e-4)
    np.testing.assert_allclose(out["bound"], out["vae"], rtol=1e-4)
    assert np.any(out["means"] != out["drawn"]) and out["pixels"][0].shape == out["pixels"][1].shape


@pytest.mark.slow
def test_a_step_moves_one_chain_of_every_example():
    state, step = make_run(CASE)
    start = jax.device_get(gather_state(CASE.model, state).extra["buffer"])
    state, _ = step(state, CASE.frozen, step_batch(CASE.model))
    end = gather_state(CASE.model, state).extra["buffer"]
    for name, axes in (("z", (2,)), ("x", (2, 3, 4))):
        np.testing.assert_array_equal(np.any(start[name] != end[name], axis=axes).sum(axis=1), 1)


def test_completions_are_drawn_towards_low_energies():
    """Of an energy that is strong, completions have less of it than those of the VAE alone."""
    num, batch = 32, make_batch(CASE.model)
    params, extra = jax.jit(CASE.model.init)(jax.random.key(0), batch, CASE.frozen)
    params = {"energy": {**params["energy"], "dense": jax.tree.map(lambda x: 100 * x, params["energy"]["dense"])}}
    none = {"energy": {**params["energy"], "dense": jax.tree.map(jnp.zeros_like, params["energy"]["dense"])}}
    ctx = Context(jnp.int32(0), None, params, extra, CASE.frozen)
    keys, cond = rng.image_keys(jax.random.key(1), jnp.arange(num)), {"label": jnp.arange(num) % 10}
    images, mask = np.full((num, 8, 8, 1), 5, np.uint8), np.zeros((num, 8, 8), bool)
    mask[:, :2] = True
    experiment = import_config(SYSTEMS["vaebm"]).get_config("tiny").model
    network = EnergyNetwork(experiment.channels, experiment.blocks, experiment.convolutional, jnp.float32)
    product = Product(experiment, VAE, network)

    @jax.jit
    def energies(drawn_with):
        made = CASE.model.inpaint(drawn_with, ctx, keys, images, mask, cond, steps=60)
        return made, energy_of(product, params, ctx, to_float(made, VAE.images.levels), cond)[0]

    (made, low), (_, high) = energies(params), energies(none)
    np.testing.assert_array_equal(np.asarray(made)[mask], images[mask])
    assert np.mean(low) < np.mean(high) - 4 * np.std(high) / num**0.5


def test_bad_input():
    data = CASE.model.data
    mistake(lambda: make(SMALL, data, vae=make_case("realnvp").model), "frozen.vae is a realnvp", "logistic decoder")
    mistake(lambda: make(replace(SMALL, step_size=0.0), data, vae=VAE), "step_size is 0")
    mistake(lambda: make(replace(SMALL, restart=2.0), data, vae=VAE), "restart is 2")
    mistake(lambda: make(replace(SMALL, alpha=-1.0), data, vae=VAE), "alpha is -1")
    mistake(lambda: make(replace(SMALL, sampling=Sampling(steps=-1)), data, vae=VAE), "steps is -1", "--model.sampling")
    small = make(replace(SMALL, buffer_size=4), data, vae=VAE)
    mistake(lambda: small.init(jax.random.key(0), make_batch(small), CASE.frozen), "buffer_size is 4", "batch_size, 8")
