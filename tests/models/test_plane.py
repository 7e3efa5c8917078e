"""Trained in seconds on points of the plane: a flow against a closed form, an energy against all images there are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from contract_cases import SYSTEMS
from enumeration import all_images
from specs import data_of

import jgen
from jgen.cli import import_config
from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.models.flow import realnvp
from jgen.prob import densities


def keys_of(n, seed=1):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


@pytest.mark.slow
def test_a_flow_on_correlated_gaussians_reaches_their_entropy():
    """Couplings whose networks are linear can have the density itself."""
    data = data_of(1, 2, 1, 256)
    config = realnvp.Config(scales=1, couplings=3, width=8, blocks=0, logit_alpha=0.0, class_conditional=False)
    covariance = 30.0**2 * np.array([[1.0, 0.8], [0.8, 1.0]])
    points = np.random.default_rng(0).multivariate_normal([120.0, 130.0], covariance, 24_000).clip(0, 255)
    images = np.floor(points).astype(np.uint8).reshape(-1, 1, 2, 1)
    model = realnvp.make(config, data)
    params, extra = jax.jit(model.init)(jax.random.key(0), {"image": images[:500]}, {})
    ctx, steps = Context(jnp.int32(0), ema=params, extra=extra), 300
    optimiser = optax.adam(optax.cosine_decay_schedule(0.02, steps))

    @jax.jit
    def fit(params):
        def step(carry, number):
            params, state = carry
            batch = {"image": jax.lax.dynamic_slice_in_dim(jnp.asarray(images), 64 * number, 64)}
            keys = rng.image_keys(jax.random.fold_in(jax.random.key(1), number), jnp.arange(64))
            gradient = jax.grad(lambda params: model.phases[0].loss(params, ctx, keys, batch)[0])(params)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(steps))[0][0]

    held_out = images[64 * steps :]
    nats = -np.asarray(jax.jit(lambda p: model.log_prob(p, ctx, keys_of(len(held_out)), held_out, {}))(fit(params)))
    entropy = scipy.stats.multivariate_normal(cov=covariance + np.eye(2) / 12).entropy()
    assert abs(nats.mean() - entropy) < 4 * nats.std() / np.sqrt(len(nats)) + 0.01
    independent = 2 * scipy.stats.norm(scale=30.0).entropy()
    assert nats.mean() < independent - 0.3


@pytest.mark.slow
def test_an_energys_normaliser_is_the_sum_over_all_images_and_training_brings_it_nearer(cache, tmp_path):
    """Of the variant `rings`, after a part of its training, with what is learned beside the uniform distribution."""
    experiment = import_config(SYSTEMS["igebm"]).get_config("rings")
    train = replace(experiment.train, steps=200, checkpoint_every=200, samples_per_class=0)
    jgen.fit(replace(experiment, train=train), tmp_path / "run")
    gen = jgen.load(tmp_path / "run")
    images = all_images(gen.model.images)  # 65,536
    nats = -np.asarray(gen.energy(jax.random.key(0), images, batch_size=4096), np.float64)
    normaliser = gen.model.prepare_scoring(gen.params, gen.ctx._replace(key=jax.random.key(1)), chains=200, steps=200)
    log_w = np.asarray(normaliser["normaliser"]["log_weights"], np.float64).ravel()
    w = np.exp(log_w - log_w.max())
    error = w.std() / w.mean() / np.sqrt(len(w))
    log_z = scipy.special.logsumexp(nats)  # by the middles of the cells, whose volume is 1
    assert error < 0.1 and abs(float(normaliser["normaliser"]["log_z"][0]) - log_z) < 4 * error
    # The first pixel, x, varies slowest among `all_images`, and fastest on the grid.
    points = densities.grid(256).reshape(256, 256, 2).transpose(1, 0, 2).reshape(-1, 2)
    p = np.exp(np.asarray(densities.DENSITIES["rings"]().log_prob(points), np.float64))
    p = p / p.sum()
    divergence = np.sum(p * (np.log(p + 1e-300) - nats + log_z))
    uniform = np.sum(p * np.log(p + 1e-300)) + 2 * np.log(256)
    assert 0 < divergence < 0.9 * uniform
