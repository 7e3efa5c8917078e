"""4x4 convolutions of stride 2 and their transposes, with gradients of any order that are fast on CPU.

With k (4, 4, C, O), x (B, 2h, 2w, C) and y (B, h, w, O), both are derivatives of one trilinear form

    T(x, k, y) = sum x[b, 2i + a - 1, 2j + d - 1, c] k[a, d, c, o] y[b, i, j, o],

so the gradient of each is again one of dT/dy (the convolution), dT/dx (its transpose) and dT/dk (the weight gradient).
They are written as three functions whose gradients call each other, to any order. Left to autodiff, the weight gradient
of a transposed convolution, and with it every gradient of a gradient penalty, is 30 times slower on CPU. Wide layers
use Winograd's algorithm: see winograd4x4.py.
"""

from __future__ import annotations

import jax

from jgen.nn.cpu import winograd4x4

_PADDING = ((1, 1), (1, 1))
Residuals = tuple[jax.Array, jax.Array]


@jax.custom_vjp
def conv_down(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """dT/dy, the convolution: x (B, 2h, 2w, C), kernel (4, 4, C, O), to (B, h, w, O)."""
    if winograd4x4.is_faster(x.dtype, x.shape[1] // 2, x.shape[2] // 2, *kernel.shape[2:]):
        return winograd4x4.conv_down(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), _PADDING, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def conv_up(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """dT/dx, the transposed convolution: y (B, h, w, O), kernel (4, 4, C, O), to (B, 2h, 2w, C)."""
    if winograd4x4.is_faster(y.dtype, *y.shape[1:3], *kernel.shape[2:]):
        return winograd4x4.conv_up(y, kernel)
    return jax.lax.conv_general_dilated(
        y,
        kernel[::-1, ::-1],
        (1, 1),
        ((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


@jax.custom_vjp
def weight_gradient(x: jax.Array, y: jax.Array) -> jax.Array:
    """dT/dk: x (B, 2h, 2w, C), y (B, h, w, O), to (4, 4, C, O)."""
    height, width = y.shape[1:3]
    wide = winograd4x4.is_faster(x.dtype, height, width, x.shape[-1], y.shape[-1])
    if wide and x.shape[-1] >= winograd4x4.MIN_CHANNELS_WEIGHT_GRADIENT:
        return winograd4x4.weight_gradient(x, y)
    return jax.lax.conv_general_dilated(
        x, y, (1, 1), _PADDING, rhs_dilation=(2, 2), dimension_numbers=("CHWN", "IHWO", "HWNC")
    )


def _down_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Residuals]:
    return conv_down(x, kernel), (x, kernel)


def _down_backward(residuals: Residuals, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return conv_up(y, kernel), weight_gradient(x, y)


def _up_forward(y: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Residuals]:
    return conv_up(y, kernel), (y, kernel)


def _up_backward(residuals: Residuals, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, kernel = residuals
    return conv_down(x, kernel), weight_gradient(x, y)


def _weight_forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, Residuals]:
    return weight_gradient(x, y), (x, y)


def _weight_backward(residuals: Residuals, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = residuals
    return conv_up(y, kernel), conv_down(x, kernel)


conv_down.defvjp(_down_forward, _down_backward)
conv_up.defvjp(_up_forward, _up_backward)
weight_gradient.defvjp(_weight_forward, _weight_backward)
