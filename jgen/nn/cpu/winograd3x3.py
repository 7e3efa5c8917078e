"""3x3 convolutions of stride 1 with half the multiplications (Winograd; Lavin & Gray 2015, arXiv 1509.09308).

Down a column, four neighbouring outputs y0 .. y3 of a filter (g0, g1, g2) over inputs d0 .. d5 need six products
instead of twelve, F(4, 3), with transformed inputs D, filters G and outputs:

    D = (4 d0 - 5 d2 + d4,  4 (-d1 - d2) + d3 + d4,  4 (d1 - d2) - d3 + d4,
         2 (d3 - d1) + d4 - d2,  2 (d1 - d3) + d4 - d2,  4 d1 - 5 d3 + d5)
    G = (g0 / 4,  -(g0 + g1 + g2) / 6,  (-g0 + g1 - g2) / 6,
         (g0 + 2 g1 + 4 g2) / 24,  (g0 - 2 g1 + 4 g2) / 24,  g2)
    m = D G,  y = (m0 + m1 + m2 + m3 + m4,  m1 - m2 + 2 (m3 - m4),  m1 + m2 + 4 (m3 + m4),  m1 - m2 + 8 (m3 - m4) + m5)

Along the rows the filter is unchanged, so that six 1x3 convolutions over a quarter of the height replace one of 3x3.
XLA's convolutions are as fast as matrix products on CPU, so the only possible gain is fewer products: the forward pass
is 1.2 to 1.5 times as fast, with an error of 1e-5 of the outputs' standard deviation. Transforming both axes would need
still fewer products, but four times as many kernels to compile, and more data to move.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

MIN_CHANNELS = 32  # with fewer input or output channels, moving the data costs more than the products saved
MIN_FEATURES_WEIGHT_GRADIENT = 64  # the same for the weight gradient, in output channels
MIN_PIXELS = 256  # height x width below which the gain does not justify compiling the kernels
_FILTER_TRANSFORM = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / 24
_NHWC = ("NHWC", "HWIO", "NHWC")
Residuals = tuple[jax.Array, jax.Array]


def is_faster(x: jax.Array, features: int) -> bool:
    """Whether `conv` supports x (B, H, W, C) and `features` output channels, and is faster than XLA's convolution."""
    _, height, width, channels = x.shape
    suits = height % 4 == 0 and height * width >= MIN_PIXELS and min(channels, features) >= MIN_CHANNELS
    return suits and x.dtype == jnp.float32


@jax.custom_vjp
def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution padded with zeros: x (B, H, W, C), H divisible by 4, kernel (3, 3, C, O), to (B, H, W, O)."""
    products = [_conv_1x3(d, g[None]) for d, g in zip(_transform_inputs(x), _transform_filters(kernel))]
    return _transform_outputs(products)


def _conv_1x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((0, 0), (1, 1)), dimension_numbers=_NHWC)


def _conv_3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_NHWC)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Residuals]:
    return conv(x, kernel), (x, kernel)


def _backward(residuals: Residuals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    return conv(g, flipped), _weight_gradient(x, g)


conv.defvjp(_forward, _backward)


def _weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """The gradient of the kernel (3, 3, C, O), from x (B, H, W, C) and the gradient g (B, H, W, O) of the output."""
    width, channels, features = x.shape[2], x.shape[3], g.shape[3]
    if features < MIN_FEATURES_WEIGHT_GRADIENT:
        shape = jax.ShapeDtypeStruct((3, 3, channels, features), x.dtype)
        return jax.linear_transpose(lambda kernel: _conv_3x3(x, kernel), shape)(g)[0]
    products = []
    for d, m in zip(_transform_inputs(x), _transpose_outputs(g)):
        # The three columns of the filter side by side are one wide product; barriers keep transformations out of it.
        padded = jnp.pad(m, ((0, 0), (0, 0), (1, 1), (0, 0)))
        wide = jnp.concatenate([padded[:, :, 2 - j : 2 - j + width] for j in range(3)], axis=-1)
        d, wide = jax.lax.optimization_barrier((d, wide))
        product = d.reshape(-1, channels).T @ wide.reshape(-1, 3 * features)
        products.append(product.reshape(channels, 3, features).transpose(1, 0, 2))
    return _transpose_filters(products)


def _transform_inputs(x: jax.Array) -> list[jax.Array]:
    """The six D, each (B, H / 4, W, C), of x (B, H, W, C)."""
    padded = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))))
    last = padded.shape[1] - 5
    d0, d1, d2, d3, d4, d5 = (jax.lax.slice_in_dim(padded, start, last + start, 4, 1) for start in range(6))
    a, b, c, e = d4 - 4 * d2, d3 - 4 * d1, d4 - d2, 2 * (d3 - d1)
    return [4 * d0 - 5 * d2 + d4, a + b, a - b, c + e, c - e, 4 * d1 - 5 * d3 + d5]


def _transform_filters(kernel: jax.Array) -> list[jax.Array]:
    """The six G, each (3, C, O), of a kernel (3, 3, C, O)."""
    return list(jnp.tensordot(_FILTER_TRANSFORM, kernel, 1))


def _transpose_filters(m: list[jax.Array]) -> jax.Array:
    """The transpose of the linear map `_transform_filters`."""
    a, b, c, e = (m[1] + m[2]) / 6, (m[2] - m[1]) / 6, (m[3] + m[4]) / 24, (m[3] - m[4]) / 12
    return jnp.stack([m[0] / 4 - a + c, b + e, 4 * c - a + m[5]], axis=0)


def _transform_outputs(m: list[jax.Array]) -> jax.Array:
    """The output (B, H, W, O) from the six products, each (B, H / 4, W, O)."""
    a, b, c, e = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    joined = jnp.stack([m[0] + a + c, b + 2 * e, a + 4 * c, b + 8 * e + m[5]], axis=2)
    batch, quarter, _, width, features = joined.shape
    return joined.reshape(batch, 4 * quarter, width, features)


def _transpose_outputs(g: jax.Array) -> list[jax.Array]:
    """The transpose of the linear map `_transform_outputs`."""
    g = jax.lax.optimization_barrier(g)
    y0, y1, y2, y3 = (jax.lax.slice_in_dim(g, start, None, 4, 1) for start in range(4))
    a, b, c, e = y0 + y2, y1 + y3, y0 + 4 * y2, 2 * y1 + 8 * y3
    return [y0, a + b, a - b, c + e, c - e, y3]
