"""Encoders of images and of texts (Radford et al. 2021, arXiv 2103.00020, section 2.4).

    image   a convolution that halves, residual blocks with a halving before each level but the first, attention pooling
    text    a causal transformer over tokens; the feature is that of the end token

Attention pooling is one layer of attention over the last map's positions and their mean, with the mean as the only
query.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.nn.attention import attention
from jgen.nn.conv import Conv
from jgen.nn.cross_attention import Tokens
from jgen.nn.first_stage import EPS, Block
from jgen.nn.normalization import GroupNorm
from jgen.nn.transformer import CausalTransformer


class AttentionPool(nn.Module):
    """(B, H, W, C) to (B, outputs): attention from the mean over positions to the positions and itself."""

    heads: int
    outputs: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        positions = x.reshape(batch, height * width, channels)
        h = jnp.concatenate([jnp.mean(positions, axis=1, keepdims=True), positions], axis=1)
        init = nn.initializers.normal(channels**-0.5)
        places = self.param("places", init, (height * width + 1, channels), jnp.float32)
        h = h + places[None].astype(h.dtype)
        q = nn.Dense(channels, dtype=self.dtype, name="query")(h[:, :1])
        k, v = jnp.split(nn.Dense(2 * channels, dtype=self.dtype, name="key_value")(h), 2, axis=-1)
        q, k, v = (part.reshape(batch, -1, self.heads, channels // self.heads) for part in (q, k, v))
        return nn.Dense(self.outputs, dtype=self.dtype, name="out")(attention(q, k, v).reshape(batch, channels))


class ImageEncoder(nn.Module):
    """(B, H, W, C) in [-1, 1] to float32 (B, outputs).

    channels: of each level, from half the resolution down. blocks: of each level. heads: of the pooling.
    """

    channels: tuple[int, ...]
    blocks: int
    groups: int
    heads: int
    outputs: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(self.dtype)
        for level, features in enumerate(self.channels):
            h = Conv(features, stride=2, dtype=self.dtype, name=f"downsample{level}")(h)
            for i in range(self.blocks):
                h = Block(features, self.groups, self.dtype, name=f"level{level}_block{i}")(h)
        h = GroupNorm(self.groups, EPS, silu=True, name="norm_out")(h)
        return AttentionPool(self.heads, self.outputs, self.dtype, name="pool")(h).astype(jnp.float32)


class TextEncoder(nn.Module):
    """Tokens, int32 (B, T), to float32 (B, outputs), the projected feature of the first `end` token, or of the last
    token if there is none; tokens after the end have no effect.

    vocabulary: number of ids. Other fields are those of `CausalTransformer`.
    """

    vocabulary: int
    length: int
    end: int
    features: int
    heads: int
    layers: int
    outputs: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def embed(number: int, std: float) -> nn.Embed:
            return nn.Embed(number, self.features, embedding_init=nn.initializers.normal(std))

        self.tokens, self.places = embed(self.vocabulary, 0.02), embed(self.length, 0.01)
        sizes = (self.features, self.heads, self.layers, 4 * self.features, self.features)
        self.transformer = CausalTransformer(*sizes, dtype=self.dtype)
        self.out = nn.Dense(self.outputs, use_bias=False)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        h = self.features_of(tokens)
        is_end = tokens == self.end
        last = jnp.where(jnp.any(is_end, axis=1), jnp.argmax(is_end, axis=1), tokens.shape[1] - 1)
        return self.out(jnp.take_along_axis(h, last[:, None, None], axis=1)[:, 0].astype(jnp.float32))

    def encode(self, tokens: jax.Array) -> Tokens:
        """The features of all tokens, float32, and which are to be attended to: those up to the first end."""
        mask = jnp.cumsum(tokens == self.end, axis=1) - (tokens == self.end) == 0
        return Tokens(self.features_of(tokens).astype(jnp.float32), mask)

    def features_of(self, tokens: jax.Array) -> jax.Array:
        """The features of all tokens, (B, T, features); each depends on the tokens up to it."""
        h = self.tokens(tokens) + self.places.embedding[None]
        return self.transformer(h.astype(self.dtype))
