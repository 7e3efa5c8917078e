"""An encoder of a set of glyphs to a set of style tokens, which a network attends to.

    h_k        patches of glyph k, a linear layer, then for each level GroupNorm, SiLU, a 3x3 convolution that halves
    tokens     h_k of each position of the last map + embeddings of position and character, then + MLP(LN(.))
    no style   one learned token, which is always there

Tokens do not encode their glyph's number, so attention to them does not depend on the order of the glyphs (Zaheer et
al. 2017, arXiv 1703.06114), up to rounding.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.nn.conv import Conv
from jgen.nn.cross_attention import LAYER_EPS, Tokens
from jgen.nn.dit import to_patches
from jgen.nn.normalization import GroupNorm

PATCH = 4  # height and width of the patches that a glyph is cut into
EPS = 1e-5  # of group normalisation


class StyleEncoder(nn.Module):
    """Glyphs (B, K, H, W, C) in [-1, 1], of the characters int32 (B, K), to tokens (B, 1 + K P, features).

    channels:   width of each level, from a quarter of the resolution down, each half as high and wide.
    features:   width of the tokens; P is the number of positions of the last level.
    characters: their number; a glyph with this number as its character is absent and not attended to.
    """

    channels: tuple[int, ...]
    features: int
    characters: int
    groups: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, glyphs: jax.Array, characters: jax.Array) -> Tokens:
        batch, number, height, width = glyphs.shape[:4]
        h = to_patches(glyphs.reshape(batch * number, *glyphs.shape[2:]), PATCH).astype(self.dtype)
        h = nn.Dense(self.channels[0], dtype=self.dtype, name="patches")(h)
        h = h.reshape(-1, height // PATCH, width // PATCH, self.channels[0])
        for level, channels in enumerate(self.channels[1:]):
            h = GroupNorm(self.groups, EPS, silu=True, name=f"norm{level}")(h)
            h = Conv(channels, stride=2, dtype=self.dtype, name=f"conv{level}")(h)
        h = GroupNorm(self.groups, EPS, silu=True, name="norm_out")(h)
        h = nn.Dense(self.features, dtype=self.dtype, name="tokens")(h.reshape(len(h), -1, h.shape[-1]))
        normal = nn.initializers.normal(0.02)
        places = self.param("places", normal, (h.shape[1], self.features), jnp.float32)
        embed = nn.Embed(self.characters + 1, self.features, dtype=self.dtype, embedding_init=normal, name="characters")
        h = h + places[None].astype(self.dtype) + embed(characters.reshape(-1))[:, None]
        wide = nn.Dense(2 * self.features, dtype=self.dtype, name="wide")(
            nn.LayerNorm(LAYER_EPS, dtype=self.dtype, name="norm")(h)
        )
        h = h + nn.Dense(self.features, dtype=self.dtype, name="narrow")(nn.gelu(wide))
        positions = h.shape[1]
        h = h.reshape(batch, number * positions, self.features).astype(jnp.float32)
        none = self.param("none", normal, (1, self.features), jnp.float32)
        h = jnp.concatenate([jnp.broadcast_to(none[None], (batch, 1, self.features)), h], axis=1)
        shown = jnp.repeat(characters < self.characters, positions, axis=1)
        return Tokens(h, jnp.concatenate([jnp.ones((batch, 1), bool), shown], axis=1))


def without_style(tokens: Tokens) -> Tokens:
    """The same tokens, with only the one for "no style" unmasked."""
    assert tokens.mask is not None
    return tokens._replace(mask=tokens.mask & (jnp.arange(tokens.mask.shape[1]) == 0)[None])
