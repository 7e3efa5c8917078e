"""Dense networks of the first generative adversarial networks (Goodfellow et al. 2014, arXiv 1406.2661, section 5).

generator      [z, y] -> [dense -> ReLU]* -> dense -> tanh
discriminator  [x, y] -> [dense -> maxout]* -> dense -> one number;  maxout: the largest of each `pieces` numbers
               (Goodfellow et al. 2013, arXiv 1302.4389)
"""

from __future__ import annotations

from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core.model import ImageSpec


class Generator(nn.Module):
    """z (B, latent + classes) to images in [-1, 1], float32 (B, H, W, C)."""

    widths: tuple[int, ...]
    images: ImageSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        h = z
        for number, width in enumerate(self.widths, 1):
            init = nn.initializers.he_normal()
            h = nn.relu(nn.Dense(width, kernel_init=init, dtype=self.dtype, name=f"dense{number}")(h))
        h = nn.Dense(self.images.size, dtype=self.dtype, name="out")(h).astype(jnp.float32)
        return jnp.tanh(h).reshape(-1, *self.images.shape)


class Discriminator(nn.Module):
    """(images in [-1, 1] (B, H, W, C), one_hot (B, classes) or None) to float32 (B,), high for a real image.

    pieces: number of linear functions of which a unit takes the largest.
    """

    widths: tuple[int, ...]
    pieces: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, one_hot: jax.Array | None) -> jax.Array:
        h = x.reshape(x.shape[0], -1)
        h = h if one_hot is None else jnp.concatenate([h, one_hot], axis=-1)
        for number, width in enumerate(self.widths, 1):
            h = nn.Dense(width * self.pieces, dtype=self.dtype, name=f"dense{number}")(h)
            h = h.reshape(-1, width, self.pieces)
            # Not `jnp.max`: its gradient divides by the number of pieces that equal the maximum, which is 0 where XLA
            # recomputes h with different rounding.
            h = reduce(jnp.maximum, [h[..., i] for i in range(self.pieces)])
        return nn.Dense(1, name="out")(h.astype(jnp.float32))[:, 0]
