"""4x4 convolutions of stride 2 and their transposes: halving and doubling the size of feature maps.

With k (4, 4, C, O), x (B, 2h, 2w, C) and y (B, h, w, O), both are halves of one trilinear form

    T(x, k, y) = sum x[b, 2i + a - 1, 2j + d - 1, c] k[a, d, c, o] y[b, i, j, o],

so the gradient of each is again one of dT/dy (the convolution), dT/dx (its transpose) and dT/dk (the weight gradient).
They are written as three functions whose gradients call each other, to any order. Left to autodiff, the weight gradient
of a transposed convolution, and with it every gradient of a gradient penalty, is 30 times slower on CPU. There, wide
layers use Winograd's algorithm: see winograd.py.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.nn import winograd

_PADDING = ((1, 1), (1, 1))
KERNEL_STD = 0.02  # as the DCGAN's (arXiv 1511.06434)


@jax.custom_vjp
def conv_down(x: Any, kernel: Any) -> Any:
    """dT/dy, the convolution: x (B, 2h, 2w, C), kernel (4, 4, C, O), to (B, h, w, O)."""
    if winograd.serves(x.dtype, x.shape[1] // 2, x.shape[2] // 2, *kernel.shape[2:]):
        return winograd.conv_down(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), _PADDING, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def conv_up(y: Any, kernel: Any) -> Any:
    """dT/dx, the transposed convolution: y (B, h, w, O), kernel (4, 4, C, O), to (B, 2h, 2w, C)."""
    if winograd.serves(y.dtype, *y.shape[1:3], *kernel.shape[2:]):
        return winograd.conv_up(y, kernel)
    return jax.lax.conv_general_dilated(
        y,
        kernel[::-1, ::-1],
        (1, 1),
        ((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


@jax.custom_vjp
def weight_gradient(x: Any, y: Any) -> Any:
    """dT/dk: x (B, 2h, 2w, C), y (B, h, w, O), to (4, 4, C, O)."""
    served = winograd.serves(x.dtype, *y.shape[1:3], x.shape[-1], y.shape[-1])
    if served and x.shape[-1] >= winograd.FEWEST_WEIGHT_GRADIENT:
        return winograd.weight_gradient(x, y)
    return jax.lax.conv_general_dilated(
        x, y, (1, 1), _PADDING, rhs_dilation=(2, 2), dimension_numbers=("CHWN", "IHWO", "HWNC")
    )


def _save(function: Any) -> Any:
    return lambda a, b: (function(a, b), (a, b))


conv_down.defvjp(_save(conv_down), lambda saved, y: (conv_up(y, saved[1]), weight_gradient(saved[0], y)))
conv_up.defvjp(_save(conv_up), lambda saved, x: (conv_down(x, saved[1]), weight_gradient(x, saved[0])))
weight_gradient.defvjp(_save(weight_gradient), lambda saved, k: (conv_up(saved[1], k), conv_down(saved[0], k)))


class _Conv(nn.Module):
    """What the two layers share: `features` outputs, kernels started as N(0, KERNEL_STD^2), a bias started at zero."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    def parameters(self, kernel_shape: tuple[int, ...], x: Any) -> tuple[Any, Any, Any]:
        kernel = self.param("kernel", nn.initializers.normal(KERNEL_STD), kernel_shape, jnp.float32)
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (self.features,), jnp.float32) if self.use_bias else jnp.zeros(self.features)
        return x.astype(self.dtype), kernel.astype(self.dtype), bias.astype(self.dtype)[None, None, None, :]


class ConvDown(_Conv):
    """(B, 2h, 2w, C) to (B, h, w, features); kernel (4, 4, C, features)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x, kernel, bias = self.parameters((4, 4, x.shape[-1], self.features), x)
        return conv_down(x, kernel) + bias


class ConvUp(_Conv):
    """(B, h, w, C) to (B, 2h, 2w, features); kernel (4, 4, features, C)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x, kernel, bias = self.parameters((4, 4, self.features, x.shape[-1]), x)
        return conv_up(x, kernel) + bias
