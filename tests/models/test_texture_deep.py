"""Deep textures: what they fit, and that samples have the source's Gram matrices."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import data_of

from jgen.core.generate import sample_images
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.classical.texture import Sampling
from jgen.models.classical.texture_deep import Config, spectrum
from jgen.nn import gram

CONFIG = Config(network="random", scales=2, filters=8, kernel=5, sampling=Sampling(steps=600))
DATA = data_of(32, 32, 1, 256)


def stripes(num=2):
    """Slanted stripes with noise, whose period divides the size."""
    y, x = np.mgrid[:32, :32]
    wave = 120 + 80 * np.sign(np.sin(2 * np.pi * (3 * x + 2 * y) / 32 + 0.3))
    noise = np.random.default_rng(0).normal(scale=8, size=(num, 32, 32))
    return np.uint8(np.clip(wave + noise, 0, 255))[..., None]


@pytest.fixture(scope="module")
def fitted():
    """Of crops whose boundaries are periodic, so that they need not be left out."""
    model = make_model(CONFIG, DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gram, "BORDER", 0)
        _, extra = jax.jit(model.init)(jax.random.key(0), {"image": stripes()}, {})
        _, (_, new) = jax.jit(model.phases[0].loss)({}, Context(jnp.int32(0), extra=extra), None, {"image": stripes()})
    return model, Context(jnp.int32(1), extra={**extra, **new})


@pytest.mark.slow
def test_a_sample_has_the_gram_matrices_of_the_source(fitted):
    model, ctx = fitted
    error = jax.jit(lambda x: model.functions["texture_error"]({}, ctx, x))
    images = sample_images(model, {}, ctx, jax.random.key(7), 2)
    noise = sample_images(model, {}, ctx, jax.random.key(7), 2, steps=1)
    assert np.all(np.asarray(error(images)) < 0.012) and np.all(np.asarray(error(noise)) > 0.3)
    assert np.mean(images[0] != images[1]) > 0.5
    # The stripes' frequency is where a sample has the most of its power, as the source has.
    power = np.abs(np.fft.fft2(images[0, ..., 0] - images[0].mean()))
    frequency = np.unravel_index(np.argmax(power[:, :17]), (32, 17))
    assert abs(frequency[1] - 3) <= 1 and min(frequency[0], 32 - frequency[0]) in (1, 2, 3)


def test_the_spectrum_keeps_the_variance_of_noise():
    gain = spectrum({"maps": [np.zeros((3, 3))]}, 32, 48)
    assert gain.shape == (3, 32, 48)
    made = np.fft.ifft2(np.fft.fft2(np.random.default_rng(0).normal(size=(300, 32, 48))) * np.asarray(gain[0])).real
    assert np.mean(made**2) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"scales": 0}, "scales is 0"),
        ({"filters": 0}, "filters is 0"),
        ({"kernel": 4}, "kernel is 4: it must be odd"),
        ({"weights": "x.pth"}, "weights is x.pth: network is random, which has none"),
        ({"network": "vgg19"}, "weights is empty: network is vgg19, which needs a file"),
        ({"network": "vgg19", "weights": "/nowhere/x.pth"}, "there is no file /nowhere/x.pth"),
        ({"scales": 6}, "an image of the data is 32x32: sides must be multiples of 64"),
        ({"sampling": Sampling(size=30)}, "size is 30x30: sides must be multiples of 4.*--model.sampling.size"),
    ],
)
def test_options_out_of_range(changes, words):
    with pytest.raises(UserError, match=words):
        make_model(replace(CONFIG, **changes), DATA)


def test_networks_of_colour_pictures_take_one_channel_or_three():
    with pytest.raises(UserError, match="network is efficientnet: images must have 1 or 3 channels, they have 2"):
        make_model(replace(CONFIG, network="efficientnet"), data_of(32, 32, 2, 256))
