"""4x4 convolutions of stride 2 with nine sixteenths of the multiplications (Winograd; Lavin & Gray 2015, 1509.09308).

Two by two pixels taken as one with four times the channels, a 4x4 convolution of stride 2 is a 2x2 convolution. Along
an axis, two neighbouring outputs of a filter (g0, g1) over (d0, d1, d2) need three products instead of four, F(2, 2):

    m0 = (d0 - d1) g0,  m1 = d1 (g0 + g1),  m2 = (d2 - d1) g1;      y0 = d0 g0 + d1 g1 = m0 + m1,  y1 = m1 + m2

Over both axes it takes nine instead of sixteen, each a matrix product over channels for all tiles of 2x2 outputs. The
factors are 1 and -1, so float32 loses almost no precision; bfloat16 is left to XLA. XLA's own convolutions are as fast
as matrix products on CPU, so the only possible gain is fewer products: with many channels it is 1.1 to 1.6 times as
fast.

The functions compute the same as those of strided.py, for outputs of even height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

MIN_CHANNELS = 16  # with fewer input or output channels, moving the data costs more than the products saved
MIN_CHANNELS_WEIGHT_GRADIENT = 128  # the same for the weight gradient, in input channels


def is_faster(dtype: DTypeLike, height: int, width: int, channels: int, features: int) -> bool:
    """Whether this form supports outputs (B, height, width, features) of a kernel (4, 4, channels, features), and is
    faster than XLA's convolution."""
    suits = height % 2 == width % 2 == 0 and dtype == jnp.float32
    return suits and min(channels, features) >= MIN_CHANNELS


def conv_down(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (B, 2h, 2w, C), kernel (4, 4, C, O), to (B, h, w, O)."""
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(batch, height // 2 + 1, 2, width // 2 + 1, 2, channels)
    wide = wide.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2 + 1, width // 2 + 1, 4 * channels)
    inputs = [_transform_inputs(part, 2) for part in _transform_inputs(wide, 1)]
    rows_transformed = [_transform_filters(*row) for row in _split_kernel(kernel)]
    filters = [_transform_filters(*column) for column in zip(*rows_transformed)]  # filters[column][row]
    products = [[_product(d, filters[q][p]) for q, d in enumerate(row)] for p, row in enumerate(inputs)]
    rows = [_transform_outputs(*row) for row in products]
    y = [_transform_outputs(*column) for column in zip(*rows)]  # y[column][row]
    joined = jnp.stack([jnp.stack([y[column][row] for column in (0, 1)], axis=3) for row in (0, 1)], axis=2)
    return joined.reshape(batch, height // 2, width // 2, features)


def _product(d: jax.Array, g: jax.Array) -> jax.Array:
    """(B, h, w, C) times (C, O), as one matrix product."""
    return (d.reshape(-1, d.shape[-1]) @ g).reshape(*d.shape[:3], g.shape[-1])


def conv_up(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """y (B, h, w, O), kernel (4, 4, C, O), to (B, 2h, 2w, C)."""
    batch, height, width, _ = y.shape
    shape = jax.ShapeDtypeStruct((batch, 2 * height, 2 * width, kernel.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: conv_down(x, kernel), shape)(y)[0]


def weight_gradient(x: jax.Array, y: jax.Array) -> jax.Array:
    """x (B, 2h, 2w, C), y (B, h, w, O), to (4, 4, C, O)."""
    batch, height, width, channels = x.shape
    features = y.shape[-1]
    # Channels first, by a transposition of its own: products that sum over the rows of both factors are slow.
    first = jax.lax.optimization_barrier(x.transpose(3, 0, 1, 2))
    first = jnp.pad(first, ((0, 0), (0, 0), (1, 1), (1, 1)))
    first = first.reshape(channels, batch, height // 2 + 1, 2, width // 2 + 1, 2).transpose(3, 5, 0, 1, 2, 4)
    first = first.reshape(4 * channels, batch, height // 2 + 1, width // 2 + 1)
    inputs = [_transform_inputs(part, 3) for part in _transform_inputs(first, 2)]
    outputs = [_transpose_outputs(part, 2) for part in _transpose_outputs(y, 1)]
    rows = []
    for input_row, output_row in zip(inputs, outputs):
        products = [d.reshape(4 * channels, -1) @ m.reshape(-1, features) for d, m in zip(input_row, output_row)]
        rows.append(_transpose_filters(*products))
    return _join_kernel([_transpose_filters(*column) for column in zip(*rows)], channels, features)


def _transform_inputs(d: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The factors (d0 - d1, d1, d2 - d1) of all tiles along an axis of 2 t + 1 entries."""
    count = d.shape[axis]
    d0, d1, d2 = (jax.lax.slice_in_dim(d, start, count - 2 + start, 2, axis) for start in range(3))
    return d0 - d1, d1, d2 - d1


def _transform_filters(g0: jax.Array, g1: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return g0, g0 + g1, g1


def _transform_outputs(m0: jax.Array, m1: jax.Array, m2: jax.Array) -> tuple[jax.Array, jax.Array]:
    return m0 + m1, m1 + m2


def _transpose_outputs(y: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The transpose of the linear map `_transform_outputs`, over all tiles along an axis."""
    y0, y1 = (jax.lax.slice_in_dim(y, start, None, 2, axis) for start in (0, 1))
    return y0, y0 + y1, y1


def _transpose_filters(m0: jax.Array, m1: jax.Array, m2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The transpose of the linear map `_transform_filters`."""
    return m0 + m1, m1 + m2


def _split_kernel(kernel: jax.Array) -> jax.Array:
    """(4, 4, C, O) to [row][column] of (4 C, O): the 2x2 convolution."""
    channels, features = kernel.shape[2:]
    parts = kernel.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return parts.reshape(2, 2, 4 * channels, features)


def _join_kernel(parts: Sequence[Sequence[jax.Array]], channels: int, features: int) -> jax.Array:
    """The inverse of `_split_kernel`, from [column][row]."""
    joined = jnp.stack([jnp.stack([parts[column][row] for column in (0, 1)]) for row in (0, 1)])
    joined = joined.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return joined.reshape(4, 4, channels, features)
