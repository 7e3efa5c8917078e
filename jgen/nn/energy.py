"""The residual networks of an energy (Du & Mordatch 2019, arXiv 1903.08689, appendix A).

    x -> 3x3 convolution -> [block that halves the size -> block*]* -> SiLU, sum over positions -> dense
    x -> dense -> block* -> SiLU -> dense       for small images: the same with dense layers for convolutions
    block   SiLU, 3x3 convolution, class gain and bias, twice, added to the input
    gain and bias of class y   (1 + g_y) h + b_y, for each channel

All layers but the last are spectrally normalised. SiLU instead of leaky ReLU makes the energy's gradient continuous.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core.model import ImageSpec
from jgen.errors import require, require_positive
from jgen.nn.resampling import average_pool
from jgen.nn.spectral_norm import SpectralLayer


class ClassAffine(nn.Module):
    """(1 + g_y) h + b_y of (B, ..., C) and one_hot (B, classes), which start at zero; h itself for None."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, one_hot: jax.Array | None) -> jax.Array:
        if one_hot is None:
            return h
        shape = (one_hot.shape[-1], h.shape[-1])
        tables = (self.param(name, nn.initializers.zeros, shape, jnp.float32) for name in ("gain", "bias"))
        wide = (h.shape[0], *[1] * (h.ndim - 2), h.shape[-1])
        gain, bias = ((one_hot @ table).astype(self.dtype).reshape(wide) for table in tables)
        return h * (1.0 + gain) + bias


class EnergyBlock(nn.Module):
    """(B, H, W, C) to (B, H, W, features), or half as high and wide if `down`; (B, C) to (B, features).

    kernel_size: of its convolutions; 0: dense layers.
    """

    features: int
    down: bool
    kernel_size: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, one_hot: jax.Array | None, train: bool) -> jax.Array:
        h = x
        for number in (1, 2):
            layer = SpectralLayer(self.features, self.kernel_size, dtype=self.dtype, cpu="scan", name=f"layer{number}")
            h = layer(nn.silu(h), train)
            h = ClassAffine(self.dtype, name=f"class{number}")(h, one_hot)
        if x.shape[-1] != self.features:
            size = min(self.kernel_size, 1)
            x = SpectralLayer(self.features, size, dtype=self.dtype, cpu="scan", name="shortcut")(x, train)
        y = x + h
        return average_pool(y, y.shape[1] // 2, y.shape[2] // 2) if self.down else y


class EnergyNetwork(nn.Module):
    """(x (B, H, W, C) in [-1, 1], one_hot (B, classes) or None, train) to energies, float32 (B,), low for likely x.

    channels: at the image's size, at 1/2 of it, ...; blocks: at each size but the image's own. Without convolutions,
    units of the first layer, of the first `blocks` blocks, of the next, .... `train` updates the spectral norms.
    """

    channels: tuple[int, ...]
    blocks: int
    convolutional: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, one_hot: jax.Array | None, train: bool = True) -> jax.Array:
        size = 3 if self.convolutional else 0
        x = x if self.convolutional else x.reshape(x.shape[0], -1)
        h = SpectralLayer(self.channels[0], size, dtype=self.dtype, cpu="scan", name="layer_in")(x, train)
        for level, features in enumerate(self.channels[1:], 1):
            for number in range(self.blocks):
                down = self.convolutional and number == 0
                block = EnergyBlock(features, down, size, self.dtype, name=f"block{level}_{number}")
                h = block(h, one_hot, train)
        h = nn.silu(h.astype(jnp.float32))
        h = jnp.sum(h, axis=(1, 2)) if self.convolutional else h
        return nn.Dense(1, name="dense")(h)[:, 0]


def check_network(images: ImageSpec, channels: tuple[int, ...], blocks: int, convolutional: bool) -> None:
    """Raises `UserError` for sizes that an `EnergyNetwork` of these images cannot be built with."""
    require_positive(channels=channels, blocks=blocks)
    divisor = 2 ** ((len(channels) - 1) * convolutional)
    require(
        images.height % divisor == 0 and images.width % divisor == 0,
        f"channels has {len(channels)} entries, images are {images.height}x{images.width}: they must be divisible by"
        f" {divisor}",
    )
