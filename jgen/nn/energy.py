"""The residual network of an energy (Du & Mordatch 2019, arXiv 1903.08689, appendix A).

    x -> 3x3 convolution -> [block that halves the size -> block*]* -> SiLU, sum over positions -> dense
    block   SiLU, 3x3 convolution, class gain and bias, twice, added to the input
    gain and bias of class y   (1 + g_y) h + b_y, for each channel

Convolutions are spectrally normalised, the last layer is not. SiLU in place of leaky ReLU has the energy a gradient
without jumps.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.nn.resampling import average_pool
from jgen.nn.spectral_norm import SpectralLayer


class ClassAffine(nn.Module):
    """(1 + g_y) h + b_y of (B, H, W, C) and one_hot (B, classes), which start at zero; h itself for None."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, one_hot: jax.Array | None) -> jax.Array:
        if one_hot is None:
            return h
        shape = (one_hot.shape[-1], h.shape[-1])
        tables = (self.param(name, nn.initializers.zeros, shape, jnp.float32) for name in ("gain", "bias"))
        gain, bias = ((one_hot @ table).astype(self.dtype)[:, None, None, :] for table in tables)
        return h * (1.0 + gain) + bias


class EnergyBlock(nn.Module):
    """(B, H, W, C) to (B, H, W, features), or half as high and wide where `down`."""

    features: int
    down: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, one_hot: jax.Array | None, train: bool) -> jax.Array:
        h = x
        for number in (1, 2):
            h = SpectralLayer(self.features, 3, dtype=self.dtype, cpu="scan", name=f"conv{number}")(nn.silu(h), train)
            h = ClassAffine(self.dtype, name=f"class{number}")(h, one_hot)
        if x.shape[-1] != self.features:
            x = SpectralLayer(self.features, 1, dtype=self.dtype, cpu="scan", name="shortcut")(x, train)
        y = x + h
        return average_pool(y, y.shape[1] // 2, y.shape[2] // 2) if self.down else y


class EnergyNetwork(nn.Module):
    """(x (B, H, W, C) in [-1, 1], one_hot (B, classes) or None, train) to energies, float32 (B,), low for likely x.

    channels: at the image's size, at 1/2 of it, ...; blocks: at each size but the image's own. `train` updates the
    spectral norms.
    """

    channels: tuple[int, ...]
    blocks: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, one_hot: jax.Array | None, train: bool = True) -> jax.Array:
        h = SpectralLayer(self.channels[0], 3, dtype=self.dtype, cpu="scan", name="conv_in")(x, train)
        for level, features in enumerate(self.channels[1:], 1):
            for number in range(self.blocks):
                h = EnergyBlock(features, number == 0, self.dtype, name=f"block{level}_{number}")(h, one_hot, train)
        h = jnp.sum(nn.silu(h.astype(jnp.float32)), axis=(1, 2))
        return nn.Dense(1, name="dense")(h)[:, 0]
