"""jgen's variational autoencoder in PyTorch, dense and convolutional, and its discretised distributions of pixels."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F


def space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """The four pixels one after another, where PyTorch's order is channel by channel."""
    y = F.pixel_unshuffle(x, 2)
    return y.unflatten(1, (x.shape[1], 4)).transpose(1, 2).flatten(1, 2)


def depth_to_space(x: torch.Tensor) -> torch.Tensor:
    return F.pixel_shuffle(x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)


class ResidualBlock(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.conv, self.out = nn.Conv2d(features, features, 3, padding=1), nn.Conv2d(features, features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(F.silu(self.conv(F.silu(x))))


class ConvEncoder(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...], blocks: int):
        super().__init__()
        self.widths, self.blocks = widths, blocks
        self.conv_in = nn.Conv2d(4 * channels, widths[0], 3, padding=1)
        for level, features in enumerate(widths):
            if level > 0:
                self.add_module(f"down{level}", nn.Conv2d(4 * widths[level - 1], features, 1))
            for block in range(blocks):
                self.add_module(f"level{level}_block{block}", ResidualBlock(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv_in(space_to_depth(x))
        for level in range(len(self.widths)):
            if level > 0:
                h = getattr(self, f"down{level}")(space_to_depth(h))
            for block in range(self.blocks):
                h = getattr(self, f"level{level}_block{block}")(h)
        return F.silu(h)


class ConvDecoder(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...], blocks: int):
        super().__init__()
        self.widths, self.blocks = widths, blocks
        self.conv_out = nn.Conv2d(widths[0], 4 * channels, 3, padding=1)
        for level, features in enumerate(widths):
            if level > 0:
                self.add_module(f"up{level}", nn.Conv2d(features, 4 * widths[level - 1], 1))
            for block in range(blocks):
                self.add_module(f"level{level}_block{block}", ResidualBlock(features))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        for level in reversed(range(len(self.widths))):
            for block in range(self.blocks):
                h = getattr(self, f"level{level}_block{block}")(h)
            if level > 0:
                h = depth_to_space(getattr(self, f"up{level}")(h))
        return depth_to_space(self.conv_out(F.silu(h)))


class DenseLayers(nn.Module):
    def __init__(self, inputs: int, widths: tuple[int, ...], blocks: int):
        super().__init__()
        self.widths, self.blocks = widths, blocks
        for level, features in enumerate(widths):
            self.add_module(f"dense{level}", nn.Linear(inputs, features))
            for block in range(blocks):
                self.add_module(f"level{level}_block{block}", nn.Linear(features, features))
            inputs = features

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        for level in range(len(self.widths)):
            h = F.relu(getattr(self, f"dense{level}")(h))
            for block in range(self.blocks):
                h = h + F.relu(getattr(self, f"level{level}_block{block}")(h))
        return h


def with_class(h: torch.Tensor, label: torch.Tensor, num_classes: int) -> torch.Tensor:
    return torch.cat([h, F.one_hot(label, num_classes).to(h.dtype)], dim=1)


class ConvVae(nn.Module):
    """Maps are flattened pixel by pixel, with the channels last, as are jgen's."""

    def __init__(self, size: int, channels: int, outputs: int, widths, blocks: int, hidden, latent: int, classes: int):
        super().__init__()
        self.classes, self.last = classes, (size // 2 ** len(widths),) * 2 + (widths[-1],)
        flat = self.last[0] * self.last[1] * self.last[2]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.layers = ConvEncoder(channels, widths, blocks)
        self.encoder.hidden = DenseLayers(flat + classes, hidden, 0)
        self.encoder.out = nn.Linear(hidden[-1], 2 * latent)
        self.decoder.hidden = DenseLayers(latent + classes, hidden[::-1], 0)
        self.decoder.add_module("in", nn.Linear(hidden[0], flat))
        self.decoder.layers = ConvDecoder(outputs, widths, blocks)

    def encode(self, x: torch.Tensor, label: torch.Tensor) -> Normal:
        h = self.encoder.layers(x).permute(0, 2, 3, 1).flatten(1)
        return to_normal(self.encoder.out(self.encoder.hidden(with_class(h, label, self.classes))))

    def decode(self, z: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log scale of every pixel, (B, H, W, C)."""
        h = self.decoder.hidden(with_class(z, label, self.classes))
        h = getattr(self.decoder, "in")(h).unflatten(1, self.last).permute(0, 3, 1, 2)
        return self.decoder.layers(h).permute(0, 2, 3, 1).chunk(2, dim=-1)


class DenseVae(nn.Module):
    """One learned number is the log scale of all pixels."""

    def __init__(self, size: int, channels: int, widths, blocks: int, latent: int, classes: int):
        super().__init__()
        self.classes, self.shape = classes, (size, size, channels)
        flat = size * size * channels
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.layers = DenseLayers(flat + classes, widths, blocks)
        self.encoder.out = nn.Linear(widths[-1], 2 * latent)
        self.decoder.layers = DenseLayers(latent + classes, widths[::-1], blocks)
        self.decoder.out = nn.Linear(widths[0], flat)
        self.decoder.log_scale = nn.Parameter(torch.zeros(()))

    def encode(self, x: torch.Tensor, label: torch.Tensor) -> Normal:
        h = with_class(x.permute(0, 2, 3, 1).flatten(1), label, self.classes)
        return to_normal(self.encoder.out(self.encoder.layers(h)))

    def decode(self, z: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.decoder.layers(with_class(z, label, self.classes))
        mean = self.decoder.out(h).unflatten(1, self.shape)
        return mean, self.decoder.log_scale.expand_as(mean)


def to_normal(out: torch.Tensor) -> Normal:
    mean, logvar = out.chunk(2, dim=1)
    return Normal(mean, torch.exp(0.5 * logvar))


def log_prob_of_levels(kind: str, level: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, levels: int):
    """Of integers under a logistic or Gaussian on [-1, 1] cut into bins, of which the outer reach to infinity."""
    cdf = torch.sigmoid if kind == "logistic" else torch.special.ndtr
    scaled, half = (2.0 * level / (levels - 1) - 1.0 - mean) / scale, 1.0 / (levels - 1) / scale
    upper = torch.where(level == levels - 1, torch.inf, scaled + half)
    lower = torch.where(level == 0, -torch.inf, scaled - half)
    high, low = torch.where(scaled > 0, -lower, upper), torch.where(scaled > 0, -upper, lower)
    return torch.log(cdf(high) - cdf(low))
