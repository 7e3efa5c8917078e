"""A convolution whose gradient is as fast inside a scanned stack as outside of one, and fast on CPU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jgen.core.backend import for_cpu

LAYOUT = ("NHWC", "HWIO", "NHWC")
# On CPU, where one side has fewer channels than the other by this factor, products with that side's patches are faster
# than convolutions: 8192 positions, 3x3, 128 to 12 channels, two cores: weight gradient 1.9 ms against 6.3.
THIN = 2


def _convolve(x: Any, kernel: Any, padding: Any = "SAME") -> Any:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)


def _patches(x: Any, size: int) -> Any:
    """(B, H, W, C) to (B H W, size^2 C): what each position sees, rows before columns before channels."""
    height, width = x.shape[1:3]
    p = size // 2
    x_padded = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    shifted = [x_padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, size * size * x.shape[-1])


def _gather(seen: Any, like: Any, size: int) -> Any:
    """The transpose of `_patches`: (B H W, size^2 C), what each position gives to those around it, to (B, H, W, C)."""
    parts = jnp.split(seen.reshape(*like.shape[:3], -1), size * size, axis=-1)
    total, p = jnp.zeros((), seen.dtype), size // 2
    for number, part in enumerate(parts):
        i, j = number // size - p, number % size - p
        total = total + jax.lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), (i, -i, 0), (j, -j, 0), (0, 0, 0)))
    return total


def _spread(x: Any, kernel: Any) -> Any:
    """The convolution as one product of every position with the whole kernel."""
    size, _, channels, _ = kernel.shape
    turned = jnp.flip(kernel, (0, 1)).transpose(2, 0, 1, 3).reshape(channels, -1)
    return _gather(x.reshape(-1, channels) @ turned, x, size)


def _thin(channels: int, features: int, size: int) -> str:
    """The side whose patches are worth making: "in", "out" or "none"."""
    if size == 1 or not for_cpu():
        return "none"
    return "in" if THIN * channels <= features else "out" if THIN * features <= channels else "none"


def _backwards(kernel: Any) -> Any:
    """The kernel (k, k, F, C) with which the gradient of y is convolved to that of x."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


@jax.custom_vjp
def convolution(x: Any, kernel: Any) -> Any:
    """Stride-1 convolution that keeps the size: x (B, H, W, C), kernel (k, k, C, F), k odd, to (B, H, W, F).

    Inside `lax.scan` XLA's CPU compiler leaves the weight gradient in a layout that it has no fast code for, and a step
    takes 30 times as long. Here the operands of the gradient are transposed explicitly, so that every convolution of
    the forward and the backward pass is a plain NHWC one. It has reverse-mode derivatives only.
    """
    size, _, channels, features = kernel.shape
    thin = _thin(channels, features, size)
    if thin == "in":
        return (_patches(x, size) @ kernel.reshape(-1, features)).reshape(*x.shape[:3], features)
    return _spread(x, kernel) if thin == "out" else _convolve(x, kernel)


def _forward(x: Any, kernel: Any) -> tuple[Any, tuple[Any, Any]]:
    return convolution(x, kernel), (x, kernel)


def _backward(saved: tuple[Any, Any], g: Any) -> tuple[Any, Any]:
    x, kernel = saved
    size, _, channels, features = kernel.shape
    thin = _thin(channels, features, size)
    if thin == "in":
        d_kernel = (_patches(x, size).T @ g.reshape(-1, features)).reshape(kernel.shape)
        return _spread(g, _backwards(kernel)), d_kernel
    if thin == "out":
        # Both as products with the patches of g: row and column of the kernel run backwards.
        seen = _patches(g, size)
        d_backwards = (seen.T @ x.reshape(-1, channels)).reshape(size, size, features, channels)
        dx = (seen @ _backwards(kernel).reshape(-1, channels)).reshape(x.shape)
        return dx, _backwards(d_backwards)
    # d kernel[i, j, c, f] = sum over b, y, x' of x[b, y + i - p, x' + j - p, c] g[b, y, x', f]: a convolution in which
    # the channels play the batch, the batch the channels, and g (H, W, B, F) the kernel.
    p = size // 2
    channels_first, batch_third = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
    d_kernel = _convolve(channels_first, batch_third, ((p, p), (p, p)))
    return _convolve(g, _backwards(kernel)), d_kernel.transpose(1, 2, 0, 3)


convolution.defvjp(_forward, _backward)
