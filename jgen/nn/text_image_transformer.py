"""One causal transformer over a text and the codes of an image (Ramesh et al. 2021, arXiv 2102.12092, section 2.2).

The sequence is T text tokens, then the N = h w codes row by row. Text attends to the text before it, codes to all of
the text and to the codes before them. Padding positions of the text have their own embeddings instead of the padding
token's. Each token is predicted from those before it, and codes also from all of the text.

A text is a start token, tokens, an end token and padding: so start and padding are never predicted within it, the last
position can only be an end, and padding follows the end with probability 1.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core.model import Cond
from jgen.core.tokens import END, PADDING, START
from jgen.nn.pixel_transformer import PixelTransformer
from jgen.nn.sparse_attention import MASKED


class TextImageTransformer(PixelTransformer):
    """(codes int32 (B, h, w, 1), cond, dropout keys) to logits of the text after its start and of the codes,
    float32 (B, T - 1, vocabulary) and (B, h, w, 1, levels).

    Fields are those of `PixelTransformer`; like that, it supports `jgen.samplers.sequence`, for the codes after a text.
    """

    def setup(self) -> None:
        super().setup()
        init = nn.initializers.normal(0.125 * self.features**-0.5)
        self.padding = nn.Embed(self.text_length, self.features, embedding_init=init)
        self.text_out = nn.Dense(self.vocabulary, kernel_init=nn.initializers.zeros)

    def __call__(  # type: ignore[override]
        self, x: jax.Array, cond: Cond, keys: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        h = self.hidden_states(self.values(x.astype(jnp.int32).reshape(x.shape[0], -1)), cond, None, keys)
        h, length = h.astype(jnp.float32), self.text_length
        return self.text_logits(h[:, : length - 1], cond[self.text]), self.out(h[:, length:]).reshape(*x.shape, -1)

    def text_logits(self, h: jax.Array, tokens: jax.Array) -> jax.Array:
        """Logits of tokens 1 .. T - 1 from the hidden states of those before them."""
        ended = jnp.cumsum(tokens[:, :-1] == END, axis=1) > 0
        is_last = jnp.arange(h.shape[1])[None] == self.text_length - 2
        return possible(self.text_out(h), ended, is_last)

    def text_places(self, tokens: jax.Array, places: jax.Array) -> jax.Array:
        """The embeddings of tokens (B, n) at positions (n,) of the text, (B, n, features)."""
        padding = self.padding(places)[None]
        return jnp.where((tokens == PADDING)[..., None], padding, self.tokens(tokens)) + self.places(places)[None]

    def prefix(self, batch: int, cond: Cond) -> jax.Array:
        return self.text_places(cond[self.text], jnp.arange(self.text_length))


class TextTransformer(TextImageTransformer):
    """The same network with the same parameters, for sampling the T - 1 tokens after a text's start by
    `jgen.samplers.sequence`. Its `patterns` must all be "full", as many as the network has."""

    def start(self, batch: int, cond: Cond) -> Any:
        nothing = jnp.zeros((batch, 0, self.features))
        return self.transformer.start(nothing, self.text_length - 1), jnp.zeros(batch, bool)

    def step(self, caches: Any, p: jax.Array, before: jax.Array, cond: Cond) -> tuple[jax.Array, Any]:
        """Logits (B, vocabulary) of token p + 1 given token p, and the caches with it."""
        cache, ended = caches
        token = jnp.where(p > 0, before, START)
        h, cache = self.transformer.step(self.text_places(token[:, None], p[None])[:, 0], cache, p)
        ended = ended | (token == END)
        logits = possible(self.text_out(h.astype(jnp.float32)), ended, (p == self.text_length - 2)[None])
        return logits, (cache, ended)


def possible(logits: jax.Array, ended: jax.Array, is_last: jax.Array) -> jax.Array:
    """The logits (..., vocabulary) with impossible tokens masked: after an end only padding is possible, at the last
    position only an end. ended, is_last: bool (...)."""
    least = jnp.where(ended, PADDING, END)[..., None]  # the possible ids are a range
    most = jnp.where(ended, PADDING, jnp.where(is_last, END, logits.shape[-1]))[..., None]
    token = jnp.arange(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,))
    return jnp.where((token >= least) & (token <= most), logits, MASKED)
