"""Blocks of the networks of Dhariwal & Nichol 2021 (arXiv 2105.05233): the U-Net ADM, and its half as a classifier.

ADM differs from DDPM's U-Net as follows (jgen/nn/unet.py, `architecture` adm): time and class scale and shift the
normalised features (AdaGN, section 3), and residual blocks halve and double the resolution, as in BigGAN.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.nn.attention import SelfAttention2D, attention
from jgen.nn.conv import Conv
from jgen.nn.dropout import dropout
from jgen.nn.embeddings import sinusoidal_embedding
from jgen.nn.normalization import GroupNorm
from jgen.nn.resampling import average_pool, nearest

Resample = Literal["", "down", "up"]


class AdmBlock(nn.Module):
    """GroupNorm-SiLU-resample-conv, GroupNorm, scale and shift, SiLU-dropout-conv, add the resampled input.

    resample: "down" halves height and width by means of 2x2, "up" doubles them by repetition; "" keeps them.
    """

    features: int
    groups: int
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32
    resample: Resample = ""

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, keys: jax.Array | None) -> jax.Array:
        """x (B, H, W, C), embedding (B, E) after its SiLU, dropout keys (B,) or None, to (B, h, w, features)."""
        h = GroupNorm(self.groups, silu=True, name="norm1")(x)
        if self.resample:
            height, width = x.shape[1] // 2, x.shape[2] // 2
            x, h = (average_pool(y, height, width) if self.resample == "down" else nearest(y) for y in (x, h))
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        modulation = nn.Dense(2 * self.features, dtype=self.dtype, name="embedding")(embedding)
        scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
        h = nn.silu(GroupNorm(self.groups, name="norm2")(h) * (1.0 + scale) + shift)
        h = dropout(h, keys, self.dropout_rate)
        h = Conv(self.features, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class AdmEncoder(nn.Module):
    """ADM's encoder and middle, then attention pooling: (x (B, H, W, C), t (B,)) to logits, float32 (B, K).

    The fields are those of `jgen.nn.unet.UNet`; num_classes: K.
    """

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    head_dim: int
    groups: int
    dropout_rate: float
    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, keys: jax.Array | None) -> jax.Array:
        width = self.channels[0]
        embedding = sinusoidal_embedding(t, width).astype(self.dtype)
        for name in ("time1", "time2"):
            embedding = nn.silu(nn.Dense(4 * width, dtype=self.dtype, name=name)(embedding))
        count = 0

        def block(h: jax.Array, features: int, name: str, resample: Resample = "") -> jax.Array:
            nonlocal count
            count += 1
            own = None if keys is None or self.dropout_rate == 0.0 else rng.fold_in(keys, count)
            return AdmBlock(features, self.groups, self.dropout_rate, self.dtype, resample, name=name)(
                h, embedding, own
            )

        def attend(h: jax.Array, name: str) -> jax.Array:
            return SelfAttention2D(self.head_dim, self.groups, dtype=self.dtype, name=name)(h)

        h = Conv(width, dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
        for level, features in enumerate(self.channels):
            for i in range(self.blocks):
                h = block(h, features, f"down{level}_block{i}")
                if h.shape[1] in self.attention:
                    h = attend(h, f"down{level}_attention{i}")
            if level < len(self.channels) - 1:
                h = block(h, features, f"down{level}_downsample", "down")
        h = block(h, self.channels[-1], "middle_block0")
        h = attend(h, "middle_attention")
        h = block(h, self.channels[-1], "middle_block1")
        h = GroupNorm(self.groups, silu=True, name="norm_out")(h)
        return AttentionPool(self.head_dim, self.num_classes, self.dtype, name="pool")(h)


class AttentionPool(nn.Module):
    """Attention pooling: the mean of all positions attends to them (Radford et al. 2021, 2103.00020), to (B, features).

    The input is (B, H, W, C). The mean precedes the positions, and all have learned position embeddings.
    """

    head_dim: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, _, _, channels = x.shape
        h = x.reshape(batch, -1, channels)
        h = jnp.concatenate([jnp.mean(h, axis=1, keepdims=True), h], axis=1)
        init = nn.initializers.normal(channels**-0.5)
        places = self.param("places", init, (1, h.shape[1], channels), jnp.float32)
        h = h + places.astype(h.dtype)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        heads = (batch, -1, channels // self.head_dim, self.head_dim)
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
        pooled = attention(q[:, :1], k, v).reshape(batch, channels)
        return nn.Dense(self.features, dtype=jnp.float32, name="out")(pooled.astype(jnp.float32))
