"""R3GAN, a modern baseline (Huang et al. 2024, arXiv 2501.05441).

    L_D  = E softplus(-(D(x) - D(G(z)))) + gamma / 2 E |grad D(x)|^2 + gamma / 2 E |grad D(G(z))|^2
    L_G  = E softplus(-(D(G(z)) - D(x)))          of pairs of an image and a sample              (section 2, equation 2)

The relativistic loss compares each sample with an image, and so has no optimum at which samples share a mode; the
penalties R1 on images and R2 on samples make its training converge (propositions 1 and 2). The networks, of
jgen/nn/r3gan.py, have neither normalisation nor any of StyleGAN's other devices (section 4).

Glossary: z latent; x image in [-1, 1]; y class; G, D, "gen", "disc" generator and discriminator; gamma `gamma`.

Differs from the paper: gamma, Adam's beta2 and the moving average's half-life are constant, where the authors schedule
them; the probability of augmentation (jgen/nn/adaptive_augmentation.py) is constant too.

Measured: a classifier assigns 98.8 % of samples to the class that they were conditioned on, Fréchet distance 31.5 on
the 8x8 digits (FD-digits; 22.6 between training and test images), recall 0.57; 2,500 steps of
`python train.py configs/gan/r3gan.py:digits`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jgen.core.model import DataSpec, GenerativeModel, Roles
from jgen.errors import require, require_labels, require_positive
from jgen.models.gan.game import Game, Penalty, Sampling, make_gan, require_halvings, without_noise
from jgen.nn.adaptive_augmentation import augment, require_augmentable
from jgen.nn.r3gan import Discriminator, Generator


@dataclass(frozen=True)
class Config:
    """Residual networks without normalisation, a relativistic loss, and penalties on real and generated images."""

    channels: tuple[int, ...] = (256, 256, 256, 256)
    """Channels at the image's size, at 1/2 of it, at 1/4, ... of both networks."""
    blocks: int = 2
    """Residual blocks of each size."""
    expansion: int = 2
    """Channels in the middle of a block, as a multiple of the block's own."""
    group: int = 16
    """Channels of each group of a block's 3x3 convolution."""
    latent: int = 64
    """Dimensions of z."""
    embedding: int = 64
    """Dimensions of the embeddings of the class."""
    gamma: float = 0.05
    """Weight of half the discriminator's squared gradient, on real and on generated images."""
    augmentation: float = 0.0
    """Probability of each random transformation of the discriminator's input images; 0: none."""
    class_conditional: bool = True
    """Condition both networks on the class label."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the networks' computation; parameters and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """An R3GAN for the image shape, levels and classes of `data`.

    Raises:
      UserError: images that cannot be halved `len(channels) - 1` times, or options out of their range.
    """
    check_config(config, data)
    c, dtype = config, jnp.dtype(config.dtype)
    shape = (c.channels, c.blocks, c.expansion, c.group, c.embedding)
    game = Game(
        data,
        ("label",) if c.class_conditional else (),
        Generator(*shape, data.image, dtype),
        Discriminator(*shape, dtype),
        c.latent,
        "relativistic",
        Penalty("r1_r2", c.gamma),
        inputs=without_noise,
    )
    if c.augmentation > 0:
        game = game._replace(augment=partial(augment_for_disc, c.augmentation))
    return make_gan("r3gan", game, c.sampling)


def augment_for_disc(p: float, state: Roles, keys: jax.Array, x: jax.Array) -> jax.Array:
    return augment(keys, x, p)


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    c = config
    require_positive(channels=c.channels, blocks=c.blocks, expansion=c.expansion, group=c.group, latent=c.latent)
    require_positive(embedding=c.embedding, gamma=c.gamma)
    for features in c.channels:
        divides = c.expansion * features % c.group == 0
        require(divides, f"group is {c.group}: it must divide expansion * channels, {c.expansion} * {features}")
    require(0 <= c.augmentation < 1, f"augmentation is {c.augmentation}: it must be at least 0 and below 1")
    if c.augmentation > 0:
        require_augmentable(data.image, "augmentation")
    require_halvings(data, "channels", len(c.channels) - 1)
    require_labels(data.num_classes, "class_conditional", c.class_conditional, False)
