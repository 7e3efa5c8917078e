"""The network of PixelCNN (van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv 1601.06759), with its blind spot.

A masked convolution, then residual blocks of ReLU and convolution (figure 5: 1 x 1 to half the width, masked n x n,
1 x 1 back), then two layers of ReLU and 1 x 1 convolution to the logits (table 1). It supports sampling by
`jgen.samplers.autoregressive`, one row and one pixel at a time.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.nn.dropout import dropout
from jgen.nn.gated_pixelcnn import PixelEmbedding, to_bias
from jgen.nn.masked_convolution import HorizontalConv, MaskedConv


class ResidualBlock(nn.Module):
    """Figure 5: 2 f features to f, a masked convolution, back to 2 f, and the input added.

    The class adds a bias to the masked convolution.
    """

    features: int
    size: int
    groups: int
    num_classes: int
    dropout_rate: float
    dtype: DTypeLike

    def setup(self) -> None:
        f, groups, dtype = self.features, self.groups, self.dtype
        self.down = HorizontalConv(2 * f, f, 1, "B", groups, dtype=dtype)
        self.conv = MaskedConv(f, f, self.size, "B", groups, dtype=dtype)
        self.up = HorizontalConv(f, 2 * f, 1, "B", groups, dtype=dtype)
        if self.num_classes:
            self.label = nn.Embed(self.num_classes, f, dtype=dtype, embedding_init=nn.initializers.zeros)

    def __call__(self, h: jax.Array, label: jax.Array | None, keys: jax.Array | None) -> jax.Array:
        y = self.conv(nn.relu(self.down(nn.relu(h)))) + to_bias(self.classes(label), 1)
        return h + self.up(dropout(nn.relu(y), keys, self.dropout_rate))

    def row(self, window: jax.Array, label: jax.Array | None) -> jax.Array:
        """The contribution of the rows above to a row, (n // 2, W, B, f) to (W, B, f)."""
        return self.conv.row(window) + to_bias(self.classes(label), 0)

    def pixel(self, left: jax.Array, h: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The block at one pixel, (B, 2 f), and the input of its masked convolution, (B, f)."""
        own = nn.relu(self.down.pixel(None, nn.relu(h)))
        return h + self.up.pixel(None, nn.relu(self.conv.pixel(left, own, context))), own

    def classes(self, label: jax.Array | None) -> jax.Array | int:
        return self.label(label) if self.num_classes else 0


class PixelCNN(nn.Module):
    """(integers (B, H, W, C) in 0 .. levels - 1, label (B,) or None, dropout keys (B,) or None) to the logits of every
    pixel given those before it in raster order, channels within a pixel in order: float32 (B, H, W, C, levels).

    features: f, half of the width between blocks, a multiple of the channels; hidden: of the output's middle layer,
    likewise. blocks: residual blocks of `size` x `size` after the first layer of `first_size` x `first_size`.
    num_classes: 0 for none; the label is then ignored.
    """

    levels: int
    channels: int
    features: int
    blocks: int
    hidden: int
    first_size: int = 7
    size: int = 3
    num_classes: int = 0
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        C, wide, dtype = self.channels, 2 * self.features, self.dtype
        self.embed = PixelEmbedding(self.levels)
        self.first = MaskedConv(C, wide, self.first_size, "A", C, dtype)
        sizes = (self.features, self.size, C, self.num_classes, self.dropout_rate, dtype)
        self.layers = [ResidualBlock(*sizes) for _ in range(self.blocks)]
        self.out1 = HorizontalConv(wide, self.hidden, 1, "B", C, dtype=dtype)
        self.out2 = HorizontalConv(self.hidden, C * self.levels, 1, "B", C)

    def __call__(self, x: jax.Array, label: jax.Array | None = None, keys: jax.Array | None = None) -> jax.Array:
        h = self.first(self.embed(x))
        for number, block in enumerate(self.layers):
            h = block(h, label, None if keys is None else rng.fold_in(keys, number))
        return self.to_logits(self.out2(nn.relu(self.out1(nn.relu(h)))))

    def to_logits(self, out: jax.Array) -> jax.Array:
        return out.astype(jnp.float32).reshape(*out.shape[:-1], self.channels, self.levels)

    # One row and one pixel at a time: see jgen.samplers.autoregressive.

    def start(self, batch: int, width: int) -> tuple[list[jax.Array], list[jax.Array]]:
        """For each masked convolution, its input in the rows above, (n // 2, W, B, inputs), and in the pixels to the
        left, (n // 2, B, inputs); zeros, as outside of the image."""
        convs = [self.first, *(block.conv for block in self.layers)]
        rows = [jnp.zeros((conv.size // 2, width, batch, conv.inputs)) for conv in convs]
        return rows, [jnp.zeros((conv.size // 2, batch, conv.inputs)) for conv in convs]

    def enter_row(self, rows: list[jax.Array], label: jax.Array | None) -> tuple[list[jax.Array], list[jax.Array]]:
        """The rows as they are, and what the pixels of a row take from them."""
        first = self.first.row(rows[0])
        return rows, [first, *(block.row(above, label) for block, above in zip(self.layers, rows[1:]))]

    def at_pixel(
        self, rows: list[jax.Array], columns: list[jax.Array], contexts: list[jax.Array], pixel: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Logits (B, C, levels) of a pixel whose earlier channels are in `pixel` (B, C), and what to keep of it."""
        x = self.embed(pixel)
        h = self.first.pixel(columns[0], x, contexts[0])
        inputs = [x]
        for block, left, context in zip(self.layers, columns[1:], contexts[1:]):
            h, own = block.pixel(left, h, context)
            inputs.append(own)
        out = self.out2.pixel(None, nn.relu(self.out1.pixel(None, nn.relu(h))))
        return self.to_logits(out), inputs

    def embed_pixel(self, pixel: jax.Array) -> jax.Array:
        """The first layer's input of a pixel (B, C)."""
        return self.embed(pixel)

    def leave_row(self, rows: list[jax.Array], inputs: list[jax.Array]) -> list[jax.Array]:
        """The rows above after a row, given what was cached of its pixels, (W, B, inputs)."""
        return [jnp.concatenate([old[1:], new[None].astype(old.dtype)]) for old, new in zip(rows, inputs)]
