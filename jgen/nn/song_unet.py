"""The U-Nets DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456, appendix H; Karras et al. 2022, arXiv 2206.00364).

Both differ from DDPM's U-Net (jgen/nn/unet.py) as follows: residual blocks halve and double the resolution, with an
anti-aliasing filter; every sum of a residual block is scaled by 1 / sqrt(2); in the decoder only the last block of a
level has attention; class and augmentation enter before the two layers of the embedding, not after them.

                          DDPM++              NCSN++
    embedding of t        sines and cosines   random Fourier features, twice as wide
    filter (each axis)    [1, 1] / 2          [1, 3, 3, 1] / 8
    encoder               standard            residual: the image, filtered and convolved, is added at each resolution

These are the networks as simplified by Karras et al., with the same parameters as their `SongUNet`: residual encoder
and standard decoder for NCSN++, and attention in a single head of full width if `head_dim` is that width.

Differs from theirs: each class has its own embedding, without a common bias; the Fourier frequencies are the same in
every run (`jgen.nn.embeddings.fourier_embedding`); heads may be narrower; all norms have `groups` groups, where theirs
have min(32, width / 4), which is the same with groups = 32 for widths from 128.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.nn.attention import attention
from jgen.nn.conv import Conv
from jgen.nn.dropout import dropout
from jgen.nn.embeddings import fourier_embedding, sinusoidal_embedding
from jgen.nn.normalization import GroupNorm
from jgen.nn.resampling import blur, downsample, upsample

SKIP_SCALE = math.sqrt(0.5)
FOURIER_SCALE = 16.0
EPS = 1e-6  # of group normalisation
FILTERS: dict[str, tuple[int, ...]] = {"ddpmpp": (1, 1), "ncsnpp": (1, 3, 3, 1)}

xavier = nn.initializers.xavier_uniform()
# Weights 1e-5 times as large: a residual branch starts near zero.
near_zero = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")


class SongBlock(nn.Module):
    """GroupNorm-SiLU-resample-conv, add the embedding, GroupNorm-SiLU-dropout-conv, add the input; then attention.

    Both sums are scaled by 1 / sqrt(2). The input is resampled too, and projected where the width or the size changes.

    resample: "down" halves height and width, "up" doubles them, with the filter `taps`; "" keeps them.
    head_dim: width of an attention head; 0 for no attention.
    """

    features: int
    groups: int
    taps: Sequence[int]
    resample: Literal["", "down", "up"] = ""
    head_dim: int = 0
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, keys: jax.Array | None) -> jax.Array:
        """x (B, H, W, C), embedding (B, E) after its SiLU, dropout keys (B,) or None, to (B, h, w, features)."""
        h = GroupNorm(self.groups, EPS, silu=True, name="norm1")(x)
        if self.resample:
            resample = downsample if self.resample == "down" else upsample
            x, h = resample(x, self.taps), resample(h, self.taps)
        h = Conv(self.features, kernel_init=xavier, dtype=self.dtype, name="conv1")(h)
        shift = nn.Dense(self.features, kernel_init=xavier, dtype=self.dtype, name="embedding")(embedding)
        h = h + shift[:, None, None, :]
        h = dropout(GroupNorm(self.groups, EPS, silu=True, name="norm2")(h), keys, self.dropout_rate)
        h = Conv(self.features, kernel_init=near_zero, dtype=self.dtype, name="conv2")(h)
        if self.resample or x.shape[-1] != self.features:
            x = nn.Dense(self.features, kernel_init=xavier, dtype=self.dtype, name="shortcut")(x)
        h = (x + h) * SKIP_SCALE
        return self.attend(h) if self.head_dim else h

    def attend(self, x: jax.Array) -> jax.Array:
        """Self-attention over the positions of (B, H, W, C), added to x and scaled."""
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, EPS, name="attention_norm")(x).reshape(batch, height * width, channels)
        # The published layers of q, k and v, three of gain 0.1, as one layer of three times the width.
        init = nn.initializers.variance_scaling(0.2, "fan_avg", "uniform")
        qkv = nn.Dense(3 * channels, kernel_init=init, dtype=self.dtype, name="qkv")(h)
        heads = channels // self.head_dim
        q, k, v = (part.reshape(batch, -1, heads, self.head_dim) for part in jnp.split(qkv, 3, axis=-1))
        h = attention(q, k, v).reshape(batch, height * width, channels)
        h = nn.Dense(channels, kernel_init=near_zero, dtype=self.dtype, name="attention_out")(h)
        return (x + h.reshape(x.shape)) * SKIP_SCALE


class FilteredConv(nn.Module):
    """A 3x3 convolution of padding 2, then the filter `taps` at every second position: half the height and width.

    Both are linear and are interchanged: by filtering first, three quarters of the convolution's outputs need not be
    computed.
    """

    features: int
    taps: Sequence[int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, H / 2, W / 2, features)."""
        padding = 1 + (len(self.taps) - 1) // 2
        x = blur(x, self.taps, padding)
        none = ((0, 0), (0, 0))
        return Conv(self.features, stride=2, padding=none, kernel_init=xavier, dtype=self.dtype, name="conv")(x)


class SongUNet(nn.Module):
    """(x (B, H, W, C), t (B,), label (B,) or None, dropout keys (B,) or None) to float32 (B, H, W, out_channels).

    The fields and inputs are those of `jgen.nn.unet.UNet`. t is any number, scaled by the caller; NCSN++ expects it of
    order 1, such as ln(sigma) / 4.
    """

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    head_dim: int
    groups: int
    dropout_rate: float
    num_classes: int
    out_channels: int
    dtype: DTypeLike = jnp.float32
    base: int = 0
    remat: bool = False
    architecture: Literal["ddpmpp", "ncsnpp"] = "ddpmpp"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        label: jax.Array | None,
        keys: jax.Array | None,
        vector: jax.Array | None = None,
    ) -> jax.Array:
        embedding, taps = self.embed(t, label, vector), FILTERS[self.architecture]
        count = 0
        block_type = nn.remat(SongBlock) if self.remat else SongBlock

        def block(h: jax.Array, features: int, name: str, resample: Any = "", attend: bool = False) -> jax.Array:
            nonlocal count
            count += 1
            block_keys = None if keys is None or self.dropout_rate == 0.0 else rng.fold_in(keys, count)
            head_dim = self.head_dim if attend else 0
            module = block_type(
                features, self.groups, taps, resample, head_dim, self.dropout_rate, self.dtype, name=name
            )
            return module(h, embedding, block_keys)

        image = x.astype(self.dtype)
        width = self.base or self.channels[0]
        h = Conv(width, kernel_init=xavier, dtype=self.dtype, name="conv_in")(image)
        skips = [h]
        for level, features in enumerate(self.channels):
            for i in range(self.blocks):
                h = block(h, features, f"down{level}_block{i}", attend=h.shape[1] in self.attention)
                skips.append(h)
            if level < len(self.channels) - 1:
                h = block(h, features, f"down{level}_downsample", "down")
                if self.architecture == "ncsnpp":
                    name = f"down{level}_residual"
                    h = image = (h + FilteredConv(features, taps, self.dtype, name=name)(image)) * SKIP_SCALE
                skips.append(h)

        h = block(h, self.channels[-1], "middle_block0", attend=True)
        h = block(h, self.channels[-1], "middle_block1")

        for level, features in reversed(list(enumerate(self.channels))):
            for i in range(self.blocks + 1):
                attend = i == self.blocks and h.shape[1] in self.attention
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), features, f"up{level}_block{i}", attend=attend)
            if level > 0:
                h = block(h, features, f"up{level}_upsample", "up")

        h = GroupNorm(self.groups, EPS, silu=True, name="norm_out")(h)
        return Conv(self.out_channels, kernel_init=near_zero, dtype=jnp.float32, name="conv_out")(h)

    def embed(self, t: jax.Array, label: jax.Array | None, vector: jax.Array | None) -> jax.Array:
        """The SiLU of the embedding of all conditions, (B, 4 * base); every block projects it to its width."""
        width = self.base or self.channels[0]
        if self.architecture == "ncsnpp":
            h = fourier_embedding(t, 2 * width, FOURIER_SCALE)
        else:
            h = sinusoidal_embedding(t, width)
        h, features = h.astype(self.dtype), h.shape[-1]
        if self.num_classes:
            # The published layer takes one-hot labels times the root of their number.
            init = nn.initializers.variance_scaling(self.num_classes, "fan_avg", "uniform")
            h = h + nn.Embed(self.num_classes, features, embedding_init=init, dtype=self.dtype, name="classes")(label)
        if vector is not None:
            vectors = nn.Dense(features, use_bias=False, kernel_init=xavier, dtype=self.dtype, name="vector")
            h = h + vectors(vector)
        for name in ("time1", "time2"):
            h = nn.silu(nn.Dense(4 * width, kernel_init=xavier, dtype=self.dtype, name=name)(h))
        return h
