"""Gram matrices of a network's maps: which features are active together, at any position (Gatys et al. 2015, eq. 1).

    G_l = F_l^T F_l / (h w),  F_l (h w, c) the map of layer l

Networks are frozen and have periodic boundaries, so that shifting the image by the stride of the deepest map leaves all
G_l unchanged. They are

    random        one layer of random filters with ReLU at several scales (Ustyuzhaninov et al. 2016, arXiv 1606.00021),
                  and the products of neighbouring scales
    efficientnet  EfficientNet-Lite0 (`jgen.nn.efficientnet`), its stem and its first stages
    vgg19         VGG-19 (`jgen.nn.vgg`), the layers of Gatys et al.

The pixels themselves are the first map of each network. In addition to the matrices there are the powers of the
steerable pyramid's bands (`jgen.nn.steerable_pyramid`): without this constraint on the spectrum, similar to that of
Liu, Gousseau & Xia 2016 (arXiv 1605.01141), a network whose first convolution has stride 2 leaves noise at the finest
scale. Maps are (h, w, c) here, for one image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.nn import efficientnet, steerable_pyramid, vgg

BORDER = 3  # pixels of a map that are left out at each side if it is not periodic; at most a fifth of small maps
EFFICIENTNET_STAGES = 5  # down to 1/16 of the size
FLOOR = 1e-3  # lower limit of a feature's power, relative to the mean of its layer, in the units of the entries
SCALES, ORIENTATIONS = 4, 4  # of the bands whose powers are taken
SEED = 0  # seed of random filters, which are part of a model's definition


class Network(NamedTuple):
    """maps: images (H, W, C), floats from 0 to 1 and decorrelated ones z, to maps; step: sides are multiples of it;
    pairs: neighbours (l, l + 1) of which the first is twice as large, whose products are taken too."""

    maps: Callable[[jax.Array, jax.Array], list[jax.Array]]
    step: int
    pairs: bool


def random_network(scales: int, filters: int, kernel: int) -> Network:
    """Random filters at `scales` scales, each half the size of the one before."""

    def maps(x: jax.Array, z: jax.Array) -> list[jax.Array]:
        drawn = np.random.default_rng(SEED).normal(size=(scales, kernel, kernel, z.shape[-1], filters))
        drawn -= drawn.mean(axis=(1, 2), keepdims=True)  # otherwise the mean and the coarsest shades dominate every map
        kernels = jnp.asarray(drawn / np.sqrt(kernel * kernel * z.shape[-1]), z.dtype)
        lows = steerable_pyramid.spectra(jnp.moveaxis(z, -1, 0), scales, 2).lows
        images = [z, *(jnp.moveaxis(jnp.fft.ifft2(low).real, 0, -1) for low in lows[1:])]
        return [jax.nn.relu(efficientnet.periodic_conv(image[None], each)[0]) for image, each in zip(images, kernels)]

    return Network(maps, 1 << scales, True)


def efficientnet_network(path: str) -> Network:
    """EfficientNet-Lite0 from a file, or "installed". `maps` raises `UserError` as `efficientnet.load` does."""

    def maps(x: jax.Array, z: jax.Array) -> list[jax.Array]:
        weights = loaded(path, efficientnet.load_weights)  # loaded when needed: not every model is used
        colours = efficientnet.standardised(jnp.broadcast_to(x, (*x.shape[:2], 3))[None])
        table = efficientnet.STAGES[:EFFICIENTNET_STAGES]
        return [h[0] for h in efficientnet.stages(weights, colours, table, periodic=True)]

    return Network(maps, 16, False)


def vgg_network(path: str) -> Network:
    """VGG-19 from a file. Raises `UserError` as `vgg.load` does."""
    weights = loaded(path, vgg.load)

    def maps(x: jax.Array, z: jax.Array) -> list[jax.Array]:
        return [h[0] for h in vgg.texture_maps(weights, jnp.broadcast_to(x, (*x.shape[:2], 3))[None])]

    return Network(maps, vgg.SMALLEST, False)


@lru_cache(maxsize=2)
def loaded(path: str, load: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return load(path)


def gram_matrices(network: Network, x: jax.Array, z: jax.Array, source: bool) -> dict[str, Any]:
    """The Gram matrices of the pixels z and of all maps, the products of neighbours and the powers of bands, of one
    image.

    Args:
      source: leave out the borders of maps, where the periodic boundaries do not fit a crop.
    """
    maps = network.maps(x, z)
    pooled = [vgg.mean_pool(h[None])[0] for h in maps[:-1]] if network.pairs else []
    own = [product(h, h, source) for h in (z, *maps)]
    pairs = [product(a, b, source) for a, b in zip(pooled, maps[1:])]
    return {"maps": own, "pairs": pairs, "powers": band_powers(network, z)}


def band_powers(network: Network, z: jax.Array) -> jax.Array:
    """The powers of the bands of z in as many scales as the network has halvings, four at most, (C, 1 + 4 scales)."""
    scales = min(SCALES, network.step.bit_length() - 1)
    spectra = steerable_pyramid.spectra(jnp.moveaxis(z, -1, 0), scales, ORIENTATIONS)

    def power(transform: jax.Array) -> jax.Array:
        """Mean |x|^2, (C, n), of images with this transform (C, n, h, w), by Parseval's theorem."""
        places = float(transform.shape[-2] * transform.shape[-1])
        return jnp.sum(jnp.square(transform.real / places) + jnp.square(transform.imag / places), axis=(-2, -1))

    return jnp.concatenate([power(each) for each in (spectra.high[:, None], *spectra.bands)], axis=1)


def product(a: jax.Array, b: jax.Array, source: bool) -> jax.Array:
    """Means of products of maps (h, w, c) and (h, w, d), (c, d)."""
    border = min(BORDER, min(a.shape[:2]) // 5) if source else 0
    a, b = (h[border : h.shape[0] - border, border : h.shape[1] - border] for h in (a, b))
    return jnp.einsum("hwc,hwd->cd", a, b) / (a.shape[0] * a.shape[1])


def scales_of(found: dict[str, Any]) -> dict[str, Any]:
    """The units, as a tree of the same structure: roots of products of the features' powers for Gram matrices, and
    powers themselves for powers."""
    roots = []
    for own in found["maps"]:
        power = jnp.diagonal(own)
        roots.append(jnp.sqrt(jnp.maximum(power, FLOOR * jnp.mean(power) + 1e-12)))
    pairs = [a[:, None] * b[None, :] for a, b in zip(roots[1:], roots[2:])][: len(found["pairs"])]
    matrices = [root[:, None] * root[None, :] for root in roots]
    return {"maps": matrices, "pairs": pairs, "powers": jnp.maximum(found["powers"], 1e-12)}
