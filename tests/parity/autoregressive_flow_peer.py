"""Masked autoregressive flows and the local PixelCNN in PyTorch: whole weights multiplied by masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def order_mask(inputs: int, outputs: int, groups: int, own: bool) -> torch.Tensor:
    """(outputs, inputs) of groups in order: an output sees the inputs of groups before its own, and of its own."""
    mask = np.zeros((outputs, inputs))
    for o in range(outputs):
        for i in range(inputs):
            output_group, input_group = o // (outputs // groups), i // (inputs // groups)
            mask[o, i] = input_group < output_group or (own and input_group == output_group)
    return torch.from_numpy(mask)


class MaskedLinear(nn.Linear):
    """Of `dims` dimensions in order, each with as many inputs and outputs; `own`: also sees its own dimension."""

    def __init__(self, inputs: int, outputs: int, dims: int, own: bool):
        super().__init__(inputs, outputs)
        self.register_buffer("mask", order_mask(inputs, outputs, dims, own))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Made(nn.Module):
    """(z, label) to mu and log_sigma, (B, dims) each."""

    def __init__(self, dims: int, units: int, depth: int, num_classes: int):
        super().__init__()
        first = MaskedLinear(dims, dims * units, dims, own=False)
        self.hidden = nn.ModuleList(
            [first, *(MaskedLinear(dims * units, dims * units, dims, own=True) for _ in range(depth - 1))]
        )
        self.out = MaskedLinear(dims * units, 2 * dims, dims, own=True)
        if num_classes:
            self.classes = nn.Embedding(num_classes, dims * units)

    def forward(self, z: torch.Tensor, label: Any) -> tuple[torch.Tensor, torch.Tensor]:
        h = z
        for number, layer in enumerate(self.hidden):
            h = layer(h)
            if number == 0 and label is not None:
                h = h + self.classes(label)
            h = F.relu(h)
        mu, raw = self.out(h)[:, 0::2], self.out(h)[:, 1::2]
        return mu, 3.0 * torch.tanh(raw / 3.0)  # jgen bounds log_sigma by 3


class Flow(nn.Module):
    """(z, label) to eps; between layers the dimensions are reversed."""

    def __init__(self, dims: int, units: int, depth: int, layers: int, num_classes: int):
        super().__init__()
        self.mades = nn.ModuleList(Made(dims, units, depth, num_classes) for _ in range(layers))

    def forward(self, z: torch.Tensor, label: Any) -> torch.Tensor:
        for number, made in enumerate(self.mades):
            z = z.flip(1) if number else z
            mu, log_sigma = made(z, label)
            z = (z - mu) / torch.exp(log_sigma)
        return z


class MaskedConv2d(nn.Conv2d):
    """1x1, or of rows above and pixels to the left with the own pixel's channels in order."""

    def __init__(self, inputs: int, outputs: int, groups: int, own: bool, size: tuple[int, int] = (1, 1)):
        super().__init__(inputs, outputs, size)
        mask = torch.ones(outputs, inputs, *size)
        mask[:, :, -1, -1] = order_mask(inputs, outputs, groups, own)
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class FirstConv(nn.Module):
    """The window of `reach` rows above and of pixels to the left, with the channels before in the own pixel."""

    def __init__(self, channels: int, features: int, reach: int):
        super().__init__()
        self.above = nn.Conv2d(channels, features, (reach, 2 * reach + 1))
        sees_own = channels > 1
        shape = (1, reach + sees_own)
        self.left = MaskedConv2d(channels, features, channels, False, shape) if sees_own else None
        if self.left is None:
            self.left = nn.Conv2d(channels, features, shape)
        self.reach, self.sees_own = reach, sees_own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reach = self.reach
        above = self.above(F.pad(x, (reach, reach, reach, -1)))
        return above + self.left(F.pad(x, (reach, 0 if self.sees_own else -1, 0, 0)))


class PointwiseBlock(nn.Module):
    def __init__(self, features: int, channels: int):
        super().__init__()
        self.first, self.second = (MaskedConv2d(features, features, channels, own=True) for _ in range(2))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.second(F.relu(self.first(F.relu(h))))


class LocalPixelCNN(nn.Module):
    """Images on [-1, 1], (B, C, H, W), and context (B, F, H, W) to logits (B, levels, C, H, W)."""

    def __init__(self, levels: int, channels: int, features: int, blocks: int, window: int, context: int):
        super().__init__()
        self.first = FirstConv(channels, features, window)
        self.context = nn.Conv2d(context, features, 1, bias=False)
        self.layers = nn.ModuleList(PointwiseBlock(features, channels) for _ in range(blocks))
        self.out = MaskedConv2d(features, channels * levels, channels, own=True)
        self.channels = channels

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + self.context(context)
        for layer in self.layers:
            h = layer(h)
        return self.out(F.relu(h)).unflatten(1, (self.channels, -1)).transpose(1, 2)
