"""The network of Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328), for pixels and for discrete codes.

Two stacks of gated convolutions. The vertical stack at row i sees every row above, and the horizontal stack sees the
pixels to the left and, through a 1 x 1 convolution, the vertical stack's output, so that there is no blind spot:

    y = tanh(W_f * x + V_f h) . sigmoid(W_g * x + V_g h)         (equation 4), h the class as a one-hot vector

The horizontal stack has residual connections; two layers of ReLU and 1 x 1 convolution turn it into logits. If a layer
is conditioned on features at every location, V_f h and V_g h are 1 x 1 convolutions of them (section 2.3).

It supports sampling by `jgen.samplers.autoregressive`, one row and one pixel at a time.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.errors import require, require_positive
from jgen.nn.dropout import dropout
from jgen.nn.masked_convolution import HorizontalConv, Mask, VerticalConv
from jgen.prob.pixels import to_float


def gate(x: jax.Array) -> jax.Array:
    """tanh of the first half of the features times the sigmoid of the second."""
    f, g = jnp.split(x, 2, axis=-1)
    return jnp.tanh(f) * nn.sigmoid(g)


def to_bias(embedding: jax.Array | int, axis: int) -> Any:
    """A class's embedding (B, C), or 0, to be added to an image (axis 1: B, 1, 1, C) or to a row (axis 0: 1, B, C)."""
    if isinstance(embedding, int):
        return embedding
    return embedding[:, None, None, :] if axis == 1 else embedding[None]


class PixelEmbedding(nn.Module):
    """Integers (..., C) to features (..., C * size), channel by channel.

    size: 0 scales the levels to [-1, 1], one feature per channel, which suits pixels; above 0 each level has a learned
    vector of that size, which suits codes, whose numbers have no order.
    """

    levels: int
    size: int = 0

    def setup(self) -> None:
        if self.size > 0:
            self.vectors = nn.Embed(self.levels, self.size, embedding_init=nn.initializers.normal(1.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.size == 0:
            return to_float(x, self.levels)
        return self.vectors(x.astype(jnp.int32)).reshape(*x.shape[:-1], -1)


class GatedLayer(nn.Module):
    """Figure 2 of the paper: (v, h) to (v, h), both (B, H, W, features).

    residual: adds the input h to the new one. local: takes features (B, H, W, C) of the same size as a condition.
    """

    inputs: int
    features: int
    size: int
    mask: Mask
    groups: int
    num_classes: int
    residual: bool
    dropout_rate: float
    dtype: DTypeLike
    local: bool = False

    def setup(self) -> None:
        wide, dtype = 2 * self.features, self.dtype
        self.vertical = VerticalConv(self.inputs, wide, self.size, self.mask, dtype)
        self.horizontal = HorizontalConv(self.inputs, wide, self.size, self.mask, self.groups, 2, dtype)
        self.across = nn.Dense(wide, use_bias=False, dtype=dtype)
        self.out = HorizontalConv(self.features, self.features, 1, "B", self.groups, 1, dtype)
        if self.num_classes:
            zeros = nn.initializers.zeros
            self.label_v = nn.Embed(self.num_classes, wide, dtype=dtype, embedding_init=zeros)
            self.label_h = nn.Embed(self.num_classes, wide, dtype=dtype, embedding_init=zeros)
        if self.local:
            self.local_v = nn.Dense(wide, use_bias=False, dtype=dtype)
            self.local_h = nn.Dense(wide, use_bias=False, dtype=dtype)

    def __call__(
        self,
        v: jax.Array,
        h: jax.Array,
        label: jax.Array | None,
        keys: jax.Array | None,
        local: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        bias_v, bias_h = self.biases(label, local, 1)
        before = self.vertical(v) + bias_v
        y = gate(self.horizontal(h) + self.across(before) + bias_h)
        y = self.out(dropout(y, keys, self.dropout_rate))
        return gate(before), h + y if self.residual else y

    def row(
        self, window: jax.Array, label: jax.Array | None, local: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The vertical stack's new row, and the horizontal stack's input from it, given the rows that it sees; local:
        the features of that row, (W, B, C)."""
        bias_v, bias_h = self.biases(label, local, 0)
        before = self.vertical.row(window) + bias_v
        return gate(before), self.across(before) + bias_h

    def pixel(self, left: jax.Array, h: jax.Array, context: jax.Array) -> jax.Array:
        """The horizontal stack at one pixel, (B, features)."""
        y = self.out.pixel(None, gate(self.horizontal.pixel(left, h) + context))
        return h + y if self.residual else y

    def biases(self, label: jax.Array | None, local: jax.Array | None, axis: int) -> tuple[Any, Any]:
        """The conditions' contributions to the vertical and to the horizontal stack; axis: see `to_bias`."""
        bias_v, bias_h = (self.label_v(label), self.label_h(label)) if self.num_classes else (0, 0)
        bias_v, bias_h = to_bias(bias_v, axis), to_bias(bias_h, axis)
        return (bias_v + self.local_v(local), bias_h + self.local_h(local)) if self.local else (bias_v, bias_h)


class GatedPixelCNN(nn.Module):
    """(integers (B, H, W, C) in 0 .. levels - 1, label (B,) or None, dropout keys (B,) or None) to the logits of every
    pixel given those before it in raster order, channels within a pixel in order: float32 (B, H, W, C, levels).

    features: width of each stack, a multiple of the channels; hidden: of the output's middle layer, likewise.
    blocks: gated layers of `size` x `size` after the first of `first_size` x `first_size`.
    embedding: see `PixelEmbedding`. num_classes: 0 for none; the label is then ignored.
    outputs: features of each channel of a pixel instead of its logits, float32 (B, H, W, C, outputs); 0: the logits.
    """

    levels: int
    channels: int
    features: int
    blocks: int
    hidden: int
    first_size: int = 7
    size: int = 3
    embedding: int = 0
    num_classes: int = 0
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32
    outputs: int = 0

    def setup(self) -> None:
        inputs = self.channels * max(self.embedding, 1)
        shared = (self.channels, self.num_classes)
        self.embed = PixelEmbedding(self.levels, self.embedding)
        first = GatedLayer(inputs, self.features, self.first_size, "A", *shared, False, 0.0, self.dtype)
        sizes = (self.features, self.features, self.size, "B", *shared, True, self.dropout_rate, self.dtype)
        self.layers = [first, *(GatedLayer(*sizes) for _ in range(self.blocks))]
        outputs = self.channels * (self.outputs or self.levels)
        self.out1 = HorizontalConv(self.features, self.hidden, 1, "B", self.channels, 1, self.dtype)
        self.out2 = HorizontalConv(self.hidden, outputs, 1, "B", self.channels)

    def __call__(self, x: jax.Array, label: jax.Array | None = None, keys: jax.Array | None = None) -> jax.Array:
        v = h = self.embed(x)
        for number, layer in enumerate(self.layers):
            v, h = layer(v, h, label, None if keys is None else rng.fold_in(keys, number))
        return self.by_channel(self.out2(nn.relu(self.out1(nn.relu(h)))))

    def by_channel(self, out: jax.Array) -> jax.Array:
        return out.astype(jnp.float32).reshape(*out.shape[:-1], self.channels, self.outputs or self.levels)

    # One row and one pixel at a time: see jgen.samplers.autoregressive.

    def start(self, batch: int, width: int) -> tuple[list[jax.Array], list[jax.Array]]:
        """For each layer, the vertical stack's input in the rows above, (rows, W, B, inputs), and the horizontal
        stack's input in the pixels to the left, (pixels, B, inputs); zeros, as outside of the image."""
        rows, columns = [], []
        for layer in self.layers:
            rows.append(jnp.zeros((layer.size // 2, width, batch, layer.inputs)))
            columns.append(jnp.zeros((layer.size // 2, batch, layer.inputs)))
        return rows, columns

    def enter_row(self, rows: list[jax.Array], label: jax.Array | None) -> tuple[list[jax.Array], list[jax.Array]]:
        """The vertical stack over a row: the new rows above, except the image's, and the context of the row's
        pixels."""
        v, context = self.layers[0].row(rows[0], label)
        contexts = [context]
        after = [rows[0]]
        for layer, above in zip(self.layers[1:], rows[1:]):
            window = jnp.concatenate([above, v[None].astype(above.dtype)])
            after.append(window[1:])
            v, context = layer.row(window, label)
            contexts.append(context)
        return after, contexts

    def at_pixel(
        self, rows: list[jax.Array], columns: list[jax.Array], contexts: list[jax.Array], pixel: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Outputs (B, C, levels) of a pixel whose earlier channels are in `pixel` (B, C), and each layer's input."""
        h = self.embed(pixel)
        inputs = []
        for layer, left, context in zip(self.layers, columns, contexts):
            inputs.append(h)
            h = layer.pixel(left, h, context)
        out = self.out2.pixel(None, nn.relu(self.out1.pixel(None, nn.relu(h))))
        return self.by_channel(out), inputs

    def embed_pixel(self, pixel: jax.Array) -> jax.Array:
        """The first layer's input of a pixel (B, C)."""
        return self.embed(pixel)

    def leave_row(self, rows: list[jax.Array], inputs: list[jax.Array]) -> list[jax.Array]:
        """The rows above after a row, given the layers' inputs in it, (W, B, inputs); the first is the image's."""
        return [jnp.concatenate([rows[0], inputs[0][None]])[1:], *rows[1:]]


def check_network(
    channels: int, features: int, hidden: int, blocks: int, sizes: dict[str, int], dropout_rate: float
) -> None:
    """Raises `UserError` for sizes that the network cannot be built with."""
    require_positive(features=features, hidden=hidden, blocks=blocks)
    for name, value in (("features", features), ("hidden", hidden)):
        require(
            value % channels == 0,
            f"{name} is {value}: it must be divisible by the images' {channels} channels, which each have a part",
        )
    for name, value in sizes.items():
        require(value >= 3 and value % 2 == 1, f"{name} is {value}: it must be odd and 3 or more")
    require(0 <= dropout_rate < 1, f"dropout is {dropout_rate}: it must be at least 0 and below 1")
