"""Every system in bfloat16: parameters, gradients and losses stay float32, and the loss is nearly that of float32."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import make_batch
from naive_autoregressive import normal_params, sample_naively

from jgen.core import keys as rng
from jgen.core.model import Context, ImageSpec
from jgen.models.autoregressive import gated_pixelcnn, pixelcnn
from jgen.models.diffusion import ddpm
from jgen.models.flow import glow, realnvp
from jgen.models.vae import vae, vq_vae
from jgen.nn.gated_pixelcnn import GatedPixelCNN
from jgen.nn.pixelcnn import PixelCNN

IMAGES = ImageSpec(8, 8, 1, 3, 16)
SYSTEMS = {
    "vae dense": (vae, vae.Config(network="dense", widths=(16,), latent=4)),
    "vae conv": (vae, vae.Config(widths=(8,), latent=4, class_conditional=True)),
    "vq_vae": (vq_vae, vq_vae.Config(widths=(8,), blocks=1, num_codes=6, code_dim=4)),
    "pixelcnn": (pixelcnn, pixelcnn.Config(features=8, blocks=2, hidden=8, class_conditional=True)),
    "gated_pixelcnn": (gated_pixelcnn, gated_pixelcnn.Config(features=8, blocks=2, hidden=8, embedding=2)),
    "ddpm": (ddpm, ddpm.Config(channels=(8, 8), blocks=1, attention=(4,), head_dim=8, groups=4)),
    "glow": (glow, glow.Config(scales=2, depth=2, width=8)),
    "realnvp": (realnvp, realnvp.Config(scales=2, couplings=2, width=8, blocks=1)),
}


def keys_of(n):
    return rng.image_keys(jax.random.key(1), jnp.arange(n))


def all_float32(*trees):
    leaves = [x for x in jax.tree.leaves(trees) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return len(leaves) > 0 and all(x.dtype == jnp.float32 for x in leaves)


def shaken(tree):
    """What starts at zero hides what lies behind it."""
    return jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), tree)


def make_pair(name):
    """The model in float32 and in bfloat16, parameters and extra that the second makes, and a batch."""
    system, config = SYSTEMS[name]
    wide, narrow = (system.make(replace(config, dtype=dtype), IMAGES) for dtype in ("float32", "bfloat16"))
    batch = make_batch(wide)
    params, extra = jax.jit(narrow.init)(jax.random.key(0), batch)
    assert all_float32(params, extra)
    return wide, narrow, shaken(params), extra, batch


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_loss_is_nearly_that_of_float32_and_all_that_is_kept_is_float32(name):
    wide, narrow, params, extra, batch = make_pair(name)

    def run(model):
        def loss(params):
            value, (metrics, new) = model.phases[0].loss(params, Context(0, params, extra, {}), keys_of(8), batch)
            return value, new

        step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params)
        return step.compile()(params), step.as_text()

    ((value, _), gradients), text = run(wide)
    ((found, new), slopes), narrow_text = run(narrow)
    assert all_float32(found, slopes) and (not new or all_float32(new))
    assert np.isfinite(found) and all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slopes))
    np.testing.assert_allclose(found, value, rtol=0.03)
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    a, b = flat(gradients), flat(slopes)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.97  # one direction
    assert "bf16" in narrow_text and "bf16" not in text


@pytest.mark.parametrize("name", ["pixelcnn", "gated_pixelcnn"])
def test_the_cached_sampler_in_bfloat16_draws_what_the_naive_one_draws_but_for_rounding(name):
    system, config = SYSTEMS[name]
    spec, n = ImageSpec(3, 3, 1, 3, 2), 32
    model = system.make(replace(config, dtype="bfloat16"), spec)
    batch = {"image": np.zeros((1, 3, 3, 1), np.uint8), "label": np.zeros(1, np.int32)}
    params = normal_params(jax.eval_shape(model.init, jax.random.key(0), batch)[0])
    label = jnp.arange(n) % 3
    ctx = Context(0, params, {}, {})
    drawn = np.asarray(jax.jit(lambda p: model.sample(p, ctx, keys_of(n), label))(params))
    assert drawn.dtype == np.uint8 and drawn.max() == 1
    more = {"dtype": jnp.bfloat16, "num_classes": 3}
    network = GatedPixelCNN(2, 1, 8, 2, 8, embedding=2, **more) if system is gated_pixelcnn else None
    network = network or PixelCNN(2, 1, 8, 2, 8, **more)
    naive = np.asarray(
        jax.jit(lambda p: sample_naively(network, p, keys_of(n), label, (3, 3, 1), 2))(params["pixelcnn"])
    )
    assert np.mean(np.all(naive == drawn, axis=(1, 2, 3))) > 0.9  # a tie within rounding changes what follows


@pytest.mark.parametrize("name", ["glow", "realnvp"])
def test_a_flows_latents_and_densities_stay_float32(name):
    wide, narrow, params, extra, batch = make_pair(name)
    ctx, label = Context(0, params, extra, {}), batch["label"]
    x = batch["image"] + np.float32(0.4)

    def run(model):
        latents = model.encode(params, ctx, keys_of(8), batch["image"], label)
        return latents, model.log_density(params, ctx, None, x, label), model.decode(params, ctx, None, latents, label)

    (_, wanted, _), (latents, density, images) = (jax.jit(lambda model=m: run(model))() for m in (wide, narrow))
    assert all_float32(latents, density)
    np.testing.assert_allclose(density, wanted, rtol=0.03)
    # The way back computes with networks whose input is rounded once more.
    assert np.abs(np.asarray(images, int) - batch["image"]).max() <= 1
