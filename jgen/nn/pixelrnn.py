"""The network of PixelRNN (van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv 1601.06759).

A masked convolution, then LSTM layers with residual connections (figure 5: f features to each gate, f from the layer, a
1 x 1 convolution to 2 f and the input added), then two layers of ReLU and 1 x 1 convolution to the logits (table 1).
Both layers compute, from the input x of a position and the states before it,

    o, f, i, g = K_ss * h + K_is * x,   c = sigmoid(f) c + sigmoid(i) tanh(g),   h = sigmoid(o) tanh(c)    (equation 3)

    Row LSTM           the states of the row above: h at n columns, c at the own one; x at n // 2 + 1 columns, masked
    Diagonal BiLSTM    h to the left and above, c to the left, x of the own pixel; and the mirror image of that (h to
                       the right and above, c to the right), whose output is shifted down by one row

Since x encodes only the pixels before a position, the mirror image would miss the last pixel of the row above. It
therefore also takes the image as input, in the rows above only.

It supports sampling by `jgen.samplers.autoregressive`, one row and one pixel at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.nn.dropout import dropout
from jgen.nn.gated_pixelcnn import PixelEmbedding, to_bias
from jgen.nn.masked_convolution import HorizontalConv, MaskedConv

LayerKind = Literal["row", "diagonal"]
GATES = 4


def skew(x: jax.Array) -> jax.Array:
    """(B, H, W, C) to (B, H, H + W - 1, C): row i moved i columns to the right, zeros elsewhere (figure 3)."""
    batch, height, width, channels = x.shape
    # Rows are one longer than the result's: reshaped to the shorter length, each starts one column later.
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, height), (0, 0))).reshape(batch, -1, channels)
    return padded[:, :-height].reshape(batch, height, height + width - 1, channels)


def unskew(x: jax.Array) -> jax.Array:
    """The inverse of `skew`: (B, H, H + W - 1, C) to (B, H, W, C)."""
    batch, height, length, channels = x.shape
    flat = jnp.pad(x.reshape(batch, -1, channels), ((0, 0), (0, height), (0, 0)))
    return flat.reshape(batch, height, length + 1, channels)[:, :, : length + 1 - height]


def lstm(gates: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h and c of equation 3: gates o, f, i, g before their activations, (..., 4 f), and c (..., f), float32."""
    output, forget, enter, content = jnp.split(gates.astype(jnp.float32), GATES, axis=-1)
    cell = nn.sigmoid(forget) * cell + nn.sigmoid(enter) * jnp.tanh(content)
    return nn.sigmoid(output) * jnp.tanh(cell), cell


def recur(gates: jax.Array, kernel: jax.Array, window: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """h (T, ..., f) over T steps from the input-to-state part of the gates, (T, ..., 4 f); states before are zero.

    Args:
      window: of h (..., f), the values (..., n f) that `kernel`, (n f, 4 f), is multiplied with.
    """

    def step(state: tuple[jax.Array, jax.Array], part: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, cell = state
        values = window(h)
        recurrent = (values.reshape(-1, values.shape[-1]) @ kernel).reshape(part.shape)
        h, cell = lstm(part + recurrent, cell)
        h = h.astype(gates.dtype)
        return (h, cell), h

    zeros = jnp.zeros((*gates.shape[1:-1], gates.shape[-1] // GATES))
    return jax.lax.scan(step, (zeros.astype(gates.dtype), zeros), gates)[1]


def window(h: jax.Array) -> jax.Array:
    """A diagonal's rows, each with the one above it: (B, H, f) to (B, H, 2 f)."""
    return jnp.concatenate([h, jnp.pad(h, ((0, 0), (1, 0), (0, 0)))[:, :-1]], axis=-1)


class RowLSTM(nn.Module):
    """Section 3.1: (B, H, W, 2 f) to (B, H, W, f), row by row from above, with a convolution of n columns.

    It ignores the image, which other layers use.
    size: n, odd. groups: channels of the image. num_classes: 0 for none; the class adds a bias to the gates.
    """

    features: int
    size: int
    groups: int
    num_classes: int
    dtype: DTypeLike

    def setup(self) -> None:
        f = self.features
        self.input = HorizontalConv(2 * f, GATES * f, self.size, "B", self.groups, GATES, self.dtype)
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.size * f, GATES * f), jnp.float32)
        if self.num_classes:
            zeros = nn.initializers.zeros
            self.label = nn.Embed(self.num_classes, GATES * f, dtype=self.dtype, embedding_init=zeros)

    def __call__(self, x: jax.Array, image: jax.Array, label: jax.Array | None) -> jax.Array:
        gates = self.input(x) + to_bias(self.classes(label), 1)
        return recur(gates.swapaxes(0, 1), self.kernel.astype(self.dtype), partial(self.window, axis=1)).swapaxes(0, 1)

    def window(self, h: jax.Array, axis: int) -> jax.Array:
        """(..., f) to (..., n f): the n columns around each, which are along `axis`."""
        reach, width = self.size // 2, h.shape[axis]
        padded = jnp.pad(h, [(reach * (a == axis),) * 2 for a in range(h.ndim)])
        return jnp.concatenate([jax.lax.slice_in_dim(padded, b, b + width, axis=axis) for b in range(self.size)], -1)

    def classes(self, label: jax.Array | None) -> jax.Array | int:
        return self.label(label) if self.num_classes else 0

    # One row and one pixel at a time.

    def start(self, batch: int, width: int) -> jax.Array:
        """h and c of the row above the first, (W, B, 2 f)."""
        return jnp.zeros((width, batch, 2 * self.features))

    def enter(
        self, above: jax.Array, image: jax.Array, label: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The row above unchanged, and its contribution to the pixels: to their gates (W, B, 4 f), and c (W, B, f)."""
        h, cell = jnp.split(above, 2, axis=-1)
        gates = self.window(h.astype(self.dtype), axis=0) @ self.kernel.astype(self.dtype)
        return above, (gates + to_bias(self.classes(label), 0), cell)

    def pixel(
        self, left: jax.Array, x: jax.Array, context: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The output, h and c of a pixel, (B, f) each, from its x (B, 2 f) and what `ResidualBlock.pixel` cached of the
        pixels to the left, (n // 2, B, 4 f); the output is h."""
        gates, cell = context
        h, cell = lstm(self.input.pixel(left[..., : 2 * self.features], x) + gates, cell)
        return h, h, cell

    def leave(self, above: jax.Array, inputs: jax.Array) -> jax.Array:
        """The row above the next, from all of a row's pixels, (W, B, 4 f)."""
        return inputs[..., 2 * self.features :]


class DiagonalLSTM(nn.Module):
    """Section 3.2: one direction, (B, H, W, inputs) to (B, H, W, f), diagonal by diagonal from the upper left corner.

    groups: number of image channels, which are masked at the own pixel; num_classes: as in `RowLSTM`.
    """

    inputs: int
    features: int
    groups: int
    num_classes: int
    dtype: DTypeLike

    def setup(self) -> None:
        f = self.features
        self.input = HorizontalConv(self.inputs, GATES * f, 1, "B", self.groups, GATES, self.dtype)
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), (2 * f, GATES * f), jnp.float32)
        if self.num_classes:
            zeros = nn.initializers.zeros
            self.label = nn.Embed(self.num_classes, GATES * f, dtype=self.dtype, embedding_init=zeros)

    def __call__(self, x: jax.Array, label: jax.Array | None) -> jax.Array:
        gates = self.input(x) + to_bias(self.classes(label), 1)
        # Left of the image the gates are zero, and with zero initial states so are c and h.
        h = recur(jnp.moveaxis(skew(gates), 2, 0), self.kernel.astype(self.dtype), window)
        return unskew(jnp.moveaxis(h, 0, 2))

    def classes(self, label: jax.Array | None) -> jax.Array | int:
        return self.label(label) if self.num_classes else 0

    # One row and one pixel at a time.

    def above(self, h: jax.Array, label: jax.Array | None) -> jax.Array:
        """The contribution of the row above to the gates of a row's pixels: h (W, B, f) to (W, B, 4 f)."""
        kernel = self.kernel.astype(self.dtype)[self.features :]
        return h.astype(self.dtype) @ kernel + to_bias(self.classes(label), 0)

    def pixel(self, state: jax.Array, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """h and c of a pixel, (B, f) each, from those of the pixel to the left, (B, 2 f), x (B, inputs) and `above`."""
        h, cell = jnp.split(state, 2, axis=-1)
        recurrent = h.astype(self.dtype) @ self.kernel.astype(self.dtype)[: self.features]
        return lstm(self.input.pixel(None, x) + recurrent + context, cell)

    def row(self, x: jax.Array, h: jax.Array, label: jax.Array | None) -> jax.Array:
        """h of a row, (W, B, f), from its x (W, B, inputs) and h of the row above, (W, B, f)."""

        def step(state: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            h, cell = self.pixel(state, *inputs)
            return jnp.concatenate([h, cell], axis=-1), h

        start = jnp.zeros((x.shape[1], 2 * self.features))
        return jax.lax.scan(step, start, (x, self.above(h, label)))[1]


class DiagonalBiLSTM(nn.Module):
    """Section 3.2: both directions, (B, H, W, 2 f) and the image (B, H, W, C) to (B, H, W, f).

    The right-to-left LSTM reads the row above, whose pixels all precede in raster order: it has no mask, and takes the
    image as a second input. groups: C; num_classes: as in `RowLSTM`.
    """

    features: int
    groups: int
    num_classes: int
    dtype: DTypeLike

    def setup(self) -> None:
        f, rest = self.features, (self.num_classes, self.dtype)
        self.left = DiagonalLSTM(2 * f, f, self.groups, *rest)
        self.right = DiagonalLSTM(2 * f + self.groups, f, 1, *rest)

    def __call__(self, x: jax.Array, image: jax.Array, label: jax.Array | None) -> jax.Array:
        # The last row's output would be shifted out of the image.
        whole = jnp.concatenate([x, image.astype(x.dtype)], axis=-1)[:, :-1]
        right = self.right(whole[:, :, ::-1], label)[:, :, ::-1]
        return self.left(x, label) + jnp.pad(right, ((0, 0), (1, 0), (0, 0), (0, 0)))

    # One row and one pixel at a time.

    def start(self, batch: int, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Above the first row: x, and h and c from the left, of the row above, (W, B, 4 f); h from the right of the one
        above that, (W, B, f); and whether there is a row above, 0 or 1."""
        f = self.features
        return jnp.zeros((width, batch, 4 * f)), jnp.zeros((width, batch, f)), jnp.zeros(())

    def enter(
        self, above: tuple, image: jax.Array, label: jax.Array | None
    ) -> tuple[tuple, tuple[jax.Array, jax.Array]]:
        """The states above, with h from the right of the row above; and their contributions to the pixels: to the left
        direction's gates, (W, B, 4 f), and h from the right."""
        inputs, right, inside = above
        x, h, _ = jnp.split(inputs, [2 * self.features, 3 * self.features], axis=-1)
        whole = jnp.concatenate([x, image], axis=-1)
        right = inside * self.right.row(whole[::-1], right[::-1], label)[::-1]
        return (inputs, right, inside), (self.left.above(h, label), right)

    def pixel(
        self, left: jax.Array, x: jax.Array, context: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The output, h and c of a pixel, (B, f) each: as of a `RowLSTM`."""
        gates, right = context
        h, cell = self.left.pixel(left[-1, :, 2 * self.features :], x, gates)
        return h + right, h, cell

    def leave(self, above: tuple, inputs: jax.Array) -> tuple:
        return inputs, above[1], jnp.ones(())


class ResidualBlock(nn.Module):
    """Figure 5: an LSTM layer from 2 f features to f, a 1 x 1 convolution back to 2 f, and the input added.

    layer: "row", of `size` columns, or "diagonal", which has no size.
    """

    layer: LayerKind
    features: int
    size: int
    groups: int
    num_classes: int
    dropout_rate: float
    dtype: DTypeLike

    def setup(self) -> None:
        f, groups, classes, dtype = self.features, self.groups, self.num_classes, self.dtype
        if self.layer == "row":
            self.lstm = RowLSTM(f, self.size, groups, classes, dtype)
        else:
            self.lstm = DiagonalBiLSTM(f, groups, classes, dtype)
        self.up = HorizontalConv(f, 2 * f, 1, "B", groups, dtype=dtype)

    def __call__(self, x: jax.Array, image: jax.Array, label: jax.Array | None, keys: jax.Array | None) -> jax.Array:
        return x + self.up(dropout(self.lstm(x, image, label), keys, self.dropout_rate))

    def pixel(self, left: jax.Array, x: jax.Array, context: Any) -> tuple[jax.Array, jax.Array]:
        """The block at one pixel, (B, 2 f), and what to cache of it: x, h and c, (B, 4 f), as of the columns to the
        left, (n, B, 4 f)."""
        out, h, cell = self.lstm.pixel(left, x, context)
        return x + self.up.pixel(None, out), jnp.concatenate([x.astype(jnp.float32), h, cell], axis=-1)


class PixelRNN(nn.Module):
    """(integers (B, H, W, C) in 0 .. levels - 1, label (B,) or None, dropout keys (B,) or None) to the logits of every
    pixel given those before it in raster order, channels within a pixel in order: float32 (B, H, W, C, levels).

    layer: of the LSTMs. features: f, the width of their states and half of the width between blocks, a multiple of the
    channels; hidden: of the output's middle layer, likewise. blocks: LSTM layers, with `size` columns where they are
    Row LSTMs, after the first layer of `first_size` x `first_size`. num_classes: 0 for none; the label is then ignored.
    """

    levels: int
    channels: int
    layer: LayerKind
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
        sizes = (self.layer, self.features, self.size, C, self.num_classes, self.dropout_rate, dtype)
        self.layers = [ResidualBlock(*sizes) for _ in range(self.blocks)]
        self.out1 = HorizontalConv(wide, self.hidden, 1, "B", C, dtype=dtype)
        self.out2 = HorizontalConv(self.hidden, C * self.levels, 1, "B", C)

    def __call__(self, x: jax.Array, label: jax.Array | None = None, keys: jax.Array | None = None) -> jax.Array:
        image = self.embed(x)
        h = self.first(image)
        for number, block in enumerate(self.layers):
            h = block(h, image, label, None if keys is None else rng.fold_in(keys, number))
        return self.to_logits(self.out2(nn.relu(self.out1(nn.relu(h)))))

    def to_logits(self, out: jax.Array) -> jax.Array:
        return out.astype(jnp.float32).reshape(*out.shape[:-1], self.channels, self.levels)

    # One row and one pixel at a time: see jgen.samplers.autoregressive.

    def start(self, batch: int, width: int) -> tuple[list[Any], list[jax.Array]]:
        """The image's rows above, (rows, W, B, C), and each LSTM's states of the row above; the image's pixels to the
        left, (pixels, B, C), and each block's cache of those, (n, B, 4 f); zeros, as outside the image."""
        reach, C = self.first_size // 2, self.channels
        rows = [jnp.zeros((reach, width, batch, C)), *(block.lstm.start(batch, width) for block in self.layers)]
        cached = self.size // 2 if self.layer == "row" else 1
        columns = [jnp.zeros((cached, batch, 4 * self.features)) for _ in self.layers]
        return rows, [jnp.zeros((reach, batch, C)), *columns]

    def enter_row(self, rows: list[Any], label: jax.Array | None) -> tuple[list[Any], list[Any]]:
        """The LSTMs' states of the rows above, with everything that depends on these only, and the contexts of a
        row."""
        entered = [block.lstm.enter(above, rows[0][-1], label) for block, above in zip(self.layers, rows[1:])]
        after, contexts = ([pair[place] for pair in entered] for place in (0, 1))
        return [rows[0], *after], [self.first.row(rows[0]), *contexts]

    def at_pixel(
        self, rows: list[Any], columns: list[jax.Array], contexts: list[Any], pixel: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Logits (B, C, levels) of a pixel whose earlier channels are in `pixel` (B, C), and what to keep of it."""
        x = self.embed(pixel)
        h = self.first.pixel(columns[0], x, contexts[0])
        inputs = [x]
        for block, left, context in zip(self.layers, columns[1:], contexts[1:]):
            h, cached = block.pixel(left, h, context)
            inputs.append(cached)
        out = self.out2.pixel(None, nn.relu(self.out1.pixel(None, nn.relu(h))))
        return self.to_logits(out), inputs

    def embed_pixel(self, pixel: jax.Array) -> jax.Array:
        """The first layer's input of a pixel (B, C)."""
        return self.embed(pixel)

    def leave_row(self, rows: list[Any], inputs: list[jax.Array]) -> list[Any]:
        """The rows above after a row, given what was cached of its pixels, (W, B, inputs)."""
        image = jnp.concatenate([rows[0][1:], inputs[0][None].astype(rows[0].dtype)])
        return [image, *(b.lstm.leave(above, new) for b, above, new in zip(self.layers, rows[1:], inputs[1:]))]
