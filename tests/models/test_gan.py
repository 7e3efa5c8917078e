"""Dense GANs: their networks against plain formulas, equation 6 of the paper, what they refuse."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import make_batch
from specs import data_of

from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.models.gan import gan
from jgen.nn.gan import Discriminator, Generator
from jgen.prob import adversarial

DATA = data_of(4, 4, 1, 256, num_classes=3)
SMALL = gan.Config(latent=3, gen_widths=(5, 4), disc_widths=(4, 3), pieces=2)


@pytest.mark.slow
def test_networks_against_plain_formulas():
    draw = np.random.default_rng(0).standard_normal
    z, x, one_hot = draw((6, 5)).astype(np.float32), draw((6, 4, 4, 1)).astype(np.float32), np.eye(3)[np.arange(6) % 3]
    generator, discriminator = Generator((5, 4), DATA.image), Discriminator((4, 3), 2)
    params = jax.tree.map(
        lambda p: draw(p.shape).astype(np.float32),
        {"gen": generator.init(jax.random.key(0), z), "disc": discriminator.init(jax.random.key(0), x, one_hot)},
    )
    layers = params["gen"]["params"]
    h = z
    for name in ("dense1", "dense2"):
        h = np.maximum(0, h @ layers[name]["kernel"] + layers[name]["bias"])
    wanted = np.tanh(h @ layers["out"]["kernel"] + layers["out"]["bias"]).reshape(6, 4, 4, 1)
    np.testing.assert_allclose(generator.apply(params["gen"], z), wanted, atol=1e-5)
    layers = params["disc"]["params"]
    h = np.concatenate([x.reshape(6, -1), one_hot], axis=1)
    for name, width in (("dense1", 4), ("dense2", 3)):
        linear = h @ layers[name]["kernel"] + layers[name]["bias"]
        h = np.stack([np.maximum(linear[:, 2 * i], linear[:, 2 * i + 1]) for i in range(width)], axis=1)
    wanted = (h @ layers["out"]["kernel"] + layers["out"]["bias"])[:, 0]
    np.testing.assert_allclose(discriminator.apply(params["disc"], x, one_hot), wanted, rtol=1e-4, atol=1e-4)


def test_the_value_of_the_best_discriminator_is_the_jensen_shannon_divergence():
    """V(D*, G) = 2 JS(p, q) - 2 log 2, of densities over five images, and no other D has a larger V."""
    p, q = np.array([0.1, 0.4, 0.2, 0.05, 0.25]), np.array([0.3, 0.1, 0.2, 0.3, 0.1])
    middle = (p + q) / 2
    divergence = 0.5 * np.sum(p * np.log(p / middle)) + 0.5 * np.sum(q * np.log(q / middle))

    def value(outputs):
        """V of a D of which `outputs` are the logits, by the loss: E over p and q of -L_D."""
        zero = jnp.full(5, -jnp.inf)  # a sample that D rejects for certain has no part in the loss
        real = adversarial.discriminator_loss("minimax", outputs, zero)
        fake = adversarial.discriminator_loss("minimax", -zero, outputs)
        return -jnp.sum(p * real) - jnp.sum(q * fake)

    best = jnp.asarray(np.log(p / q))
    np.testing.assert_allclose(value(best), 2 * divergence - 2 * np.log(2), rtol=1e-5)
    for seed in range(5):
        assert value(best + 0.3 * np.random.default_rng(seed).standard_normal(5)) < value(best)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["minimax", "non_saturating"])
def test_the_gradient_of_a_rejected_generator_vanishes_with_minimax_alone(loss):
    model = gan.make(dataclasses.replace(SMALL, loss=loss), DATA)
    batch = make_batch(model, 8)
    keys = rng.image_keys(jax.random.key(1), jnp.arange(8))
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})

    @jax.jit
    def norm(bias):
        out = params["disc"]["out"]
        disc = {**params["disc"], "out": {**out, "bias": out["bias"] + bias}}
        ctx = Context(jnp.int32(0), ema=params, extra=extra)

        def gen_loss(gen):
            return model.phases[-1].loss({"gen": gen, "disc": disc}, ctx, keys, batch)[0]

        leaves = jax.tree.leaves(jax.grad(gen_loss)(params["gen"]))
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves))

    ratio = norm(-10.0) / norm(0.0)
    assert ratio < 1e-2 if loss == "minimax" else 1.0 < ratio < 10.0


@pytest.mark.slow
def test_inversion_comes_back_to_the_image_that_a_latent_makes():
    """Of each image by itself, with its class: nearer than any of 200 random latents, and an image alone likewise."""
    model = gan.make(dataclasses.replace(SMALL, gen_widths=(32, 32)), DATA)
    batch = make_batch(model, 6)
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    ctx = Context(jnp.int32(0), ema=params, extra=extra)
    keys, decode = rng.image_keys(jax.random.key(1), jnp.arange(6)), jax.jit(model.decode)

    many = rng.image_keys(jax.random.key(2), jnp.arange(200))

    def images_of(z, label):
        return np.asarray(decode(params, ctx, many, z, {"label": jnp.full(200, label)}), int)

    cond = {"label": jnp.arange(6) % 3}
    draw = np.random.default_rng(0).standard_normal
    images = np.asarray(decode(params, ctx, keys, draw((6, 3)).astype(np.float32), cond))
    invert = jax.jit(partial(model.invert, steps=200, learning_rate=0.1, starts=3))
    z = invert(params, ctx, keys, images, cond)
    again = np.asarray(decode(params, ctx, keys, z, cond), int)
    for i in range(6):
        others = images_of(draw((200, 3)).astype(np.float32), i % 3)
        errors = np.sqrt(np.mean((others - images[i]) ** 2, axis=(1, 2, 3)))
        assert np.sqrt(np.mean((again[i] - images[i]) ** 2)) < 1.0 < errors.min()  # of 256 levels
    alone = invert(params, ctx, keys[4:5], images[4:5], {"label": cond["label"][4:5]})
    np.testing.assert_allclose(alone[0], z[4], atol=1e-3)
    with pytest.raises(UserError, match="^starts is 0: it must be above zero"):
        model.invert(params, ctx, keys, images, cond, steps=1, learning_rate=0.1, starts=0)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"pieces": 0}, "pieces is 0: it must be above zero"),
        ({"disc_steps": 0}, "disc_steps is 0: it must be above zero"),
        ({"gen_widths": ()}, r"gen_widths is \(\): it must be above zero"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        gan.make(dataclasses.replace(SMALL, **changes), DATA)
    with pytest.raises(UserError, match="class_conditional is True, but the data has no labels"):
        gan.make(SMALL, data_of(4, 4, 1, 256))
