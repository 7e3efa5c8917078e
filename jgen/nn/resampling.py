"""Resizing feature maps: by a filter, by repetition, by averaging, or through channels."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def blur(x: jax.Array, taps: Sequence[int], padding: int, stride: int = 1) -> jax.Array:
    """Convolution of each channel of (B, H, W, C), along both axes, with `taps` divided by their sum.

    Args:
      padding: zeros on each side.
    """
    for axis in (1, 2):
        x = jnp.pad(x, [(padding, padding) if i == axis else (0, 0) for i in range(4)])
        last = (x.shape[axis] - len(taps)) // stride * stride
        parts = [jax.lax.slice_in_dim(x, k, k + last + 1, stride, axis) * tap for k, tap in enumerate(taps)]
        x = sum(parts[1:], parts[0]) / sum(taps)
    return x


def downsample(x: jax.Array, taps: Sequence[int]) -> jax.Array:
    """Halves the height and width of (B, H, W, C), both even, after the symmetric filter `taps` of even length."""
    return blur(x, taps, (len(taps) - 1) // 2, stride=2)


def upsample(x: jax.Array, taps: Sequence[int]) -> jax.Array:
    """Doubles the height and width of (B, H, W, C): four times the transpose of `downsample`."""
    zero, half = jnp.zeros((), x.dtype), len(taps) // 2
    edges = [(half, half, 1) if axis in (1, 2) else (0, 0, 0) for axis in range(4)]  # one zero between neighbours
    return 4 * blur(jax.lax.pad(x, zero, edges), taps, 0)


def nearest(x: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling of (B, H, W, C) by 2."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def space_to_depth(x: jax.Array, size: int = 2) -> jax.Array:
    """(B, H, W, C) to (B, H / size, W / size, size^2 C): squares of pixels, in raster order, become channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // size, width // size, size**2 * channels)


def depth_to_space(x: jax.Array, size: int = 2) -> jax.Array:
    """(B, H, W, size^2 C) to (B, size H, size W, C): the inverse of `space_to_depth`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, size, size, channels // size**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, size * height, size * width, channels // size**2)


def average_pool(x: jax.Array, height: int, width: int) -> jax.Array:
    """Means of equal rectangles, (B, H, W, C) to (B, height, width, C); height divides H and width W."""
    batch, rows, columns, channels = x.shape
    return jnp.mean(x.reshape(batch, height, rows // height, width, columns // width, channels), axis=(2, 4))
