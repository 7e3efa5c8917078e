"""CLIP's text encoder as published (Radford et al. 2021, arXiv 2103.00020, section 2.4).

    h_0     token embedding + position embedding
    block   h + attention(LN(h)),  + W_2 f(W_1 LN(h)), causal;  f is GELU, or x sigmoid(1.702 x) in OpenAI's weights
    last    LN(h_N);  pooled: that of the end token, projected without a bias

Its parameters match those of `CLIPTextModel` in transformers, or with a projection of `CLIPTextModelWithProjection`.
The smaller encoder in jgen/nn/clip.py is the one that jgen trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.errors import require, require_positive
from jgen.nn.sparse_attention import causal_attention

UNROLLED = 4  # largest number of blocks that are compiled one by one
QUICK = 1.702  # of the approximation to GELU


@dataclass(frozen=True)
class Config:
    """Sizes of a text encoder."""

    vocabulary: int = 49408
    """Number of ids."""
    length: int = 77
    """Number of tokens of a text."""
    features: int = 768
    """Width of the transformer."""
    heads: int = 12
    """Attention heads."""
    layers: int = 12
    """Blocks."""
    hidden: int = 3072
    """Width of the feed-forward networks."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Activation of the feed-forward networks."""
    eps: float = 1e-5
    """Epsilon of layer normalisation, added to the variance."""
    projection: int = 0
    """Width of the projected feature of the end token; 0: no projection."""
    end: int = 49407
    """The token that ends a text."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters stay float32."""


class TextFeatures(NamedTuple):
    """The encoder's outputs for tokens (B, T).

    last: after the last normalisation, (B, T, features).  before_last: the last block's input, not normalised.
    pooled: the end token's of `last`, (B, features), or (B, projection).
    """

    last: jax.Array
    before_last: jax.Array
    pooled: jax.Array


def activate(x: jax.Array, kind: str) -> jax.Array:
    return x * nn.sigmoid(QUICK * x) if kind == "quick_gelu" else nn.gelu(x, approximate=False)


class Block(nn.Module):
    """Causal attention and a feed-forward network, each after normalisation and added to (B, T, features)."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        h = layer_norm(c, "norm1")(x)
        qkv = jnp.split(nn.Dense(3 * c.features, dtype=dtype, name="qkv")(h), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:2], c.heads, c.features // c.heads) for part in qkv)
        x = x + nn.Dense(c.features, dtype=dtype, name="out")(causal_attention(q, k, v).reshape(x.shape))
        h = nn.Dense(c.hidden, dtype=dtype, name="wide")(layer_norm(c, "norm2")(x))
        return x + nn.Dense(c.features, dtype=dtype, name="narrow")(activate(h, c.activation))


def layer_norm(config: Config, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(config.eps, dtype=jnp.dtype(config.dtype), use_fast_variance=False, name=name)


class ClipTextEncoder(nn.Module):
    """Tokens, int32 (B, T), T up to `config.length`, to `TextFeatures`, float32.

    The pooled feature is that of the first end token, or of the last token if there is none. The blocks' parameters are
    stacked, and all blocks but the last share one program.
    """

    config: Config

    @nn.compact
    def __call__(self, tokens: jax.Array) -> TextFeatures:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        places = self.param("places", nn.initializers.normal(0.01), (c.length, c.features), jnp.float32)
        embed = nn.Embed(c.vocabulary, c.features, embedding_init=nn.initializers.normal(0.02), name="tokens")
        h = (embed(tokens) + places[None, : tokens.shape[1]]).astype(dtype)
        block = Block(c, parent=None)

        def init(key: jax.Array) -> Any:
            return jax.vmap(lambda key: block.init(key, h[:1])["params"])(jax.random.split(key, c.layers))

        stacked = self.param("blocks", init)
        others, final = jax.tree.map(lambda x: x[:-1], stacked), jax.tree.map(lambda x: x[-1], stacked)
        if c.layers > 1:
            unroll = c.layers - 1 if c.layers <= UNROLLED else 1
            h = jax.lax.scan(lambda h, params: (block.apply({"params": params}, h), None), h, others, unroll=unroll)[0]
        last = layer_norm(c, "norm")(block.apply({"params": final}, h)).astype(jnp.float32)
        is_end = tokens == c.end
        place = jnp.where(jnp.any(is_end, axis=1), jnp.argmax(is_end, axis=1), tokens.shape[1] - 1)
        pooled = jnp.take_along_axis(last, place[:, None, None], axis=1)[:, 0]
        if c.projection:
            pooled = nn.Dense(c.projection, use_bias=False, name="projection")(pooled)
        return TextFeatures(last, h.astype(jnp.float32), pooled)


def check_text_encoder(config: Config) -> None:
    """Raises `UserError` for sizes that the encoder cannot be built with."""
    names = ("vocabulary", "length", "features", "heads", "layers", "hidden", "eps")
    require_positive(**{name: getattr(config, name) for name in names})
    fits = config.features % config.heads == 0
    require(fits, f"features is {config.features}: it must be divisible by the {config.heads} heads")
    require(config.projection >= 0, f"projection is {config.projection}: it must be zero or above")
    known = 0 <= config.end < config.vocabulary
    require(known, f"end is {config.end}: it must be one of the ids 0 to {config.vocabulary - 1}")
