"""A convolution of stride 1 whose gradient inside `lax.scan` is as fast on CPU as outside of it.

Inside `lax.scan` XLA's CPU compiler leaves the weight gradient in a layout that it has no fast code for, and a step
takes 30 times as long. Here the operands of the gradient are transposed explicitly, so that every convolution of the
forward and the backward pass is a plain NHWC one. Where the input or the output has few channels, matrix products with
its patches are faster still.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jgen.nn.cpu.patches import extract_patches

# Where one side has fewer channels than the other by this factor, products with that side's patches are faster than
# convolutions: 8192 positions, 3x3, 128 to 12 channels, two cores: weight gradient 1.9 ms against 6.3.
CHANNEL_RATIO = 2
_NHWC = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution that keeps the size: x (B, H, W, C), kernel (k, k, C, O), k odd, to (B, H, W, O)."""
    size, _, channels, features = kernel.shape
    side = _patch_side(channels, features)
    if side == "input":
        return (_patches(x, size) @ kernel.reshape(-1, features)).reshape(*x.shape[:3], features)
    return _conv_by_output_patches(x, kernel) if side == "output" else _convolve(x, kernel, size // 2)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv(x, kernel), (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    size, _, channels, features = kernel.shape
    side = _patch_side(channels, features)
    if side == "input":
        d_kernel = (_patches(x, size).T @ g.reshape(-1, features)).reshape(kernel.shape)
        return _conv_by_output_patches(g, _flip(kernel)), d_kernel
    if side == "output":
        # Both are products with the patches of g: rows and columns of the kernel are in reverse order.
        patches = _patches(g, size)
        d_flipped = (patches.T @ x.reshape(-1, channels)).reshape(size, size, features, channels)
        dx = (patches @ _flip(kernel).reshape(-1, channels)).reshape(x.shape)
        return dx, _flip(d_flipped)
    # d kernel[i, j, c, o] = sum over b, y, x' of x[b, y + i - p, x' + j - p, c] g[b, y, x', o]: a convolution with the
    # channels as its batch, the batch as its channels, and g (H, W, B, O) as its kernel.
    d_kernel = _convolve(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), size // 2)
    return _convolve(g, _flip(kernel), size // 2), d_kernel.transpose(1, 2, 0, 3)


conv.defvjp(_forward, _backward)


def _patch_side(channels: int, features: int) -> str:
    """The side for which products with patches are faster: "input", "output" or "none"."""
    if CHANNEL_RATIO * channels <= features:
        return "input"
    return "output" if CHANNEL_RATIO * features <= channels else "none"


def _convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((padding, padding),) * 2, dimension_numbers=_NHWC)


def _patches(x: jax.Array, size: int) -> jax.Array:
    """(B, H, W, C) to (B H W, size^2 C): the pixels around each position, rows before columns before channels."""
    p = size // 2
    return extract_patches(x, size, size, ((p, p), (p, p))).reshape(-1, size * size * x.shape[-1])


def _sum_patches(patches: jax.Array, shape: tuple[int, ...], size: int) -> jax.Array:
    """The transpose of the linear map `_patches`: (B H W, size^2 C) summed into (B, H, W, C), `shape` with any C."""
    parts = jnp.split(patches.reshape(*shape[:3], -1), size * size, axis=-1)
    zero, p = jnp.zeros((), patches.dtype), size // 2
    total = zero
    for number, part in enumerate(parts):
        i, j = number // size - p, number % size - p
        total = total + jax.lax.pad(part, zero, ((0, 0, 0), (i, -i, 0), (j, -j, 0), (0, 0, 0)))
    return total


def _conv_by_output_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution as one product of every position with the whole kernel."""
    size, _, channels, _ = kernel.shape
    flipped = jnp.flip(kernel, (0, 1)).transpose(2, 0, 1, 3).reshape(channels, -1)
    return _sum_patches(x.reshape(-1, channels) @ flipped, x.shape, size)


def _flip(kernel: jax.Array) -> jax.Array:
    """The kernel (k, k, O, C) with which the gradient of the output is convolved to that of the input."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
