"""Causal transformers that predict the embedding of an image from a text (Ramesh et al. 2022, arXiv 2204.06125).

    diffusion       text features, text embedding, time, noised embedding, query: the last one's output is the embedding
    autoregressive  text features, text embedding, product with it, then codes: each is predicted from what precedes it

(section 2.2). Masked positions of the text, and a missing text, are replaced by learned parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core.model import Cond
from jgen.nn.cross_attention import Tokens
from jgen.nn.embeddings import sinusoidal_embedding
from jgen.nn.pixel_transformer import PixelTransformer
from jgen.nn.transformer import CausalTransformer

TIME_SCALE = 1000.0  # of t, for an embedding that is designed for steps 1 .. 1000


class Text(NamedTuple):
    """A text as the prior's input.

    tokens:    features of its tokens, (B, T, F), and which of them are used.
    embedding: of the whole text, (B, D).
    given:     bool (B,), whether there is a text; if not, its features and embedding are not used.
    """

    tokens: Tokens
    embedding: jax.Array
    given: jax.Array


class TextPrefix(nn.Module):
    """A text to a sequence (B, T + 1, features): its tokens, then its embedding."""

    features: int
    length: int

    @nn.compact
    def __call__(self, text: Text) -> jax.Array:
        normal = nn.initializers.normal(0.02)
        places = self.param("places", normal, (self.length + 1, self.features), jnp.float32)
        nothing = self.param("nothing", normal, (self.length + 1, self.features), jnp.float32)
        tokens = nn.Dense(self.features, name="tokens")(text.tokens.features)
        whole = nn.Dense(self.features, name="whole")(text.embedding)[:, None]
        counts = jnp.ones(tokens.shape[:2], bool) if text.tokens.mask is None else text.tokens.mask
        counts = jnp.pad(counts, ((0, 0), (0, 1)), constant_values=True) & text.given[:, None]
        h = jnp.where(counts[..., None], jnp.concatenate([tokens, whole], axis=1), nothing[None])
        return h + places[None]


class DiffusionPrior(nn.Module):
    """(z_t (B, D), t (B,) in (0, 1], text) to the embedding z_0 that is predicted, float32 (B, D).

    embedding: D. length: T of the text. Other fields are those of `CausalTransformer`.
    """

    embedding: int
    length: int
    features: int
    heads: int
    layers: int
    hidden: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.prefix = TextPrefix(self.features, self.length)
        self.time1, self.time2, self.noised = (nn.Dense(self.features) for _ in range(3))
        normal = nn.initializers.normal(0.02)
        self.places = self.param("places", normal, (3, self.features), jnp.float32)
        sizes = (self.features, self.heads, self.layers, self.hidden, self.features)
        self.transformer = CausalTransformer(*sizes, dtype=self.dtype)
        self.out = nn.Dense(self.embedding, kernel_init=nn.initializers.zeros)

    def __call__(self, z_t: jax.Array, t: jax.Array, text: Text) -> jax.Array:
        return self.out(self.hidden_states(self.sequence(z_t, t, text))[:, -1].astype(jnp.float32))

    def sequence(self, z_t: jax.Array, t: jax.Array, text: Text) -> jax.Array:
        """The transformer's input, (B, T + 4, features)."""
        time = self.time2(nn.silu(self.time1(sinusoidal_embedding(TIME_SCALE * t, self.features))))
        query = jnp.zeros_like(time)  # whose embedding is that of its position
        last = jnp.stack([time, self.noised(z_t), query], axis=1) + self.places[None]
        return jnp.concatenate([self.prefix(text), last], axis=1)

    def hidden_states(self, sequence: jax.Array) -> jax.Array:
        return self.transformer(sequence)


class CodePrior(PixelTransformer):
    """(codes int32 (B, 1, K, 1), cond) to logits, float32 (B, 1, K, 1, levels): see `PixelTransformer`.

    cond: {"text": `Text`, "product": int32 (B,), the product of both embeddings in `products` levels}. Fields are those
    of `PixelTransformer`, with `text` "" and T in `text_length`; it supports sampling by `jgen.samplers.sequence`.
    """

    products: int = 1

    def setup(self) -> None:
        super().setup()
        self.text_prefix = TextPrefix(self.features, self.text_length)
        self.product = nn.Embed(self.products + 1, self.features, embedding_init=nn.initializers.normal(0.02))

    def prefix(self, batch: int, cond: Cond) -> jax.Array:
        text = cond["text"]
        product = self.product(jnp.where(text.given, cond["product"], self.products))  # without a text there is none
        return jnp.concatenate([self.text_prefix(text), product[:, None]], axis=1)
