"""Encoder and decoder of latent diffusion's first stage, and its discriminator of patches.

Esser, Rombach & Ommer 2021 (arXiv 2012.09841, table 7); Rombach et al. 2022 (arXiv 2112.10752, appendix G). Encoder and
decoder have the same parameters as diffusers' `AutoencoderKL`, and with attention in levels as its `VQModel`. Every
level but the last halves the image; the latents are a grid of vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core.model import ImageSpec
from jgen.errors import require, require_positive
from jgen.nn.attention import SelfAttention2D
from jgen.nn.conv import Conv
from jgen.nn.normalization import GroupNorm
from jgen.nn.resampling import nearest

EPS = 1e-6  # of group normalisation


@dataclass(frozen=True)
class Config:
    """Sizes of a first stage."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    """Width of each level, from full resolution down; each but the last halves the image."""
    blocks: int = 2
    """Residual blocks of each level."""
    latent_channels: int = 4
    """Channels of the latents."""
    attention: bool = True
    """Self-attention between the two blocks in the middle, at the lowest resolution."""
    attention_resolutions: tuple[int, ...] = ()
    """Heights of feature maps at which every block of a level is followed by self-attention."""
    groups: int = 32
    """Groups of group normalisation."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, statistics and losses stay float32."""

    @property
    def factor(self) -> int:
        """Downsampling factor from the image to the latents."""
        return int(2 ** (len(self.channels) - 1))

    def grid(self, images: ImageSpec) -> tuple[int, int]:
        """Height and width of the latents of such images."""
        return images.height // self.factor, images.width // self.factor


class Block(nn.Module):
    """x + conv(silu(GroupNorm(conv(silu(GroupNorm(x)))))), x projected where the width changes."""

    features: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = GroupNorm(self.groups, EPS, silu=True, name="norm1")(x)
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        h = GroupNorm(self.groups, EPS, silu=True, name="norm2")(h)
        h = Conv(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class Middle(nn.Module):
    """Two residual blocks, optionally with single-head attention of the full width between them."""

    config: Config

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        width = c.channels[-1]
        h = Block(width, c.groups, dtype, name="block0")(h)
        if c.attention:
            h = SelfAttention2D(width, c.groups, dtype, EPS, name="attention")(h)
        return Block(width, c.groups, dtype, name="block1")(h)


class Encoder(nn.Module):
    """(B, H, W, C) in [-1, 1] to float32 (B, H / factor, W / factor, outputs)."""

    config: Config
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        h = Conv(c.channels[0], dtype=dtype, name="conv_in")(x.astype(dtype))
        for level, features in enumerate(c.channels):
            for i in range(c.blocks):
                h = Block(features, c.groups, dtype, name=f"level{level}_block{i}")(h)
                if h.shape[1] in c.attention_resolutions:
                    h = SelfAttention2D(features, c.groups, dtype, EPS, name=f"level{level}_attention{i}")(h)
            if level < len(c.channels) - 1:
                padding = ((0, 1), (0, 1))
                h = Conv(features, stride=2, padding=padding, dtype=dtype, name=f"level{level}_downsample")(h)
        h = Middle(c, name="middle")(h)
        h = GroupNorm(c.groups, EPS, silu=True, name="norm_out")(h)
        h = Conv(self.outputs, dtype=jnp.float32, name="conv_out")(h.astype(jnp.float32))
        return nn.Dense(self.outputs, name="quant")(h)


class Decoder(nn.Module):
    """Latents (B, h, w, latent_channels) to float32 (B, H, W, out_channels)."""

    config: Config
    out_channels: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        h = nn.Dense(c.latent_channels, dtype=dtype, name="post_quant")(z.astype(dtype))
        h = Middle(c, name="middle")(Conv(c.channels[-1], dtype=dtype, name="conv_in")(h))
        for level, features in reversed(list(enumerate(c.channels))):
            for i in range(c.blocks + 1):
                h = Block(features, c.groups, dtype, name=f"level{level}_block{i}")(h)
                if h.shape[1] in c.attention_resolutions:
                    h = SelfAttention2D(features, c.groups, dtype, EPS, name=f"level{level}_attention{i}")(h)
            if level > 0:
                h = Conv(features, dtype=dtype, name=f"level{level}_upsample")(nearest(h))
        h = GroupNorm(c.groups, EPS, silu=True, name="norm_out")(h)
        return Conv(self.out_channels, dtype=jnp.float32, name="conv_out")(h.astype(jnp.float32))


class PatchDiscriminator(nn.Module):
    """Images (B, H, W, C) to a score for each patch, high for real ones, float32 (B, h, w) (Isola et al. 2017, arXiv
    1611.07004).

    4x4 convolutions of stride 2, one for each of `channels`, then one of 3x3. Group normalisation replaces batch
    normalisation, so that an image's score does not depend on its batch.
    """

    channels: tuple[int, ...]
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(self.dtype)
        for level, features in enumerate(self.channels):
            h = Conv(features, kernel_size=4, stride=2, dtype=self.dtype, name=f"conv{level}")(h)
            if level > 0:
                h = GroupNorm(self.groups, EPS, name=f"norm{level}")(h)
            h = nn.leaky_relu(h, 0.2)
        return Conv(1, dtype=jnp.float32, name="out")(h.astype(jnp.float32))[..., 0]


def check_first_stage(config: Config, images: ImageSpec) -> None:
    """Raises `UserError` for sizes that encoder and decoder cannot be built with."""
    require_positive(channels=config.channels, blocks=config.blocks, groups=config.groups)
    require_positive(latent_channels=config.latent_channels)
    height, width, factor = images.height, images.width, config.factor
    fits = height % factor == 0 and width % factor == 0
    require(fits, f"images are {height}x{width}: {len(config.channels)} levels need sizes divisible by {factor}")
    heights = [height // 2**level for level in range(len(config.channels))]
    for size in config.attention_resolutions:
        known = f"the levels of images of {height}x{width} have heights {', '.join(map(str, heights))}"
        require(size in heights, f"attention_resolutions are {config.attention_resolutions}: {known}")
    for features in config.channels:
        divides = features % config.groups == 0
        require(divides, f"channels are {config.channels}: each must be divisible by groups = {config.groups}")
