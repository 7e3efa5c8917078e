"""Sampling images one sub-pixel after another from a network over their sequence, with cached keys and values.

The network is never evaluated over the whole image: a position takes one product of (B, features) with each matrix, and
attention to the positions that it sees. Position p = (i W + j) C + c of an image with key k is drawn by the Gumbel-max
trick with noise from fold_in(k, p), so that the draw does not depend on how the logits were computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jgen.core.model import Cond
from jgen.samplers.autoregressive import gumbel, in_chunks
from jgen.samplers.truncation import check_truncation, truncate


class SequenceNetwork(Protocol):
    """The methods that the sampler calls on a linen module.

    start(batch, cond) -> caches                       before the first position; includes features of the conditions
    step(caches, p, before, cond) -> (logits, caches)  of position p, given the value before it, int32 (B,): float32
                                                       (B, levels); at p = 0 there is none, and `before` is not read
    """

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


class GuidedSequence(NamedTuple):
    """A `SequenceNetwork` with classifier-free guidance: logits null + scale (cond - null) (Ho & Salimans 2022, arXiv
    2207.12598). Its conditions are {"cond": conditions, "null": those of no condition, of the same shapes}."""

    network: Any
    scale: float

    def apply(self, variables: Any, *args: Any, method: str) -> Any:
        *inputs, both = args
        cond = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), both["cond"], both["null"])
        if method == "start":
            return self.network.apply(variables, 2 * inputs[0], cond, method=method)
        caches, p, before = inputs
        logits, caches = self.network.apply(
            variables, caches, p, jnp.concatenate([before, before]), cond, method=method
        )
        given, null = jnp.split(logits, 2)
        return null + self.scale * (given - null), caches


def sample_sequence(
    network: SequenceNetwork,
    params: Any,
    keys: jax.Array,
    cond: Cond,
    shape: tuple[int, int, int],
    levels: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    images: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Images from a network over their sub-pixels, int32 (B, H, W, C), 0 .. levels - 1, in one compiled program.

    Args:
      network, params: a linen module that is a `SequenceNetwork`, and its parameters.
      keys: (B,); cond: arrays (B, ...); shape: (H, W, C).
      temperature, top_k, top_p: see `truncate`.
      images, mask: integers (B, H, W, C) and bool (B, H, W): where the mask is true, the images' pixels are kept. The
        others are drawn given all pixels before them.
    Raises:
      UserError: a temperature, top_k or top_p out of its range.
    """
    check_truncation(temperature, top_k, top_p, levels)
    height, width, channels = shape

    def call(method: str, *args: Any) -> Any:
        return network.apply({"params": params}, *args, method=method)

    def chunk(part: tuple) -> jax.Array:
        keys, cond, images, mask = part
        batch, given = keys.shape[0], None
        if images is not None and mask is not None:
            flat = images.astype(jnp.int32).reshape(batch, -1).T
            given = (flat, jnp.repeat(mask.reshape(batch, -1).T, channels, axis=0))  # positions, images

        def position(carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
            caches, before = carry
            p, given = inputs
            logits, caches = call("step", caches, p, before, cond)
            logits = truncate(logits, temperature, top_k, top_p)
            value = jnp.argmax(logits + gumbel(keys, p, levels), axis=-1).astype(jnp.int32)
            if given is not None:
                value = jnp.where(given[1], given[0], value)
            return (caches, value), value

        start = (call("start", batch, cond), jnp.zeros(batch, jnp.int32))
        _, values = jax.lax.scan(position, start, (jnp.arange(height * width * channels), given))
        return values.T.reshape(batch, *shape)

    return in_chunks(chunk, (keys, cond, images, mask), keys.shape[0])
