"""Networks of the deep convolutional GAN (Radford, Metz & Chintala 2016, arXiv 1511.06434).

    generator      z -> dense, BatchNorm, ReLU -> [4x4 transposed convolution of stride 2, BatchNorm, ReLU]*
                   -> 4x4 transposed convolution of stride 2 -> tanh
    discriminator  x -> 4x4 convolution of stride 2, LeakyReLU 0.2 -> [convolution, BatchNorm, LeakyReLU]* -> dense
                   -> logit

Kernels and the scales of BatchNorm are initialised as in the paper, from N(0, 0.02^2) and N(1, 0.02^2).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import parallel
from jgen.core.model import ImageSpec
from jgen.nn.conv import Conv, ConvTranspose


class Generator(nn.Module):
    """(z (B, latent + classes), train) to images in [-1, 1], float32 (B, H, W, C)."""

    channels: tuple[int, ...]
    images: ImageSpec
    momentum: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = True) -> jax.Array:
        height, width = (size >> len(self.channels) for size in self.images.shape[:2])
        kernel_init = nn.initializers.normal(0.02)
        features = height * width * self.channels[-1]
        h = nn.Dense(features, use_bias=False, kernel_init=kernel_init, dtype=self.dtype, name="dense")(z)
        h = nn.relu(batch_norm(self, train, "norm0")(h.reshape(-1, height, width, self.channels[-1])))
        for number, channels in enumerate(reversed(self.channels[:-1]), 1):
            up = ConvTranspose(channels, use_bias=False, kernel_init=kernel_init, dtype=self.dtype, name=f"up{number}")
            h = nn.relu(batch_norm(self, train, f"norm{number}")(up(h)))
        name = f"up{len(self.channels)}"
        h = ConvTranspose(self.images.channels, kernel_init=kernel_init, dtype=self.dtype, name=name)(h)
        return jnp.tanh(h.astype(jnp.float32))


class Discriminator(nn.Module):
    """(images in [-1, 1] (B, H, W, C), one_hot (B, classes) or None, train) to float32 (B,), high for a real image.

    With conditioning "auxiliary" and `classify`, the output is the logits of the classes, (B, classes), instead.
    """

    channels: tuple[int, ...]
    norm: bool
    conditioning: str
    momentum: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: jax.Array, one_hot: jax.Array | None, train: bool = True, classify: bool = False
    ) -> jax.Array:
        kernel_init = nn.initializers.normal(0.02)
        h = x
        if self.conditioning == "concatenation" and one_hot is not None:
            maps = jnp.broadcast_to(one_hot[:, None, None, :], (*x.shape[:3], one_hot.shape[-1]))
            h = jnp.concatenate([x, maps], axis=-1)
        for number, channels in enumerate(self.channels, 1):
            norm = self.norm and number > 1
            down = Conv(
                channels, 4, 2, use_bias=not norm, kernel_init=kernel_init, dtype=self.dtype, name=f"down{number}"
            )
            h = down(h)
            h = batch_norm(self, train, f"norm{number}")(h) if norm else h
            h = nn.leaky_relu(h, 0.2)
        h = h.astype(jnp.float32).reshape(h.shape[0], -1)
        out = nn.Dense(1, kernel_init=kernel_init, name="dense")(h)[:, 0]
        if self.conditioning == "projection":
            embedding = nn.Dense(h.shape[-1], use_bias=False, kernel_init=kernel_init, name="classes")(one_hot)
            out = out + jnp.sum(embedding * h, axis=-1)
        if self.conditioning == "auxiliary" and one_hot is not None:
            logits = nn.Dense(one_hot.shape[-1], kernel_init=kernel_init, name="auxiliary")(h)
            out = logits if classify else out
        return out


def batch_norm(network: Generator | Discriminator, train: bool, name: str) -> nn.BatchNorm:
    """Batch normalisation over all devices; its scale is initialised from N(1, 0.02^2)."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=network.momentum,
        axis_name=parallel.axis_name(),
        dtype=network.dtype,
        scale_init=near_one,
        name=name,
    )


def near_one(*args: Any) -> jax.Array:
    """Draws from N(1, 0.02^2)."""
    return 1.0 + nn.initializers.normal(0.02)(*args)


def kernels_of(disc: Any) -> dict[str, jax.Array]:
    """{layer: kernel} of the discriminator's layers."""
    return {name: layer["kernel"] for name, layer in disc.items() if "kernel" in layer}
