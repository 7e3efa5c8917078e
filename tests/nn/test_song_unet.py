"""DDPM++ and NCSN++: sizes of the published networks, resampling against SciPy, and what every network can do."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params
from scipy import signal

from configs.diffusion import edm
from jgen.core.model import ImageSpec
from jgen.errors import UserError
from jgen.nn import resampling, song_unet
from jgen.nn.conv import conv
from jgen.nn.embeddings import fourier_embedding
from jgen.nn.unet import TINY, UNet, make_unet

CIFAR10 = edm.cifar10().model.network
IMAGES = ImageSpec(8, 8, 1, 17)
# Parameters of the authors' unconditional networks for CIFAR-10 (github:NVlabs/edm, 55.7 and 56.4 million), with 9
# numbers that describe the augmentation.
PUBLISHED = {"ddpmpp": 55_733_891, "ncsnpp": 56_397_827}
T, LABEL = jnp.array([-1.5, 1.1]), jnp.array([0, 2])


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def tiny(architecture, **changes):
    config = replace(TINY, architecture=architecture, base=4, channels=(8, 8), attention=(8,), **changes)
    return make_unet(config, IMAGES, 3, small_t=True)


def random_params(unet, *inputs):
    return normal_params(jax.eval_shape(unet.init, jax.random.key(0), *inputs)["params"])


def count(unet, label, vector):
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(unet.init, jax.random.key(0), x, jnp.ones(1), label, None, vector)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.slow
@pytest.mark.parametrize("architecture,published", PUBLISHED.items())
def test_parameter_counts_are_those_of_the_published_networks(architecture, published):
    config, images = replace(CIFAR10, architecture=architecture), ImageSpec(32, 32, 3, 256)
    vector, label = jnp.zeros((1, 9)), jnp.zeros(1, jnp.int32)
    assert count(make_unet(config, images, 0, small_t=True), None, vector) == published
    width = {"ddpmpp": 128, "ncsnpp": 256}[architecture]
    assert count(make_unet(config, images, 0, small_t=True), None, None) == published - 9 * width
    # The authors' layer of labels has a bias besides.
    assert count(make_unet(config, images, 10, small_t=True), label, vector) == published + 10 * width


@pytest.mark.parametrize("taps", song_unet.FILTERS.values())
def test_resampling_is_that_of_scipy(taps):
    x = normal(2, 6, 4, 3)
    kernel, padding = np.array(taps) / sum(taps), (len(taps) - 1) // 2
    low, high = x, x
    for axis in (1, 2):
        n = x.shape[axis]
        filtered, up = signal.upfirdn(kernel, low, axis=axis), 2 * signal.upfirdn(kernel, high, up=2, axis=axis)
        start = len(taps) - 1 - padding  # output 0 of SciPy's meets the first sample alone
        low, high = (
            np.take(filtered, range(start, start + n, 2), axis),
            np.take(up, range(padding, padding + 2 * n), axis),
        )
    np.testing.assert_allclose(resampling.downsample(x, taps), low, atol=1e-6)
    np.testing.assert_allclose(resampling.upsample(x, taps), high, atol=1e-6)


@pytest.mark.parametrize("taps", song_unet.FILTERS.values())
def test_a_filtered_convolution_is_a_convolution_then_the_filter(taps):
    x, layer = normal(2, 8, 6, 3), song_unet.FilteredConv(5, taps)
    params = normal_params(jax.eval_shape(layer.init, jax.random.key(0), x)["params"])
    padding = 1 + (len(taps) - 1) // 2
    y = conv(x, params["conv"]["kernel"], padding=((padding, padding), (padding, padding)))
    wanted = resampling.blur(y, taps, 0, stride=2) + params["conv"]["bias"][None, None, None, :]
    assert wanted.shape == (2, 4, 3, 5)
    np.testing.assert_allclose(layer.apply({"params": params}, x), wanted, atol=1e-5)


def test_fourier_features_are_fixed_and_of_the_scale_asked_for():
    t = jnp.array([0.0, 0.3, -1.7])
    embedding = fourier_embedding(t, 256, 16.0)
    np.testing.assert_allclose(embedding[0], np.repeat([0.0, 1.0], 128), atol=0)
    np.testing.assert_allclose(embedding[:, :128] ** 2 + embedding[:, 128:] ** 2, 1.0, atol=1e-5)
    # Slopes of the sines at 0 are 2 pi f. Of 128 draws, the standard deviation varies by a sixteenth.
    derivatives = jax.vmap(jax.grad(lambda t, i: fourier_embedding(t[None], 256, 16.0)[0, i]), (None, 0))(
        0.0, jnp.arange(128)
    )
    frequencies = derivatives / (2 * np.pi)
    np.testing.assert_allclose(frequencies[:3], 16 * np.array([1.7640524, 0.4001572, 0.978738]), rtol=1e-5)
    assert abs(np.std(frequencies) / 16 - 1) < 4 / np.sqrt(2 * 128)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PUBLISHED)
def test_it_works_under_jit_and_vmap(architecture):
    unet, x, vector = tiny(architecture), normal(2, 8, 8, 1), normal(2, 9)
    params = random_params(unet, x, T, LABEL, None, vector)
    keys = jax.random.split(jax.random.key(0), 2)

    def one(x, t, label, key, vector):
        inputs = (x[None], t[None], label[None], key[None], vector[None])
        return unet.apply({"params": params}, *inputs)[0]

    together = jax.jit(lambda *inputs: unet.apply({"params": params}, *inputs))(x, T, LABEL, keys, vector)
    apart = jax.jit(jax.vmap(one))(x, T, LABEL, keys, vector)
    assert together.shape == x.shape and together.dtype == jnp.float32
    np.testing.assert_allclose(apart, together, atol=1e-4 * float(jnp.abs(together).max()))


@pytest.mark.slow
def test_every_input_and_every_parameter_matters():
    """At the start too: the branches that begin as almost nothing have gradients."""
    unet, x, vector = tiny("ncsnpp"), normal(2, 8, 8, 1), normal(2, 9)
    params = jax.jit(unet.init)(jax.random.key(0), x, T, LABEL, None, vector)["params"]

    @jax.jit
    def gradients(params, x, t, vector):
        def loss(*inputs):
            params, x, t, vector = inputs
            return jnp.sum(normal(2, 8, 8, 1) * unet.apply({"params": params}, x, t, LABEL, None, vector))

        return jax.grad(loss, (0, 1, 2, 3))(params, x, t, vector)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(params, x, T, vector)):
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)
    outputs = jax.jit(lambda label: unet.apply({"params": params}, x, T, label, None, vector))
    assert jnp.any(outputs(LABEL) != outputs(LABEL[::-1]))


@pytest.mark.slow
def test_dropout_belongs_to_an_example():
    unet, x = tiny("ncsnpp", dropout=0.5), normal(2, 8, 8, 1)
    params, keys = random_params(unet, x, T, LABEL, None), jax.random.split(jax.random.key(0), 2)
    apply = jax.jit(lambda keys: unet.apply({"params": params}, x, T, LABEL, keys))
    first, second = apply(keys), apply(jnp.stack([keys[0], keys[0]]))
    np.testing.assert_array_equal(first[0], second[0])
    assert jnp.any(first[1] != second[1]) and jnp.any(apply(keys) != apply(None))


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_output_in_float32():
    x, outputs = normal(2, 8, 8, 1), {}
    for dtype in ("float32", "bfloat16"):
        unet = tiny("ncsnpp", dtype=dtype)
        params = random_params(unet, x, T, LABEL, None)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        outputs[dtype] = jax.jit(lambda params, unet=unet: unet.apply({"params": params}, x, T, LABEL, None))(params)
        assert outputs[dtype].dtype == jnp.float32
    difference = jnp.linalg.norm(outputs["float32"] - outputs["bfloat16"])
    assert 0 < difference < 0.05 * jnp.linalg.norm(outputs["float32"])


def test_the_base_width_is_that_of_the_first_level_unless_given():
    x = jnp.zeros((1, 8, 8, 1))
    for unet in (UNet((8,), 1, (), 8, 4, 0.0, 0, 1), song_unet.SongUNet((8,), 1, (), 8, 4, 0.0, 0, 1)):
        for base in (0, 8, 4):
            shapes = jax.eval_shape(unet.clone(base=base).init, jax.random.key(0), x, jnp.ones(1), None, None)["params"]
            width = base or 8
            assert shapes["conv_in"]["kernel"].shape == (3, 3, 1, width)
            assert shapes["time1"]["kernel"].shape == (width, 4 * width)


@pytest.mark.parametrize("architecture", ["ddpm", "adm"])
def test_patches_are_pixels_of_a_coarser_image(architecture):
    config, x = replace(TINY, architecture=architecture, attention=(4,)), jnp.asarray(normal(2, 8, 8, 3))
    folded = make_unet(replace(config, patch=2), ImageSpec(8, 8, 3, 256), 3, out_channels=5)
    coarse = make_unet(config, ImageSpec(4, 4, 12, 256), 3, out_channels=20)
    params = random_params(coarse, resampling.space_to_depth(x), T, LABEL, None)
    out = coarse.apply({"params": params}, resampling.space_to_depth(x), T, LABEL, None)
    again = folded.apply({"params": params}, x, T, LABEL, None)
    assert again.shape == (2, 8, 8, 5)
    for row in range(2):
        for column in range(2):  # channels are pixels of the square, in raster order
            own = out[..., 5 * (2 * row + column) :][..., :5]
            np.testing.assert_allclose(again[:, row::2, column::2], own, atol=1e-6)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"base": 6}, "base is 6: it must be divisible by groups = 4"),
        ({"base": -4}, "base is -4: it must be above zero"),
        ({"architecture": "ncsnpp"}, "architecture is 'ncsnpp': it embeds times of order 1"),
        ({"architecture": "ddpmpp", "attention": (5,)}, "attention is at height 5"),
        ({"architecture": "ddpmpp", "patch": 2}, "patch is 2: only the architectures ddpm and adm read it"),
        ({"patch": 3}, "images are 8x8: 2 U-Net levels of patches of 3 need sizes divisible by 6"),
        ({"patch": 2, "attention": (8,)}, r"attention is at height 8: the U-Net's levels have the heights \[4, 2\]"),
    ],
)
def test_sizes_that_no_network_can_have(changes, message):
    with pytest.raises(UserError, match=message):
        make_unet(replace(TINY, **changes), IMAGES, 0)
