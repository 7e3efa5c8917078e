"""Encoders and decoders of autoencoders: dense, and convolutional with residual blocks.

Each convolutional level halves the height and width, the first that of the image. Halving and doubling are
space-to-depth (2x2 pixels to four times the channels) and its inverse, so that only the residual blocks and the
outermost layers are 3x3 convolutions, which are slow on CPU, above all at full resolution.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.errors import require, require_positive
from jgen.nn.conv import Conv
from jgen.nn.resampling import depth_to_space, space_to_depth


class ResidualBlock(nn.Module):
    """x + conv1x1(silu(conv3x3(silu(x)))), the last layer started at zero."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        h = Conv(features, dtype=self.dtype, cpu="plain", name="conv")(nn.silu(x))
        return x + nn.Dense(features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(nn.silu(h))


class ConvEncoder(nn.Module):
    """(B, H, W, C) to (B, H / 2^n, W / 2^n, widths[-1]), n = len(widths): `blocks` residual blocks per level."""

    widths: tuple[int, ...]
    blocks: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = space_to_depth(x.astype(self.dtype))
        h = Conv(self.widths[0], dtype=self.dtype, cpu="plain", name="conv_in")(h)
        for level, features in enumerate(self.widths):
            if level > 0:
                h = nn.Dense(features, dtype=self.dtype, name=f"down{level}")(space_to_depth(h))
            for block in range(self.blocks):
                h = ResidualBlock(self.dtype, name=f"level{level}_block{block}")(h)
        return nn.silu(h)


class ConvDecoder(nn.Module):
    """(B, H / 2^n, W / 2^n, widths[-1]) to float32 (B, H, W, out_channels): the mirror of `ConvEncoder`."""

    widths: tuple[int, ...]
    blocks: int
    out_channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(self.dtype)
        for level in reversed(range(len(self.widths))):
            for block in range(self.blocks):
                h = ResidualBlock(self.dtype, name=f"level{level}_block{block}")(h)
            if level > 0:
                h = depth_to_space(nn.Dense(4 * self.widths[level - 1], dtype=self.dtype, name=f"up{level}")(h))
        # The loss's inputs are computed in full precision: bfloat16's steps are as large as half a grey level.
        h = Conv(4 * self.out_channels, dtype=jnp.float32, cpu="plain", name="conv_out")(nn.silu(h))
        return depth_to_space(h)


class Upsample(nn.Module):
    """(B, H, W, C) to (B, 2^n H, 2^n W, features), n = doublings, each of them a transposed 2x2 convolution."""

    features: int
    doublings: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(self.dtype)
        for number in range(self.doublings):
            wide = nn.Dense(4 * self.features, dtype=self.dtype, name=f"up{number}")
            h = depth_to_space(wide(h if number == 0 else nn.silu(h)))
        return h


class DenseLayers(nn.Module):
    """(B, n) to (B, widths[-1]): ReLU layers, each followed by `blocks` residual ones; no widths leave x as it is."""

    widths: tuple[int, ...]
    blocks: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(self.dtype)
        for level, features in enumerate(self.widths):
            h = nn.relu(nn.Dense(features, dtype=self.dtype, name=f"dense{level}")(h))
            for block in range(self.blocks):
                h = h + nn.relu(nn.Dense(features, dtype=self.dtype, name=f"level{level}_block{block}")(h))
        return h


def check_layers(
    network: str, height: int, width: int, widths: tuple[int, ...], blocks: int, hidden: tuple[int, ...]
) -> None:
    """Raises `UserError` for sizes that an encoder and a decoder cannot be built with, network "conv" or "dense"."""
    if network == "conv":
        check_conv(height, width, widths, blocks)
        require(all(h > 0 for h in hidden), f"hidden is {hidden}: every width must be above zero")
    else:
        require(not hidden, f"hidden is {hidden}: it is for conv; a dense network's layers are widths")
        require(all(w > 0 for w in widths), f"widths is {widths}: every width must be above zero")
        require(blocks >= 0, f"blocks is {blocks}: it must be zero or above")


def check_conv(height: int, width: int, widths: tuple[int, ...], blocks: int) -> None:
    """Raises `UserError` for sizes that a convolutional encoder and decoder cannot be built with."""
    require_positive(widths=widths)
    require(blocks >= 0, f"blocks is {blocks}: it must be zero or above")
    factor = 2 ** len(widths)
    require(
        height % factor == 0 and width % factor == 0,
        f"images are {height}x{width}: {len(widths)} convolutional widths need sizes divisible by {factor}",
    )
