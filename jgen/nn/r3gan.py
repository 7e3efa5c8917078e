"""Networks of R3GAN (Huang et al. 2024, arXiv 2501.05441, section 4): ResNeXt blocks without normalisation.

    generator      [z, e(y)] -> dense, times a learned 4x4 map -> block* -> [1x1 convolution, enlarged, block*]* -> 1x1
    discriminator  x -> 1x1 -> [block*, reduced, 1x1]* -> block* -> a learned 4x4 window of each channel -> dense;
                   with classes <e'(y), features>
    block          x + 1x1(a(grouped 3x3(a(1x1 x)))),  a = LeakyReLU 0.2 after a bias; the middle has `expansion`
                   times the channels

Convolutions have no biases. Kernels start as N(0, g^2 / fan_in), in blocks with g = sqrt(2 / 1.04) L^(-1/4), L the
number of the network's blocks, and the last of a block at zero: Fix-up initialisation (Zhang et al. 2019,
arXiv 1901.09321).
Resampling uses the filter (1, 3, 3, 1).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core.model import ImageSpec
from jgen.nn.conv import Conv, grouped_conv
from jgen.nn.resampling import downsample, upsample

TAPS = (1, 3, 3, 1)
ACTIVATION_GAIN = (2.0 / (1.0 + 0.2**2)) ** 0.5


def scaled_normal(gain: float) -> Any:
    """Initial weights N(0, gain^2 / fan_in)."""
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal") if gain else nn.initializers.zeros


class BiasedActivation(nn.Module):
    """LeakyReLU of slope 0.2 after a bias, of (B, H, W, C)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return nn.leaky_relu(x + bias.astype(x.dtype)[None, None, None, :], 0.2)


class Block(nn.Module):
    """A residual block of (B, H, W, C).

    expansion: channels of the middle, in units of C; group: channels of each group of the 3x3 convolution.
    gain: of the first two kernels.
    """

    expansion: int
    group: int
    gain: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, wide = x.shape[-1], self.expansion * x.shape[-1]

        def product(features: int, gain: float, name: str, h: jax.Array) -> jax.Array:
            return Conv(features, 1, use_bias=False, kernel_init=scaled_normal(gain), dtype=self.dtype, name=name)(h)

        h = BiasedActivation(name="activation1")(product(wide, self.gain, "conv1", x))
        kernel = self.param("conv2", scaled_normal(self.gain), (3, 3, self.group, wide), jnp.float32)
        h = grouped_conv(h, kernel.astype(self.dtype), wide // self.group)
        h = BiasedActivation(name="activation2")(h)
        return x.astype(self.dtype) + product(channels, 0.0, "conv3", h)


class Generator(nn.Module):
    """(z (B, latent), one_hot (B, classes) or None) to images in about [-1, 1], float32 (B, H, W, C).

    channels: at the image's size, at 1/2 of it, ...; blocks: of each size; expansion, group: see `Block`;
    embedding: of the class.
    """

    channels: tuple[int, ...]
    blocks: int
    expansion: int
    group: int
    embedding: int
    images: ImageSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, one_hot: jax.Array | None) -> jax.Array:
        gain = ACTIVATION_GAIN * (self.blocks * len(self.channels)) ** -0.25
        init = scaled_normal(1.0)
        if one_hot is not None:
            embedded = nn.Dense(self.embedding, use_bias=False, kernel_init=init, name="classes")(one_hot)
            z = jnp.concatenate([z, embedded], axis=-1)
        lowest = len(self.channels) - 1
        height, width = (size >> lowest for size in self.images.shape[:2])
        shape = (height, width, self.channels[-1])
        basis = self.param("basis", nn.initializers.normal(1.0), shape, jnp.float32)
        h = nn.Dense(self.channels[-1], use_bias=False, kernel_init=init, name="dense")(z)[:, None, None, :]
        h = (h * basis[None]).astype(self.dtype)
        for level in range(lowest, -1, -1):
            if level < lowest:
                h = changed(h, self.channels[level], self.dtype, f"up{level}")
                h = upsample(h, TAPS)
            for number in range(self.blocks):
                h = Block(self.expansion, self.group, gain, self.dtype, name=f"block{level}_{number}")(h)
        out = Conv(self.images.channels, 1, use_bias=False, kernel_init=init, dtype=self.dtype, name="out")
        return out(h).astype(jnp.float32)


class Discriminator(nn.Module):
    """(images (B, H, W, C), one_hot (B, classes) or None) to float32 (B,), high for a real image.

    channels, blocks, expansion, group, embedding: as of the generator.
    """

    channels: tuple[int, ...]
    blocks: int
    expansion: int
    group: int
    embedding: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, one_hot: jax.Array | None) -> jax.Array:
        gain = ACTIVATION_GAIN * (self.blocks * len(self.channels)) ** -0.25
        init = scaled_normal(1.0)
        h = Conv(self.channels[0], 1, use_bias=False, kernel_init=init, dtype=self.dtype, name="in")(x)
        for level, features in enumerate(self.channels):
            if level > 0:
                h = changed(downsample(h, TAPS), features, self.dtype, f"down{level}")
            for number in range(self.blocks):
                h = Block(self.expansion, self.group, gain, self.dtype, name=f"block{level}_{number}")(h)
        h = h.astype(jnp.float32)
        _, height, width, channels = h.shape
        start = nn.initializers.normal((height * width) ** -0.5)
        window = self.param("basis", start, (height, width, channels), jnp.float32)
        h = jnp.einsum("bhwc,hwc->bc", h, window)
        features = 1 if one_hot is None else self.embedding
        out = nn.Dense(features, use_bias=False, kernel_init=init, name="dense")(h)
        if one_hot is None:
            return out[:, 0]
        start = scaled_normal(self.embedding**-0.5)
        embedded = nn.Dense(self.embedding, use_bias=False, kernel_init=start, name="classes")(one_hot)
        return jnp.sum(out * embedded, axis=-1)


def changed(h: jax.Array, features: int, dtype: DTypeLike, name: str) -> jax.Array:
    """h with `features` channels, by a 1x1 convolution if it has another number."""
    if h.shape[-1] == features:
        return h
    return Conv(features, 1, use_bias=False, kernel_init=scaled_normal(1.0), dtype=dtype, name=name)(h)
