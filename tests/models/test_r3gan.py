"""R3GAN: grouped convolutions, Fix-up's start, the loss of pairs with both penalties, what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import make_batch
from specs import data_of

from jgen.core import keys as rng
from jgen.core.backend import plain_forms
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.models.gan import r3gan
from jgen.nn.conv import grouped_conv
from jgen.nn.r3gan import Block
from jgen.prob.pixels import to_float

DATA = data_of(4, 4, 1, 256, num_classes=3)
SMALL = r3gan.Config(channels=(4, 4), blocks=1, group=4, latent=3, embedding=5, gamma=0.7)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("plain", [False, True])
def test_a_grouped_convolution_is_one_of_each_group(plain):
    x, kernel = draw(2, 5, 4, 6), draw(3, 3, 2, 9, seed=1)
    wanted = [
        jax.lax.conv_general_dilated(
            x[..., 2 * g : 2 * g + 2],
            kernel[..., 3 * g : 3 * g + 3],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for g in range(3)
    ]
    if plain:
        with plain_forms():
            y = grouped_conv(jnp.asarray(x), jnp.asarray(kernel), 3)
    else:
        y = grouped_conv(jnp.asarray(x), jnp.asarray(kernel), 3)
    np.testing.assert_allclose(y, np.concatenate(wanted, axis=-1), rtol=1e-4, atol=1e-4)


def test_a_block_starts_as_the_identity_with_kernels_of_fix_ups_size():
    x, block = draw(2, 4, 4, 64), Block(2, 16, 0.5)
    variables = block.init(jax.random.key(0), x)
    np.testing.assert_array_equal(block.apply(variables, x), x)
    params = variables["params"]
    assert params["conv2"].shape == (3, 3, 16, 128) and np.all(params["conv3"]["kernel"] == 0)
    np.testing.assert_allclose(np.std(params["conv1"]["kernel"]), 0.5 / np.sqrt(64), rtol=0.05)
    np.testing.assert_allclose(np.std(params["conv2"]), 0.5 / np.sqrt(9 * 16), rtol=0.05)


@pytest.mark.slow
def test_both_losses_are_of_pairs_and_both_penalties_count():
    model, n = r3gan.make(SMALL, DATA), 6
    batch, keys = make_batch(model, n), rng.image_keys(jax.random.key(1), jnp.arange(n))
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    params = jax.tree.map(lambda p: p + 0.1 * np.cos(np.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    ctx, game = Context(jnp.int32(0), ema=params, extra=extra), model.phases[0].loss.args[0]
    one_hot, real = jax.nn.one_hot(batch["label"], 3), to_float(batch["image"], 256)

    @jax.jit
    def judge(x):
        return game.discriminator.apply({"params": params["disc"]}, x, one_hot)

    @jax.jit
    def generated(z):
        return game.generator.apply({"params": params["gen"]}, z, one_hot)

    gradient = jax.jit(jax.grad(lambda x: jnp.sum(judge(x))))
    fake = generated(rng.normal(rng.split(keys, 2)[0], (3,)))
    difference = np.asarray(judge(real) - judge(fake))
    penalties = [np.sum(np.asarray(gradient(x)) ** 2, axis=(1, 2, 3)) for x in (real, fake)]
    expected = np.mean(np.log1p(np.exp(-difference)) + 0.35 * (penalties[0] + penalties[1]))
    loss, (metrics, new) = jax.jit(model.phases[0].loss)(params, ctx, keys, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(new["disc"]["boundary"], np.mean(judge(real) + judge(fake)) / 2, rtol=1e-4, atol=1e-5)
    fake = generated(rng.normal(keys, (3,)))
    expected = np.mean(np.log1p(np.exp(np.asarray(judge(real) - judge(fake)))))
    np.testing.assert_allclose(jax.jit(model.phases[1].loss)(params, ctx, keys, batch)[0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"group": 3}, r"group is 3: it must divide expansion \* channels, 2 \* 4"),
        ({"gamma": 0.0}, "gamma is 0.0: it must be above zero"),
        ({"augmentation": 1.0}, "augmentation is 1.0: it must be at least 0 and below 1"),
        ({"channels": (4, 4, 4, 4)}, "images are 4x4: channels has 3 entries, each of which halves the size"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        r3gan.make(dataclasses.replace(SMALL, **changes), DATA)
