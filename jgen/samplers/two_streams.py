"""Sampling pixel by pixel in raster order from a network of two streams at several resolutions, with cached features.

The network is never evaluated over the whole image: the stream that sees the rows above is computed one row at a time,
when the row is entered; the other stream one pixel at a time, from the features of the row above and of the pixel to
the left; and a coarser resolution only where both coordinates are multiples of its stride. So drawing an image takes as
many operations as one evaluation of the network. A pixel's channels are drawn together. Pixel (i, j) of an image with
key k has the key fold_in(k, i W + j), so that the draw does not depend on how its distribution was computed.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.errors import require_temperature
from jgen.prob.logistic_mixture import LogisticMixture
from jgen.samplers.autoregressive import in_chunks


class TwoStreamNetwork(Protocol):
    """The methods that the sampler calls on a linen module.

    start(batch, width) -> (rows, columns)              caches above the first row, and left of the first column
    enter_row(rows, i, label) -> (rows, contexts)       contexts: what the pixels of row i take from the rows above
    at_pixel(columns, contexts, i, j) -> (parameters, columns)   parameters of the pixel's distribution, (B, P)
    put_pixel(columns, pixel) -> columns                the cache with the pixel that was drawn, int32 (B, C)
    leave_row(rows, columns, i) -> rows                 columns: the caches of all pixels of row i, (W, B, ...)
    """

    def init(self, key: Any, *args: Any) -> Any: ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


def sample_two_streams(
    network: TwoStreamNetwork,
    params: Any,
    keys: jax.Array,
    label: jax.Array | None,
    shape: tuple[int, int, int],
    levels: int,
    temperature: float = 1.0,
    images: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Images from a network that gives each pixel's `LogisticMixture`, int32 (B, H, W, C), 0 .. levels - 1, in one
    compiled program.

    Args:
      network, params: a linen module that is a `TwoStreamNetwork`, and its parameters.
      keys: (B,); label: int32 (B,) or None; shape: (H, W, C).
      temperature: above 0, of `LogisticMixture.sample`.
      images, mask: integers (B, H, W, C) and bool (B, H, W): where the mask is true, the images' pixels are kept. The
        others are drawn given all pixels before them.
    Raises:
      UserError: a temperature that is not above zero and finite.
    """
    require_temperature(temperature)

    def chunk(part: tuple) -> jax.Array:
        keys, label, images, mask = part
        given = None
        if images is not None and mask is not None:
            given = (images.transpose(1, 2, 0, 3), mask.transpose(1, 2, 0)[..., None])  # rows, columns, images
        return _sample_chunk(network, params, keys, label, given, shape, levels, temperature)

    return in_chunks(chunk, (keys, label, None if images is None else images.astype(jnp.int32), mask), keys.shape[0])


def _sample_chunk(
    network: TwoStreamNetwork,
    params: Any,
    keys: jax.Array,
    label: jax.Array | None,
    given: tuple[jax.Array, jax.Array] | None,
    shape: tuple[int, int, int],
    levels: int,
    temperature: float,
) -> jax.Array:
    height, width, channels = shape

    def call(method: str, *args: Any) -> Any:
        return network.apply({"params": params}, *args, method=method)

    rows, start = call("start", keys.shape[0], width)

    def at_row(rows: Any, inputs: tuple) -> tuple[Any, jax.Array]:
        i, given = inputs
        rows, contexts = call("enter_row", rows, i, label)

        def at_column(columns: Any, inputs: tuple) -> tuple[Any, tuple]:
            j, given = inputs
            parameters, columns = call("at_pixel", columns, contexts, i, j)
            distribution = LogisticMixture(parameters, channels, levels)
            pixel = distribution.sample(rng.fold_in(keys, i * width + j), temperature).astype(jnp.int32)
            if given is not None:
                image, mask = given
                pixel = jnp.where(mask, image, pixel)
            columns = call("put_pixel", columns, pixel)
            return columns, (pixel, columns)

        _, (pixels, columns) = jax.lax.scan(at_column, start, (jnp.arange(width), given))
        return call("leave_row", rows, columns, i), pixels

    _, pixels = jax.lax.scan(at_row, rows, (jnp.arange(height), given))
    return pixels.transpose(2, 0, 1, 3)
