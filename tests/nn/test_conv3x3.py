"""3x3 convolutions with fewer products: results and gradients of the sum over the nine taps, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.nn import conv3x3
from jgen.nn.conv3x3 import Conv3x3


def arrays(batch, height, width, channels, features):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, height, width, channels))
    kernel = rng.standard_normal((3, 3, channels, features)) / np.sqrt(9 * channels)
    return x, kernel, rng.standard_normal((batch, height, width, features))


def by_taps(x, kernel):
    padded, (_, height, width, _) = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), x.shape
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


# The third is too small to be worth it, the fourth has no rows of four: both are XLA's convolution.
SIZES = [(2, 16, 16, 32, 64), (3, 12, 23, 40, 32), (2, 8, 8, 32, 32), (2, 18, 16, 32, 32), (2, 16, 16, 3, 32)]


@pytest.mark.parametrize("size", SIZES)
def test_results_and_gradients_are_those_of_the_convolution(size):
    x, kernel, g = arrays(*size)
    y, pull = jax.vjp(conv3x3.conv3x3, jnp.float32(x), jnp.float32(kernel))
    found = (y, *pull(jnp.float32(g)))
    with jax.enable_x64(True):
        y, pull = jax.vjp(by_taps, jnp.asarray(x), jnp.asarray(kernel))
        expected = (y, *pull(jnp.asarray(g)))
        for ours, exact in zip(found, expected):
            assert ours.shape == exact.shape
            np.testing.assert_allclose(ours, exact, atol=3e-5 * float(np.std(exact)))


def test_which_sizes_are_served():
    assert [conv3x3._serves(jnp.zeros(size[:4]), size[4]) for size in SIZES] == [True, True, False, False, False]
    assert not conv3x3._serves(jnp.zeros(SIZES[0][:4], jnp.bfloat16), 64)


def test_the_layer_has_the_parameters_and_results_of_flax():
    import flax.linen as nn

    x = jnp.float32(arrays(*SIZES[0])[0])
    ours, theirs = Conv3x3(64), nn.Conv(64, (3, 3), padding=1)
    params = ours.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x))
    params["params"]["bias"] += jnp.arange(64.0)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-4)
    zeros = Conv3x3(64, zero_init=True, dtype=jnp.bfloat16)
    y = zeros.apply(zeros.init(jax.random.key(0), x), x)
    assert y.dtype == jnp.bfloat16 and not y.any()
