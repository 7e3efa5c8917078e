"""The U-Net of Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752; Podell et al. 2023, arXiv 2307.01952).

DDPM's residual blocks (jgen/nn/unet.py), with transformer blocks that attend to the tokens of a text instead of
self-attention (jgen/nn/cross_attention.py): `depths` gives their number at each level, and each level has its own
number of heads. Its parameters match those of diffusers' `UNet2DConditionModel` in the published versions 1.x, 2.x and
XL.

In XL embeddings of the pooled text and of six numbers are added to that of t: height and width of the image before
cropping, the offset of the crop, and the target height and width (arXiv 2307.01952, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgen.core.model import ImageSpec
from jgen.errors import require, require_positive
from jgen.nn.conv import Conv
from jgen.nn.cross_attention import SpatialTransformer, Tokens
from jgen.nn.embeddings import sinusoidal_embedding
from jgen.nn.normalization import GroupNorm
from jgen.nn.resampling import nearest
from jgen.nn.unet import ResnetBlock


@dataclass(frozen=True)
class Config:
    """Sizes of the U-Net; the defaults are those of Stable Diffusion 1."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Width of each level, from full resolution down."""
    blocks: int = 2
    """Residual blocks of each level."""
    depths: tuple[int, ...] = (1, 1, 1, 0)
    """Transformer blocks after each residual block of a level."""
    middle_depth: int = 1
    """Transformer blocks in the middle."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads of each level."""
    context: int = 768
    """Width of the tokens that are attended to."""
    pooled: int = 0
    """Width of the pooled text (XL); 0: neither a pooled text nor an embedding of sizes."""
    size_features: int = 256
    """Width of the embedding of each size, if there is a pooled text."""
    groups: int = 32
    """Groups of group normalisation."""
    norm_eps: float = 1e-5
    """Epsilon of group normalisation, added to the variance."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters and statistics stay float32."""
    remat: bool = False
    """Recompute the activations inside blocks in the backward pass instead of storing them."""


NUM_SIZES = 6  # numbers that XL is given about an image
TINY = Config(channels=(8, 16), blocks=1, depths=(0, 1), heads=(1, 2), context=8, groups=4)


def cosines_first(t: jax.Array, dim: int) -> jax.Array:
    """The authors' embedding of numbers (B,): cosines, then sines, of frequencies 10,000^(-2 i / dim)."""
    return jnp.roll(sinusoidal_embedding(t, dim, shift=0), dim // 2, axis=-1)


class ConditionUNet(nn.Module):
    """(x (B, H, W, C), t (B,), tokens, pooled (B, pooled) or None, sizes (B, 6) or None) to float32 (B, H, W, outputs).

    t counts from 0, as the authors' code does.
    """

    config: Config
    outputs: int

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        tokens: Tokens,
        pooled: jax.Array | None = None,
        sizes: jax.Array | None = None,
    ) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        embedding = self.embed(t, pooled, sizes)
        tokens = tokens._replace(features=tokens.features.astype(dtype))
        types: tuple[Any, Any] = (ResnetBlock, SpatialTransformer)
        block_type, attention_type = map(nn.remat, types) if c.remat else types

        def resnet(h: jax.Array, features: int, name: str) -> jax.Array:
            return block_type(features, c.groups, 0.0, dtype, c.norm_eps, name=name)(h, embedding, None)

        def attend(h: jax.Array, heads: int, depth: int, name: str) -> jax.Array:
            if depth == 0:
                return h
            return attention_type(h.shape[-1] // heads, c.groups, dtype, depth, name=name)(h, tokens)

        h = Conv(c.channels[0], dtype=dtype, name="conv_in")(x.astype(dtype))
        skips, last = [h], len(c.channels) - 1
        for level, features in enumerate(c.channels):
            for i in range(c.blocks):
                h = resnet(h, features, f"down{level}_block{i}")
                h = attend(h, c.heads[level], c.depths[level], f"down{level}_attention{i}")
                skips.append(h)
            if level < last:
                h = Conv(features, stride=2, dtype=dtype, name=f"down{level}_downsample")(h)
                skips.append(h)

        h = resnet(h, c.channels[-1], "middle_block0")
        h = attend(h, c.heads[-1], c.middle_depth, "middle_attention")
        h = resnet(h, c.channels[-1], "middle_block1")

        for level, features in reversed(list(enumerate(c.channels))):
            for i in range(c.blocks + 1):
                h = resnet(jnp.concatenate([h, skips.pop()], axis=-1), features, f"up{level}_block{i}")
                h = attend(h, c.heads[level], c.depths[level], f"up{level}_attention{i}")
            if level > 0:
                h = Conv(features, dtype=dtype, name=f"up{level}_upsample")(nearest(h))

        h = GroupNorm(c.groups, c.norm_eps, silu=True, name="norm_out")(h).astype(jnp.float32)
        return Conv(self.outputs, kernel_init=nn.initializers.zeros, dtype=jnp.float32, name="conv_out")(h)

    def embed(self, t: jax.Array, pooled: jax.Array | None, sizes: jax.Array | None) -> jax.Array:
        """The SiLU of the embedding of all conditions except the tokens, (B, 4 channels[0])."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        width = 4 * c.channels[0]

        def two_layers(h: jax.Array, name: str) -> jax.Array:
            h = nn.silu(nn.Dense(width, dtype=dtype, name=f"{name}1")(h.astype(dtype)))
            return nn.Dense(width, dtype=dtype, name=f"{name}2")(h)

        h = two_layers(cosines_first(t, c.channels[0]), "time")
        if pooled is not None and sizes is not None:
            embedded = cosines_first(sizes.reshape(-1), c.size_features).reshape(len(sizes), -1)
            h = h + two_layers(jnp.concatenate([pooled, embedded], axis=-1), "sizes")
        return nn.silu(h)


def check_condition_unet(config: Config, images: ImageSpec) -> None:
    """Raises `UserError` for sizes that the U-Net cannot be built with."""
    channels, levels = config.channels, len(config.channels)
    require_positive(channels=channels, blocks=config.blocks, heads=config.heads, groups=config.groups)
    require_positive(context=config.context, size_features=config.size_features, norm_eps=config.norm_eps)
    for name in ("depths", "heads"):
        value = getattr(config, name)
        require(len(value) == levels, f"{name} are {value}: there must be one for each of the {levels} levels")
    least = min(*config.depths, config.middle_depth, config.pooled)
    require(least >= 0, f"depths, middle_depth and pooled have {least}: they must be zero or above")
    for width, heads in zip(channels, config.heads):
        fits = width % config.groups == 0 and width % heads == 0
        message = f"channels are {channels}: each must be divisible by groups = {config.groups}, and by its heads"
        require(fits, message)
    factor = 2 ** (levels - 1)
    fits = images.height % factor == 0 and images.width % factor == 0
    require(fits, f"latents are {images.height}x{images.width}: {levels} levels need sizes divisible by {factor}")
