"""Causal convolutions in raster order (van den Oord et al. 2016, arXiv 1601.06759 and 1606.05328).

A masked n x n convolution sees the n // 2 rows above and, in its own row, the n // 2 pixels to the left. It is built
here from the two parts that the mask leaves, so that no product with a masked weight is computed:

    vertical    the rows above, each over n columns, and the whole own row with mask B   (a shifted n // 2 [+ 1] x n)
    horizontal  the pixels to the left, and the own pixel with mask B                    (a shifted 1 x n // 2 [+ 1])

Each has a second formulation for sampling one row or one pixel, in the layouts (W, B, C) and (B, C).

The channels of a pixel are ordered too: features are split into as many groups as the image has channels, and at the
own pixel group g sees the groups up to g with mask B, those before g with mask A.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jgen.core.backend import for_cpu
from jgen.nn.conv import conv

Mask = Literal["A", "B"]


def group_mask(inputs: int, features: int, groups: int, mask: Mask, runs: int = 1) -> np.ndarray:
    """Whether an output may see an input at the own pixel: bool (inputs, features).

    Inputs are `groups` equal groups, one after another; features are `runs` equal runs (the two halves of a gate), each
    of `groups` equal groups. With mask B a group sees itself and the groups before it, with mask A only those before.
    """
    input_group = np.arange(inputs) * groups // inputs
    feature_group = np.tile(np.arange(features // runs) * groups * runs // features, runs)
    return input_group[:, None] < feature_group[None, :] + (mask == "B")


class VerticalConv(nn.Module):
    """A convolution over the rows above, (B, H, W, inputs) to (B, H, W, features).

    size: n, odd. mask: "A" sees rows i - n // 2 .. i - 1, "B" also row i; both see columns j - n // 2 .. j + n // 2.
    """

    inputs: int
    features: int
    size: int
    mask: Mask
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        rows = self.size // 2 + (self.mask == "B")
        shape = (rows, self.size, self.inputs, self.features)
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        reach = self.size // 2
        padding = ((reach, -1 if self.mask == "A" else 0), (reach, reach))  # see `HorizontalConv`
        out = conv(x.astype(self.dtype), self.kernel.astype(self.dtype), padding=padding, cpu="patches")
        return out + self.bias.astype(self.dtype)[None, None, None, :]

    def row(self, window: jax.Array) -> jax.Array:
        """The output of one row, (W, B, features), from the rows that it sees, (rows, W, B, inputs)."""
        reach, width = self.size // 2, window.shape[1]
        padded = jnp.pad(window.astype(self.dtype), ((0, 0), (reach, reach), (0, 0), (0, 0)))
        taps = [padded[a, b : b + width] for a in range(window.shape[0]) for b in range(self.size)]
        kernel = self.kernel.astype(self.dtype).reshape(-1, self.features)
        return jnp.concatenate(taps, axis=-1) @ kernel + self.bias.astype(self.dtype)[None, None, :]


class HorizontalConv(nn.Module):
    """A convolution over the pixels to the left, (B, H, W, inputs) to (B, H, W, features).

    size: n, odd; it sees columns j - n // 2 .. j - 1 and of the own pixel what `group_mask(mask)` leaves: with n = 1 it
    is a masked 1 x 1 convolution. groups: channels of the image; runs: see `group_mask`.
    """

    inputs: int
    features: int
    size: int
    mask: Mask
    groups: int = 1
    runs: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        # With one group mask A leaves nothing of the own pixel.
        self.sees_own = self.mask == "B" or self.groups > 1
        shape = (self.size // 2 + self.sees_own, self.inputs, self.features)
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

    def masked_kernel(self) -> jax.Array:
        """(taps, inputs, features); the last tap is the own pixel if it is seen."""
        kernel = self.kernel.astype(self.dtype)
        if self.groups == 1:
            return kernel
        mask = np.ones(kernel.shape, bool)
        mask[-1] = group_mask(self.inputs, self.features, self.groups, self.mask, self.runs)
        return kernel * jnp.asarray(mask, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, x = self.masked_kernel(), x.astype(self.dtype)
        if self.size == 1:
            out = conv(x, kernel[None], cpu="patches")
        else:
            # A padding of -1 leaves out the last column. With x[:, :, :-1] instead, XLA computes the weight gradient in
            # plain loops on CPU, which takes 4 to 13 times as long, and JAX 0.10 gives a wrong gradient of the image at
            # some sizes.
            padding = ((0, 0), (self.size // 2, 0 if self.sees_own else -1))
            out = conv(x, kernel[None], padding=padding, cpu="patches")
        return out + self.bias.astype(self.dtype)[None, None, None, :]

    def pixel(self, left: jax.Array | None, own: jax.Array) -> jax.Array:
        """The output of one pixel, (B, features).

        Args:
          left: the n // 2 pixels to the left, (n // 2, B, inputs); None where n = 1. own: this pixel, (B, inputs).
        """
        taps = [] if left is None else list(left)
        taps = [*taps, own] if self.sees_own else taps
        window = jnp.concatenate(taps, axis=-1).astype(self.dtype)
        return window @ self.masked_kernel().reshape(-1, self.features) + self.bias.astype(self.dtype)[None, :]


class MaskedConv(nn.Module):
    """A masked n x n convolution, (B, H, W, inputs) to (B, H, W, features): rows above and pixels to the left.

    Stacked layers have a blind spot: pixels above and beyond a diagonal to the right are never seen, at any depth.
    """

    inputs: int
    features: int
    size: int
    mask: Mask
    groups: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.above = VerticalConv(self.inputs, self.features, self.size, "A", self.dtype)
        self.left = HorizontalConv(self.inputs, self.features, self.size, self.mask, self.groups, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        if not for_cpu():
            return self.above(x) + self.left(x)
        # On CPU both parts are one convolution, with zeros at masked weights: this saves a pass over the image.
        x, left = x.astype(self.dtype), self.left.masked_kernel()
        hidden = jnp.zeros((self.size - left.shape[0], *left.shape[1:]), left.dtype)
        own_row = jnp.concatenate([left, hidden])[None]
        kernel = jnp.concatenate([self.above.kernel.astype(self.dtype), own_row])
        reach = self.size // 2
        bias = (self.above.bias + self.left.bias).astype(self.dtype)
        out = conv(x, kernel, padding=((reach, 0), (reach, reach)), cpu="patches")
        return out + bias[None, None, None, :]

    def row(self, window: jax.Array) -> jax.Array:
        """The contribution of the n // 2 rows above to a row, (n // 2, W, B, inputs) to (W, B, features)."""
        return self.above.row(window)

    def pixel(self, left: jax.Array, own: jax.Array, context: jax.Array) -> jax.Array:
        """The output of one pixel, (B, features); context: its column of `row`."""
        return self.left.pixel(left, own) + context
