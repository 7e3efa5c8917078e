"""Networks of a variational autoencoder: an encoder to mu and logvar, a decoder to the parameters of every pixel.

Both are dense, or convolutional with residual blocks (`jgen.nn.autoencoder`). The class, if there is one, is
concatenated with the encoder's features and with the latents.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core.model import ImageSpec
from jgen.nn.autoencoder import ConvDecoder, ConvEncoder, DenseLayers


class Encoder(nn.Module):
    """(x (B, H, W, C) in [-1, 1], label (B,) or None) to mu and logvar, float32 (B, latent).

    widths, blocks: see `DenseLayers` and `ConvEncoder`; hidden: dense layers after the convolutions.
    """

    network: Literal["dense", "conv"]
    widths: tuple[int, ...]
    blocks: int
    hidden: tuple[int, ...]
    latent: int
    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        if self.network == "conv":
            h = ConvEncoder(self.widths, self.blocks, self.dtype, name="layers")(x)
            h = with_class(h.reshape(h.shape[0], -1), label, self.num_classes)
            h = DenseLayers(self.hidden, 0, self.dtype, name="hidden")(h)
        else:
            h = with_class(x.reshape(x.shape[0], -1), label, self.num_classes)
            h = DenseLayers(self.widths, self.blocks, self.dtype, name="layers")(h)
        out = nn.Dense(2 * self.latent, dtype=jnp.float32, name="out")(h)
        mu, logvar = jnp.split(out, 2, axis=-1)
        return mu, logvar


class Decoder(nn.Module):
    """(z (B, latent), label (B,) or None) to float32 (B, H, W, C or 2 C): mean or logits, then any log scale.

    scale: the source of the log scale: one learned number ("shared"), the network ("pixel"), or none. The mirror of
    `Encoder`: widths and hidden are those of the encoder, used in reverse order.
    """

    network: Literal["dense", "conv"]
    widths: tuple[int, ...]
    blocks: int
    hidden: tuple[int, ...]
    num_classes: int
    images: ImageSpec
    scale: Literal["none", "fixed", "shared", "pixel"]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None) -> jax.Array:
        images, widths = self.images, self.widths
        channels = images.channels * (2 if self.scale == "pixel" else 1)
        h = with_class(z, label, self.num_classes)
        if self.network == "conv":
            factor = 2 ** len(widths)
            height, width = images.height // factor, images.width // factor
            h = DenseLayers(self.hidden[::-1], 0, self.dtype, name="hidden")(h)
            h = nn.Dense(height * width * widths[-1], dtype=self.dtype, name="in")(h)
            h = h.reshape(h.shape[0], height, width, widths[-1])
            out = ConvDecoder(widths, self.blocks, channels, self.dtype, name="layers")(h)
        else:
            h = DenseLayers(widths[::-1], self.blocks, self.dtype, name="layers")(h)
            h = nn.Dense(images.height * images.width * channels, dtype=jnp.float32, name="out")(h)
            out = h.reshape(h.shape[0], images.height, images.width, channels)
        if self.scale == "shared":
            log_scale = self.param("log_scale", nn.initializers.zeros, ())
            out = jnp.concatenate([out, jnp.full_like(out, 1.0) * log_scale], axis=-1)
        return out


def with_class(h: jax.Array, label: jax.Array | None, num_classes: int) -> jax.Array:
    """(B, n) and the class as one-hot, (B, n + num_classes); h itself without a class."""
    return h if label is None else jnp.concatenate([h, jax.nn.one_hot(label, num_classes, dtype=h.dtype)], axis=-1)
