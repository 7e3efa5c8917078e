"""The convolutions of VGG-19 (Simonyan & Zisserman 2014, arXiv 1409.1556), with weights provided by the user.

Weights are read from a file in the format of PyTorch before 1.6 with torchvision's names, features.0.weight to
features.25.weight, such as vgg19-dcbb9e9d.pth. Boundaries are periodic, and pooling takes means, as for textures (Gatys
et al. 2015, arXiv 1505.07376). Images are normalised by ImageNet's mean and deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import torch_file
from jgen.errors import require
from jgen.nn.efficientnet import periodic_conv, standardised

WIDTHS = ((64, 64), (128, 128), (256,) * 4, (512,) * 4)  # before each of four poolings
SMALLEST = 16  # sides of images are multiples of it: four poolings
Weights = Mapping[str, Any]


def layout() -> dict[str, tuple[int, ...]]:
    """{name: shape} of the weights, in order."""
    shapes: dict[str, tuple[int, ...]] = {}
    number, channels = 0, 3
    for widths in WIDTHS:
        for width in widths:
            shapes |= {f"features.{number}.weight": (width, channels, 3, 3), f"features.{number}.bias": (width,)}
            number, channels = number + 2, width  # each convolution is followed by its ReLU
        number += 1  # pooling
    return shapes


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The weights of a file. Raises `UserError`: no such file, another kind of file, or another network's weights."""
    tensors, weights = torch_file.read(Path(path).expanduser()), {}
    for name, shape in layout().items():
        require(name in tensors, f"{path} is not VGG-19: it has no tensor {name}")
        own = tensors[name].shape
        require(own == shape, f"{path} is not VGG-19: {name} has shape {own}, not {shape}")
        weights[name] = np.asarray(tensors[name], np.float32)
    return weights


def texture_maps(weights: Weights, x: jax.Array) -> list[jax.Array]:
    """Maps conv1_1, pool1, pool2, pool3 and pool4, (B, h, w, c), of images (B, H, W, 3) in [0, 1]."""
    h, maps, number = standardised(x), [], 0
    for widths in WIDTHS:
        for _ in widths:
            kernel = jnp.asarray(weights[f"features.{number}.weight"]).transpose(2, 3, 1, 0)
            h = jax.nn.relu(periodic_conv(h, kernel) + weights[f"features.{number}.bias"][None, None, None])
            if number == 0:
                maps.append(h)
            number += 2
        number += 1
        h = mean_pool(h)
        maps.append(h)
    return maps


def mean_pool(h: jax.Array) -> jax.Array:
    """Means of squares of 2x2."""
    batch, height, width, channels = h.shape
    return jnp.mean(h.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))
