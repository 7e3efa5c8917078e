"""A PixelCNN with a small receptive field, conditioned on features at every pixel: the decoder of a variational lossy
autoencoder (Chen et al. 2017, arXiv 1611.02731, section 3.1).

    p(x | c) = prod_i p(x_i | c_i, x_j for j in the window of i), each a softmax over the levels

The window of a pixel consists of those among the (2 window + 1) x (window + 1) pixels around it (`window` rows above,
`window` columns on each side) that precede it in raster order. One masked convolution reads the whole window, without a
blind spot; the layers after it are 1 x 1, so the receptive field does not grow with depth.

It supports sampling by `jgen.samplers.autoregressive`, one row and one pixel at a time, with the features instead of a
label.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.nn.dropout import dropout
from jgen.nn.gated_pixelcnn import PixelEmbedding
from jgen.nn.masked_convolution import HorizontalConv, MaskedConv


class PointwiseBlock(nn.Module):
    """h + W_2 relu(W_1 relu(h)) at every pixel, (..., features) to the same, with channels in order."""

    features: int
    groups: int
    dropout_rate: float
    dtype: DTypeLike

    def setup(self) -> None:
        f = self.features
        self.first, self.second = (HorizontalConv(f, f, 1, "B", self.groups, dtype=self.dtype) for _ in range(2))

    def __call__(self, h: jax.Array, keys: jax.Array | None) -> jax.Array:
        return h + self.second(dropout(nn.relu(self.first(nn.relu(h))), keys, self.dropout_rate))

    def pixel(self, h: jax.Array) -> jax.Array:
        return h + self.second.pixel(None, nn.relu(self.first.pixel(None, nn.relu(h))))


class LocalPixelCNN(nn.Module):
    """(integers (B, H, W, C) in 0 .. levels - 1, context (B, H, W, F), dropout keys (B,) or None) to the logits of
    every pixel given the context there and its window, channels within a pixel in order: float32 (B, H, W, C, levels).

    features: width, a multiple of the channels; blocks: residual blocks of 1 x 1 convolutions after the first layer.
    dropout_rate: of the context, and in the blocks.
    """

    levels: int
    channels: int
    features: int
    blocks: int
    window: int
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        C, f, dtype = self.channels, self.features, self.dtype
        self.embed = PixelEmbedding(self.levels)
        self.first = MaskedConv(C, f, 2 * self.window + 1, "A", C, dtype)
        self.context = nn.Dense(f, use_bias=False, dtype=dtype)
        self.layers = [PointwiseBlock(f, C, self.dropout_rate, dtype) for _ in range(self.blocks)]
        self.out = HorizontalConv(f, C * self.levels, 1, "B", C)

    def __call__(self, x: jax.Array, context: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        context_keys, *block_keys = (
            None if keys is None else rng.fold_in(keys, number) for number in range(1 + self.blocks)
        )
        h = self.first(self.embed(x)) + self.context(dropout(context, context_keys, self.dropout_rate))
        for block, one in zip(self.layers, block_keys):
            h = block(h, one)
        return self.to_logits(self.out(nn.relu(h)))

    def to_logits(self, out: jax.Array) -> jax.Array:
        return out.astype(jnp.float32).reshape(*out.shape[:-1], self.channels, self.levels)

    # One row and one pixel at a time: see jgen.samplers.autoregressive.

    def start(self, batch: int, width: int) -> tuple[tuple[jax.Array, jax.Array], list[jax.Array]]:
        """The rows above, (window, W, B, C), and the number of the row; the pixels to the left, (window, B, C)."""
        above = jnp.zeros((self.window, width, batch, self.channels))
        return (above, jnp.int32(0)), [jnp.zeros((self.window, batch, self.channels))]

    def enter_row(self, rows: tuple[jax.Array, jax.Array], context: jax.Array) -> tuple[Any, list[jax.Array]]:
        """The rows as they are, and what the pixels of a row take from them and from the context, (W, B, features)."""
        above, number = rows
        own = jax.lax.dynamic_index_in_dim(context, number, axis=1, keepdims=False)
        return rows, [self.first.row(above) + self.context(own).transpose(1, 0, 2)]

    def at_pixel(
        self, rows: list[jax.Array], columns: list[jax.Array], contexts: list[jax.Array], pixel: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Logits (B, C, levels) of a pixel whose earlier channels are in `pixel` (B, C), and the first layer's
        input."""
        x = self.embed(pixel)
        h = self.first.pixel(columns[0], x, contexts[0])
        for block in self.layers:
            h = block.pixel(h)
        return self.to_logits(self.out.pixel(None, nn.relu(h))), [x]

    def embed_pixel(self, pixel: jax.Array) -> jax.Array:
        """The first layer's input of a pixel (B, C)."""
        return self.embed(pixel)

    def leave_row(self, rows: tuple[jax.Array, jax.Array], inputs: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The rows above after a row, given its pixels, (W, B, C)."""
        above, number = rows
        return jnp.concatenate([above[1:], inputs[0][None]]), number + 1
