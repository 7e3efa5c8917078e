"""Networks of BigGAN-deep (Brock, Donahue & Simonyan 2019, arXiv 1809.11096, appendix B).

    c = [e(y), z]                    e a learned embedding of the class; c goes into every block (skip-z)
    generator      c -> dense -> [block* -> block that doubles the size]* -> BatchNorm, ReLU, 3x3 convolution, tanh
    discriminator  x -> 3x3 convolution -> [block that halves the size -> block*]* -> ReLU, sum over positions
                   -> dense, plus <embedding(y), features>
    block          1x1 convolution to a quarter of the channels, two 3x3 convolutions, 1x1 convolution, added to the
                   input; in the generator with conditional BatchNorm and ReLU before each
    conditional BatchNorm  (1 + W_s c) (h - mean) / std + W_b c, statistics of the batch of all devices
    self-attention         x + gamma W_o softmax(theta(x) phi(x)^T) g(x), phi and g max-pooled; gamma starts at 0
                           (Zhang et al. 2018, arXiv 1805.08318)

A generator's shortcuts have no weights and drop surplus channels; a discriminator's compute the missing channels with a
1x1 convolution. Every convolution and dense layer except the embedding e is spectrally normalised.
Kernels start orthogonal.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import parallel
from jgen.core.model import ImageSpec
from jgen.nn.resampling import average_pool, nearest
from jgen.nn.spectral_norm import SpectralLayer


class ConditionalBatchNorm(nn.Module):
    """BatchNorm over all devices whose scale, around 1, and bias are linear in a condition."""

    momentum: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, condition: jax.Array, train: bool) -> jax.Array:
        """h (B, H, W, C), condition (B, E), to (B, H, W, C) of `dtype`."""
        y = batch_norm(train, self.momentum, False, self.dtype, "norm")(h)
        layers = (SpectralLayer(h.shape[-1], 0, False, self.dtype, name=name) for name in ("scale", "bias"))
        scale, bias = (layer(condition, train)[:, None, None, :] for layer in layers)
        return y * (1.0 + scale) + bias


def batch_norm(train: bool, momentum: float, affine: bool, dtype: DTypeLike, name: str) -> nn.BatchNorm:
    """Batch normalisation over all devices."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        axis_name=parallel.axis_name(),
        use_scale=affine,
        use_bias=affine,
        dtype=dtype,
        name=name,
    )


class SelfAttention(nn.Module):
    """Self-attention over the positions of (B, H, W, C), H and W even, C at least 8."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        batch, _, _, channels = x.shape

        def project(features: int, name: str, h: jax.Array = x) -> jax.Array:
            return SpectralLayer(features, 1, False, self.dtype, name=name)(h, train)

        def pooled(h: jax.Array) -> jax.Array:
            return nn.max_pool(h, (2, 2), (2, 2)).reshape(batch, -1, h.shape[-1])

        queries = project(channels // 8, "theta").reshape(batch, -1, channels // 8)
        keys, values = pooled(project(channels // 8, "phi")), pooled(project(channels // 2, "g"))
        scores = jnp.einsum("bqc,bkc->bqk", queries, keys).astype(jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, values).reshape(*x.shape[:3], -1)
        gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
        return x + gamma.astype(self.dtype) * project(channels, "out", h)


class GeneratorBlock(nn.Module):
    """(B, H, W, C) and c (B, E) to (B, H, W, features), or twice as high and wide where `up`; features at most C."""

    features: int
    up: bool
    momentum: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, train: bool) -> jax.Array:
        hidden = max(1, x.shape[-1] // 4)

        def layer(h: jax.Array, features: int, kernel_size: int, number: int) -> jax.Array:
            norm = ConditionalBatchNorm(self.momentum, self.dtype, name=f"norm{number}")
            h = nn.relu(norm(h, condition, train))
            if self.up and number == 2:  # after the activation, before the first 3x3 convolution
                h = nearest(h)
            return SpectralLayer(features, kernel_size, True, self.dtype, name=f"conv{number}")(h, train)

        h = layer(x, hidden, 1, 1)
        h = layer(h, hidden, 3, 2)
        h = layer(h, hidden, 3, 3)
        h = layer(h, self.features, 1, 4)
        x = x[..., : self.features]
        return h + (nearest(x) if self.up else x)


class DiscriminatorBlock(nn.Module):
    """(B, H, W, C) to (B, H, W, features), or half as high and wide where `down`; features at least C."""

    features: int
    down: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        hidden = max(1, self.features // 4)

        def layer(h: jax.Array, features: int, kernel_size: int, name: str) -> jax.Array:
            return SpectralLayer(features, kernel_size, True, self.dtype, name=name)(h, train)

        h = layer(nn.relu(x), hidden, 1, "conv1")
        h = layer(nn.relu(h), hidden, 3, "conv2")
        h = layer(nn.relu(h), hidden, 3, "conv3")
        h = nn.relu(h)
        h = layer(halved(h) if self.down else h, self.features, 1, "conv4")
        x = halved(x) if self.down else x
        missing = self.features - x.shape[-1]
        return h + (jnp.concatenate([x, layer(x, missing, 1, "shortcut")], axis=-1) if missing else x)


class Generator(nn.Module):
    """(z (B, latent), one_hot (B, classes) or None, train) to images in [-1, 1], float32 (B, H, W, C).

    channels: at the image's size, at 1/2 of it, ..., in ascending order.
    depth: blocks at each size but the image's own; attention: heights at which self-attention follows.
    """

    channels: tuple[int, ...]
    depth: int
    attention: tuple[int, ...]
    embedding: int
    images: ImageSpec
    momentum: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, one_hot: jax.Array | None, train: bool = True) -> jax.Array:
        c = z
        if one_hot is not None:
            init = nn.initializers.normal(1.0)
            embed = nn.Dense(self.embedding, use_bias=False, kernel_init=init, dtype=self.dtype, name="classes")
            c = jnp.concatenate([embed(one_hot), z.astype(self.dtype)], axis=-1)
        height, width = (size >> (len(self.channels) - 1) for size in self.images.shape[:2])
        h = SpectralLayer(height * width * self.channels[-1], 0, True, self.dtype, name="dense")(c, train)
        h = h.reshape(-1, height, width, self.channels[-1])
        for level in range(len(self.channels) - 1, 0, -1):
            for number in range(self.depth):
                last = number == self.depth - 1
                features = self.channels[level - 1] if last else self.channels[level]
                block = GeneratorBlock(features, last, self.momentum, self.dtype, name=f"block{level}_{number}")
                h = block(h, c, train)
            if h.shape[1] in self.attention:
                h = SelfAttention(self.dtype, name=f"attention{level}")(h, train)
        h = nn.relu(batch_norm(train, self.momentum, True, self.dtype, "norm_out")(h))
        h = SpectralLayer(self.images.channels, 3, True, self.dtype, name="conv_out")(h, train)
        return jnp.tanh(h.astype(jnp.float32))


class Discriminator(nn.Module):
    """(images in [-1, 1] (B, H, W, C), one_hot (B, classes) or None, train) to float32 (B,), high for a real image.

    channels, depth, attention: as of the generator; depth is of blocks at each size but the image's own.
    """

    channels: tuple[int, ...]
    depth: int
    attention: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, one_hot: jax.Array | None, train: bool = True) -> jax.Array:
        h = SpectralLayer(self.channels[0], 3, True, self.dtype, name="conv_in")(x, train)
        for level, features in enumerate(self.channels[1:], 1):
            if h.shape[1] in self.attention:
                h = SelfAttention(self.dtype, name=f"attention{level}")(h, train)
            for number in range(self.depth):
                h = DiscriminatorBlock(features, number == 0, self.dtype, name=f"block{level}_{number}")(h, train)
        h = jnp.sum(nn.relu(h).astype(jnp.float32), axis=(1, 2))
        out = SpectralLayer(1, name="dense")(h, train)[:, 0]
        if one_hot is None:
            return out
        return out + jnp.sum(SpectralLayer(h.shape[-1], 0, False, name="classes")(one_hot, train) * h, axis=-1)


def halved(x: jax.Array) -> jax.Array:
    return average_pool(x, x.shape[1] // 2, x.shape[2] // 2)
