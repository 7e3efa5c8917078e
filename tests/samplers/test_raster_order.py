"""Cached sampling against the naive sampler: the same images, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import random_params, sample_naively

from jgen.core import keys as rng
from jgen.errors import NotSupported, UserError
from jgen.nn.code_pixelcnn import CodePixelCNN
from jgen.nn.gated_pixelcnn import GatedPixelCNN
from jgen.nn.local_pixelcnn import LocalPixelCNN
from jgen.nn.pixelcnn import PixelCNN
from jgen.nn.pixelrnn import PixelRNN
from jgen.samplers import autoregressive
from jgen.samplers.autoregressive import check_prefix, sample_raster

# network, (H, W, C), levels, temperature, batch: more than a chunk, one row, wide kernels, a prior's codes.
SMALL = dict(features=12, blocks=2, hidden=12)
CASES = {
    "gated": (GatedPixelCNN(2, 1, **SMALL), (6, 5, 1), 2, 1.0, 4),
    "gated, colours, classes": (GatedPixelCNN(5, 3, **SMALL, num_classes=3), (4, 5, 3), 5, 0.7, 19),
    "gated, wide kernels": (GatedPixelCNN(4, 1, 8, 1, 8, first_size=5, size=5), (5, 6, 1), 4, 1.5, 2),
    "gated, codes": (GatedPixelCNN(64, 1, 8, 1, 8, embedding=8, num_classes=3), (4, 4, 1), 64, 1.0, 3),
    "gated, one row": (GatedPixelCNN(4, 3, 6, 1, 6), (1, 4, 3), 4, 1.0, 1),
    "gated, one column": (GatedPixelCNN(4, 1, 8, 1, 8), (5, 1, 1), 4, 1.0, 3),
    "pixelcnn": (PixelCNN(2, 1, **SMALL), (6, 5, 1), 2, 0.7, 18),
    "pixelcnn, colours, classes": (PixelCNN(5, 3, 12, 1, 12, num_classes=3), (4, 5, 3), 5, 1.0, 3),
    "pixelrnn, rows": (PixelRNN(5, 3, "row", 6, 2, 12, 5, 5, num_classes=3), (4, 5, 3), 5, 0.7, 3),
    "pixelrnn, colours, classes": (PixelRNN(5, 3, "diagonal", 6, 2, 6, num_classes=3), (4, 5, 3), 5, 1.0, 4),
    "pixelrnn, one row": (PixelRNN(4, 3, "diagonal", 6, 1, 6), (1, 4, 3), 4, 1.0, 2),
    "pixelrnn, one column": (PixelRNN(4, 1, "diagonal", 6, 1, 6), (5, 1, 1), 4, 1.0, 3),
    "attention": (CodePixelCNN(6, (4, 5), 8, 3, 8, embedding=4, attention=2, heads=2), (4, 5, 1), 6, 1.0, 4),
    "attention, classes, local": (
        CodePixelCNN(9, (3, 4), 8, 1, 8, 3, embedding=4, attention=2, heads=4, num_classes=3, local=True),
        (3, 4, 1),
        9,
        0.7,
        19,
    ),
    "codes, local": (CodePixelCNN(5, (4, 3), 8, 2, 8, embedding=4, output_blocks=0, local=True), (4, 3, 1), 5, 1.0, 3),
    "local": (LocalPixelCNN(4, 1, 8, 2, 2), (5, 6, 1), 4, 0.7, 18),
    "local, colours": (LocalPixelCNN(3, 3, 6, 1, 1), (4, 5, 3), 3, 1.0, 3),
}


def make(name):
    """(network, parameters, keys, labels, shape, levels, temperature)."""
    network, shape, levels, temperature, batch = CASES[name]
    keys = rng.image_keys(jax.random.key(1), jnp.arange(batch))
    label = None
    if isinstance(network, LocalPixelCNN):  # which is given features at every pixel in place of a class
        label = jax.random.normal(jax.random.key(2), (batch, *shape[:2], 3))
    elif network.num_classes:
        label = jnp.arange(batch) % network.num_classes
    if isinstance(network, CodePixelCNN):  # which is given a class, features, or both
        local = jax.random.normal(jax.random.key(2), (batch, *shape[:2], 3))
        label = {"label": label} if network.num_classes else {}
        label |= {"local": local} if network.local else {}
    params = random_params(network, shape, jax.tree.map(lambda x: x[:1], label))
    return network, params, keys, label, shape, levels, temperature


def both(name, images=None, mask=None, **truncation):
    network, params, keys, label, shape, levels, temperature = make(name)
    out = []
    for sampler in (sample_raster, sample_naively):
        inputs = (keys, label, shape, levels, temperature, images, mask)
        call = jax.jit(lambda p, s=sampler, inputs=inputs: s(network, p, *inputs, **truncation))
        out.append(np.asarray(call(params)))
    return out


@pytest.mark.parametrize("name", CASES)
def test_the_cached_sampler_draws_what_the_naive_one_draws(name):
    cached, naive = both(name)
    np.testing.assert_array_equal(cached, naive)
    levels = CASES[name][2]
    assert cached.min() >= 0 and cached.max() < levels and len(np.unique(cached)) > 1


@pytest.mark.slow
def test_only_the_likelier_values_are_drawn():
    cached, naive = both("gated, codes", top_k=9, top_p=0.8)
    np.testing.assert_array_equal(cached, naive)
    assert np.any(cached != both("gated, codes")[0])
    network, params, keys, label, shape, levels, _ = make("gated, codes")
    likeliest = np.asarray(jax.jit(lambda p: sample_raster(network, p, keys, label, shape, levels, top_k=1))(params))
    logits = network.apply({"params": params}, likeliest, label)
    np.testing.assert_array_equal(likeliest, np.argmax(logits, axis=-1))


@pytest.mark.parametrize(
    "name", ["gated, colours, classes", "pixelcnn", "pixelrnn, rows", "pixelrnn, colours, classes"]
)
def test_completion_keeps_what_is_given_and_draws_the_rest_as_the_naive_sampler(name):
    _, (height, width, channels), levels, _, batch = CASES[name]
    images = np.random.default_rng(3).integers(0, levels, (batch, height, width, channels)).astype(np.uint8)
    count = np.arange(batch) * height * width // batch  # another prefix for each image, the first keeps nothing
    mask = np.arange(height * width).reshape(1, height, width) < count.reshape(-1, 1, 1)
    cached, naive = both(name, jnp.asarray(images), jnp.asarray(mask))
    np.testing.assert_array_equal(cached, naive)
    np.testing.assert_array_equal(cached[mask], images[mask])
    assert np.any(cached[~mask] != images[~mask])
    np.testing.assert_array_equal(cached[0], both(name)[0][0])


def test_chunks_of_the_batch_do_not_change_an_image(monkeypatch):
    network, params, keys, label, shape, levels, temperature = make("gated, colours, classes")

    def draw(n):
        call = jax.jit(lambda p: sample_raster(network, p, keys[:n], label[:n], shape, levels, temperature))
        return np.asarray(call(params))

    chunks = draw(19)
    monkeypatch.setattr(autoregressive, "CHUNK", 19)
    np.testing.assert_array_equal(draw(19), chunks)
    np.testing.assert_array_equal(draw(5), chunks[:5])


PRODUCTS = ["gated", "pixelcnn", "pixelcnn, colours, classes", "pixelrnn, rows", "attention, classes, local"]


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_program_holds_no_image_wide_convolution(name):
    """A new pixel never reruns the network over the image: the sampler computes products of rows and of pixels."""
    network, params, keys, label, shape, levels, temperature = make(name)

    def lowered(sampler):
        return jax.jit(lambda p: sampler(network, p, keys, label, shape, levels)).lower(params).as_text()

    assert "stablehlo.convolution" in lowered(sample_naively)
    assert "stablehlo.convolution" not in lowered(sample_raster)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_must_be_above_zero(temperature):
    network, params, keys, label, shape, levels, _ = make("gated")
    with pytest.raises(UserError, match="temperature is .*: it must be above zero and finite"):
        sample_raster(network, params, keys, label, shape, levels, temperature)


def test_only_a_prefix_in_raster_order_can_be_kept():
    for count in range(13):
        check_prefix((np.arange(12) < count).reshape(3, 4))
    hole = np.ones((3, 4), bool)
    hole[1, 2] = False
    with pytest.raises(NotSupported, match="row 1, column 3 but not the one at row 1, column 2"):
        check_prefix(hole)
    left = np.zeros((3, 4), bool)
    left[:, :2] = True
    with pytest.raises(UserError, match="row 1, column 0 but not the one at row 0, column 2"):
        check_prefix(left)
