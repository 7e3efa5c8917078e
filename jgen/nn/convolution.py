"""A convolution whose gradient is as fast inside a scanned stack as outside of one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

LAYOUT = ("NHWC", "HWIO", "NHWC")


def _convolve(x: Any, kernel: Any, padding: Any = "SAME") -> Any:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)


@jax.custom_vjp
def convolution(x: Any, kernel: Any) -> Any:
    """Stride-1 convolution that keeps the size: x (B, H, W, C), kernel (k, k, C, F), k odd, to (B, H, W, F).

    Inside `lax.scan` XLA's CPU compiler leaves the weight gradient in a layout that it has no fast code for, and a step
    takes 30 times as long. Here the operands of the gradient are transposed explicitly, so that every convolution of
    the forward and the backward pass is a plain NHWC one. It has reverse-mode derivatives only.
    """
    return _convolve(x, kernel)


def _forward(x: Any, kernel: Any) -> tuple[Any, tuple[Any, Any]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(saved: tuple[Any, Any], g: Any) -> tuple[Any, Any]:
    x, kernel = saved
    dx = _convolve(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    # d kernel[i, j, c, f] = sum over b, y, x' of x[b, y + i - p, x' + j - p, c] g[b, y, x', f]: a convolution in which
    # the channels play the batch, the batch the channels, and g (H, W, B, F) the kernel.
    p = kernel.shape[0] // 2
    channels_first = x.transpose(3, 1, 2, 0)
    batch_third = g.transpose(1, 2, 0, 3)
    d_kernel = _convolve(channels_first, batch_third, ((p, p), (p, p)))
    return dx, d_kernel.transpose(1, 2, 0, 3)


convolution.defvjp(_forward, _backward)
