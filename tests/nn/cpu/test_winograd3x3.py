"""3x3 convolutions with fewer products: outputs and gradients against the sum over the nine taps, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.nn.cpu import winograd3x3


def arrays(batch, height, width, channels, features):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, height, width, channels))
    kernel = rng.standard_normal((3, 3, channels, features)) / np.sqrt(9 * channels)
    return x, kernel, rng.standard_normal((batch, height, width, features))


def by_taps(x, kernel):
    padded, (_, height, width, _) = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), x.shape
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


SERVED = [(2, 16, 16, 32, 64), (3, 12, 23, 40, 32)]
# Too small to be worth it, no multiple of four rows, few channels on either side.
NOT_SERVED = [(2, 8, 8, 32, 32), (2, 18, 16, 32, 32), (2, 16, 16, 3, 32), (2, 16, 16, 32, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("size", SERVED)
def test_outputs_and_gradients_are_those_of_the_convolution(size):
    x, kernel, g = arrays(*size)
    y, pull = jax.vjp(winograd3x3.conv, jnp.float32(x), jnp.float32(kernel))
    ours = (y, *pull(jnp.float32(g)))
    with jax.enable_x64(True):
        y, pull = jax.vjp(by_taps, jnp.asarray(x), jnp.asarray(kernel))
        exact = (y, *pull(jnp.asarray(g)))
        for a, b in zip(ours, exact):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, atol=3e-5 * float(np.std(b)))


def test_which_sizes_are_served():
    def served(size, dtype=jnp.float32):
        return winograd3x3.is_faster(jax.ShapeDtypeStruct(size[:4], dtype), size[4])

    assert all(served(size) for size in SERVED) and not any(served(size) for size in NOT_SERVED)
    assert not served(SERVED[0], jnp.bfloat16)
