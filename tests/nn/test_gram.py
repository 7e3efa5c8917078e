"""Gram matrices against NumPy and SciPy, and the networks whose maps they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate

from jgen.errors import UserError
from jgen.nn import efficientnet, gram, steerable_pyramid, vgg
from jgen.nn.projected_discriminator import random_weights


def image(height=16, width=24, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(size=(height, width, channels)).astype(np.float32)


def fixed(*maps, pairs=False):
    """A network that has these maps of every image."""
    return gram.Network(lambda x, z: [jnp.asarray(h) for h in maps], 2, pairs)


def test_gram_matrices_are_means_of_products():
    x, a, b = image(), image(8, 12, 5, 1), image(4, 6, 7, 2)
    matrices = gram.gram_matrices(fixed(a, b, pairs=True), x, 2 * x, False)
    for h, own in zip((2 * x, a, b), matrices["maps"], strict=True):
        expected = np.array([[np.mean(h[..., i] * h[..., j]) for j in range(h.shape[2])] for i in range(h.shape[2])])
        np.testing.assert_allclose(own, expected, rtol=1e-5)
    halves = np.array([[a[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)) for j in range(6)] for i in range(4)])
    (pair,) = matrices["pairs"]
    np.testing.assert_allclose(pair, np.einsum("hwc,hwd->cd", halves, b) / 24, rtol=1e-5)


def test_borders_of_a_crop_are_left_out():
    a = image(16, 24, 2)
    spoilt = a.copy()
    spoilt[:3], spoilt[-3:], spoilt[:, :3], spoilt[:, -3:] = 9, 9, 9, 9
    source, whole = (gram.gram_matrices(fixed(spoilt), spoilt, spoilt, kind)["maps"][1] for kind in (True, False))
    inside = a[3:-3, 3:-3].reshape(-1, 2)
    np.testing.assert_allclose(source, inside.T @ inside / len(inside), rtol=1e-5)
    assert np.all(np.asarray(whole) > 5 * np.asarray(source))


def test_units_make_the_powers_one():
    matrices = gram.gram_matrices(gram.random_network(2, 6, 3), image(), image(), False)
    ratio = jax.tree.map(jnp.divide, matrices, gram.scales_of(matrices))
    for own in ratio["maps"]:
        np.testing.assert_allclose(np.diag(own), 1, rtol=1e-5)
        assert np.abs(own).max() < 1 + 1e-5
    assert ratio["pairs"][0].shape == (6, 6) and np.all(np.abs(ratio["pairs"][0]) < 1 + 1e-5)


def test_powers_are_those_of_the_pyramids_bands():
    z = image(channels=2)
    powers = gram.gram_matrices(gram.random_network(2, 4, 5), z, z, False)["powers"]
    pyramid = steerable_pyramid.build(jnp.moveaxis(z, -1, 0), 2, 4)
    parts = [pyramid.high[:, None], *pyramid.bands]
    expected = np.concatenate([np.mean(np.abs(part) ** 2, axis=(-2, -1)) for part in parts], axis=1)
    np.testing.assert_allclose(powers, expected, rtol=1e-4)


def test_random_filters_are_correlations_with_periodic_boundaries():
    z = image(channels=2)
    first, second = gram.random_network(2, 4, 5).maps(z, z)
    drawn = np.random.default_rng(gram.SEED).normal(size=(2, 5, 5, 2, 4))
    drawn = (drawn - drawn.mean((1, 2), keepdims=True)) / np.sqrt(50)
    low = steerable_pyramid.spectra(jnp.moveaxis(z, -1, 0), 1, 2).lows[1]
    for h, source, kernel in ((first, z, drawn[0]), (second, np.moveaxis(np.fft.ifft2(low).real, 0, -1), drawn[1])):
        for o in range(4):
            parts = [correlate(source[..., c], kernel[:, :, c, o], mode="wrap") for c in range(2)]
            np.testing.assert_allclose(h[..., o], np.maximum(sum(parts), 0), atol=1e-5)


def networks():
    def of_efficientnet(x, z):
        return efficientnet.stages(weights, x[None], table, periodic=True)

    table = efficientnet.STAGES[:3]
    weights = random_weights(table)
    draw = np.random.default_rng(0)
    of_vgg = {name: draw.normal(scale=0.1, size=shape).astype(np.float32) for name, shape in vgg.layout().items()}
    return {
        "random": gram.random_network(2, 4, 5),
        "efficientnet": gram.Network(lambda x, z: [h[0] for h in of_efficientnet(x, z)], 8, False),
        "vgg19": gram.Network(lambda x, z: [h[0] for h in vgg.texture_maps(of_vgg, x[None])], 16, False),
    }


@pytest.mark.parametrize("name", ["random", "efficientnet", pytest.param("vgg19", marks=pytest.mark.slow)])
def test_what_is_shifted_has_the_same_gram_matrices(name):
    """By the pixels of the smallest map: boundaries are periodic."""
    network, x = networks()[name], image(32, 48)
    matrices, shifted = (
        jax.jit(lambda x: gram.gram_matrices(network, x, x, False))(y)
        for y in (x, np.roll(x, (network.step, -network.step), (0, 1)))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), matrices, shifted)


def test_a_periodic_convolution_is_that_of_tensorflow_inside():
    """With stride 1 and 2, and by groups: it differs where the boundaries are only."""
    x = image(16, 16, 4)[None]
    for size, stride, groups in ((3, 1, 1), (3, 2, 1), (5, 2, 4), (1, 1, 1)):
        kernel = np.random.default_rng(1).normal(size=(size, size, 4 // groups, 4)).astype(np.float32)
        same = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )
        ours = efficientnet.periodic_conv(jnp.asarray(x), jnp.asarray(kernel), stride, groups)
        np.testing.assert_allclose(ours[:, 2:-2, 2:-2], same[:, 2:-2, 2:-2], atol=1e-5)
        assert size == 1 or np.abs(ours - same).max() > 1e-3


def test_the_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file .*vgg.pth"):
        vgg.load(tmp_path / "vgg.pth")
    assert list(vgg.layout())[-2:] == ["features.25.weight", "features.25.bias"]  # conv4_4, as torchvision counts
