"""Sampling pixel by pixel in raster order, channels within a pixel in order, with cached activations.

The network is never evaluated over the whole image. A row's dependence on the rows above is computed once per row, for
all columns; each channel of a pixel, one after another (three for RGB), then takes one product of (B, features) with
each kernel, using features cached from the pixels to its left. Channel c at row i, column j of an image with key k
takes its noise from fold_in(k, (i W + j) C + c), so that the draw does not depend on how the network's outputs were
computed. `sample_raster` draws from softmax(logits / temperature) by the Gumbel-max trick, optionally with top-k or
top-p truncation; `sample_by_draw` accepts any other rule that maps outputs and noise to a level.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core.backend import for_cpu
from jgen.core.parts import in_parts
from jgen.errors import NotSupported
from jgen.samplers.truncation import check_truncation, truncate

CHUNK = 16  # images at a time on CPU: with more, features exceed the CPU cache and an image takes up to twice as long


class RasterNetwork(Protocol):
    """The methods that the sampler calls on a linen module.

    start(batch, width) -> (rows, columns)            caches above the first row, and left of the first column
    enter_row(rows, label) -> (rows, contexts)        contexts: arrays (W, ...), a row's dependence on the rows above
    at_pixel(rows, columns, contexts, pixel) -> (outputs, inputs)   of one column j: rows as `enter_row` gives them
                                                      (what attention reads), contexts without their axis W, pixel
                                                      int32 (B, C) with the channels drawn so far; outputs float32
                                                      (B, C, P), such as logits; inputs: a list of what to cache of the
                                                      pixel, (B, ...), one for each entry of columns, in which the
                                                      newest is the last along axis 0
    embed_pixel(pixel) -> inputs[0]                   the only one of the inputs that depends on the last channel
    leave_row(rows, inputs) -> rows                   inputs: (W, B, ...)

    `label` is the network's condition, any tree of arrays (B, ...): an image's class, or features.
    """

    def init(self, key: Any, *args: Any) -> Any: ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


class Draw(NamedTuple):
    """How a level is drawn from the network's output for one channel of one pixel.

    noise: (keys, position) -> (B, ...), of one channel of one pixel; position = (i W + j) C + c.
    value: (outputs (B, P), noise (B, ...)) -> int32 (B,), a level.
    """

    noise: Callable[[jax.Array, Any], jax.Array]
    value: Callable[[jax.Array, jax.Array], jax.Array]


def gumbel(keys: jax.Array, position: Any, levels: int) -> jax.Array:
    """Standard Gumbel noise (B, levels) of one channel of one pixel; position = (i W + j) C + c."""
    return jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, position), (levels,)))(keys)


def draw(logits: jax.Array, noise: jax.Array, temperature: float, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """int32 (B,): a level from the softmax of truncated logits; logits and Gumbel noise (B, levels)."""
    return jnp.argmax(truncate(logits, temperature, top_k, top_p) + noise, axis=-1).astype(jnp.int32)


def sample_raster(
    network: RasterNetwork,
    params: Any,
    keys: jax.Array,
    label: Any,
    shape: tuple[int, int, int],
    levels: int,
    temperature: float = 1.0,
    images: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """Images from an autoregressive network, int32 (B, H, W, C), 0 .. levels - 1, in one compiled program.

    Args:
      network, params: a linen module that is a `RasterNetwork`, and its parameters.
      keys: (B,); shape: (H, W, C).
      label: int32 (B,), or a tree of arrays (B, ...) that the network is conditioned on; None if unconditional.
      temperature, top_k, top_p: see `jgen.samplers.truncation.truncate`.
      images, mask: integers (B, H, W, C) and bool (B, H, W): where the mask is true, the images' pixels are kept. The
        others are drawn given all pixels before them.
    Raises:
      UserError: a temperature, top_k or top_p out of its range.
    """
    check_truncation(temperature, top_k, top_p, levels)
    value = partial(draw, temperature=temperature, top_k=top_k, top_p=top_p)
    by_softmax = Draw(partial(gumbel, levels=levels), value)
    return sample_by_draw(network, params, keys, label, shape, by_softmax, images, mask)


def sample_by_draw(
    network: RasterNetwork,
    params: Any,
    keys: jax.Array,
    label: Any,
    shape: tuple[int, int, int],
    draw: Draw,
    images: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """As `sample_raster`, for a network whose outputs are turned into levels by `draw`."""

    def chunk(part: tuple) -> jax.Array:
        keys, label, images, mask = part
        return _sample_chunk(network, params, keys, label, images, mask, shape, draw)

    return in_chunks(chunk, (keys, label, None if images is None else images.astype(jnp.int32), mask), keys.shape[0])


def in_chunks(chunk: Callable[[Any], jax.Array], parts: Any, batch: int) -> jax.Array:
    """The function `chunk` applied to `parts`, a tree of arrays (B, ...), to (B, ...): on CPU, `CHUNK` images at a
    time."""
    return in_parts(chunk, parts, CHUNK if for_cpu() else batch)


def _sample_chunk(
    network: Any,
    params: Any,
    keys: jax.Array,
    label: Any,
    images: jax.Array | None,
    mask: jax.Array | None,
    shape: tuple[int, int, int],
    draw: Draw,
) -> jax.Array:
    height, width, channels = shape
    batch = keys.shape[0]

    def call(method: str, *args: Any) -> Any:
        return network.apply({"params": params}, *args, method=method)

    rows, columns = call("start", batch, width)

    def row_noise(i: jax.Array) -> jax.Array:
        """The noise of row i, (W, C, B, ...)."""
        positions = i * (width * channels) + jnp.arange(width * channels)
        noise = jax.vmap(partial(draw.noise, keys))(positions)
        return noise.reshape(width, channels, *noise.shape[1:])

    def at_row(rows: Any, inputs: tuple) -> tuple[Any, jax.Array]:
        i, given = inputs
        rows, contexts = call("enter_row", rows, label)
        step = partial(at_column, rows)
        _, (pixels, features) = jax.lax.scan(step, columns, (contexts, row_noise(i), given))
        return call("leave_row", rows, features), pixels

    def at_column(rows: Any, columns: Any, inputs: tuple) -> tuple[Any, tuple]:
        contexts, noise, given = inputs

        def channel(c: jax.Array, carry: tuple) -> tuple:
            pixel, _ = carry
            outputs, features = call("at_pixel", rows, columns, contexts, pixel)
            value = draw.value(outputs[:, c], noise[c])
            if given is not None:
                image, mask = given
                value = jnp.where(mask, image[:, c], value)
            return pixel.at[:, c].set(value), features

        pixel = jnp.zeros((batch, channels), jnp.int32)
        _, shapes = jax.eval_shape(lambda: call("at_pixel", rows, columns, contexts, pixel))
        start = (pixel, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
        pixel, features = jax.lax.fori_loop(0, channels, channel, start)
        # The last pass had all channels but the last, on which only the first layer's input depends.
        features = [call("embed_pixel", pixel), *features[1:]]
        after = [jnp.concatenate([old[1:], new[None].astype(old.dtype)]) for old, new in zip(columns, features)]
        return after, (pixel, features)

    given = None
    if images is not None and mask is not None:
        given = (images.transpose(1, 2, 0, 3), mask.transpose(1, 2, 0))  # rows, columns, images
    _, pixels = jax.lax.scan(at_row, rows, (jnp.arange(height), given))
    return pixels.transpose(2, 0, 1, 3)


def check_prefix(mask: Any) -> None:
    """Raises `NotSupported` for an inpainting mask, bool (H, W), whose true pixels are not the first in order."""
    flat = np.asarray(mask).reshape(-1)
    first = int(np.argmin(flat)) if not flat.all() else flat.size
    late = np.flatnonzero(flat[first:])
    if late.size:
        width = np.asarray(mask).shape[1]
        (row, column), missing = divmod(first + int(late[0]), width), divmod(first, width)
        raise NotSupported(
            f"mask keeps the pixel at row {row}, column {column} but not the one at row {missing[0]}, column"
            f" {missing[1]}: pixels are drawn row by row from the top left, so the kept ones must be the first"
        )
