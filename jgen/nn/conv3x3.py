"""3x3 convolutions of stride 1, on CPU with half the multiplications (Winograd; Lavin & Gray 2015, arXiv 1509.09308).

Along a row, four neighbouring results of a filter (g0, g1, g2) over d0 .. d5 need six products instead of twelve,
F(4, 3), with transformed inputs, filters and results:

    D = (4 d0 - 5 d2 + d4,  4 (-d1 - d2) + d3 + d4,  4 (d1 - d2) - d3 + d4,
         2 (d3 - d1) + d4 - d2,  2 (d1 - d3) + d4 - d2,  4 d1 - 5 d3 + d5)
    G = (g0 / 4,  -(g0 + g1 + g2) / 6,  (-g0 + g1 - g2) / 6,
         (g0 + 2 g1 + 4 g2) / 24,  (g0 - 2 g1 + 4 g2) / 24,  g2)
    m = D G,  y = (m0 + m1 + m2 + m3 + m4,  m1 - m2 + 2 (m3 - m4),  m1 + m2 + 4 (m3 + m4),  m1 - m2 + 8 (m3 - m4) + m5)

Down the columns the filter stays as it is, so that six 3x1 convolutions over a quarter of the width take the place of
one of 3x3. XLA's convolutions reach the speed of matrix products on CPU, so fewer products are what is left to gain:
forward it is 1.2 to 1.5 times as fast, and correct to 1e-5 of the results' spread. Over both axes fewer products
still are needed, but four times as many kernels would have to be compiled, and their data moved.

Elsewhere (GPU, TPU), and for sizes that it does not suit, this is XLA's convolution.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jgen.core.backend import for_cpu

FEWEST = 32  # channels below which what is saved in products is lost in moving data
FEWEST_WEIGHT_GRADIENT = 64  # results' channels, the same for the weight gradient
LEAST_AREA = 256  # pixels of an image below which the gain is not worth the kernels to compile
_OF_FILTER = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / 24
_NHWC = ("NHWC", "HWIO", "NHWC")


def _direct(x: Any, kernel: Any) -> Any:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_NHWC)


def _serves(x: Any, features: int) -> bool:
    _, height, width, channels = x.shape
    suits = height % 4 == 0 and height * width >= LEAST_AREA and min(channels, features) >= FEWEST
    return suits and x.dtype == jnp.float32 and for_cpu()


@jax.custom_vjp
def conv3x3(x: Any, kernel: Any) -> Any:
    """x (B, H, W, C), kernel (3, 3, C, O), to (B, H, W, O); padded by zeros."""
    if not _serves(x, kernel.shape[3]):
        return _direct(x, kernel)
    convolve = lambda d, g: jax.lax.conv_general_dilated(d, g, (1, 1), ((0, 0), (1, 1)), dimension_numbers=_NHWC)
    return _results([convolve(d, g[None]) for d, g in zip(_inputs(x), _filters(kernel))])


def _forward(x: Any, kernel: Any) -> tuple[Any, Any]:
    return conv3x3(x, kernel), (x, kernel)


def _backward(saved: Any, g: Any) -> tuple[Any, Any]:
    x, kernel = saved
    if not _serves(x, kernel.shape[3]):
        return jax.vjp(_direct, x, kernel)[1](g)
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    return conv3x3(g, turned), _weight_gradient(x, g)


conv3x3.defvjp(_forward, _backward)


def _weight_gradient(x: Any, g: Any) -> Any:
    """x (B, H, W, C), g (B, H, W, O), to (3, 3, C, O)."""
    width, channels, features = x.shape[2], x.shape[3], g.shape[3]
    if features < FEWEST_WEIGHT_GRADIENT:
        shape = jax.ShapeDtypeStruct((3, 3, channels, features), x.dtype)
        return jax.linear_transpose(lambda kernel: _direct(x, kernel), shape)(g)[0]
    products = []
    for d, m in zip(_inputs(x), _of_results(g)):
        # The three columns of the filter side by side are one wide product; barriers keep transformations out of it.
        padded = jnp.pad(m, ((0, 0), (0, 0), (1, 1), (0, 0)))
        wide = jnp.concatenate([padded[:, :, 2 - j : 2 - j + width] for j in range(3)], axis=-1)
        d, wide = jax.lax.optimization_barrier((d, wide))
        product = d.reshape(-1, channels).T @ wide.reshape(-1, 3 * features)
        products.append(product.reshape(channels, 3, features).transpose(1, 0, 2))
    return _of_filters(products)


def _inputs(x: Any) -> list[Any]:
    """The six D, each (B, H / 4, W, C), of x (B, H, W, C)."""
    padded = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))))
    last = padded.shape[1] - 5
    d0, d1, d2, d3, d4, d5 = (jax.lax.slice_in_dim(padded, start, last + start, 4, 1) for start in range(6))
    a, b, c, e = d4 - 4 * d2, d3 - 4 * d1, d4 - d2, 2 * (d3 - d1)
    return [4 * d0 - 5 * d2 + d4, a + b, a - b, c + e, c - e, 4 * d1 - 5 * d3 + d5]


def _filters(kernel: Any) -> list[Any]:
    """The six G, each (3, C, O), of a kernel (3, 3, C, O)."""
    return list(jnp.tensordot(_OF_FILTER, kernel, 1))


def _of_filters(m: list[Any]) -> Any:
    """The transpose of `_filters`."""
    a, b, c, e = (m[1] + m[2]) / 6, (m[2] - m[1]) / 6, (m[3] + m[4]) / 24, (m[3] - m[4]) / 12
    return jnp.stack([m[0] / 4 - a + c, b + e, 4 * c - a + m[5]], axis=0)


def _results(m: list[Any]) -> Any:
    """(B, H, W, O) from the six products, each (B, H / 4, W, O)."""
    a, b, c, e = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    joined = jnp.stack([m[0] + a + c, b + 2 * e, a + 4 * c, b + 8 * e + m[5]], axis=2)
    batch, quarter, _, width, features = joined.shape
    return joined.reshape(batch, 4 * quarter, width, features)


def _of_results(g: Any) -> list[Any]:
    """The transpose of `_results`."""
    g = jax.lax.optimization_barrier(g)
    y0, y1, y2, y3 = (jax.lax.slice_in_dim(g, start, None, 4, 1) for start in range(4))
    a, b, c, e = y0 + y2, y1 + y3, y0 + 4 * y2, 2 * y1 + 8 * y3
    return [y0, a + b, a - b, c + e, c - e, y3]


class Conv3x3(nn.Module):
    """A 3x3 convolution padded by 1, with a bias; its parameters are those of `nn.Conv`. Started at zero if asked."""

    features: int
    zero_init: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """(B, H, W, C) to (B, H, W, features) of `dtype`."""
        init = nn.initializers.zeros if self.zero_init else nn.linear.default_kernel_init
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return conv3x3(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)[None, None, None, :]
