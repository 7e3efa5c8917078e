"""The U-Net of denoising diffusion (Ho, Jain & Abbeel 2020, arXiv 2006.11239, appendix B).

Residual blocks with group normalisation and SiLU, self-attention at chosen resolutions, skip connections from every
block of the encoder to its mirror in the decoder, and an embedding of the time and the class added in each block. Its
parameters match those of diffusers' `UNet2DModel`; like that, it pads stride-2 convolutions on both sides by default,
where the paper's code and its published weights pad at the end only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.core.model import ImageSpec
from jgen.errors import require, require_positive
from jgen.nn.adm import AdmBlock, Resample
from jgen.nn.attention import SelfAttention2D
from jgen.nn.conv import Conv
from jgen.nn.cross_attention import SpatialTransformer, Tokens
from jgen.nn.dropout import dropout
from jgen.nn.embeddings import sinusoidal_embedding
from jgen.nn.normalization import GroupNorm
from jgen.nn.resampling import depth_to_space, nearest, space_to_depth
from jgen.nn.song_unet import SongUNet


@dataclass(frozen=True)
class Config:
    """Sizes of a U-Net."""

    channels: tuple[int, ...] = (128, 256, 256, 256)
    """Width of each level, from full resolution down."""
    blocks: int = 2
    """Residual blocks of each level."""
    attention: tuple[int, ...] = (16,)
    """Heights of the feature maps that have self-attention."""
    head_dim: int = 64
    """Width of an attention head."""
    groups: int = 32
    """Groups of group normalisation."""
    dropout: float = 0.1
    """Dropout rate in the residual blocks."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, statistics and losses stay float32."""
    architecture: Literal["ddpm", "ddpmpp", "ncsnpp", "adm"] = "ddpm"
    """ddpm: of Ho et al. 2020; ddpmpp and ncsnpp: DDPM++ and NCSN++ of Song et al. 2021, ncsnpp only for systems whose
    times are of order 1 (EDM, score SDEs, consistency models); adm: of Dhariwal & Nichol 2021."""
    base: int = 0
    """Width of the first convolution (adm: always that of the first level); the embedding of time and class is four
    times as wide. 0: the width of the first level."""
    padding: Literal["even", "end"] = "even"
    """Zero padding of stride-2 convolutions: on both sides, or at the end as in the paper's code (ddpm)."""
    norm_eps: float = 1e-5
    """Epsilon of group normalisation, added to the variance (ddpm)."""
    patch: int = 1
    """Side of the squares of pixels that are folded into channels before the first convolution, and unfolded after the
    last (Hoogeboom et al. 2023, arXiv 2301.11093): a small U-Net spends most time at full resolution. Levels, and the
    heights in `attention`, are those after folding (ddpm, adm)."""
    remat: bool = False
    """Recompute the activations inside blocks in the backward pass instead of storing them: less memory, a third more
    time."""


PADDING = {"even": None, "end": ((0, 1), (0, 1))}  # of stride-2 convolutions, as `jgen.nn.conv` takes it

# Sizes that configurations share: for 8x8 digits, for 28x28 images on CPUs, and for tests.
DIGITS = Config(channels=(32, 32), blocks=1, attention=(4,), head_dim=32, groups=8, dropout=0.0)
MNIST = Config(channels=(32, 64, 64), blocks=2, attention=(14, 7), head_dim=32, groups=8, dropout=0.0)
TINY = Config(channels=(8, 8), blocks=1, attention=(), head_dim=8, groups=4, dropout=0.1)


class ResnetBlock(nn.Module):
    """GroupNorm-SiLU-conv, add the embedding, GroupNorm-SiLU-dropout-conv, add the input."""

    features: int
    groups: int
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, keys: jax.Array | None) -> jax.Array:
        """x (B, H, W, C), embedding (B, E) after its SiLU, dropout keys (B,) or None, to (B, H, W, features)."""
        h = GroupNorm(self.groups, self.eps, silu=True, name="norm1")(x)
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        shift = nn.Dense(self.features, dtype=self.dtype, name="embedding")(embedding)
        h = h + shift[:, None, None, :]
        h = dropout(GroupNorm(self.groups, self.eps, silu=True, name="norm2")(h), keys, self.dropout_rate)
        h = Conv(self.features, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class UNet(nn.Module):
    """(x (B, H, W, C), t (B,), label (B,) or None, dropout keys (B,) or None) to float32 (B, H, W, out_channels).

    channels:    width of each level, from the full resolution down, each half as high and wide as the one before.
    attention:   the heights of feature maps at which every block is followed by self-attention; the middle always is.
    head_dim:    width of an attention head.
    num_classes: 0 for no class embedding; else the number of embeddings, including a null class if there is one.

    vector (B, D), if given, is a further condition, such as how an image was augmented. If a context is given, such as
    the tokens of a text, transformer blocks that attend to it replace self-attention.

    t is any number, embedded by sines and cosines: a step 1 .. T, or a function of the noise such as ln(sigma) / 4.

    base:        width of the first convolution; 0: that of the first level.
    adm:         blocks and changes of resolution are those of ADM (jgen/nn/adm.py).
    padding, eps: of `Config`; without `adm`.
    patch:       of `Config`.
    remat:       whether blocks recompute their activations in the backward pass, so that only their inputs are stored.
    """

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    head_dim: int
    groups: int
    dropout_rate: float
    num_classes: int
    out_channels: int
    dtype: DTypeLike = jnp.float32
    base: int = 0
    adm: bool = False
    padding: str = "even"
    eps: float = 1e-5
    remat: bool = False
    patch: int = 1

    @property
    def width(self) -> int:
        """Of the first convolution."""
        return self.channels[0] if self.adm else self.base or self.channels[0]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        label: jax.Array | None,
        keys: jax.Array | None,
        vector: jax.Array | None = None,
        context: Tokens | None = None,
    ) -> jax.Array:
        embedding, count = self.embed(t, label, vector), 0
        types, attention_options, inputs = self.layers(context)
        block_type, attention_type = map(nn.remat, types) if self.remat else types

        def resnet(h: jax.Array, features: int, name: str, resample: Resample = "") -> jax.Array:
            nonlocal count
            count += 1
            block_keys = None if keys is None or self.dropout_rate == 0.0 else rng.fold_in(keys, count)
            sizes = (features, self.groups, self.dropout_rate, self.dtype)
            own = {"resample": resample} if self.adm else {"eps": self.eps}
            return block_type(*sizes, **own, name=name)(h, embedding, block_keys)

        def attend(h: jax.Array, name: str) -> jax.Array:
            return attention_type(self.head_dim, self.groups, self.dtype, *attention_options, name=name)(h, *inputs)

        h = Conv(self.width, dtype=self.dtype, name="conv_in")(space_to_depth(x.astype(self.dtype), self.patch))
        skips = [h]
        for level, features in enumerate(self.channels):
            for block in range(self.blocks):
                h = resnet(h, features, f"down{level}_block{block}")
                if h.shape[1] in self.attention:
                    h = attend(h, f"down{level}_attention{block}")
                skips.append(h)
            if level < len(self.channels) - 1:
                name = f"down{level}_downsample"
                if self.adm:
                    h = resnet(h, features, name, "down")
                else:
                    h = Conv(features, stride=2, padding=PADDING[self.padding], dtype=self.dtype, name=name)(h)
                skips.append(h)

        h = resnet(h, self.channels[-1], "middle_block0")
        h = attend(h, "middle_attention")
        h = resnet(h, self.channels[-1], "middle_block1")

        for level, features in reversed(list(enumerate(self.channels))):
            for block in range(self.blocks + 1):
                h = resnet(jnp.concatenate([h, skips.pop()], axis=-1), features, f"up{level}_block{block}")
                if h.shape[1] in self.attention:
                    h = attend(h, f"up{level}_attention{block}")
            if level > 0:
                name = f"up{level}_upsample"
                if self.adm:
                    h = resnet(h, features, name, "up")
                else:
                    h = Conv(features, dtype=self.dtype, name=name)(nearest(h))

        h = GroupNorm(self.groups, self.eps, silu=True, name="norm_out")(h)
        own = {"kernel_init": nn.initializers.zeros, "dtype": jnp.float32, "name": "conv_out"}
        return depth_to_space(Conv(self.out_channels * self.patch**2, **own)(h), self.patch)

    def layers(self, context: Tokens | None) -> tuple[tuple[Any, Any], tuple[Any, ...], tuple[Any, ...]]:
        """The types of blocks and of attention, the last options of attention, and its inputs besides the features."""
        block = AdmBlock if self.adm else ResnetBlock
        if context is None:
            return (block, SelfAttention2D), (self.eps,), ()
        return (block, SpatialTransformer), (), (context,)

    def embed(self, t: jax.Array, label: jax.Array | None, vector: jax.Array | None) -> jax.Array:
        """The SiLU of the embedding of all conditions, (B, 4 * base); every block projects it to its width."""
        base = self.base or self.channels[0]
        width = 4 * base
        h = sinusoidal_embedding(t, base).astype(self.dtype)
        h = nn.silu(nn.Dense(width, dtype=self.dtype, name="time1")(h))
        h = nn.Dense(width, dtype=self.dtype, name="time2")(h)
        if self.num_classes:
            h = h + nn.Embed(self.num_classes, width, dtype=self.dtype, name="classes")(label)
        if vector is not None:
            h = h + nn.Dense(width, use_bias=False, dtype=self.dtype, name="vector")(vector)
        return nn.silu(h)


Network = UNet | SongUNet


def make_unet(
    config: Config, images: ImageSpec, num_classes: int, out_channels: int = 0, small_t: bool = False
) -> Network:
    """The U-Net of `config.architecture` over images.

    Args:
      num_classes: of the class embedding, including a null class; 0 for none.
      out_channels: 0 takes those of the images.
      small_t: whether t is of order 1, as required by NCSN++'s Fourier features, instead of a step 1 .. T.
    Raises:
      UserError: sizes that the U-Net cannot be built with, or NCSN++ for a model whose t is not small.
    """
    check_unet(config, images)
    require(
        small_t or config.architecture != "ncsnpp",
        "architecture is 'ncsnpp': it embeds times of order 1, and this model's run to 1000; use 'ddpm' or 'ddpmpp'"
        " (in a system of your own: small_t=True)",
    )
    sizes: dict[str, Any] = {
        "channels": config.channels,
        "blocks": config.blocks,
        "attention": config.attention,
        "head_dim": config.head_dim,
        "groups": config.groups,
        "dropout_rate": config.dropout,
        "num_classes": num_classes,
        "out_channels": out_channels or images.channels,
        "dtype": jnp.dtype(config.dtype),
        "base": config.base,
        "remat": config.remat,
    }
    if config.architecture in ("ddpm", "adm"):
        own: dict[str, Any] = {"padding": config.padding, "eps": config.norm_eps, "patch": config.patch}
        return UNet(**sizes, **own, adm=config.architecture == "adm")
    return SongUNet(**sizes, architecture=config.architecture)


def check_unet(config: Config, images: ImageSpec) -> None:
    """Raises `UserError` for sizes that the U-Net cannot be built with."""
    channels, head_dim, groups = config.channels, config.head_dim, config.groups
    patch, (height, width) = config.patch, images.shape[:2]
    require_positive(channels=channels, blocks=config.blocks, head_dim=head_dim, groups=groups, patch=patch)
    folds = config.architecture in ("ddpm", "adm")
    unread = f"patch is {patch}: only the architectures ddpm and adm read it, and this is {config.architecture}"
    require(folds or patch == 1, unread)
    require_positive(base=config.base or channels[0], norm_eps=config.norm_eps)
    for name in ("padding", "norm_eps"):
        value, own = getattr(config, name), config.architecture == "ddpm"
        message = f"{name} is {value}: only the architecture ddpm reads it, and this is {config.architecture}"
        require(own or value == getattr(Config, name), message)
    require(config.base % groups == 0, f"base is {config.base}: it must be divisible by groups = {groups}")
    require(0 <= config.dropout < 1, f"dropout is {config.dropout}: it must be at least 0 and below 1")
    levels = len(channels)
    factor, folded = patch * 2 ** (levels - 1), f" of patches of {patch}" if patch > 1 else ""
    require(
        height % factor == 0 and width % factor == 0,
        f"images are {height}x{width}: {levels} U-Net levels{folded} need sizes divisible by {factor}",
    )
    heights = [height // patch // 2**level for level in range(levels)]
    for size in config.attention:
        require(size in heights, f"attention is at height {size}: the U-Net's levels have the heights {heights}")
    for features, size in zip(channels, heights):
        require(features % groups == 0, f"channels are {channels}: each must be divisible by groups = {groups}")
        attends = size in config.attention or size == heights[-1]
        require(
            features % head_dim == 0 or not attends,
            f"channels are {channels}: those with attention must be divisible by head_dim = {head_dim}",
        )
