"""The convolution for `lax.scan`: values and gradients, and the layouts of its gradient's compiled convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import PLAIN_LAYOUT, conv_layouts

from jgen.nn import flow
from jgen.nn.conv import conv
from jgen.nn.cpu import scanned


def plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("channels,features", [(2, 4), (4, 2), (3, 4)])
def test_values_and_gradients_are_those_of_a_convolution(channels, features, size):
    draw = np.random.default_rng(size).standard_normal
    with jax.enable_x64(True):
        x, kernel, g = draw((3, 6, 5, channels)), draw((size, size, channels, features)), draw((3, 6, 5, features))
        for exact, ours in zip(jax.vjp(plain, x, kernel)[1](g), jax.vjp(scanned.conv, x, kernel)[1](g)):
            np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-12)
        np.testing.assert_allclose(scanned.conv(x, kernel), plain(x, kernel), rtol=0, atol=1e-12)


def scanned_gradient(cpu):
    def loss(kernels, x):
        def layer(x, kernel):
            return jax.nn.relu(conv(x, kernel, cpu=cpu)), None

        return jnp.sum(jax.lax.scan(layer, x, kernels)[0] ** 2)

    return jax.grad(loss, (0, 1))


def test_the_gradient_in_a_scan_has_plain_convolutions_only():
    """XLA's own gradient has others there, which take some 30 times as long on CPU: benchmarks/convolutions.py."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 3, 3, 8, 8), (2, 6, 6, 8))]
    layouts = conv_layouts(scanned_gradient("scan"), *shapes)
    assert layouts == [PLAIN_LAYOUT] * 3  # the output, and the gradients of input and kernel
    assert set(conv_layouts(scanned_gradient("plain"), *shapes)) > {PLAIN_LAYOUT}


@pytest.mark.parametrize("channels,features,size", [(8, 8, 3), (8, 4, 3), (4, 8, 3), (8, 8, 1)])
def test_a_chain_of_flow_layers_has_no_slow_convolution(channels, features, size):
    layers = flow.ScaledConv(features, size), flow.ZeroConv(channels, size)

    def loss(params, x):
        def step(params, x):
            h = layers[0].apply({"params": params[0]}, x)
            return x + layers[1].apply({"params": params[1]}, h), jnp.zeros(x.shape[:1])

        return jnp.sum(flow.apply_chain(step, params, x)[0] ** 2)

    x = jnp.zeros((2, 6, 6, channels))
    shapes = [jax.eval_shape(layers[0].init, jax.random.key(0), x)["params"]]
    shapes.append(jax.eval_shape(layers[1].init, jax.random.key(0), jnp.zeros((2, 6, 6, features)))["params"])
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), shapes)
    layouts = conv_layouts(jax.grad(loss), params, x)
    assert set(layouts) == ({PLAIN_LAYOUT} if channels == features and size == 3 else set())
