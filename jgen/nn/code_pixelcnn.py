"""Networks of the priors over codes of VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446, section 3.2).

`CodePixelCNN` is a Gated PixelCNN over a grid of codes (`jgen.nn.gated_pixelcnn`) with these additions:

    attention     h_i <- h_i + W_o softmax_{j <= i}(q_i . k_j / sqrt(D)) v_j, after some of the layers, of the
                  horizontal stack's features in raster order; keys and values also see code j - 1, since the last
                  code of a row may be out of the convolutions' reach where the next begins
    conditioning  on features of a coarser grid of codes at every location, from `ConditioningStack`
    output stack  h <- h + W_2 relu(W_1 relu(h)), 1 x 1, before the logits

It supports sampling by `jgen.samplers.autoregressive`, one row and one code at a time: keys and values of the codes so
far are cached, and a new code takes one product with each matrix, and attention to the earlier codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.core.model import Cond, ImageSpec
from jgen.errors import require, require_positive
from jgen.nn.autoencoder import ResidualBlock, Upsample
from jgen.nn.conv import Conv
from jgen.nn.dropout import dropout
from jgen.nn.gated_pixelcnn import GatedLayer, PixelEmbedding, check_network
from jgen.nn.sparse_attention import Source, attend, causal_attention


@dataclass(frozen=True)
class Config:
    """A Gated PixelCNN over codes, with causal attention."""

    features: int = 64
    """Width of each stack; a multiple of the number of heads."""
    blocks: int = 8
    """Gated layers after the first."""
    first_kernel: int = 5
    """Size n of the first layer's masked n x n convolution; odd."""
    kernel: int = 3
    """Size of the other layers' masked convolutions; odd."""
    attention: int = 0
    """Layers of causal attention, spread evenly over the gated layers; 0: none."""
    heads: int = 4
    """Attention heads."""
    output_blocks: int = 1
    """Residual 1 x 1 blocks before the logits."""
    hidden: int = 128
    """Width of the middle of an output block."""
    embedding: int = 32
    """Size of the learned embedding of each code."""
    dropout: float = 0.0
    """Dropout rate in gated layers, attention and output blocks."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, softmaxes, logits and losses stay float32."""


class ConditioningStack(nn.Module):
    """Codes (B, h, w, 1) in 0 .. levels - 1 to features (B, 2^n h, 2^n w, features), n = doublings.

    Learned vectors, a 3 x 3 convolution, `blocks` residual blocks at the codes' own resolution, then upsampling.
    """

    levels: int
    embedding: int
    features: int
    blocks: int
    doublings: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        h = PixelEmbedding(self.levels, self.embedding, name="embed")(codes)
        h = Conv(self.features, dtype=self.dtype, cpu="plain", name="conv_in")(h)
        for block in range(self.blocks):
            h = ResidualBlock(self.dtype, name=f"block{block}")(h)
        return Upsample(self.features, self.doublings, self.dtype, name="upsample")(nn.silu(h))


class CausalAttention(nn.Module):
    """h (B, H, W, features) plus attention of every position to itself and all before it in raster order.

    Queries, keys and values are computed from h, the positions' learned vectors, (H W, features), and the vectors of
    the codes before them: those of `codes`, (B, H, W, C), each moved to the position after it.
    """

    features: int
    heads: int
    dropout_rate: float
    dtype: DTypeLike

    def setup(self) -> None:
        self.norm = nn.LayerNorm(dtype=self.dtype)
        self.code_before = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
        self.query_key_value = nn.Dense(3 * self.features, dtype=self.dtype)
        self.out = nn.Dense(self.features, dtype=self.dtype)

    def __call__(self, h: jax.Array, codes: jax.Array, positions: jax.Array, keys: jax.Array | None) -> jax.Array:
        flat, vectors = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (h, codes))
        before = jnp.pad(vectors, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        attended = causal_attention(*self.project(flat, before, positions[None]))
        return h + dropout(self.out(attended.reshape(h.shape)), keys, self.dropout_rate)

    def pixel(
        self, h: jax.Array, before: jax.Array, position: jax.Array, sources: list[Source]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One position, h (B, features), given the vector of the code before it, (B, C), and the keys and values before
        it as `attend` takes them: its output, and its own key and value, (B, heads, D)."""
        q, k, v = self.project(h, before, position[None])
        own_q, own_k, own_v = (x[:, None, None] for x in (q, k, v))  # one piece of one query
        attended = attend(own_q, own_k, own_v, sources)
        return h + self.out(attended.reshape(h.shape)), k, v

    def project(self, h: jax.Array, before: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values (..., heads, D) of (..., features)."""
        x = self.norm(h) + self.code_before(before) + position.astype(self.dtype)
        x = self.query_key_value(x)
        q, k, v = (part.reshape(*part.shape[:-1], self.heads, -1) for part in jnp.split(x, 3, axis=-1))
        return q, k, v


class OutputBlock(nn.Module):
    """h + W_2 relu(W_1 relu(h)), (..., features) to the same, with one key per example for dropout."""

    features: int
    hidden: int
    dropout_rate: float
    dtype: DTypeLike

    def setup(self) -> None:
        self.wide = nn.Dense(self.hidden, dtype=self.dtype)
        self.narrow = nn.Dense(self.features, dtype=self.dtype)

    def __call__(self, h: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        return h + self.narrow(dropout(nn.relu(self.wide(nn.relu(h))), keys, self.dropout_rate))


class Rows(NamedTuple):
    """The cache of the rows above: the layers' inputs, (rows, W, B, inputs); of each attention, keys and values
    (H W, B, heads, D), zeros from the present row on; and the number of the present row."""

    layers: list[jax.Array]
    keys: list[jax.Array]
    values: list[jax.Array]
    row: jax.Array


class CodePixelCNN(nn.Module):
    """(codes (B, H, W, 1) in 0 .. levels - 1, cond, dropout keys (B,) or None) to the logits of every code given those
    before it in raster order: float32 (B, H, W, 1, levels).

    cond: {"label": int32 (B,)} with classes, and {"local": (B, H, W, C)} with `local`.
    shape: H, W. features: width of each stack. blocks: gated layers of `size` x `size` after the first of `first_size`.
    attention: causal attention layers of `heads` heads, spread evenly over the gated layers; 0: none.
    output_blocks: of the output stack, with `hidden` units in the middle.
    """

    levels: int
    shape: tuple[int, int]
    features: int
    blocks: int
    hidden: int
    first_size: int = 5
    size: int = 3
    embedding: int = 32
    attention: int = 0
    heads: int = 1
    output_blocks: int = 1
    num_classes: int = 0
    local: bool = False
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        f, rate, dtype = self.features, self.dropout_rate, self.dtype
        self.embed = PixelEmbedding(self.levels, self.embedding)
        classes = (1, self.num_classes)
        first = GatedLayer(self.embedding, f, self.first_size, "A", *classes, False, 0.0, dtype, self.local)
        sizes = (f, f, self.size, "B", *classes, True, rate, dtype, self.local)
        self.layers = [first, *(GatedLayer(*sizes) for _ in range(self.blocks))]
        self.attentions = [CausalAttention(f, self.heads, rate, dtype) for _ in range(self.attention)]
        if self.attention:
            size = (self.shape[0] * self.shape[1], f)
            self.positions = self.param("positions", nn.initializers.normal(0.1), size, jnp.float32)
        self.output = [OutputBlock(f, self.hidden, rate, dtype) for _ in range(self.output_blocks)]
        self.out = nn.Dense(self.levels)

    def attention_after(self, layer: int) -> int | None:
        """Which attention follows a gated layer, if any; the last one follows the last layer."""
        ends = [(number + 1) * (self.blocks + 1) // self.attention - 1 for number in range(self.attention)]
        return ends.index(layer) if layer in ends else None

    def __call__(self, x: jax.Array, cond: Cond, keys: jax.Array | None = None) -> jax.Array:
        def key(number: int) -> jax.Array | None:
            return None if keys is None else rng.fold_in(keys, number)

        v = h = codes = self.embed(x)
        for number, layer in enumerate(self.layers):
            v, h = layer(v, h, cond.get("label"), key(3 * number), cond.get("local"))
            place = self.attention_after(number)
            if place is not None:
                h = self.attentions[place](h, codes, self.positions, key(3 * number + 1))
        for number, block in enumerate(self.output):
            h = block(h, key(3 * number + 2))
        return self.to_logits(h)

    def to_logits(self, h: jax.Array) -> jax.Array:
        return self.out(nn.relu(h).astype(jnp.float32))[..., None, :]

    # One row and one code at a time: see jgen.samplers.autoregressive.

    def start(self, batch: int, width: int) -> tuple[Rows, list[jax.Array]]:
        """The caches above the first row; and left of the first column: of each layer its input, (pixels, B, inputs),
        of each attention keys and values (W, B, heads, D), and which of these positions exist, (W, B)."""
        reaches = [(layer.size // 2, layer.inputs) for layer in self.layers]
        layers = [jnp.zeros((reach, width, batch, inputs)) for reach, inputs in reaches]
        head_shape = (batch, self.heads, self.features // self.heads)
        above = [jnp.zeros((self.shape[0] * width, *head_shape), self.dtype) for _ in self.attentions]
        columns = [jnp.zeros((reach, batch, inputs)) for reach, inputs in reaches]
        columns += [jnp.zeros((width, *head_shape), self.dtype) for _ in range(2 * self.attention)]
        columns += [jnp.zeros((width, batch))] * bool(self.attention)
        return Rows(layers, above, above, jnp.int32(0)), columns

    def enter_row(self, rows: Rows, cond: Cond) -> tuple[Rows, tuple[list[jax.Array], Any]]:
        """Advances the vertical stack by one row. Returns the updated caches (except the embedded codes, which
        `leave_row` adds), and for each code of the row its layers' contexts and its position embedding."""
        label, local = cond.get("label"), cond.get("local")
        local = None if local is None else local[:, rows.row].swapaxes(0, 1)
        v, context = self.layers[0].row(rows.layers[0], label, local)
        contexts, after = [context], [rows.layers[0]]
        for layer, above in zip(self.layers[1:], rows.layers[1:]):
            window = jnp.concatenate([above, v[None].astype(above.dtype)])
            after.append(window[1:])
            v, context = layer.row(window, label, local)
            contexts.append(context)
        positions = self.positions.reshape(*self.shape, -1)[rows.row] if self.attention else None
        return rows._replace(layers=after), (contexts, positions)

    def at_pixel(
        self, rows: Rows, columns: list[jax.Array], contexts: tuple[list[jax.Array], Any], pixel: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Logits (B, 1, levels) of a code, and what to cache of it, in the order of `start`'s columns."""
        h, (layer_contexts, position) = self.embed(pixel), contexts
        inputs, pairs = [], []
        for number, (layer, context) in enumerate(zip(self.layers, layer_contexts)):
            inputs.append(h)
            h = layer.pixel(columns[number], h, context)
            place = self.attention_after(number)
            if place is not None:
                sources = self.sources(rows, columns, place)
                h, *pair = self.attentions[place].pixel(h, self.code_before(rows, columns), position, sources)
                pairs += pair
        if self.attention:
            pairs.append(jnp.ones(h.shape[0]))
        for block in self.output:
            h = block(h)
        return self.to_logits(h), inputs + pairs

    def code_before(self, rows: Rows, columns: list[jax.Array]) -> jax.Array:
        """The vector of the code to the left, or where a row begins of the last one above, (B, embedding)."""
        return jnp.where(columns[-1][-1, :, None] > 0, columns[0][-1], rows.layers[0][-1, -1])

    def sources(self, rows: Rows, columns: list[jax.Array], place: int) -> list[Source]:
        """Keys and values of one attention in the rows above, and to the left, as `attend` takes them."""
        first = len(self.layers) + 2 * place
        is_above = jnp.arange(rows.keys[place].shape[0]) < rows.row * self.shape[1]
        is_left = columns[-1].T > 0

        def by_image(x: jax.Array) -> jax.Array:
            return x.swapaxes(0, 1)[:, None]

        return [
            (by_image(rows.keys[place]), by_image(rows.values[place]), is_above[None, None, None, None]),
            (by_image(columns[first]), by_image(columns[first + 1]), is_left[:, None, None, None]),
        ]

    def embed_pixel(self, pixel: jax.Array) -> jax.Array:
        """The first layer's input of a code (B, 1)."""
        return self.embed(pixel)

    def leave_row(self, rows: Rows, inputs: list[jax.Array]) -> Rows:
        """The rows above after a row, given what was cached of its codes, (W, B, ...)."""
        first = jnp.concatenate([rows.layers[0], inputs[0][None]])[1:]
        own = inputs[len(self.layers) : len(self.layers) + 2 * self.attention]

        def put(cache: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), rows.row * self.shape[1], 0)

        keys, values = ([put(*pair) for pair in zip(old, own[i::2])] for i, old in enumerate((rows.keys, rows.values)))
        return Rows([first, *rows.layers[1:]], keys, values, rows.row + 1)


def make_network(config: Config, codes: ImageSpec, num_classes: int, local: bool = False) -> CodePixelCNN:
    """The network over a grid of codes. Raises `UserError` for sizes that it cannot be built with."""
    check_config(config, codes)
    return CodePixelCNN(
        levels=codes.levels,
        shape=(codes.height, codes.width),
        features=config.features,
        blocks=config.blocks,
        hidden=config.hidden,
        first_size=config.first_kernel,
        size=config.kernel,
        embedding=config.embedding,
        attention=config.attention,
        heads=config.heads,
        output_blocks=config.output_blocks,
        num_classes=num_classes,
        local=local,
        dropout_rate=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )


def check_config(config: Config, codes: ImageSpec) -> None:
    """Raises `UserError` for sizes that the network cannot be built with."""
    c, layers = config, config.blocks + 1
    require(codes.channels == 1, f"codes have {codes.channels} channels: this network takes one code at a place")
    check_network(1, c.features, c.hidden, c.blocks, {"first_kernel": c.first_kernel, "kernel": c.kernel}, c.dropout)
    require_positive(embedding=c.embedding, heads=c.heads)
    require(c.output_blocks >= 0, f"output_blocks is {c.output_blocks}: it must be zero or above")
    fits = 0 <= c.attention <= layers
    require(fits, f"attention is {c.attention}: it must be from 0 to {layers}, the gated layers with the first")
    divides = c.features % c.heads == 0
    require(divides or c.attention == 0, f"features is {c.features}: it must be divisible by the {c.heads} heads")
