"""Networks of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958), as in StyleGAN2-ADA (arXiv 2006.06676).

    equalised rate     every weight is N(0, 1) / m at the start, and is used times m / sqrt(fan_in), m the multiplier of
                       the learning rate: all layers move at one rate under Adam (Karras et al. 2018, 1710.10196)
    mapping            z and the embedding of y, each divided by its root mean square -> [dense, LeakyReLU]* -> w
    modulation         y_o = d_o sum_i W_oi * (s_i x_i),  s = A w + 1,  d_o = (sum_ik (s_i W_oik)^2 + eps)^(-1/2)
                       (equations 1 to 3). The weights W are those of all examples: their inputs are scaled by s and
                       their outputs by d, instead of a convolution for each example.
    synthesis          a learned constant -> [modulated 3x3 convolution, noise times a learned strength, bias,
                       LeakyReLU]*, doubling the size with the filter (1, 3, 3, 1); images of all sizes are made by
                       modulated 1x1 convolutions without d, enlarged and summed                (figure 7)
    discriminator      x -> 1x1 convolution -> [3x3, 3x3 that halves the size, plus a 1x1 shortcut, / sqrt 2]*
                       -> minibatch deviation -> 3x3 -> dense -> dense; with classes <mapping(y), features> / sqrt(dim)
    minibatch deviation  the standard deviation of the features in a group of examples, averaged over features and
                       positions, as a further channel                                                  (1710.10196)

LeakyReLU has the slope 0.2 and is multiplied by sqrt 2.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.core.model import ImageSpec
from jgen.nn.conv import conv
from jgen.nn.resampling import blur, downsample, upsample

TAPS = (1, 3, 3, 1)
EPSILON = 1e-8


def activate(x: jax.Array) -> jax.Array:
    """LeakyReLU of slope 0.2, times sqrt 2."""
    return nn.leaky_relu(x, 0.2) * math.sqrt(2.0)


def unit_scale(x: jax.Array) -> jax.Array:
    """x (B, C) divided by its root mean square."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)


class EqualisedDense(nn.Module):
    """A dense layer with an equalised learning rate.

    multiplier: of the learning rate; bias: its initial value, None for no bias.
    """

    features: int
    multiplier: float = 1.0
    bias: float | None = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, C) to (B, features)."""
        init = nn.initializers.normal(1.0 / self.multiplier)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        y = x.astype(self.dtype) @ (kernel * (self.multiplier * x.shape[-1] ** -0.5)).astype(self.dtype)
        if self.bias is None:
            return y
        start = nn.initializers.constant(self.bias / self.multiplier)
        bias = self.param("bias", start, (self.features,), jnp.float32) * self.multiplier
        return y + bias.astype(self.dtype)[None, :]


class EqualisedConv(nn.Module):
    """A convolution with an equalised learning rate; if `down`, filtered and with half the height and width."""

    features: int
    kernel_size: int = 3
    down: bool = False
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, h, w, features)."""
        size = self.kernel_size
        kernel = self.param(
            "kernel", nn.initializers.normal(1.0), (size, size, x.shape[-1], self.features), jnp.float32
        )
        kernel = (kernel * (size * size * x.shape[-1]) ** -0.5).astype(self.dtype)
        x = x.astype(self.dtype)
        if not self.down:
            y = conv(x, kernel)
        elif size == 1:
            y = conv(downsample(x, TAPS), kernel)
        else:
            y = conv(blur(x, TAPS, 2), kernel, 2, ((0, 0), (0, 0)))
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.astype(self.dtype)[None, None, None, :]


def modulated_conv(x: jax.Array, kernel: jax.Array, styles: jax.Array, demodulate: bool) -> jax.Array:
    """Convolution of each example with the kernel W scaled by its styles, and normalised where `demodulate`.

    Args:
      x: (B, H, W, C); kernel: float32 (m, n, C, O); styles: float32 (B, C). The arithmetic is of x's type.
    """
    y = conv(x * styles.astype(x.dtype)[:, None, None, :], kernel.astype(x.dtype))
    if not demodulate:
        return y
    scale = jax.lax.rsqrt(styles**2 @ jnp.sum(kernel**2, axis=(0, 1)) + EPSILON)
    return y * scale.astype(x.dtype)[:, None, None, :]


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias and activation; if `up`, with twice the height and width."""

    features: int
    up: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array, keys: jax.Array) -> jax.Array:
        """x (B, h, w, C), w (B, E), keys (B,) of the noise, to (B, H, W, features)."""
        styles = EqualisedDense(x.shape[-1], bias=1.0, name="style")(w)
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32)
        x = upsample(x, TAPS) if self.up else x
        y = modulated_conv(x, kernel, styles, True)
        strength = self.param("noise", nn.initializers.zeros, (), jnp.float32)
        noise = strength * rng.normal(keys, (*y.shape[1:3], 1))
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return activate(y + noise.astype(self.dtype) + bias.astype(self.dtype)[None, None, None, :])


class ToImage(nn.Module):
    """Modulated 1x1 convolution to the channels of an image, float32."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        styles = EqualisedDense(x.shape[-1], bias=1.0, name="style")(w) * x.shape[-1] ** -0.5
        shape = (1, 1, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        return modulated_conv(x, kernel, styles, False).astype(jnp.float32) + bias[None, None, None, :]


class Mapping(nn.Module):
    """(z (B, latent) or None, one_hot (B, classes) or None) to w, float32 (B, width)."""

    width: int
    layers: int
    multiplier: float = 0.01

    @nn.compact
    def __call__(self, z: jax.Array | None, one_hot: jax.Array | None) -> jax.Array:
        parts = [] if z is None else [unit_scale(z)]
        if one_hot is not None:
            parts.append(unit_scale(EqualisedDense(self.width, name="classes")(one_hot)))
        h = jnp.concatenate(parts, axis=-1)
        for number in range(self.layers):
            h = activate(EqualisedDense(self.width, self.multiplier, name=f"dense{number}")(h))
        return h


class Synthesis(nn.Module):
    """(ws (B, layers, width), keys (B,) of the noise) to images in about [-1, 1], float32 (B, H, W, C)."""

    channels: tuple[int, ...]
    images: ImageSpec
    dtype: DTypeLike = jnp.float32

    @property
    def layers(self) -> int:
        """Number of layers with a separate w: one or two convolutions of each size, and the last image."""
        return 2 * len(self.channels)

    @nn.compact
    def __call__(self, ws: jax.Array, keys: jax.Array) -> jax.Array:
        height, width = (size >> (len(self.channels) - 1) for size in self.images.shape[:2])
        shape = (height, width, self.channels[-1])
        constant = self.param("constant", nn.initializers.normal(1.0), shape, jnp.float32)
        x = jnp.broadcast_to(constant.astype(self.dtype), (ws.shape[0], *shape))
        noise, number, image = iter(rng.split(keys, self.layers - 1)), 0, None
        for level in range(len(self.channels) - 1, -1, -1):
            lowest = level == len(self.channels) - 1
            for up in (False,) if lowest else (True, False):
                name = f"conv{level}_{'up' if up else 'same'}"
                x = StyledConv(self.channels[level], up, self.dtype, name=name)(x, ws[:, number], next(noise))
                number += 1
            # An image shares its w with the first convolution of the next size.
            added = ToImage(self.images.channels, self.dtype, name=f"image{level}")(x, ws[:, number])
            image = added if image is None else upsample(image, TAPS) + added
        assert image is not None
        return image


class Generator(nn.Module):
    """(z (B, latent), one_hot (B, classes) or None, keys (B,), train) to images in about [-1, 1], float32 (B, H, W, C).

    channels: at the image's size, at 1/2 of it, ...; width: of w; mapping_layers: of the mapping.
    mixing: probability, in training, that layers from a random one on use the w of another latent.
    The collection "batch_stats" has the moving average of w.
    """

    channels: tuple[int, ...]
    width: int
    mapping_layers: int
    mixing: float
    images: ImageSpec
    mean_decay: float = 0.995
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.mapping = Mapping(self.width, self.mapping_layers)
        self.synthesis = Synthesis(self.channels, self.images, self.dtype)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (self.width,))

    def __call__(self, z: jax.Array, one_hot: jax.Array | None, keys: jax.Array, train: bool = True) -> jax.Array:
        key_styles, key_noise = rng.split(keys, 2)
        return self.synthesis(self.styles(z, one_hot, key_styles, train), key_noise)

    def styles(self, z: jax.Array, one_hot: jax.Array | None, keys: jax.Array, train: bool) -> jax.Array:
        """w of every layer, (B, layers, width); keys are for mixing."""
        layers = self.synthesis.layers
        w = self.mapping(z, one_hot)
        ws = jnp.repeat(w[:, None, :], layers, axis=1)
        if not train:
            return ws
        if not self.is_initializing():
            mean = jax.lax.stop_gradient(jnp.mean(w, axis=0))
            self.mean.value = self.mean_decay * self.mean.value + (1.0 - self.mean_decay) * mean
        if self.mixing == 0:
            return ws
        key_z, key_mix, key_layer = rng.split(keys, 3)
        other = self.mapping(rng.normal(key_z, z.shape[1:]), one_hot)
        first = rng.randint(key_layer, 1, layers)
        mixed = rng.bernoulli(key_mix, self.mixing)[:, None] & (jnp.arange(layers)[None] >= first[:, None])
        return jnp.where(mixed[:, :, None], other[:, None, :], ws)

    def synthesise(self, ws: jax.Array, keys: jax.Array) -> jax.Array:
        return self.synthesis(ws, keys)

    def mixed(
        self,
        latents: tuple[jax.Array, jax.Array],
        one_hots: tuple[jax.Array | None, jax.Array | None],
        keys: jax.Array,
        psi: float | jax.Array,
    ) -> jax.Array:
        """Images whose first half of the layers has the w of the first latent, and the others that of the second."""
        key_styles, key_noise = rng.split(keys, 2)
        coarse, fine = (self.styles(z, one_hot, key_styles, False) for z, one_hot in zip(latents, one_hots))
        first_half = jnp.arange(self.synthesis.layers)[None, :, None] < self.synthesis.layers // 2
        mean = self.mean.value[None, None, :]
        return self.synthesis(mean + psi * (jnp.where(first_half, coarse, fine) - mean), key_noise)

    def truncated(self, z: jax.Array, one_hot: jax.Array | None, keys: jax.Array, psi: float | jax.Array) -> jax.Array:
        """Images of w moved towards their mean: w_mean + psi (w - w_mean) (Karras et al. 2019, 1812.04948)."""
        key_styles, key_noise = rng.split(keys, 2)
        mean = self.mean.value[None, None, :]
        return self.synthesis(mean + psi * (self.styles(z, one_hot, key_styles, False) - mean), key_noise)


def minibatch_deviation(x: jax.Array, group: int) -> jax.Array:
    """x (B, H, W, C) with a further channel: the mean standard deviation of the features of each group of examples.

    Args:
      group: number of consecutive examples in a group; if it does not divide B, their greatest common divisor.
    """
    size = math.gcd(group, x.shape[0])
    groups = x.astype(jnp.float32).reshape(-1, size, *x.shape[1:])
    deviation = jnp.mean(jnp.sqrt(jnp.var(groups, axis=1) + EPSILON), axis=(1, 2, 3))
    channel = jnp.broadcast_to(jnp.repeat(deviation, size)[:, None, None, None], (*x.shape[:3], 1))
    return jnp.concatenate([x, channel.astype(x.dtype)], axis=-1)


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions, the second of which halves the size, and a filtered shortcut, divided by sqrt 2."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, H / 2, W / 2, features)."""
        h = activate(EqualisedConv(x.shape[-1], dtype=self.dtype, name="conv1")(x))
        h = activate(EqualisedConv(self.features, down=True, dtype=self.dtype, name="conv2")(h))
        x = EqualisedConv(self.features, 1, True, False, self.dtype, name="shortcut")(x)
        return (h + x) * math.sqrt(0.5)


class Discriminator(nn.Module):
    """(images (B, H, W, C), one_hot (B, classes) or None) to float32 (B,), high for a real image.

    channels: as of the generator; mapping_layers: of the mapping of the class; group: of the minibatch deviation, 0 for
    none.
    """

    channels: tuple[int, ...]
    mapping_layers: int
    group: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, one_hot: jax.Array | None) -> jax.Array:
        h = activate(EqualisedConv(self.channels[0], 1, dtype=self.dtype, name="from_image")(x))
        for level, features in enumerate(self.channels[1:], 1):
            h = DiscriminatorBlock(features, self.dtype, name=f"block{level}")(h)
        h = h.astype(jnp.float32)
        width = h.shape[-1]
        h = minibatch_deviation(h, self.group) if self.group else h
        h = activate(EqualisedConv(width, name="conv")(h))
        h = activate(EqualisedDense(width, name="dense")(h.reshape(h.shape[0], -1)))
        out = EqualisedDense(1 if one_hot is None else width, name="out")(h)
        if one_hot is None:
            return out[:, 0]
        return jnp.sum(out * Mapping(width, self.mapping_layers, name="mapping")(None, one_hot), axis=-1) * width**-0.5
