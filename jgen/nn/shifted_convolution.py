"""Convolutions whose windows are shifted so that they only see pixels above and to the left, and their strided forms.

They are the layers of PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517, section 2.3). Each has further formulations
for sampling one row or one pixel, in the layouts (W, B, C) and (B, C).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.nn.conv import CpuForm, conv
from jgen.nn.cpu.patches import product


class ShiftedConv(nn.Module):
    """A convolution of (B, H, W, inputs) whose window may be at any offset; outside the image there are zeros.

    size: (m, n) of the window, whose top left pixel is (stride i - above, stride j - left) for the output's (i, j).
    stride: with 2 the output is (B, ceil(H / 2), ceil(W / 2), features).
    gain: standard deviation of the output at initialisation, if that of the input is 1.
    """

    inputs: int
    features: int
    size: tuple[int, int]
    above: int = 1
    left: int = 1
    stride: int = 1
    gain: float = 1.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        start = nn.initializers.variance_scaling(self.gain**2, "fan_in", "truncated_normal")
        self.kernel = self.param("kernel", start, (*self.size, self.inputs, self.features), jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

    def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of zeros around the input; negative: rows and columns of the input that are left out."""
        m, n = self.size
        return (self.above, m - 1 - self.above), (self.left, n - 1 - self.left)

    def __call__(self, x: jax.Array) -> jax.Array:
        cpu: CpuForm = "patches" if self.stride == 1 else "plain"
        out = conv(x.astype(self.dtype), self.kernel.astype(self.dtype), self.stride, self.padding(), cpu)
        return out + self.bias.astype(self.dtype)[None, None, None, :]

    def row(self, window: jax.Array) -> jax.Array:
        """The contribution of the window's first rows to a row of the output, including the bias.

        Args:
          window: these rows of the input, from `above` rows above, (rows, W, B, inputs), rows <= m.
        Returns:
          (ceil(W / stride), B, features).
        """
        (_, columns), stride = self.padding(), self.stride
        low_high = ((0, 0), columns, (0, 0), (0, 0))
        x = jax.lax.pad(window.astype(self.dtype), jnp.zeros((), self.dtype), [(*pair, 0) for pair in low_high])
        reach = (window.shape[1] - 1) // stride * stride + 1
        taps = [x[a, b : b + reach : stride] for a in range(window.shape[0]) for b in range(self.size[1])]
        kernel = self.kernel.astype(self.dtype)[: window.shape[0]].reshape(-1, self.features)
        return jnp.concatenate(taps, axis=-1) @ kernel + self.bias.astype(self.dtype)[None, None, :]

    def pixel(self, taps: tuple[jax.Array, ...], context: jax.Array) -> jax.Array:
        """The output of one pixel, (B, features).

        Args:
          taps: the pixels under the last row of the window, n of (B, inputs).
          context: the contribution of the rows above, (B, features): a column of `row`.
        """
        kernel = self.kernel.astype(self.dtype)[-1].reshape(-1, self.features)
        return jnp.concatenate(taps, axis=-1).astype(self.dtype) @ kernel + context


class ShiftedConvTranspose(nn.Module):
    """The transpose of a convolution of stride 2: (B, h, w, inputs) to (B, H, W, features), H = 2 h or 2 h - 1.

    Pixel (I, J) of the input contributes to rows 2 I and 2 I + 1 of the output. With `columns` 2 it contributes to
    columns 2 J and 2 J + 1, below and to the right; with 3, to 2 J - 1, 2 J and 2 J + 1, for streams that may see a
    whole row.
    """

    inputs: int
    features: int
    columns: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        # An output sees one pixel of the input, or two: variances are as of a 1 x 1 convolution.
        start = nn.initializers.variance_scaling(2.0 * self.columns, "fan_in", "truncated_normal")
        self.kernel = self.param("kernel", start, (2, self.columns, self.inputs, self.features), jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

    def interleaved(self, taps: jax.Array, width: int) -> jax.Array:
        """(w, ..., columns, features), each pixel's contribution to its output columns, to (width, ..., features)."""
        if self.columns == 3:  # an odd column also sees the pixel to its right
            right = jnp.concatenate([taps[1:, ..., 0, :], jnp.zeros_like(taps[:1, ..., 0, :])])
            even, odd = taps[..., 1, :], taps[..., 2, :] + right
        else:
            even, odd = taps[..., 0, :], taps[..., 1, :]
        return jnp.stack([even, odd], axis=1).reshape(-1, *even.shape[1:])[:width]

    def __call__(self, x: jax.Array, height: int, width: int) -> jax.Array:
        batch, h, w, _ = x.shape
        kernel = self.kernel.astype(self.dtype).transpose(2, 0, 1, 3)
        taps = product(x.astype(self.dtype), kernel.reshape(self.inputs, -1))
        taps = taps.reshape(batch, h, w, 2, self.columns, self.features).transpose(2, 0, 1, 3, 4, 5)
        rows = self.interleaved(taps, width)  # (W, B, h, 2, features)
        out = rows.reshape(width, batch, 2 * h, self.features)[:, :, :height].transpose(1, 2, 0, 3)
        return out + self.bias.astype(self.dtype)[None, None, None, :]

    def row(self, x: jax.Array, parity: jax.Array, width: int) -> jax.Array:
        """Row 2 I + parity of the output, (width, B, features), from row I of the input, (w, B, inputs)."""
        kernel = self.kernel.astype(self.dtype)[parity].transpose(1, 0, 2).reshape(self.inputs, -1)
        taps = (x.astype(self.dtype) @ kernel).reshape(*x.shape[:2], self.columns, self.features)
        return self.interleaved(taps, width) + self.bias.astype(self.dtype)[None, None, :]

    def pixel(self, x: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        """Pixel (2 I + row, 2 J + column) of the output, (B, features), from pixel (I, J), (B, inputs); columns = 2."""
        kernel = self.kernel.astype(self.dtype)[row, column]
        return x.astype(self.dtype) @ kernel + self.bias.astype(self.dtype)[None, :]
