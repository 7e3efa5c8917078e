import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.nn.convolution import convolution


def plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("channels,features", [(2, 4), (4, 2), (3, 4)])
def test_value_and_gradients_are_those_of_a_convolution(channels, features, size):
    draw = np.random.default_rng(size).standard_normal
    with jax.enable_x64(True):
        x, kernel, g = draw((3, 6, 5, channels)), draw((size, size, channels, features)), draw((3, 6, 5, features))
        for wanted, found in zip(jax.vjp(plain, x, kernel)[1](g), jax.vjp(convolution, x, kernel)[1](g)):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
        np.testing.assert_allclose(convolution(x, kernel), plain(x, kernel), rtol=0, atol=1e-12)


def seconds(scanned: bool, convolve=convolution) -> float:
    """The gradient of four convolutions, in a scan or one after another: the fastest of several runs."""
    draw = np.random.default_rng(0).standard_normal
    x, kernels = draw((16, 14, 14, 32), np.float32), 0.05 * draw((4, 3, 3, 32, 32), np.float32)

    def loss(kernels, x):
        if scanned:
            x, _ = jax.lax.scan(lambda x, kernel: (jax.nn.relu(convolve(x, kernel)), None), x, kernels)
        else:
            for kernel in kernels:
                x = jax.nn.relu(convolve(x, kernel))
        return jnp.sum(x**2)

    gradient = jax.jit(jax.grad(loss)).lower(kernels, x).compile()
    found = []
    for _ in range(8):
        start = time.perf_counter()
        jax.block_until_ready(gradient(kernels, x))
        found.append(time.perf_counter() - start)
    return min(found[1:])


def test_the_gradient_in_a_scan_is_as_fast_as_outside():
    """With XLA's own gradient it takes some 30 times as long on CPU."""
    assert min(seconds(True) / seconds(False) for _ in range(2)) < 3
