"""RealNVP, Glow, TarFlow and residual flows against the Jacobian, integrals on a grid, their own inverse; noise of a
learned density; actnorm's start; program size."""

import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import ROOT
from specs import data_of

from jgen.cli import import_config
from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.data import dataset
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.flow import glow, realnvp, residual_flow, tarflow
from jgen.models.flow.dequantised import preprocess, variational
from jgen.nn.flow import ActNorm
from jgen.nn.variational_noise import VariationalNoise
from jgen.prob.bijectors import split_blocks, squeeze
from jgen.train.loop import starting_state

GLOW = glow.Config(scales=2, depth=3, width=8)
REALNVP = realnvp.Config(scales=2, couplings=2, width=8, blocks=1)
TARFLOW = tarflow.Config(blocks=2, layers=1, features=8, heads=2, hidden=12)
RESIDUAL = residual_flow.Config(scales=2, blocks=2, widths=(6,))
CASES = {
    "glow": GLOW,
    "glow_shuffle_additive_logit": replace(
        GLOW, scales=1, permutation="shuffle", coupling="additive", logit_alpha=1e-6
    ),
    "glow_reverse_bare": replace(GLOW, scales=1, permutation="reverse", actnorm=False, class_conditional=False),
    "realnvp": REALNVP,
    "realnvp_bare": replace(REALNVP, scales=1, actnorm=False, class_conditional=False, logit_alpha=0.0),
    "glow_mixture": replace(GLOW, scales=1, depth=2, coupling="mixture", mixtures=3, logit_alpha=1e-6),
    "realnvp_mixture": replace(REALNVP, couplings=1, mixtures=3),
    "tarflow": TARFLOW,
    "tarflow_pixels_logit": replace(
        TARFLOW, patch=1, blocks=3, noise="uniform", logit_alpha=1e-6, class_conditional=False
    ),
    "residual": RESIDUAL,
    "residual_dense_logit": replace(RESIDUAL, scales=1, convolutional=False, logit_alpha=1e-6),
}
DATA = data_of(4, 8, 1, 16, num_classes=3)
IMAGES = DATA.image


def module(config):
    return next(system for system in (glow, realnvp, residual_flow, tarflow) if isinstance(config, system.Config))


def make_batch(data, size=32, seed=0):
    """Correlated images, dark on one side."""
    images, draw = data.image, np.random.default_rng(seed)
    ramp = np.linspace(0.2, 0.8, images.width)[None, None, :, None]
    x = ramp + 0.3 * draw.standard_normal((size, 1, 1, 1)) + 0.1 * draw.standard_normal((size, *images.shape))
    image = np.clip(x * images.levels, 0, images.levels - 1).astype(np.uint8)
    return {"image": image, "label": (np.arange(size) % max(data.num_classes, 1)).astype(np.int32)}


@cache
def make_case(config, data=DATA, noise=0.03, seed=0):
    """(model, params, ctx, batch); noise on every parameter, since what starts at zero hides what lies behind it."""
    model = module(config).make(config, data)
    batch = make_batch(data)
    params, extra = jax.jit(model.init)(jax.random.key(seed), batch, {})
    leaves, tree = jax.tree.flatten(params)
    draw = np.random.default_rng(seed).standard_normal
    params = jax.tree.unflatten(tree, [np.asarray(p + noise * draw(p.shape), np.float32) for p in leaves])
    return model, params, Context(jnp.int32(0), ema=params, extra=extra), batch


def keys_of(n, seed=1):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def cond_of(model, batch, n):
    return {name: array[:n] for name, array in model.condition(batch).items()}


def double(tree):
    """A tree with its floats in float64."""
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def flatten(latents):
    return jnp.concatenate([eps.reshape(eps.shape[0], -1) for eps in latents], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_log_density_is_that_of_the_jacobian_in_float64(name):
    config = CASES[name]
    model, params, ctx, batch = make_case(config)
    flow = module(config).make_bijection(config, DATA)
    cond = cond_of(model, batch, 1)
    with jax.enable_x64(True):
        params, extra = double(params), double(ctx.extra)

        def latents(x):
            x, _ = preprocess(x.reshape(1, *IMAGES.shape), IMAGES.levels, config.logit_alpha)
            return flatten(flow.forward(params["flow"], extra.get("flow", {}), x, cond.get("label"))[0])[0]

        @jax.jit
        def both(x):
            density = model.log_density(params, ctx._replace(extra=extra), None, x.reshape(1, *IMAGES.shape), cond)
            return latents(x), jax.jacrev(latents)(x), density[0]

        x = jnp.asarray(batch["image"][0], jnp.float64) + np.random.default_rng(3).uniform(size=IMAGES.shape)
        z, jacobian, density = map(np.asarray, both(x.ravel()))
        assert density.dtype == np.float64
        expected = scipy.stats.norm.logpdf(z).sum() + np.linalg.slogdet(jacobian)[1]
        np.testing.assert_allclose(density, expected, rtol=0, atol=1e-8)
        assert np.mean(np.abs(jacobian) > 1e-12) > 0.4  # latents depend on most pixels: nothing is at the identity


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_images_to_latents_and_back(name):
    config = CASES[name]
    model, params, ctx, batch = make_case(config)
    flow = module(config).make_bijection(config, DATA)
    n, fixed = 32, ctx.extra.get("flow", {})
    cond, keys = cond_of(model, batch, n), keys_of(n)
    label = cond.get("label")
    x, _ = preprocess(batch["image"] + np.float32(0.3), IMAGES.levels, config.logit_alpha)

    @jax.jit
    def there_and_back(images, x):
        latents = model.encode(params, ctx, keys, images, cond)
        other, _ = flow.forward(params["flow"], fixed, x, label)
        back = flow.inverse(params["flow"], fixed, other, label)
        return latents, model.decode(params, ctx, keys, latents, cond), back

    latents, images, back = there_and_back(batch["image"], x)
    assert tuple(eps.shape[1:] for eps in latents) == flow.shapes and sum(map(np.prod, flow.shapes)) == IMAGES.size
    assert images.dtype == jnp.uint8
    np.testing.assert_array_equal(images, batch["image"])
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="latents have shapes"):
        model.decode(params, ctx, keys, (*latents, latents[0]), cond)


GRID = {
    "realnvp": (realnvp.Config(scales=1, couplings=3, width=6, blocks=1), data_of(1, 2, 1, 4, num_classes=2), 601),
    "realnvp_linear": (
        realnvp.Config(scales=1, couplings=3, width=6, blocks=0, logit_alpha=0.0),
        data_of(2, 1, 1, 4, num_classes=2),
        601,
    ),
    "glow": (glow.Config(scales=1, depth=2, width=4), data_of(2, 2, 1, 4, num_classes=2), 27),
    "tarflow": (
        replace(TARFLOW, patch=1, noise="uniform", logit_alpha=1e-6),
        data_of(1, 2, 1, 4, num_classes=2),
        601,
    ),
    "residual": (replace(RESIDUAL, scales=1, logit_alpha=0.0), data_of(1, 2, 1, 4, num_classes=2), 201),
}


def products(x):
    """The entries of x (n, D) and all their products of two, (n, D + D^2)."""
    return np.concatenate([x, (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRID)
def test_density_integrates_to_one_and_samples_follow_it(name):
    config, data, points = GRID[name]
    model, params, ctx, _ = make_case(config, data)
    flow, n, images = module(config).make_bijection(config, data), 4000, data.image
    levels, size, alpha = images.levels, images.size, config.logit_alpha
    eps = tuple(rng.normal(key, shape) for key, shape in zip(rng.split(keys_of(n), len(flow.shapes)), flow.shapes))

    @jax.jit
    def draw(eps):
        label = jnp.ones(n, jnp.int32)
        x = flow.inverse(params["flow"], ctx.extra.get("flow", {}), eps, label)
        return preprocess(x, levels, alpha, inverse=True)[0], model.sample(params, ctx, keys_of(n), {"label": label})

    x, samples = (np.asarray(drawn, np.float64).reshape(n, size) for drawn in draw(eps))
    np.testing.assert_array_equal(samples, np.clip(np.floor(x), 0, levels - 1))
    if alpha > 0:  # the logit's domain is a little wider than [0, levels]
        p = (np.arange(points) + 0.5) / points
        axes = [levels * (p - alpha) / (1 - 2 * alpha)] * size
        volume = (levels / (1 - 2 * alpha) / points) ** size
    else:
        low, high = x.min(0) - 0.3 * np.ptp(x, 0), x.max(0) + 0.3 * np.ptp(x, 0)
        axes = [np.linspace(a, b, points) for a, b in zip(low, high)]
        volume = np.prod((high - low) / (points - 1))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, size)

    @jax.jit
    def density(x):
        return jnp.exp(model.log_density(params, ctx, None, x, {"label": jnp.ones(x.shape[0], jnp.int32)}))

    parts = grid.reshape(points, -1, *images.shape).astype(np.float32)
    mass = np.concatenate([np.asarray(density(part), np.float64) for part in parts]) * volume
    np.testing.assert_allclose(mass.sum(), 1.0, atol=2e-3)

    # First and second moments of what is sampled, within five standard errors.
    error = np.abs(products(x).mean(0) - mass @ products(grid))
    assert np.all(error < 5 * products(x).std(0) / np.sqrt(n) + 5e-3 * np.abs(products(x)).mean(0))
    # Every coordinate's distribution by Kolmogorov and Smirnov.
    for i, axis in enumerate(axes):
        marginal = mass.reshape((points,) * size).sum(tuple(j for j in range(size) if j != i))
        below = (np.cumsum(marginal) - marginal / 2) / marginal.sum()
        assert scipy.stats.kstest(np.interp(x[:, i], axis, below), "uniform").pvalue > 1e-3


SMALL = data_of(2, 2, 1, 3, num_classes=2)
VARIATIONAL = replace(GLOW, scales=1, depth=2, width=4, dequantisation="variational")


@pytest.mark.slow
def test_log_q_is_that_of_the_jacobian_of_the_noise():
    network = VariationalNoise(3, 4, couplings=3)
    image = np.random.default_rng(0).integers(0, 3, (1, 3, 2, 2)).astype(np.uint8)
    eps = np.random.default_rng(1).normal(size=(1, 3, 2, 2))
    params = network.init(jax.random.key(0), image, jnp.asarray(eps, jnp.float32))["params"]
    draw = np.random.default_rng(2).normal
    params = jax.tree.map(lambda leaf: leaf + 0.3 * draw(size=leaf.shape), params)
    with jax.enable_x64(True):
        params, eps = double(params), jnp.asarray(eps)
        u, log_q = network.apply({"params": params}, image, eps)

        def noise(flat):
            return network.apply({"params": params}, image, flat.reshape(eps.shape))[0].ravel()

        jacobian = np.asarray(jax.jacobian(noise)(eps.ravel()))
    assert u.dtype == np.float64 and np.all((u > 0) & (u < 1))
    log_normal = -0.5 * np.sum(np.asarray(eps) ** 2) - eps.size / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_q[0], log_normal - np.linalg.slogdet(jacobian)[1], atol=1e-8)
    assert np.mean(np.abs(jacobian) > 1e-6) > 0.3  # the noise of a pixel depends on that of others


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [VARIATIONAL, replace(REALNVP, scales=1, width=4, logit_alpha=0.0, dequantisation="variational")]
)
def test_both_noises_bound_the_same_probability(config):
    """E 1 / q = 1, the volume of a level; and with many draws the bounds of both kinds of noise are log P."""
    model, params, ctx, batch = make_case(config, SMALL)
    uniform = module(config).make(replace(config, dequantisation="uniform"), SMALL)
    assert model.likelihood == "lower_bound" and set(params) == {"flow", "dequantiser"}
    images, n = batch["image"][:4], 3000
    cond = {"label": batch["label"][:4]}

    @jax.jit
    def scores(params, extra):
        own = Context(jnp.int32(0), extra=extra)
        many = model.log_prob(params, own, keys_of(4), images, cond, samples=n)
        other = uniform.log_prob({"flow": params["flow"]}, own, keys_of(4), images, cond, samples=n)
        loss, _ = model.phases[0].loss(params, own, keys_of(4), {"image": images, **cond})
        gradient = jax.grad(lambda p: model.phases[0].loss(p, own, keys_of(4), {"image": images, **cond})[0])(params)
        return many, other, loss, gradient["dequantiser"]

    many, other, loss, gradient = scores(params, ctx.extra)
    np.testing.assert_allclose(many, other, atol=0.15)
    assert np.std(many) > 0.1 and np.isfinite(loss)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_the_mean_of_one_over_q_is_the_volume_of_a_level():
    noise, n = variational(SMALL, 4, None), 20_000
    image = np.random.default_rng(0).integers(0, 3, (1, 2, 2, 1)).astype(np.uint8)
    params = noise.init(jax.random.key(0), image)
    draw = np.random.default_rng(2).normal
    params = jax.tree.map(lambda leaf: leaf + 0.1 * draw(size=leaf.shape).astype(np.float32), params)
    x, log_q = jax.jit(noise.propose)(params, keys_of(n), np.repeat(image, n, 0))
    np.testing.assert_array_equal(np.floor(x), np.repeat(image, n, 0))
    inverse = np.exp(-np.asarray(log_q, np.float64))
    assert inverse.std() > 0.05 and abs(inverse.mean() - 1) < 4 * inverse.std() / np.sqrt(n)


def actnorm_inputs(config, params, extra, x, label):
    """What every actnorm of a model receives and its parameters, layer by layer in a Python loop."""

    def at(tree, i):
        return jax.tree.map(lambda a: a[i], tree)

    classes = DATA.num_classes
    for scale in range(config.scales):
        part = params["flow"][f"scale{scale}"]
        if isinstance(config, glow.Config):
            step, x = glow.Step(config, classes), squeeze(x)
            for i in range(config.depth):
                variables = {"params": at(part["steps"], i), "fixed": at(extra["flow"][f"scale{scale}"], i)}
                yield x, variables["params"]
                x, _ = step.apply(variables, x, label)
        else:
            for kind in ("checkerboard", "channels")[: 1 + (scale < config.scales - 1)]:
                x = squeeze(x) if kind == "channels" else x
                width = config.width * 2 ** (scale + (kind == "channels"))
                coupling = realnvp.Coupling(config, width, classes)
                for i in range(config.couplings + (scale == config.scales - 1)):
                    yield x, at(part[kind], i)
                    parity = i % 2 if kind == "checkerboard" else None
                    x, _ = coupling.apply({"params": at(part[kind], i)}, x, parity, label)
        if scale < config.scales - 1:
            x, _ = jnp.split(x, 2, axis=-1) if isinstance(config, glow.Config) else split_blocks(x)


@pytest.mark.slow
@pytest.mark.parametrize("config", [GLOW, REALNVP], ids=["glow", "realnvp"])
def test_actnorm_standardises_the_first_batch_at_every_step(config):
    model, batch = module(config).make(config, DATA), make_batch(DATA)
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    _, key_noise = jax.random.split(jax.random.key(0))
    x = batch["image"] + rng.uniform(rng.image_keys(key_noise, jnp.arange(32)), IMAGES.shape)
    x, _ = preprocess(x, IMAGES.levels, config.logit_alpha)
    count = 0
    for before, variables in actnorm_inputs(config, params, extra, x, batch["label"]):
        after, _ = ActNorm().apply({"params": variables["actnorm"]}, before)
        np.testing.assert_allclose(np.mean(after, (0, 1, 2)), 0.0, atol=1e-4)
        np.testing.assert_allclose(np.std(after, (0, 1, 2)), 1.0, atol=1e-4)
        count += 1
    steps = config.scales * config.depth if isinstance(config, glow.Config) else (2 * config.scales - 1) * 2 + 1
    assert count == steps


DEVICES = """
import sys
import jax
import numpy as np
sys.path[:0] = ["tests", "tests/models"]
from test_flow import starting_parameters

starts = {name: starting_parameters(name) for name in ("glow", "realnvp")}
np.savez(sys.argv[1], devices=jax.local_device_count(), **starts)
"""


SMALLEST = {
    "glow": glow.Config(scales=1, depth=1, width=4),
    "realnvp": realnvp.Config(scales=1, couplings=1, width=4, blocks=0),
}


def starting_parameters(name):
    """All parameters of a run on the digits before its first step, end to end."""
    experiment = import_config(ROOT / f"configs/flow/{name}.py").get_config("tiny")
    data = dataset.load(experiment.data)
    model = make_model(SMALLEST[name], data.spec)
    state = starting_state(model, experiment.train, experiment.data, data, experiment.seed, {})
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])


@pytest.mark.slow
def test_the_start_from_data_is_the_same_on_four_devices(python, tmp_path):
    python("-c", DEVICES, tmp_path / "four.npz", devices=4)
    four = np.load(tmp_path / "four.npz")
    assert four["devices"] == 4
    for name in ("glow", "realnvp"):
        np.testing.assert_allclose(four[name], starting_parameters(name), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("config", [GLOW, REALNVP], ids=["glow", "realnvp"])
def test_the_program_does_not_grow_with_depth(config):
    """A chain of steps is one loop: the gradient of a flow of 32 steps has the operations of one of 4."""
    field, data = "depth" if config is GLOW else "couplings", data_of(8, 8, 1, 16, num_classes=3)

    def operations(steps):
        model = module(config).make(replace(config, scales=1, **{field: steps}), data)
        batch = make_batch(data, 4)
        params, extra = jax.eval_shape(model.init, jax.random.key(0), batch, {})

        def loss(params, extra, keys, batch):
            return model.phases[0].loss(params, Context(0, extra=extra), keys, batch)[0]

        text = jax.jit(jax.grad(loss)).lower(params, extra, keys_of(4), batch).as_text()
        names = re.findall(r"= \"?stablehlo\.(\w+)", text)
        return {name: names.count(name) for name in set(names)}

    few = operations(4)
    assert few["while"] >= 2 and "dot_general" in few and few == operations(32)


@pytest.mark.slow
@pytest.mark.parametrize("config", [GLOW, REALNVP], ids=["glow", "realnvp"])
def test_log_prob_is_the_bound_of_log_density_and_temperature_scales_latents(config):
    model, params, ctx, batch = make_case(config)
    n = 8
    images, label, keys = batch["image"][:n], batch["label"][:n], keys_of(n)
    cond = {"label": label}

    @jax.jit
    def scores(keys):
        draws = [images + rng.uniform(rng.fold_in(keys, k), IMAGES.shape) for k in range(3)]
        x = jnp.stack([*draws, draws[0], images + rng.uniform(keys, IMAGES.shape)])
        labels = jnp.stack([label, label, label, (label + 1) % 3, label])
        *density, other, validated = jax.lax.map(
            lambda pair: model.log_density(params, ctx, None, pair[0], {"label": pair[1]}), (x, labels)
        )
        bounds = [model.log_prob(params, ctx, keys, images, cond, samples=samples) for samples in (1, 3)]
        validation = model.validate(params, ctx, keys, {"image": images, "label": label})
        return jnp.stack(density), bounds, other, validated, validation

    density, (one, three), other, nats, validation = scores(keys)
    np.testing.assert_allclose(one, density[0], rtol=1e-5)
    np.testing.assert_allclose(three, scipy.special.logsumexp(density, axis=0) - np.log(3), rtol=1e-5)
    assert np.all(np.abs(other - density[0]) > 1e-3)
    # What validation reports: the density at its own draw of u, in bits per dimension.
    assert list(validation) == ["bits_per_dim"]
    np.testing.assert_allclose(validation["bits_per_dim"], -np.asarray(nats) / (IMAGES.size * np.log(2)), rtol=1e-5)
    several = [scores(keys_of(n, seed))[1] for seed in range(30)]
    assert np.mean([one for one, _ in several]) < np.mean([three for _, three in several])

    shapes = module(config).latent_shapes(config, IMAGES)

    @jax.jit
    def cold_and_warm(keys):
        eps = [rng.normal(k, s) for k, s in zip(rng.split(keys, len(shapes)), shapes)]

        def decode(t):
            return model.decode(params, ctx, keys, tuple(t * e for e in eps), cond)

        return jax.lax.map(decode, jnp.array([0.5, 0.1])), [
            model.sample(params, ctx, keys, cond, temperature=t) for t in (0.5, 0.1)
        ]

    decoded, sampled = (np.asarray(images, int) for images in cold_and_warm(keys))
    np.testing.assert_array_equal(sampled, decoded)
    assert len(np.unique(sampled[0].reshape(n, -1), axis=0)) == n and np.any(sampled[0] != sampled[1])


WANTED = "it must be above zero and finite: set --model.sampling.temperature"


@pytest.mark.parametrize(
    "system,options,data,words",
    [
        (glow, {"scales": 3}, (28, 28, 1, 256, 10), ["28x28", "divisible by 8", "scales can be at most 2"]),
        (glow, {"scales": 1}, (7, 8, 1, 256, 10), ["7x8", "divisible by 2", "use images with even sides"]),
        (realnvp, {"scales": 4}, (28, 28, 1, 256, 10), ["28x28", "divisible by 8", "at most 3"]),
        (glow, {"scales": 0}, DATA, ["scales is 0"]),
        (realnvp, {"scales": -1}, DATA, ["scales is -1"]),
        (glow, {"scales": 1, "depth": 0}, DATA, ["depth is 0"]),
        (glow, {"scales": 1, "width": 0}, DATA, ["width is 0"]),
        (glow, {"scales": 1, "mixtures": 0}, DATA, ["mixtures is 0"]),
        (realnvp, {"mixtures": -1}, DATA, ["mixtures is -1"]),
        (realnvp, {"scales": 1, "dequantisation": "odd"}, DATA, ["dequantisation is 'odd'", "variational"]),
        (realnvp, {"couplings": 0}, DATA, ["couplings is 0"]),
        (realnvp, {"blocks": -1}, DATA, ["blocks is -1"]),
        (glow, {"scales": 1, "coupling": "odd"}, DATA, ["coupling is 'odd'", "additive"]),
        (glow, {"scales": 1, "permutation": "odd"}, DATA, ["permutation is 'odd'", "shuffle"]),
        (realnvp, {"logit_alpha": 0.5}, DATA, ["logit_alpha is 0.5"]),
        (glow, {"scales": 1, "logit_alpha": float("nan")}, DATA, ["logit_alpha is nan"]),
        (glow, {"scales": 1}, (8, 8, 1, 256, 0), ["class_conditional", "no labels"]),
        (glow, {"scales": 1, "dtype": "float16"}, DATA, ["dtype is 'float16'", "bfloat16"]),
        (realnvp, {"dtype": "float64", "scales": 1}, DATA, ["dtype is 'float64'"]),
        (glow, {"scales": 1, "sampling": glow.Sampling(0.0)}, DATA, ["temperature is 0.0", WANTED]),
        (realnvp, {"scales": 1, "sampling": glow.Sampling(float("inf"))}, DATA, ["temperature is inf", WANTED]),
        (realnvp, {"scales": 1, "scoring": glow.Scoring(0)}, DATA, ["samples is 0", "set --model.scoring.samples"]),
    ],
)
def test_configurations_that_no_flow_can_be_made_of(system, options, data, words):
    with pytest.raises(UserError) as error:
        make_model(system.Config(**options), data_of(*data) if isinstance(data, tuple) else data)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_options_of_sampling_and_scoring(temperature):
    model = glow.make(GLOW, DATA)
    with pytest.raises(UserError, match="temperature is"):
        model.sample({}, None, None, {}, temperature=temperature)
    with pytest.raises(UserError, match="samples is 0"):
        model.log_prob({}, None, None, None, {}, samples=0)
