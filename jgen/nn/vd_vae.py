"""The network of a very deep VAE (Child 2021, arXiv 2011.10650, figure 3 and section 3).

Both paths are residual networks of bottlenecks, f = gelu . conv3 . gelu . conv2 . gelu . conv1 . gelu, of which conv1
is 1x1 to a fraction of the width, conv2 and conv3 are 3x3, on maps below 3 pixels 1x1; a 1x1 convolution W follows:

    bottom-up  h <- h + W f(h);  the last block of a resolution is followed by average pooling to the next
    top-down   x <- x + unpooled x of the coarser resolution, in the first block of a resolution, then in every block
               q = N(W_q f_q([x, h])),  p, y = W_p f_p(x),  z from q or p,  x <- x + y + W_z z,  x <- x + W f(x)

In the top-down path, h is the bottom-up features of the same resolution, after all blocks except the one that is
pooled. N is the number of blocks of a path: W and W_z are initialised at 1 / sqrt(N) of the usual scale, and W_p at
zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jgen.core.model import ImageSpec
from jgen.errors import require
from jgen.nn.conv import Conv
from jgen.nn.resampling import average_pool

Blocks = tuple[tuple[int, int], ...]  # (height of the maps, number of blocks), ...


class Level(NamedTuple):
    """A resolution of a path: the height and width of its maps, and its number of blocks."""

    height: int
    width: int
    blocks: int


def levels_of(blocks: Blocks, spec: ImageSpec) -> tuple[Level, ...]:
    """Resolutions with maps of these heights, with the aspect ratio of the images."""
    return tuple(Level(height, spec.width * height // spec.height, number) for height, number in blocks)


class Gaussian(NamedTuple):
    """A Gaussian with a diagonal covariance: mean and logvar, float32 (B, h, w, latent)."""

    mean: jax.Array
    logvar: jax.Array


class Layer(NamedTuple):
    """A stochastic layer in one evaluation: its latents z (B, h, w, latent), p(z | z above), and q(z | z above, x),
    None without an image."""

    z: jax.Array
    prior: Gaussian
    posterior: Gaussian | None


# (number of the layer, prior, posterior or None) -> z, float32 (B, h, w, latent).
ChooseLatents = Callable[[int, Gaussian, Gaussian | None], jax.Array]


def scaled(scale: float) -> Any:
    """Initial weights uniform with the variance scale^2 / (3 fan_in): of scale 1, those of PyTorch's layers."""
    if scale == 0.0:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale**2 / 3.0, "fan_in", "uniform")


def unpool(x: jax.Array, height: int, width: int) -> jax.Array:
    """Nearest-neighbour upsampling, (B, h, w, C) to (B, height, width, C); h divides height and w width."""
    batch, rows, columns, channels = x.shape
    tall, wide = height // rows, width // columns
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, rows, tall, columns, wide, channels))
    return x.reshape(batch, height, width, channels)


class Bottleneck(nn.Module):
    """f of the module's docstring: (B, h, w, C) to (B, h, w, features) of `dtype`, the last 1x1 convolution apart."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = 3 if min(x.shape[1:3]) > 2 else 1
        for number, kernel_size in enumerate((1, size, size)):
            name = f"conv{number + 1}"
            x = nn.gelu(x.astype(self.dtype))
            x = Conv(self.features, kernel_size, dtype=self.dtype, kernel_init=scaled(1.0), name=name)(x)
        return nn.gelu(x)


class Block(nn.Module):
    """x + W f(x), (B, h, w, C): a residual bottleneck of `features` whose last weights start at `scale`."""

    features: int
    scale: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = Bottleneck(self.features, self.dtype, name="bottleneck")(x)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=scaled(self.scale), name="out")(h)


class BottomUp(nn.Module):
    """x (B, H, W, C) in [-1, 1] to {height: features (B, h, w, width)}, one entry for each of `levels`, finest first.

    bottleneck: features of the bottlenecks.
    """

    levels: tuple[Level, ...]
    width: int
    bottleneck: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[int, jax.Array]:
        scale = 1.0 / math.sqrt(sum(level.blocks for level in self.levels))
        h = Conv(self.width, dtype=self.dtype, kernel_init=scaled(1.0), name="conv_in")(x)
        features = {}
        for level, below in zip(self.levels, (*self.levels[1:], None)):
            for number in range(level.blocks):
                if below is not None and number == level.blocks - 1:
                    features[level.height] = h
                name = f"level{level.height}_block{number}"
                h = Block(self.bottleneck, scale, self.dtype, name=name)(h)
            if below is not None:
                h = average_pool(h, below.height, below.width)
        return features | {self.levels[-1].height: h}


class StochasticBlock(nn.Module):
    """x (B, h, w, C), bottom-up features (B, h, w, C) or None -> (next x, what the layer is in this evaluation).

    latent: channels of z. choose: (prior, posterior or None) to z. scale: of the weights that enter the residual path.
    """

    latent: int
    bottleneck: int
    scale: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        features: jax.Array | None,
        choose: Callable[[Gaussian, Gaussian | None], jax.Array],
    ) -> tuple[jax.Array, Layer]:
        posterior = None
        if features is not None:
            h = jnp.concatenate([x, features], axis=-1)
            h = Bottleneck(self.bottleneck, self.dtype, name="posterior")(h)
            posterior = self.gaussian(h, "posterior_out", scaled(1.0))
        h = Bottleneck(self.bottleneck, self.dtype, name="prior")(x)
        prior = self.gaussian(h, "prior_out", nn.initializers.zeros)
        x = x + nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=nn.initializers.zeros, name="features")(h)
        z = choose(prior, posterior)
        x = x + nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=scaled(self.scale), name="latents")(z)
        x = Block(self.bottleneck, self.scale, self.dtype, name="block")(x)
        return x, Layer(z, prior, posterior)

    def gaussian(self, h: jax.Array, name: str, kernel_init: Initializer) -> Gaussian:
        # The divergence's inputs are computed in full precision. Half of them are logarithms of standard deviations.
        out = nn.Dense(2 * self.latent, dtype=jnp.float32, kernel_init=kernel_init, name=name)(h)
        mean, log_std = jnp.split(out, 2, axis=-1)
        return Gaussian(mean, 2.0 * log_std)


class TopDown(nn.Module):
    """Latents from the coarsest resolution to the finest, then what describes the pixels, float32 (B, H, W, outputs).

    levels: coarsest first. bias_height: maps up to this height start from a learned bias of every position.
    num_classes: 0 for none; a class adds a learned vector to the coarsest map.
    """

    levels: tuple[Level, ...]
    width: int
    bottleneck: int
    latent: int
    outputs: int
    bias_height: int
    num_classes: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        num: int,
        features: dict[int, jax.Array] | None,
        label: jax.Array | None,
        choose: ChooseLatents,
    ) -> tuple[jax.Array, list[Layer]]:
        """The outputs, and every layer from the top.

        Args:
          num: images, B. features: those of `BottomUp`, None to draw from the prior. label: int (B,), None without
            classes. choose: the latents of each layer.
        """
        scale = 1.0 / math.sqrt(sum(level.blocks for level in self.levels))
        x, layers = None, list[Layer]()
        for level in self.levels:
            x = self.enter(level, x, num, label)
            for number in range(level.blocks):
                name = f"level{level.height}_block{number}"
                block = StochasticBlock(self.latent, self.bottleneck, scale, self.dtype, name=name)
                own = None if features is None else features[level.height]
                x, layer = block(x, own, lambda prior, posterior: choose(len(layers), prior, posterior))
                layers.append(layer)
        return nn.Dense(self.outputs, dtype=jnp.float32, kernel_init=scaled(1.0), name="out")(x), layers

    def enter(self, level: Level, coarser: jax.Array | None, num: int, label: jax.Array | None) -> jax.Array:
        """x at the start of a resolution: its bias, and the coarser map unpooled, or at the top the class."""
        shape = (level.height, level.width, self.width)
        x = jnp.zeros((num, *shape), self.dtype)
        if level.height <= self.bias_height:
            bias = self.param(f"bias{level.height}", nn.initializers.zeros, shape)
            x = x + bias.astype(self.dtype)[None]
        if coarser is not None:
            return x + unpool(coarser, level.height, level.width)
        if self.num_classes:
            classes = nn.Embed(self.num_classes, self.width, dtype=self.dtype, name="classes")(label)
            x = x + classes[:, None, None, :]
        return x


def check_blocks(encoder: Blocks, decoder: Blocks, spec: ImageSpec) -> None:
    """Raises `UserError` for resolutions that do not follow one another from the images', or that the encoder lacks."""
    for name, value, order in (("encoder_blocks", encoder, 1), ("decoder_blocks", decoder, -1)):
        given = f"{name} is {value}"
        positive = bool(value) and all(height > 0 and number > 0 for height, number in value)
        require(positive, f"{given}: it must be pairs of a height and a number of blocks, all above zero")
        heights = [height for height, _ in value][::order]
        require(heights[0] == spec.height, f"{given}: its largest height must be that of the images, {spec.height}")
        for fine, coarse in zip(heights, heights[1:]):
            follows = coarse < fine and fine % coarse == 0
            require(follows, f"{given}: heights must divide one another, and {coarse} does not divide {fine}")
        whole = spec.width * heights[-1] % spec.height == 0
        require(whole, f"{given}: images of {spec.height}x{spec.width} cannot be pooled to a height of {heights[-1]}")
    missing = sorted({height for height, _ in decoder} - {height for height, _ in encoder})
    require(not missing, f"decoder_blocks has heights {missing}: encoder_blocks must have them too")
