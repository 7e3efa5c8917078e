"""Convolutions as matrix products with patches of the input, for inputs of few channels.

On CPU the weight gradient of a convolution of an image's few channels takes five times as long as that of one product.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MAX_CHANNELS = 4  # input channels up to which products with patches are faster than convolutions
Padding = tuple[tuple[int, int], tuple[int, int]]


def conv(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolution of stride 1: x (B, H, W, C), kernel (m, n, C, O)."""
    rows, columns, channels, features = kernel.shape
    return product(extract_patches(x, rows, columns, padding), kernel.reshape(rows * columns * channels, features))


def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """(..., C) with (C, O) to (..., O), as a product of two matrices.

    Its weight gradient takes two to four times as long over several leading axes as over one.
    """
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def extract_patches(x: jax.Array, rows: int, columns: int, padding: Padding) -> jax.Array:
    """The pixels under each position of a rows x columns kernel: (B, H, W, C) to (B, h, w, rows columns C)."""
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) for low, high in ((0, 0), *padding, (0, 0))])
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    taps = [x[:, a : a + height, b : b + width] for a in range(rows) for b in range(columns)]
    return jnp.concatenate(taps, axis=-1)
