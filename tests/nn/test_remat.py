"""Features computed anew for the gradient: the same loss and gradients in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core.keys import image_keys
from jgen.models.flow import glow, realnvp
from jgen.nn.song_unet import SongUNet
from jgen.nn.transformer import CausalTransformer
from jgen.nn.unet import UNet


def unet(kind, dropout, remat):
    net = kind((8, 16), 1, (8,), 8, 4, dropout, 0, 3, remat=remat)
    x, t, keys = jnp.sin(jnp.arange(16 * 16 * 16 * 3.0)).reshape(16, 16, 16, 3), jnp.arange(16.0), None
    if dropout:
        keys = image_keys(jax.random.key(1), jnp.arange(16))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, None, None)
    return shapes, lambda variables: jnp.mean(net.apply(variables, x, t, None, keys) ** 2)


def flow(kind, config):
    from jgen.core.model import Context, DataSpec, ImageSpec

    model = kind.make(config, DataSpec(ImageSpec(16, 16, 3, 256)))
    images = (128 + 100 * np.sin(np.arange(16 * 16 * 16 * 3))).astype(np.uint8).reshape(16, 16, 16, 3)
    params, extra = model.init(jax.random.key(0), {"image": images, "index": np.arange(16, dtype=np.int32)}, {})

    def loss(params):
        return (
            -jnp.mean(model.log_density(params, Context(0, None, params, extra), None, images + np.float32(0.5), {}))
            / 768
        )

    return params, loss


def transformer(remat):
    net = CausalTransformer(16, 2, 4, 64, 16, remat=remat)
    x = jnp.sin(jnp.arange(8 * 64 * 16.0)).reshape(8, 64, 16)
    return jax.eval_shape(net.init, jax.random.key(0), x), lambda variables: jnp.mean(net.apply(variables, x) ** 2)


CASES = {
    "U-Net": lambda remat: unet(UNet, 0.1, remat),
    "DDPM++": lambda remat: unet(SongUNet, 0.0, remat),
    "Glow": lambda remat: flow(glow, glow.Config(1, 4, 32, class_conditional=False, remat=remat)),
    "RealNVP": lambda remat: flow(realnvp, realnvp.Config(1, 4, 8, 1, class_conditional=False, remat=remat)),
    "transformer": transformer,
}


# XLA's CPU compiler in JAX 0.10 removes the barriers in front of the second computation early, and then merges it with
# the first one; those for GPU and TPU, and later ones for CPU, do not.
BARRIERS_STAY = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def nonzero(shapes):
    return jax.tree.map(lambda x: (0.1 * np.cos(np.arange(x.size))).reshape(x.shape).astype(np.float32), shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_the_same_in_less_memory(name):
    held = {}
    for remat in (False, True):
        shapes, loss = CASES[name](remat)
        params = nonzero(shapes)
        program = jax.jit(jax.value_and_grad(loss)).lower(params).compile(compiler_options=BARRIERS_STAY)
        held[remat] = (*program(params), program.memory_analysis().temp_size_in_bytes)
    (value, gradients, memory), (value_anew, gradients_anew, memory_anew) = held[False], held[True]
    np.testing.assert_allclose(value_anew, value, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradients_anew), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(b))) + 1e-9)
    assert memory_anew < 0.7 * memory, (memory_anew, memory)
