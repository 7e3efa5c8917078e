"""A causal transformer over the sub-pixels of images, optionally after a text.

The sequence is an image's pixels row by row, the channels of a pixel in order: N = H W C positions. The input at
position p is the sum of the embeddings of the previous value (of a start symbol at p = 0), of its own row, column and
channel, and of the class and the augmentation; its output is the logits of its value. Text tokens are prepended, with
position embeddings, and are not predicted.

It supports sampling by `jgen.samplers.sequence`, one position at a time.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core.model import Cond
from jgen.nn.sparse_attention import Pattern
from jgen.nn.transformer import Cache, CausalTransformer


class PixelTransformer(nn.Module):
    """(integers (B, H, W, C), cond, transformation, dropout keys) to logits, float32 (B, H, W, C, levels).

    cond: {"label": int32 (B,), <text>: int32 (B, T)}; it reads the entries that it is conditioned on.
    transformation: int32 (B,), which of the `transformations` was applied to each image; None: number 0, the identity.
    keys: (B,) or None for no dropout.

    shape: (H, W, C). num_classes: 0 for none. text: the field of prepended tokens, "" for none, and its `vocabulary`.
    The fields `features` to `remat` are those of `CausalTransformer`.
    """

    shape: tuple[int, int, int]
    levels: int
    features: int
    heads: int
    layers: int
    hidden: int
    key_features: int
    patterns: tuple[Pattern, ...] = (Pattern("full"),)
    dropout_rate: float = 0.0
    remat: bool = False
    num_classes: int = 0
    text: str = ""
    vocabulary: int = 0
    text_length: int = 0
    transformations: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def embed(number: int, parts: int = 1) -> nn.Embed:
            init = nn.initializers.normal(0.125 * (self.features * parts) ** -0.5)
            return nn.Embed(number, self.features, embedding_init=init)

        height, width, channels = self.shape
        self.values, self.first = embed(self.levels), embed(1)
        self.rows, self.columns, self.channels = embed(height, 3), embed(width, 3), embed(channels, 3)
        if self.num_classes:
            self.classes = embed(self.num_classes)
        if self.transformations > 1:
            self.transformed = embed(self.transformations)
        if self.text:
            self.tokens, self.places = embed(self.vocabulary), embed(self.text_length)
        sizes = (self.features, self.heads, self.layers, self.hidden, self.key_features)
        self.transformer = CausalTransformer(*sizes, self.patterns, self.dropout_rate, self.remat, self.dtype)
        self.out = nn.Dense(self.levels, kernel_init=nn.initializers.zeros)

    def __call__(
        self, x: jax.Array, cond: Cond, transformation: jax.Array | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        batch = x.shape[0]
        values = self.values(x.astype(jnp.int32).reshape(batch, -1))
        return self.predict(values, cond, transformation, keys).reshape(*x.shape, self.levels)

    def between_levels(self, x: jax.Array, cond: Cond) -> jax.Array:
        """Logits (B, H, W, C, levels), differentiable in x, floats (B, H, W, C) in 0 .. levels - 1: embeddings are
        interpolated linearly between levels."""
        below = jnp.clip(jnp.floor(x), 0, self.levels - 2)
        weight, below = (x - below)[..., None], below.astype(jnp.int32)
        values = (1.0 - weight) * self.values(below) + weight * self.values(below + 1)
        return self.predict(values.reshape(x.shape[0], -1, self.features), cond).reshape(*x.shape, self.levels)

    def predict(
        self, values: jax.Array, cond: Cond, transformation: jax.Array | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """Logits (B, N, levels) of all positions from the embeddings of their values, (B, N, features)."""
        h = self.hidden_states(values, cond, transformation, keys)
        return self.out(h[:, -values.shape[1] :].astype(jnp.float32))

    def hidden_states(
        self, values: jax.Array, cond: Cond, transformation: jax.Array | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """The transformer's outputs for the text and all positions, (B, T + N, features): see `predict`."""
        batch, length = values.shape[:2]
        first = jnp.broadcast_to(self.first.embedding[None], (batch, 1, self.features))
        before = jnp.concatenate([first, values[:, :-1]], axis=1)
        h = before + self.position(jnp.arange(length))[None] + self.context(batch, cond, transformation)[:, None]
        prefix = self.prefix(batch, cond)
        return self.transformer(jnp.concatenate([prefix, h], axis=1), keys, prefix.shape[1])

    def position(self, p: jax.Array) -> jax.Array:
        """The embedding of positions in the sequence, (..., features)."""
        _, width, channels = self.shape
        row, column = p // (width * channels), p // channels % width
        return self.rows(row) + self.columns(column) + self.channels(p % channels)

    def context(self, batch: int, cond: Cond, transformation: jax.Array | None = None) -> jax.Array:
        """The input that all positions of an image share: the embeddings of class and augmentation, (B, features)."""
        context = jnp.zeros((batch, self.features))
        if self.num_classes:
            context = context + self.classes(cond["label"])
        if self.transformations > 1:
            number = jnp.zeros(batch, jnp.int32) if transformation is None else transformation
            context = context + self.transformed(number)
        return context

    def prefix(self, batch: int, cond: Cond) -> jax.Array:
        """The embeddings of the text, (B, T, features); (B, 0, features) without one."""
        if not self.text:
            return jnp.zeros((batch, 0, self.features))
        return self.tokens(cond[self.text]) + self.places.embedding[None]

    # One position at a time: see jgen.samplers.sequence.

    def start(self, batch: int, cond: Cond) -> list[Cache]:
        """The caches before the first position, with the keys and values of the text."""
        height, width, channels = self.shape
        return self.transformer.start(self.prefix(batch, cond), height * width * channels)

    def step(self, caches: list[Cache], p: jax.Array, before: jax.Array, cond: Cond) -> tuple[jax.Array, list[Cache]]:
        """Logits (B, levels) of position p given the value before it, int32 (B,), and the caches with it."""
        batch = before.shape[0]
        value = jnp.where(p > 0, self.values(before), self.first.embedding)
        h = value + self.position(p[None]) + self.context(batch, cond)
        h, caches = self.transformer.step(h, caches, p)
        return self.out(h.astype(jnp.float32)), caches
