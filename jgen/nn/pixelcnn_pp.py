"""The network of PixelCNN++ (Salimans, Karpathy, Chen & Kingma 2017, arXiv 1701.05517).

There are two streams of features: u at row i sees the rows above i, and ul at row i and column j also the pixels to the
left in row i. Both consist of gated residual blocks, at resolutions that halve and double again, with short-cut
connections (section 2.4):

    block  x + a sigmoid(b),  (a, b) = conv(dropout(celu(conv(celu(x)) + W celu(others)))),  celu(x) = elu([x, -x])

Blocks of u convolve windows of 2 x 3, the own row and the one above; blocks of ul use 2 x 2 windows, and their `others`
include u.

It supports sampling by `jgen.samplers.two_streams`: a row of u is computed when the row is entered, a pixel of ul when
it is reached, and coarser resolutions only where both coordinates are multiples of their stride. So an image takes the
operations of one evaluation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.nn.dropout import dropout
from jgen.nn.gated_pixelcnn import to_bias
from jgen.nn.shifted_convolution import ShiftedConv, ShiftedConvTranspose
from jgen.prob.pixels import to_float

Pair = tuple[jax.Array, jax.Array]
U_WINDOW, UL_WINDOW = (2, 3), (2, 2)


def concat_elu(x: jax.Array) -> jax.Array:
    """elu of x and of -x, (..., f) to (..., 2 f)."""
    positive = x > 0
    below = jnp.exp(jnp.where(positive, -x, x)) - 1  # one exponential for both
    return jnp.concatenate([jnp.where(positive, x, below), jnp.where(positive, below, -x)], axis=-1)


class GatedResnetBlock(nn.Module):
    """(x, u or None, skip or None, label, dropout keys or None) to features, all (B, H, W, features).

    has_u: takes the features of the other stream; has_skip: a short-cut connection. num_classes: 0 for none; a class
    adds a bias to the gate.
    """

    features: int
    window: tuple[int, int]
    has_u: bool
    has_skip: bool
    num_classes: int
    dropout_rate: float
    dtype: DTypeLike

    def setup(self) -> None:
        f, dtype = self.features, self.dtype
        self.conv1 = ShiftedConv(2 * f, f, self.window, dtype=dtype)
        self.conv2 = ShiftedConv(2 * f, 2 * f, self.window, gain=0.1, dtype=dtype)
        if self.has_u:
            self.across = nn.Dense(f, use_bias=False, dtype=dtype)
        if self.has_skip:
            self.shortcut = nn.Dense(f, use_bias=False, dtype=dtype)
        if self.num_classes:
            self.label = nn.Embed(self.num_classes, 2 * f, dtype=dtype, embedding_init=nn.initializers.zeros)

    def __call__(
        self,
        x: jax.Array,
        u: jax.Array | None,
        skip: jax.Array | None,
        label: jax.Array | None,
        keys: jax.Array | None,
    ) -> jax.Array:
        y = self.conv1(concat_elu(x)) + self.from_u(u) + self.from_skip(skip)
        y = self.conv2(dropout(concat_elu(y), keys, self.dropout_rate))
        return self.gated(x, y + to_bias(self.classes(label), 1))

    def gated(self, x: jax.Array, y: jax.Array) -> jax.Array:
        a, b = jnp.split(y, 2, axis=-1)
        return x + a * nn.sigmoid(b)

    def from_u(self, u: jax.Array | None) -> jax.Array | int:
        return self.across(concat_elu(u)) if u is not None else 0

    def from_skip(self, skip: jax.Array | None) -> jax.Array | int:
        return self.shortcut(concat_elu(skip)) if skip is not None else 0

    def classes(self, label: jax.Array | None) -> jax.Array | int:
        return self.label(label) if self.num_classes else 0

    # One row or one pixel at a time. The inputs of both convolutions, (W, B, 2 f) or (B, 2 f), are cached.

    def row(self, above: Pair, x: jax.Array, skip: jax.Array | None, label: jax.Array | None) -> tuple[jax.Array, Pair]:
        """A row of u, (W, B, f), and the inputs of its convolutions, given those of the row above."""
        first = concat_elu(x)
        second = concat_elu(self.conv1.row(jnp.stack([above[0], first])) + self.from_skip(skip))
        y = self.conv2.row(jnp.stack([above[1], second])) + to_bias(self.classes(label), 0)
        return self.gated(x, y), (first, second)

    def context(self, above: Pair, u: jax.Array, label: jax.Array | None) -> Pair:
        """The contributions of the row above, of u and of the class to the convolutions of ul in a row."""
        first = self.conv1.row(above[0][None]) + self.from_u(u)
        return first, self.conv2.row(above[1][None]) + to_bias(self.classes(label), 0)

    def pixel(self, left: Pair, context: Pair, x: jax.Array, skip: jax.Array | None) -> tuple[jax.Array, Pair]:
        """A pixel of ul, (B, f), and the inputs of its convolutions, given those of the pixel to the left."""
        first = concat_elu(x)
        second = concat_elu(self.conv1.pixel((left[0], first), context[0]) + self.from_skip(skip))
        return self.gated(x, self.conv2.pixel((left[1], second), context[1])), (first, second)


class RowCache(NamedTuple):
    """The cache that a row of u leaves for the next row, at one resolution and those below.

    encoder, decoder: the inputs of each block's convolutions, (W, B, 2 f). last: the encoder's output, (W, B, f).
    inner: the cache of the coarser resolution. coarse: its results at its newest row, (u (w, B, f), `Contexts.enter`,
    `Contexts.inner`). The last three are None at the coarsest resolution.
    """

    encoder: list[Pair]
    decoder: list[Pair]
    last: Any = None
    inner: Any = None
    coarse: Any = None


class PixelCache(NamedTuple):
    """The cache that a pixel of ul leaves for the next pixel, at one resolution and those below; for a row, with a
    leading axis W.

    encoder, decoder: the inputs of each block's convolutions, (B, 2 f). last: the encoder's output, (B, f).
    inner: the cache of the coarser resolution. coarse: the newest ul that it gave, (B, f). The last three are None at
    the coarsest resolution.
    """

    encoder: list[Pair]
    decoder: list[Pair]
    last: Any = None
    inner: Any = None
    coarse: Any = None


class Contexts(NamedTuple):
    """The contributions of u and of the row above to the pixels of a row of ul: see `GatedResnetBlock.context`.

    enter: the same of the convolution to the coarser resolution, (w, B, f). inner: the contexts there. coarse: its ul
    in the row that this one lies in, (w, B, f). All None at the coarsest resolution.
    """

    encoder: list[Pair]
    decoder: list[Pair]
    enter: Any = None
    inner: Any = None
    coarse: Any = None


class Resolution(nn.Module):
    """(u, ul, label, dropout keys or None) to (u, ul), all (B, H, W, features).

    An encoder of `blocks` blocks per stream, then the `scales` - 1 coarser resolutions, then a decoder with one more
    block (at the coarsest resolution, with as many): its block n has a short-cut connection from the n-th last of the
    encoder's features.
    """

    features: int
    blocks: int
    scales: int
    num_classes: int
    dropout_rate: float
    dtype: DTypeLike

    def setup(self) -> None:
        f, dtype, is_coarsest = self.features, self.dtype, self.scales == 1

        def block(window: tuple[int, int], has_u: bool, has_skip: bool) -> GatedResnetBlock:
            return GatedResnetBlock(f, window, has_u, has_skip, self.num_classes, self.dropout_rate, dtype)

        encoder, decoder = range(self.blocks), range(self.blocks + (not is_coarsest))
        self.encoder_u = [block(U_WINDOW, False, False) for _ in encoder]
        self.encoder_ul = [block(UL_WINDOW, True, False) for _ in encoder]
        self.decoder_u = [block(U_WINDOW, False, True) for _ in decoder]
        self.decoder_ul = [block(UL_WINDOW, True, True) for _ in decoder]
        if not is_coarsest:
            self.downsample_u = ShiftedConv(f, f, U_WINDOW, stride=2, dtype=dtype)
            self.downsample_ul = ShiftedConv(f, f, UL_WINDOW, stride=2, dtype=dtype)
            self.inner = Resolution(f, self.blocks, self.scales - 1, self.num_classes, self.dropout_rate, dtype)
            self.upsample_u = ShiftedConvTranspose(f, f, 3, dtype)
            self.upsample_ul = ShiftedConvTranspose(f, f, 2, dtype)

    def __call__(
        self, u: jax.Array, ul: jax.Array, label: jax.Array | None, keys: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        height, width = u.shape[1:3]
        count = 2 * len(self.encoder_u) + 2 * len(self.decoder_u) + 1
        parts = iter([None] * count if keys is None else [rng.fold_in(keys, number) for number in range(count)])
        us, uls = [u], [ul]
        for block_u, block_ul in zip(self.encoder_u, self.encoder_ul):
            us.append(block_u(us[-1], None, None, label, next(parts)))
            uls.append(block_ul(uls[-1], us[-1], None, label, next(parts)))
        if self.scales == 1:
            u, ul = us.pop(), uls.pop()
        else:
            u, ul = self.inner(self.downsample_u(us[-1]), self.downsample_ul(uls[-1]), label, next(parts))
            u, ul = self.upsample_u(u, height, width), self.upsample_ul(ul, height, width)
        for block_u, block_ul in zip(self.decoder_u, self.decoder_ul):
            u = block_u(u, None, us.pop(), label, next(parts))
            ul = block_ul(ul, u, uls.pop(), label, next(parts))
        return u, ul

    # One row and one pixel at a time. A coarser resolution is evaluated at even rows and columns; elsewhere its
    # previous result is used.

    def start(self, batch: int, width: int) -> tuple[RowCache, PixelCache, Contexts]:
        """The caches above the first row, those of ul with a leading axis W, and contexts, all zeros."""
        f, w = self.features, (width + 1) // 2

        def pairs(blocks: Any, first: int) -> list[Pair]:
            zeros = [jnp.zeros((width, batch, size), self.dtype) for size in (first, 2 * f)]
            return [(zeros[0], zeros[1]) for _ in blocks]

        encoder, decoder = pairs(self.encoder_u, 2 * f), pairs(self.decoder_u, 2 * f)
        row, pixels = RowCache(encoder, decoder), PixelCache(encoder, decoder)
        contexts = Contexts(pairs(self.encoder_u, f), pairs(self.decoder_u, f))
        if self.scales == 1:
            return row, pixels, contexts
        inner_row, inner_pixels, inner_contexts = self.inner.start(batch, w)
        last, coarse = jnp.zeros((width, batch, f), self.dtype), jnp.zeros((w, batch, f), self.dtype)
        row = row._replace(last=last, inner=inner_row, coarse=(coarse, coarse, inner_contexts))
        pixels = pixels._replace(last=last, inner=inner_pixels, coarse=coarse)
        return row, pixels, contexts._replace(enter=coarse, inner=inner_contexts, coarse=coarse)

    def row(
        self, cache: RowCache, above: PixelCache, i: jax.Array, u: jax.Array, label: jax.Array | None
    ) -> tuple[RowCache, jax.Array, Contexts]:
        """Row i of u, (W, B, f), and the contributions to ul's pixels in that row, from it and from the row `above` of
        ul."""
        us, encoder, decoder, contexts = [u], [], [], Contexts([], [])
        for block_u, block_ul, own, before in zip(self.encoder_u, self.encoder_ul, cache.encoder, above.encoder):
            u, inputs = block_u.row(own, us[-1], None, label)
            us.append(u)
            encoder.append(inputs)
            contexts.encoder.append(block_ul.context(before, u, label))
        last, inner, coarse = us[-1], None, None
        if self.scales == 1:
            us.pop()
        else:
            given = (cache, above, i, last, label)
            inner, coarse = nn.cond(i % 2 == 0, Resolution.enter_coarse_row, Resolution.keep_coarse_row, self, *given)
            contexts = contexts._replace(enter=coarse[1], inner=coarse[2], coarse=above.coarse)
            u = self.upsample_u.row(coarse[0], i % 2, u.shape[0])
        for block_u, block_ul, own, before in zip(self.decoder_u, self.decoder_ul, cache.decoder, above.decoder):
            u, inputs = block_u.row(own, u, us.pop(), label)
            decoder.append(inputs)
            contexts.decoder.append(block_ul.context(before, u, label))
        return RowCache(encoder, decoder, None if inner is None else last, inner, coarse), u, contexts

    def enter_coarse_row(
        self, cache: RowCache, above: PixelCache, i: jax.Array, u: jax.Array, label: jax.Array | None
    ) -> tuple[RowCache, Any]:
        low = self.downsample_u.row(jnp.stack([cache.last, u]))
        inner, low, contexts = self.inner.row(cache.inner, above.inner, i // 2, low, label)
        return inner, (low, self.downsample_ul.row(above.last[None]), contexts)

    def keep_coarse_row(self, cache: RowCache, *_: Any) -> tuple[RowCache, Any]:
        return cache.inner, cache.coarse

    def pixel(
        self, left: PixelCache, contexts: Contexts, i: jax.Array, j: jax.Array, ul: jax.Array
    ) -> tuple[PixelCache, jax.Array]:
        """Pixel (i, j) of ul, (B, f), and its cache, given that of the pixel to the left."""
        uls, encoder, decoder = [ul], [], []
        for block, before, context in zip(self.encoder_ul, left.encoder, contexts.encoder):
            ul, inputs = block.pixel(before, column(context, j), uls[-1], None)
            uls.append(ul)
            encoder.append(inputs)
        last, inner, coarse = uls[-1], None, None
        if self.scales == 1:
            uls.pop()
        else:
            given = (left, contexts, i, j, last)
            is_coarse = (i % 2 == 0) & (j % 2 == 0)
            inner, coarse = nn.cond(is_coarse, Resolution.coarse_pixel, Resolution.keep_coarse_pixel, self, *given)
            ul = self.upsample_ul.pixel(coarse, i % 2, j % 2)
        for block, before, context in zip(self.decoder_ul, left.decoder, contexts.decoder):
            ul, inputs = block.pixel(before, column(context, j), ul, uls.pop())
            decoder.append(inputs)
        return PixelCache(encoder, decoder, None if inner is None else last, inner, coarse), ul

    def coarse_pixel(
        self, left: PixelCache, contexts: Contexts, i: jax.Array, j: jax.Array, ul: jax.Array
    ) -> tuple[PixelCache, jax.Array]:
        low = self.downsample_ul.pixel((left.last, ul), column(contexts.enter, j // 2))
        return self.inner.pixel(left.inner, contexts.inner, i // 2, j // 2, low)

    def keep_coarse_pixel(
        self, left: PixelCache, contexts: Contexts, i: jax.Array, j: jax.Array, *_: Any
    ) -> tuple[PixelCache, jax.Array]:
        # In an odd row the coarse row is complete; in an even row, the left pixel's cache has the result of their pair.
        return left.inner, jnp.where(i % 2 == 0, left.coarse, column(contexts.coarse, j // 2))


def column(rows: Any, j: jax.Array) -> Any:
    """Column j of a tree of rows, (W, B, ...) to (B, ...)."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, j, keepdims=False), rows)


def leave_row(above: PixelCache, row: PixelCache, i: jax.Array) -> PixelCache:
    """The cache of a row of ul from those of its pixels, at all W columns; a coarser resolution has only the even
    columns, and in an odd row keeps its previous values."""
    if row.inner is None:
        return row
    inner = leave_row(above.inner, jax.tree.map(lambda x: x[::2], row.inner), i // 2)
    inner = jax.tree.map(lambda new, old: jnp.where(i % 2 == 0, new, old), inner, above.inner)
    return row._replace(inner=inner, coarse=row.coarse[::2])


class PixelCNNPP(nn.Module):
    """(integers (B, H, W, C) in 0 .. levels - 1, label (B,) or None, dropout keys (B,) or None) to what describes the
    distribution of every pixel given those before it in raster order: float32 (B, H, W, outputs).

    features: width of each stream. blocks: blocks of each stream at each resolution, before and after the coarser ones.
    scales: resolutions, each half of the one before, rounded up. num_classes: 0 for none; the label is then ignored.
    """

    levels: int
    channels: int
    outputs: int
    features: int
    blocks: int
    scales: int
    num_classes: int = 0
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        inputs, f, dtype = self.channels + 1, self.features, self.dtype
        self.first_u = ShiftedConv(inputs, f, (2, 3), above=2, dtype=dtype)
        self.first_above = ShiftedConv(inputs, f, (1, 3), dtype=dtype)
        self.first_left = ShiftedConv(inputs, f, (2, 1), dtype=dtype)
        self.streams = Resolution(f, self.blocks, self.scales, self.num_classes, self.dropout_rate, dtype)
        self.out = nn.Dense(self.outputs)

    def __call__(self, x: jax.Array, label: jax.Array | None = None, keys: jax.Array | None = None) -> jax.Array:
        x = self.embed(x)
        _, ul = self.streams(self.first_u(x), self.first_above(x) + self.first_left(x), label, keys)
        return self.to_parameters(ul)

    def embed(self, x: jax.Array) -> jax.Array:
        """Pixels (..., C) scaled to [-1, 1], and a constant one, which distinguishes them from the zeros outside the
        image."""
        x = to_float(x, self.levels)
        return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)

    def to_parameters(self, ul: jax.Array) -> jax.Array:
        return self.out(nn.elu(ul).astype(jnp.float32))

    # One row and one pixel at a time: see jgen.samplers.two_streams.

    def start(self, batch: int, width: int) -> tuple[Any, Any]:
        """The caches above the first row, and left of the first column."""
        images = jnp.zeros((2, width, batch, self.channels + 1))
        row, above, _ = self.streams.start(batch, width)
        columns = (images[0], above)
        return (images, row, above), jax.tree.map(lambda x: x[0], columns)

    def enter_row(self, rows: Any, i: jax.Array, label: jax.Array | None) -> tuple[Any, Any]:
        """The caches with row i of u, and the contributions from it and from the rows above to the row's pixels."""
        images, row, above = rows
        first = self.first_above.row(images[1:]) + self.first_left.row(images[1:])
        row, _, contexts = self.streams.row(row, above, i, self.first_u.row(images), label)
        return (images, row, above), (first, contexts)

    def at_pixel(self, columns: Any, contexts: Any, i: jax.Array, j: jax.Array) -> tuple[jax.Array, Any]:
        """The distribution parameters of pixel (i, j), float32 (B, outputs), and the cache except the pixel itself."""
        (pixel, left), (first, contexts) = columns, contexts
        ul = self.first_left.pixel((pixel,), column(first, j))
        left, ul = self.streams.pixel(left, contexts, i, j, ul)
        return self.to_parameters(ul), (pixel, left)

    def put_pixel(self, columns: Any, pixel: jax.Array) -> Any:
        """The cache with the pixel's value, integers (B, C)."""
        return self.embed(pixel), columns[1]

    def leave_row(self, rows: Any, columns: Any, i: jax.Array) -> Any:
        """The caches above the next row, from those of the row's pixels, (W, B, ...)."""
        images, row, above = rows
        pixels, here = columns
        return jnp.stack([images[1], pixels]), row, leave_row(above, here, i)
