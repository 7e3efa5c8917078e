"""Networks of progressively grown GANs (Karras, Aila, Laine & Lehtinen 2018, arXiv 1710.10196).

    generator      [z, e(y)] -> dense -> 3x3 -> [twice as large -> 3x3 -> 3x3]*; after each LeakyReLU and pixel norm
    discriminator  x -> [3x3 -> 3x3 -> half as large]* -> minibatch deviation -> 3x3 -> dense -> dense; with classes
                   <e'(y), features> / sqrt(dim)
    of every size  a 1x1 convolution from features to an image, and one from an image to features
    at level k     networks have the sizes up to the (k + 1)-th. While it fades in, its image is alpha times that of its
                   own size plus 1 - alpha times the enlarged one of the size below; so are the features of an image

Weights have an equalised learning rate (jgen/nn/stylegan2.py). Pixel norm divides the features of a position by their
root mean square. Images of all levels have the full size: those of smaller levels have repeated pixels, and the
discriminator averages these.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core.model import ImageSpec
from jgen.nn.resampling import average_pool, nearest
from jgen.nn.stylegan2 import EqualisedConv, EqualisedDense, activate, minibatch_deviation, unit_scale


class Generator(nn.Module):
    """(z (B, latent), one_hot (B, classes) or None) to images in about [-1, 1], float32 (B, H, W, C).

    channels: at the image's size, at 1/2 of it, ...; level: 0 for the lowest size, len(channels) - 1 for the image's.
    alpha: how far the level has faded in, in [0, 1].
    """

    channels: tuple[int, ...]
    images: ImageSpec
    level: int
    alpha: Any = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, one_hot: jax.Array | None) -> jax.Array:
        if one_hot is not None:
            z = jnp.concatenate([z, EqualisedDense(z.shape[-1], name="classes")(one_hot)], axis=-1)
        top = len(self.channels) - 1
        height, width = (size >> top for size in self.images.shape[:2])
        # The fan-in of the paper's first layer is that of a 4x4 convolution.
        h = EqualisedDense(height * width * self.channels[-1], dtype=self.dtype, name="dense")(unit_scale(z))
        h = unit_scale(activate(h.reshape(-1, height, width, self.channels[-1])))
        images = []
        for level, features in enumerate(reversed(self.channels[top - self.level :])):
            h = nearest(h) if level else h
            for number in (2,) if level == 0 else (1, 2):
                layer = EqualisedConv(features, dtype=self.dtype, name=f"conv{level}_{number}")
                h = unit_scale(activate(layer(h)))
            to_image = EqualisedConv(self.images.channels, 1, dtype=self.dtype, name=f"image{level}")
            images.append(to_image(h).astype(jnp.float32))
        image = images[-1]
        if self.level:
            image = self.alpha * image + (1.0 - self.alpha) * nearest(images[-2])
        for _ in range(top - self.level):
            image = nearest(image)
        return image


class Discriminator(nn.Module):
    """(images (B, H, W, C), one_hot (B, classes) or None) to float32 (B,), high for a real image.

    channels, level, alpha: as of the generator; group: of the minibatch deviation, 0 for none.
    """

    channels: tuple[int, ...]
    group: int
    level: int
    alpha: Any = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, one_hot: jax.Array | None) -> jax.Array:
        top = len(self.channels) - 1

        def features_of(level: int) -> jax.Array:
            small = average_pool(x, x.shape[1] >> (top - level), x.shape[2] >> (top - level))
            layer = EqualisedConv(self.channels[top - level], 1, dtype=self.dtype, name=f"from_image{level}")
            return activate(layer(small))

        entries = [features_of(level) for level in range(self.level + 1)]  # unused ones cost nothing
        h = entries[-1]
        for level in range(self.level, 0, -1):
            h = activate(EqualisedConv(h.shape[-1], dtype=self.dtype, name=f"conv{level}_1")(h))
            below = self.channels[top - level + 1]
            h = activate(EqualisedConv(below, dtype=self.dtype, name=f"conv{level}_2")(h))
            h = average_pool(h, h.shape[1] // 2, h.shape[2] // 2)
            if level == self.level:
                h = (self.alpha * h + (1.0 - self.alpha) * entries[level - 1]).astype(self.dtype)
        h = h.astype(jnp.float32)
        width = h.shape[-1]
        h = minibatch_deviation(h, self.group) if self.group else h
        h = activate(EqualisedConv(width, name="conv0")(h))
        h = activate(EqualisedDense(width, name="dense")(h.reshape(h.shape[0], -1)))
        out = EqualisedDense(1 if one_hot is None else width, name="out")(h)
        if one_hot is None:
            return out[:, 0]
        return jnp.sum(out * EqualisedDense(width, name="classes")(one_hot), axis=-1) * width**-0.5
