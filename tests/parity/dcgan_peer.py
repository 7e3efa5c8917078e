"""DCGAN in PyTorch, layer for layer jgen's, and the copying of weights to it. Shared by parity tests and benchmarks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn


class Generator(nn.Module):
    """z (B, latent) to images (B, C, H, W)."""

    def __init__(self, channels: tuple[int, ...], latent: int, size: int, image_channels: int):
        super().__init__()
        self.start = (channels[-1], size >> len(channels), size >> len(channels))
        self.dense = nn.Linear(latent, int(np.prod(self.start)), bias=False)
        widths = [*reversed(channels), image_channels]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[:-1])
        last = len(channels) - 1
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1, bias=i == last) for i, (a, b) in enumerate(zip(widths, widths[1:]))
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.dense(z).view(-1, *self.start)
        if self.ups[0].weight.is_contiguous(memory_format=torch.channels_last):
            h = h.contiguous(memory_format=torch.channels_last)
        for norm, up in zip(self.norms, self.ups):
            h = up(torch.relu(norm(h)))
        return torch.tanh(h)


class Discriminator(nn.Module):
    """Images (B, C, H, W) to numbers (B,)."""

    def __init__(self, channels: tuple[int, ...], size: int, image_channels: int, norm: bool):
        super().__init__()
        widths = [image_channels, *channels]
        self.downs = nn.ModuleList(
            nn.Conv2d(a, b, 4, 2, 1, bias=i == 0 or not norm) for i, (a, b) in enumerate(zip(widths, channels))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in channels[1:] if norm)
        self.dense = nn.Linear(channels[-1] * (size >> len(channels)) ** 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x
        for down, norm in itertools.zip_longest(self.downs, [None, *self.norms]):
            h = down(h)
            h = nn.functional.leaky_relu(norm(h) if norm is not None else h, 0.2)
        return self.dense(h.flatten(1))[:, 0]


def as_torch(gen: Any, disc: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The torch names and layouts of jgen's trees for the two networks (parameters or gradients)."""
    named = []
    for tree, up in ((gen, True), (disc, False)):
        parts = [_layer(layer, leaves, tree, up) for layer, leaves in tree.items()]
        named.append({name: tensor for part in parts for name, tensor in part.items()})
    return named[0], named[1]


def _layer(layer: str, leaves: dict[str, Any], tree: Any, up: bool) -> dict[str, torch.Tensor]:
    number = int(layer[-1]) if layer[-1].isdigit() else 0
    if layer.startswith("norm"):
        place = f"norms.{number if up else number - 2}"
    else:
        place = layer if layer == "dense" else f"{'ups' if up else 'downs'}.{number - 1}"
    tensors = {}
    for leaf, array in leaves.items():
        array = np.asarray(array)
        if layer == "dense" and leaf == "kernel":
            # torch's features are in the order (C, H, W), jgen's in (H, W, C).
            channels = tree["norm0"]["scale"].shape[0] if up else _last_width(tree)
            array = array if up else array.T
            side = int(round((array.shape[1] / channels) ** 0.5))
            array = array.reshape(-1, side, side, channels).transpose(0, 3, 1, 2).reshape(array.shape)
            array = array.T if up else array
        elif leaf == "kernel":
            # jgen's (4, 4, C, O) with C of the larger image; torch's are (in, out, ...) of a transposed convolution and
            # (out, in, ...) of a convolution: (O, C, 4, 4) both times.
            array = array.transpose(3, 2, 0, 1)
        tensors[f"{place}.{'bias' if leaf == 'bias' else 'weight'}"] = torch.from_numpy(array.copy())
    return tensors


def _last_width(disc: Any) -> int:
    return disc[max(name for name in disc if name.startswith("down"))]["kernel"].shape[-1]


def make_peers(
    channels: tuple[int, ...], latent: int, size: int, image_channels: int, params: Any, norm: bool = True
) -> tuple[Generator, Discriminator]:
    """The two networks with the weights of jgen's {"gen": ..., "disc": ...}; no parameter is left over."""
    gen = Generator(channels, latent, size, image_channels)
    disc = Discriminator(channels, size, image_channels, norm)
    for network, tensors in zip((gen, disc), as_torch(params["gen"], params["disc"])):
        parameters = dict(network.named_parameters())
        assert parameters.keys() == tensors.keys(), parameters.keys() ^ tensors.keys()
        with torch.no_grad():
            for name, parameter in parameters.items():
                assert parameter.shape == tensors[name].shape, name
                parameter.copy_(tensors[name])
    return gen, disc
