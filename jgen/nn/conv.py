"""Convolutions and transposed convolutions, as functions and as layers, NHWC.

They are XLA's convolutions, with all derivatives, including `jax.jvp`. On CPU, outside of
`jgen.core.backend.plain_forms`, some use a formulation from `jgen.nn.cpu` that is faster there and supports gradients
(`jax.grad`, `jax.vjp`, of any order) but not `jax.jvp`. The argument `cpu` selects it:

    "auto"     by the sizes: Winograd's algorithm for wide 3x3 convolutions of stride 1; fast gradients of any order for
               4x4 convolutions of stride 2
    "scan"     for a convolution that is differentiated inside `lax.scan`, where XLA's gradient takes 30 times as long:
               odd sizes, stride 1
    "patches"  matrix products with patches of the input where that has few channels: stride 1
    "plain"    XLA's convolution, on CPU too
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jgen.core.backend import for_cpu
from jgen.nn.cpu import patches, scanned, strided, winograd3x3

CpuForm = Literal["auto", "scan", "patches", "plain"]
Padding = tuple[tuple[int, int], tuple[int, int]]
Formulation = Callable[[jax.Array, jax.Array], jax.Array]


def conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding | None = None, cpu: CpuForm = "auto"
) -> jax.Array:
    """Convolution of x (B, H, W, C) with a kernel (m, n, C, O), to (B, h, w, O).

    Args:
      padding: rows of zeros ((above, below), (left, right)); negative: rows that are left out. By default (m - 1) // 2
        and (n - 1) // 2 on both sides: an odd kernel keeps the size, and a 3x3 or 4x4 kernel with stride 2 halves an
        even one.
      cpu: the formulation on CPU, see above.
    Raises:
      ValueError: a convolution that the requested formulation does not support.
    """
    same = _default_padding(kernel)
    padding = same if padding is None else padding
    _check_form(kernel, stride, padding, cpu)
    if stride == 1 and kernel.shape[:2] == (1, 1) and padding == same:
        return patches.product(x, kernel[0, 0]) if cpu == "patches" and for_cpu() else x @ kernel[0, 0]
    formulation = _cpu_formulation(x, kernel, stride, padding, cpu) if for_cpu() else None
    if formulation is not None:
        return formulation(x, kernel)
    missing = [max(-high, 0) for _, high in padding]
    if any(missing):  # taps of zeros instead of a padding below zero, for which JAX 0.10 has wrong gradients on CPU
        kernel = jnp.pad(kernel, ((0, missing[0]), (0, missing[1]), (0, 0), (0, 0)))
        (above, below), (left, right) = padding
        padding = (above, max(below, 0)), (left, max(right, 0))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def grouped_conv(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """Grouped convolution of x (B, H, W, C), keeping the size: each group of outputs sees its own inputs only.

    On CPU it is a convolution for each group, since the gradient of XLA's grouped convolution takes 25 to 80 times as
    long there.

    Args:
      kernel: (m, n, C / groups, O), m and n odd, with the outputs of the first group first.
    """
    if for_cpu():
        parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1))
        return jnp.concatenate([conv(part, weights) for part, weights in parts], axis=-1)
    numbers = ("NHWC", "HWIO", "NHWC")
    padding = _default_padding(kernel)
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=numbers, feature_group_count=groups
    )


def conv_transpose(y: jax.Array, kernel: jax.Array, stride: int = 2) -> jax.Array:
    """Transpose of `conv` with the same kernel (m, n, C, O) and stride: y (B, h, w, O) to (B, H, W, C).

    H is (h - 1) stride + m - 2 ((m - 1) // 2), and W likewise: with 4x4 kernels and stride 2, it doubles the size.
    """
    if for_cpu() and stride == 2 and kernel.shape[:2] == (4, 4):
        return strided.conv_up(y, kernel)
    padding = [(size - 1 - low, size - 1 - low) for size, (low, _) in zip(kernel.shape[:2], _default_padding(kernel))]
    return jax.lax.conv_general_dilated(
        y,
        kernel[::-1, ::-1],
        (1, 1),
        padding,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


def _default_padding(kernel: jax.Array) -> Padding:
    rows, columns = ((size - 1) // 2 for size in kernel.shape[:2])
    return (rows, rows), (columns, columns)


def _check_form(kernel: jax.Array, stride: int, padding: Padding, cpu: CpuForm) -> None:
    rows, columns = kernel.shape[:2]
    keeps_size = stride == 1 and rows == columns and rows % 2 == 1 and padding == _default_padding(kernel)
    serves = {"auto": True, "scan": keeps_size, "patches": stride == 1, "plain": True}
    if not serves[cpu]:
        raise ValueError(f"cpu is {cpu!r}: it does not serve a {rows}x{columns} kernel, stride {stride}, {padding}")


def _cpu_formulation(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, cpu: CpuForm
) -> Formulation | None:
    """The function of (x, kernel) that is fastest on CPU; None for XLA's convolution."""
    size, (channels, features) = kernel.shape[:2], kernel.shape[2:]
    if cpu == "scan":
        return scanned.conv
    if cpu == "patches":
        return partial(patches.conv, padding=padding) if channels <= patches.MAX_CHANNELS else None
    if cpu == "auto" and padding == ((1, 1), (1, 1)):
        if size == (3, 3) and stride == 1 and winograd3x3.is_faster(x, features):
            return winograd3x3.conv
        if size == (4, 4) and stride == 2 and x.shape[1] % 2 == x.shape[2] % 2 == 0:
            return strided.conv_down
    return None


class Conv(nn.Module):
    """A convolution with a bias, by default 3x3 keeping the size; its parameters are those of `flax.linen.Conv`.

    The kernel is (kernel_size, kernel_size, C, features); padding and `cpu` are those of the function `conv`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Initializer = nn.linear.default_kernel_init
    dtype: DTypeLike = jnp.float32
    cpu: CpuForm = "auto"
    padding: Padding | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, h, w, features) of `dtype`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        y = conv(x.astype(self.dtype), kernel, self.stride, self.padding, self.cpu)
        return _add_bias(self, y) if self.use_bias else y


class ConvTranspose(nn.Module):
    """A transposed convolution with a bias, by default 4x4 of stride 2, which doubles the size.

    The kernel is (kernel_size, kernel_size, features, C), as that of the convolution that it transposes.
    """

    features: int
    kernel_size: int = 4
    stride: int = 2
    use_bias: bool = True
    kernel_init: Initializer = nn.linear.default_kernel_init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        """(B, h, w, C) to (B, H, W, features) of `dtype`."""
        shape = (self.kernel_size, self.kernel_size, self.features, y.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = conv_transpose(y.astype(self.dtype), kernel, self.stride)
        return _add_bias(self, x) if self.use_bias else x


def _add_bias(layer: Conv | ConvTranspose, y: jax.Array) -> jax.Array:
    bias = layer.param("bias", nn.initializers.zeros, (layer.features,), jnp.float32)
    return y + bias.astype(layer.dtype)[None, None, None, :]
