"""Progressive growing: its schedule, fade-in that is continuous at both ends, real images, sampling by level."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from contract_cases import make_batch
from specs import data_of

import train
from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.models.gan import progan
from jgen.nn.progan import Discriminator, Generator
from jgen.prob.pixels import to_float, to_uint8

DATA = data_of(8, 8, 1, 256, num_classes=3)
SMALL = progan.Config(channels=(3, 4, 5), latent=3, grow_steps=10, group=2)


def test_levels_fade_in_one_after_another():
    model = progan.make(SMALL, DATA)
    for step in range(60):
        running = [number for number, phase in enumerate(model.phases) if phase.runs(step)]
        level = 0 if step < 10 else 1 if step < 30 else 2
        assert running == [2 * level, 2 * level + 1], step
        assert int(progan.level_of(10, 2, jnp.int32(step))) == level
    alphas = [float(progan.fade(10, 1, jnp.int32(step))) for step in (9, 10, 14, 19, 25)]
    np.testing.assert_allclose(alphas, [0.0, 0.1, 0.5, 1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(progan.fade(10, 2, jnp.int32(30)), 0.1, rtol=1e-6)


def networks(level, alpha):
    generator = Generator(SMALL.channels, DATA.image, level, alpha)
    return generator, Discriminator(SMALL.channels, SMALL.group, level, alpha)


@pytest.mark.slow
def test_both_ends_of_a_fade_are_the_networks_without_it():
    """At alpha = 0 those of the level below, at 1 those of the level alone: of one set of parameters."""
    z, one_hot = rng.normal(rng.image_keys(jax.random.key(0), jnp.arange(4)), (3,)), jnp.eye(3)[jnp.arange(4) % 3]
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)), jnp.float32)
    whole = networks(2, 1.0)
    gen, disc = (net.init(jax.random.key(1), *inputs) for net, inputs in zip(whole, ((z, one_hot), (x, one_hot))))

    def outputs(level, alpha, x):
        generator, discriminator = networks(level, alpha)
        return generator.apply(gen, z, one_hot), discriminator.apply(disc, x, one_hot)

    for level in (1, 2):
        reduced = progan.blend(level - 1, 2, 1.0, x)
        start, below = outputs(level, 0.0, x), outputs(level - 1, 1.0, reduced)
        for ours, wanted in zip(start, below):
            np.testing.assert_allclose(ours, wanted, atol=1e-5)
        middle, end = outputs(level, 0.3, x), outputs(level, 1.0, x)
        np.testing.assert_allclose(middle[0], 0.3 * end[0] + 0.7 * start[0], atol=1e-5)
        assert np.abs(end[0] - start[0]).max() > 1e-2 and np.abs(end[1] - start[1]).max() > 1e-2
    for level, size in ((0, 2), (1, 4)):  # images of lower levels have equal pixels
        image = np.asarray(outputs(level, 1.0, x)[0]).reshape(4, size, 8 // size, size, 8 // size)
        assert np.ptp(image, axis=(2, 4)).max() == 0.0 < np.ptp(image, axis=(1, 3)).max()


def test_real_images_are_blended_as_samples_are():
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)), jnp.float32)
    half = np.asarray(x).reshape(2, 4, 2, 4, 2).mean(axis=(2, 4)).repeat(2, 1).repeat(2, 2)[..., None]
    np.testing.assert_allclose(progan.blend(2, 2, 0.25, x), 0.25 * x + 0.75 * half, atol=1e-6)
    np.testing.assert_allclose(progan.blend(1, 2, 1.0, x), half, atol=1e-6)
    np.testing.assert_allclose(
        progan.blend(0, 2, 1.0, x)[:, ::4, ::4, 0], x[..., 0].reshape(2, 2, 4, 2, 4).mean((2, 4)), atol=1e-6
    )


@pytest.mark.slow
def test_samples_and_scores_are_those_of_the_level_of_the_step():
    model, n = progan.make(dataclasses.replace(SMALL, loss="non_saturating"), DATA), 8
    batch, keys = make_batch(model, n), rng.image_keys(jax.random.key(2), jnp.arange(n))
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    one_hot = jax.nn.one_hot(batch["label"], 3)
    sample, validate = jax.jit(model.sample), jax.jit(model.validate)
    for step, level, alpha in ((0, 0, 1.0), (10, 0, 1.0), (13, 1, 0.3), (30, 1, 1.0), (33, 2, 0.3), (90, 2, 1.0)):
        ctx = Context(jnp.int32(step), ema=params, extra=extra)
        generator, discriminator = networks(level, alpha)
        wanted = generator.apply({"params": params["gen"]}, rng.normal(keys, (3,)), one_hot)
        images = sample(params, ctx, keys, {"label": batch["label"]})
        np.testing.assert_allclose(images, to_uint8(wanted, 256).astype(int), atol=1)
        scores = validate(params, ctx, keys, batch)
        for name, x in (("real", progan.blend(level, 2, alpha, to_float(batch["image"], 256))), ("fake", wanted)):
            out = np.asarray(discriminator.apply({"params": params["disc"]}, x, one_hot))
            right = (out > 0) == (name == "real")
            far = np.abs(out) > 1e-4
            np.testing.assert_array_equal(scores[f"accuracy_{name}"][far], right[far])


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"grow_steps": 0}, "grow_steps is 0: it must be above zero"),
        ({"drift": -1.0}, "drift is -1.0: it must be zero or above"),
        ({"channels": (4,) * 5}, "images are 8x8: channels has 4 entries, each of which halves the size"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        progan.make(dataclasses.replace(SMALL, **changes), DATA)


def test_growth_that_ends_after_the_run_is_one_line(cache, tmp_path):
    args = ["configs/gan/progan.py:tiny", "--workdir", str(tmp_path / "run"), "--model.grow-steps", "40"]
    mistake(
        lambda: train.command([*args, "--train.steps", "79"]),
        "train.steps is 79: the last size has faded in after 80 steps",
        "--model.grow-steps",
    )
    progan.make(dataclasses.replace(SMALL, grow_steps=10), DATA).check_training(2 * 10 * (len(SMALL.channels) - 1))
