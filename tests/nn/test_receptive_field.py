"""What a pixel's logits depend on, by automatic differentiation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import random_params

from jgen.nn.code_pixelcnn import CodePixelCNN
from jgen.nn.gated_pixelcnn import GatedPixelCNN, PixelEmbedding
from jgen.nn.local_pixelcnn import LocalPixelCNN
from jgen.nn.pixelcnn import PixelCNN
from jgen.nn.pixelrnn import PixelRNN

H, W, LEVELS = 5, 6, 3


def dependence(network, channels, context=None):
    """Whether the logits of (i, j, c) depend on the value of (k, l, d): bool (H, W, C, H, W, C).

    context: (1, H, W, F), features that the network is given at every pixel; None: it is given none.
    """
    shape = (H, W, channels)
    jacobian = jax.jit(jax.jacobian(lambda x, params: network.apply({"params": params}, x[None], context)[0]))
    depends = np.zeros((*shape, *shape), bool)
    for seed in range(4):  # a ReLU may hide a path in one draw
        x = np.random.default_rng(seed).uniform(0, LEVELS - 1, shape).astype(np.float32)
        depends |= np.any(np.asarray(jacobian(x, random_params(network, shape, context, seed))) != 0, axis=3)
    return depends


def wanted(channels, sees):
    """The same from `sees(rows up, columns to the left, channels before)`, for what comes before in raster order."""
    i, j, c, k, m, d = np.indices((H, W, channels, H, W, channels))

    def position(row, column, channel):
        return (row * W + column) * channels + channel

    before = position(k, m, d) < position(i, j, c)
    return before & sees(i - k, j - m)


@pytest.mark.parametrize("first,size,blocks,channels", [(7, 3, 3, 1), (7, 3, 3, 3), (3, 3, 1, 3), (3, 5, 1, 1)])
def test_gated_pixelcnn_sees_all_before_within_its_reach_and_nothing_else(first, size, blocks, channels):
    network = GatedPixelCNN(LEVELS, channels, 12, blocks, 12, first, size)
    reach = first // 2 + blocks * (size // 2)
    depends = dependence(network, channels)
    np.testing.assert_array_equal(depends, wanted(channels, lambda up, left: (up <= reach) & (abs(left) <= reach)))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixelcnn_is_causal_and_has_its_blind_spot(channels):
    network = PixelCNN(LEVELS, channels, 24, 4, 24, first_size=3)
    depends = dependence(network, channels)
    # To the right it sees no more columns than rows up: each layer opens one more of both.
    everything = wanted(channels, lambda up, left: up >= 0)
    seen = wanted(channels, lambda up, left: -left <= up)
    np.testing.assert_array_equal(depends, seen)
    blind = everything & ~depends
    assert blind[1, 2, 0, 0, 4, 0] and not blind[1, 2, 0, 0, 3, 0]


@pytest.mark.parametrize("size,channels", [(3, 1), (3, 3), (5, 1)])
def test_a_row_lstm_sees_a_triangle_above_the_pixel(size, channels):
    """As many rows up as there are; each opens n // 2 columns, and each layer as many to the left of all."""
    reach, blocks = size // 2, 2
    network = PixelRNN(LEVELS, channels, "row", 6, blocks, 24, first_size=3, size=size)
    depends = dependence(network, channels)
    # The last step, of the first layer's 3 x 3 convolution, goes to the left, or up a row and a column to the right.
    right = {3: lambda up: up, 5: lambda up: 2 * up - 1}[size]
    seen = wanted(channels, lambda up, left: (left <= (up + blocks) * reach + 1) & ((up == 0) | (-left <= right(up))))
    np.testing.assert_array_equal(depends, seen)
    assert not np.array_equal(depends, wanted(channels, lambda up, left: up >= 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_diagonal_bilstm_sees_all_before_the_pixel_with_one_layer(channels):
    """The last pixel of the row above, too, which is out of the first layer's reach here."""
    network = PixelRNN(LEVELS, channels, "diagonal", 6, 1, 24, first_size=3)
    np.testing.assert_array_equal(dependence(network, channels), wanted(channels, lambda up, left: up >= 0))


@pytest.mark.parametrize("window,channels", [(1, 1), (2, 1), (1, 3), (7, 1)])
def test_a_local_pixelcnn_sees_its_window_and_the_context_at_the_pixel(window, channels):
    network = LocalPixelCNN(LEVELS, channels, 24, 2, window)
    context = jnp.asarray(np.random.default_rng(9).standard_normal((1, H, W, 2)), jnp.float32)
    depends = dependence(network, channels, context)
    np.testing.assert_array_equal(depends, wanted(channels, lambda up, left: (up <= window) & (abs(left) <= window)))

    x, params = jnp.ones((1, H, W, channels)), random_params(network, (H, W, channels), context)
    jacobian = jax.jit(jax.jacobian(lambda context: network.apply({"params": params}, x, context)[0]))(context)
    at = np.any(np.asarray(jacobian) != 0, axis=(3, 4, 7))  # (H, W, C, H, W): of the context at (k, l)
    here = np.eye(H * W, dtype=bool).reshape(H, W, 1, H, W)
    np.testing.assert_array_equal(at, np.broadcast_to(here, at.shape))


def test_codes_with_learned_vectors_are_causal_too():
    """Without derivatives: a change of one code changes logits of later positions only."""
    network = GatedPixelCNN(50, 1, 8, 2, 8, embedding=4)
    x = np.random.default_rng(0).integers(0, 50, (1, H, W, 1))
    params = random_params(network, x.shape[1:])
    apply = jax.jit(lambda x: network.apply({"params": params}, x))
    logits = np.asarray(apply(x))
    for position in range(H * W):
        other = x.copy().reshape(-1)
        other[position] = (other[position] + 7) % 50
        changed = np.any(np.asarray(apply(other.reshape(x.shape))) != logits, axis=(0, 3, 4)).reshape(-1)
        assert not changed[: position + 1].any()
        assert position == H * W - 1 or changed[position + 1]


def test_dropout_belongs_to_an_example():
    network = GatedPixelCNN(4, 1, 8, 2, 8, dropout_rate=0.5)
    x = jnp.zeros((3, 4, 4, 1), jnp.int32)
    params = random_params(network, x.shape[1:])
    keys = jax.random.split(jax.random.key(1), 3)
    run = jax.jit(lambda x, keys: network.apply({"params": params}, x, None, keys))
    dropped = np.asarray(run(x, keys))
    np.testing.assert_allclose(run(x[1:], keys[1:]), dropped[1:], atol=1e-5)
    assert np.any(dropped[0] != dropped[1])
    plain = np.asarray(network.apply({"params": params}, x))
    np.testing.assert_allclose(plain[0], plain[1], atol=1e-6)


@pytest.mark.parametrize("attention", [0, 2])
def test_attention_sees_every_code_before_and_none_after(attention):
    """By derivatives in the codes' vectors; without attention, those within the reach of the convolutions alone."""
    height, width = 3, 4
    network = CodePixelCNN(LEVELS, (height, width), 8, 1, 8, 3, embedding=4, attention=attention, heads=2)
    codes = np.zeros((1, height, width, 1), np.int32)

    def logits(vectors, params):
        def replaced(apply, args, kwargs, context):
            return vectors[None] if isinstance(context.module, PixelEmbedding) else apply(*args, **kwargs)

        with nn.intercept_methods(replaced):
            return network.apply({"params": params}, codes, {})[0, :, :, 0]

    vectors = np.random.default_rng(0).standard_normal((height, width, 4)).astype(np.float32)
    jacobian = jax.jit(jax.jacobian(logits))(vectors, random_params(network, (height, width, 1), {}))
    depends = np.any(np.asarray(jacobian) != 0, axis=(2, 5)).reshape(height * width, -1)
    i, j = np.indices(depends.shape)
    near = (i // width - j // width <= 2) & (abs(i % width - j % width) <= 2)
    np.testing.assert_array_equal(depends, (j < i) & (near | (attention > 0)))


def test_dropout_of_a_local_pixelcnn_belongs_to_an_example_and_reaches_context_and_blocks():
    x, context, keys = (
        jnp.zeros((3, H, W, 1), jnp.int32),
        jnp.ones((3, H, W, 4)),
        jax.random.split(jax.random.key(1), 3),
    )
    for blocks in (0, 2):
        network = LocalPixelCNN(LEVELS, 1, 8, blocks, 1, dropout_rate=0.5)
        params = random_params(network, x.shape[1:], context[:1])
        run = jax.jit(lambda x, context, keys, n=network, p=params: n.apply({"params": p}, x, context, keys))
        dropped = np.asarray(run(x, context, keys))
        np.testing.assert_allclose(run(x[1:], context[1:], keys[1:]), dropped[1:], atol=1e-5)
        assert np.any(dropped[0] != dropped[1])
    without = np.asarray(network.apply({"params": params}, x, context))
    np.testing.assert_allclose(without[0], without[1], atol=1e-6)
