"""Gated PixelCNN and PixelCNN in PyTorch, with whole kernels multiplied by masks, and the copying of jgen's weights.

Shared by parity tests and benchmarks. Written for images of one channel, NCHW.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class MaskedConv2d(nn.Conv2d):
    """An odd kernel of which only the entries that `mask` has are used."""

    def __init__(self, inputs: int, outputs: int, shape: tuple[int, int], mask: np.ndarray):
        super().__init__(inputs, outputs, shape, padding=(shape[0] // 2, shape[1] // 2))
        self.register_buffer("mask", torch.from_numpy(mask.astype(np.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


def vertical_mask(size: int, own_row: bool) -> np.ndarray:
    """(n, n): the rows above, and the own one."""
    return np.arange(size)[:, None] < size // 2 + own_row + np.zeros((1, size))


def horizontal_mask(size: int, own: bool) -> np.ndarray:
    """(1, n): the pixels to the left, and the own one."""
    return (np.arange(size) < size // 2 + own)[None]


def raster_mask(size: int, own: bool) -> np.ndarray:
    """(n, n): the pixels before the own one in raster order, and the own one."""
    return np.arange(size * size).reshape(size, size) < size * size // 2 + own


class GatedLayer(nn.Module):
    def __init__(self, inputs: int, features: int, size: int, first: bool):
        super().__init__()
        self.vertical = MaskedConv2d(inputs, 2 * features, (size, size), vertical_mask(size, not first))
        self.horizontal = MaskedConv2d(inputs, 2 * features, (1, size), horizontal_mask(size, not first))
        self.across = nn.Conv2d(2 * features, 2 * features, 1, bias=False)
        self.out = nn.Conv2d(features, features, 1)
        self.first = first

    def forward(self, v: torch.Tensor, h: torch.Tensor, bias_v: Any, bias_h: Any) -> tuple[torch.Tensor, torch.Tensor]:
        before = self.vertical(v) + bias_v
        y = self.out(gate(self.horizontal(h) + self.across(before) + bias_h))
        return gate(before), y if self.first else h + y


def gate(x: torch.Tensor) -> torch.Tensor:
    f, g = x.chunk(2, 1)
    return torch.tanh(f) * torch.sigmoid(g)


class GatedPixelCNN(nn.Module):
    """Integers (B, 1, H, W) and one-hot classes (B, K) or None to logits (B, levels, H, W)."""

    def __init__(self, levels: int, features: int, blocks: int, hidden: int, first: int, size: int, num_classes: int):
        super().__init__()
        sizes = [first] + [size] * blocks
        self.layers = nn.ModuleList(
            GatedLayer(features if i else 1, features, n, first=i == 0) for i, n in enumerate(sizes)
        )
        self.labels = nn.ModuleList(nn.Linear(num_classes, 4 * features, bias=False) for _ in sizes)
        self.out1, self.out2 = nn.Conv2d(features, hidden, 1), nn.Conv2d(hidden, levels, 1)
        self.levels = levels

    def forward(self, x: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        v = h = x.float() * (2 / (self.levels - 1)) - 1
        for layer, label in zip(self.layers, self.labels):
            bias = (0, 0) if classes is None else label(classes)[:, :, None, None].chunk(2, 1)
            v, h = layer(v, h, *bias)
        return self.out2(F.relu(self.out1(F.relu(h))))

    def copy_from(self, params: Any) -> None:
        """Takes the parameters of `jgen.nn.gated_pixelcnn.GatedPixelCNN`."""
        for i, (layer, label) in enumerate(zip(self.layers, self.labels)):
            p = params[f"layers_{i}"]
            copy_conv(layer.vertical, p["vertical"])
            copy_conv(layer.horizontal, {**p["horizontal"], "kernel": p["horizontal"]["kernel"][None]})
            copy_conv(layer.across, {"kernel": p["across"]["kernel"][None, None]})
            copy_conv(layer.out, {**p["out"], "kernel": p["out"]["kernel"][None]})
            if "label_v" in p:
                both = np.concatenate([p["label_v"]["embedding"], p["label_h"]["embedding"]], axis=1)
                set_to(label.weight, both.T)
        copy_conv(self.out1, {**params["out1"], "kernel": params["out1"]["kernel"][None]})
        copy_conv(self.out2, {**params["out2"], "kernel": params["out2"]["kernel"][None]})


class PixelCNN(nn.Module):
    """Integers (B, 1, H, W) to logits (B, levels, H, W)."""

    def __init__(self, levels: int, features: int, blocks: int, hidden: int, first: int, size: int):
        super().__init__()
        self.first = MaskedConv2d(1, 2 * features, (first, first), raster_mask(first, False))
        self.down = nn.ModuleList(nn.Conv2d(2 * features, features, 1) for _ in range(blocks))
        self.conv = nn.ModuleList(
            MaskedConv2d(features, features, (size, size), raster_mask(size, True)) for _ in range(blocks)
        )
        self.up = nn.ModuleList(nn.Conv2d(features, 2 * features, 1) for _ in range(blocks))
        self.out1, self.out2 = nn.Conv2d(2 * features, hidden, 1), nn.Conv2d(hidden, levels, 1)
        self.levels = levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x.float() * (2 / (self.levels - 1)) - 1)
        for down, conv, up in zip(self.down, self.conv, self.up):
            h = h + up(F.relu(conv(F.relu(down(F.relu(h))))))
        return self.out2(F.relu(self.out1(F.relu(h))))

    def copy_from(self, params: Any) -> None:
        """Takes the parameters of `jgen.nn.pixelcnn.PixelCNN`."""
        copy_masked(self.first, params["first"])
        for i in range(len(self.conv)):
            p = params[f"layers_{i}"]
            copy_conv(self.down[i], {**p["down"], "kernel": p["down"]["kernel"][None]})
            copy_masked(self.conv[i], p["conv"])
            copy_conv(self.up[i], {**p["up"], "kernel": p["up"]["kernel"][None]})
        copy_conv(self.out1, {**params["out1"], "kernel": params["out1"]["kernel"][None]})
        copy_conv(self.out2, {**params["out2"], "kernel": params["out2"]["kernel"][None]})


def copy_conv(conv: nn.Conv2d, params: Any) -> None:
    """A kernel (rows, columns, in, out) into the first rows and columns of a torch kernel, and its bias."""
    kernel = np.asarray(params["kernel"]).transpose(3, 2, 0, 1)
    whole = np.zeros(tuple(conv.weight.shape), np.float32)
    whole[:, :, : kernel.shape[2], : kernel.shape[3]] = kernel
    set_to(conv.weight, whole)
    if conv.bias is not None:
        set_to(conv.bias, np.asarray(params["bias"]))


def copy_masked(conv: MaskedConv2d, params: Any) -> None:
    """The rows above and the pixels to the left, as one kernel."""
    above, left = np.asarray(params["above"]["kernel"]), np.asarray(params["left"]["kernel"])
    reach = conv.kernel_size[0] // 2
    whole = np.zeros((*conv.kernel_size, *above.shape[2:]), np.float32)
    whole[:reach] = above
    whole[reach, : left.shape[0]] = left
    copy_conv(conv, {"kernel": whole, "bias": params["above"]["bias"] + params["left"]["bias"]})


def set_to(parameter: torch.Tensor, array: np.ndarray) -> None:
    assert tuple(parameter.shape) == array.shape
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.array(array, np.float32)))
