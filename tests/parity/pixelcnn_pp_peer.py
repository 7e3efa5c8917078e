"""PixelCNN++ in PyTorch, with convolutions shifted by padding, and its mixture of logistics. NCHW; float64 in tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def concat_elu(x: torch.Tensor) -> torch.Tensor:
    return F.elu(torch.cat([x, -x], dim=1))


class ShiftedConv(nn.Conv2d):
    """A convolution without padding of an image that is padded with (left, right, above, below) zeros."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int], padding: tuple[int, int, int, int], stride=1):
        super().__init__(inputs, outputs, size, stride)
        self.around = padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, self.around))


def down(inputs: int, outputs: int, stride: int = 1) -> ShiftedConv:
    """2 x 3: the own row and the one above, a column on either side."""
    return ShiftedConv(inputs, outputs, (2, 3), (1, 1, 1, 0), stride)


def down_right(inputs: int, outputs: int, stride: int = 1) -> ShiftedConv:
    """2 x 2: the own pixel, and those above and to the left of it."""
    return ShiftedConv(inputs, outputs, (2, 2), (1, 0, 1, 0), stride)


class Upsample(nn.ConvTranspose2d):
    """A transposed convolution of stride 2, of which a column on the left goes where the kernel has three of them."""

    def __init__(self, features: int, columns: int):
        super().__init__(features, features, (2, columns), stride=2)

    def forward(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        first = self.kernel_size[1] - 2
        return super().forward(x)[:, :, : like.shape[2], first : first + like.shape[3]]


class GatedResnetBlock(nn.Module):
    def __init__(self, features: int, conv: Any, has_u: bool, has_skip: bool, num_classes: int):
        super().__init__()
        self.conv1, self.conv2 = conv(2 * features, features), conv(2 * features, 2 * features)
        if has_u:
            self.across = nn.Conv2d(2 * features, features, 1, bias=False)
        if has_skip:
            self.shortcut = nn.Conv2d(2 * features, features, 1, bias=False)
        if num_classes:
            self.label = nn.Embedding(num_classes, 2 * features)

    def forward(self, x: torch.Tensor, u: Any = None, skip: Any = None, label: Any = None) -> torch.Tensor:
        y = self.conv1(concat_elu(x))
        if u is not None:
            y = y + self.across(concat_elu(u))
        if skip is not None:
            y = y + self.shortcut(concat_elu(skip))
        y = self.conv2(concat_elu(y))
        if label is not None:
            y = y + self.label(label)[:, :, None, None]
        return x + F.glu(y, dim=1)


class Resolution(nn.Module):
    def __init__(self, features: int, blocks: int, scales: int, num_classes: int):
        super().__init__()

        def stack(number: int, conv: Any, has_u: bool, has_skip: bool) -> nn.ModuleList:
            return nn.ModuleList(GatedResnetBlock(features, conv, has_u, has_skip, num_classes) for _ in range(number))

        after = blocks + (scales > 1)
        self.encoder_u, self.encoder_ul = stack(blocks, down, False, False), stack(blocks, down_right, True, False)
        self.decoder_u, self.decoder_ul = stack(after, down, False, True), stack(after, down_right, True, True)
        self.inner = None
        if scales > 1:
            self.downsample_u, self.downsample_ul = down(features, features, 2), down_right(features, features, 2)
            self.inner = Resolution(features, blocks, scales - 1, num_classes)
            self.upsample_u, self.upsample_ul = Upsample(features, 3), Upsample(features, 2)

    def forward(self, u: torch.Tensor, ul: torch.Tensor, label: Any) -> tuple[torch.Tensor, torch.Tensor]:
        us, uls = [u], [ul]
        for block_u, block_ul in zip(self.encoder_u, self.encoder_ul):
            us.append(block_u(us[-1], label=label))
            uls.append(block_ul(uls[-1], us[-1], label=label))
        if self.inner is None:
            u, ul = us.pop(), uls.pop()
        else:
            u, ul = self.inner(self.downsample_u(us[-1]), self.downsample_ul(uls[-1]), label)
            u, ul = self.upsample_u(u, us[-1]), self.upsample_ul(ul, uls[-1])
        for block_u, block_ul in zip(self.decoder_u, self.decoder_ul):
            u = block_u(u, skip=us.pop(), label=label)
            ul = block_ul(ul, u, uls.pop(), label)
        return u, ul


class PixelCNNPP(nn.Module):
    """Images on [-1, 1], (B, C, H, W), and classes (B,) or None, to (B, outputs, H, W)."""

    def __init__(self, channels: int, outputs: int, features: int, blocks: int, scales: int, num_classes: int):
        super().__init__()
        self.first_u = ShiftedConv(channels + 1, features, (2, 3), (1, 1, 2, -1))  # the two rows above
        self.first_above = ShiftedConv(channels + 1, features, (1, 3), (1, 1, 1, -1))  # the row above
        self.first_left = ShiftedConv(channels + 1, features, (2, 1), (1, -1, 1, 0))  # the column to the left
        self.streams = Resolution(features, blocks, scales, num_classes)
        self.out = nn.Conv2d(features, outputs, 1)

    def forward(self, x: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        _, ul = self.streams(self.first_u(x), self.first_above(x) + self.first_left(x), label)
        return self.out(F.elu(ul))


def mixture_log_prob(parameters: torch.Tensor, images: torch.Tensor, levels: int) -> torch.Tensor:
    """Nats of every pixel, (...), of integers (..., C) under a mixture of logistics cut into levels.

    parameters: (..., K (1 + 2 C + C (C - 1) / 2)): logits, means, log scales of at least -7 and, for RGB, the
    coefficients of green on red, blue on red and blue on green before a tanh (Salimans et al. 2017, equations 2 and 3).
    """
    channels = images.shape[-1]
    x = (2.0 * images.to(parameters.dtype) / (levels - 1) - 1.0).unsqueeze(-1)
    p = parameters.unflatten(-1, (1 + 2 * channels + channels * (channels - 1) // 2, -1))
    logits, mu, log_s = p[..., 0, :], p[..., 1 : channels + 1, :], p[..., channels + 1 : 2 * channels + 1, :]
    means = [mu[..., 0, :]]
    if channels == 3:
        alpha, beta, gamma = torch.tanh(p[..., 7:, :]).unbind(-2)
        red, green = x[..., 0, :], x[..., 1, :]
        means += [mu[..., 1, :] + alpha * red, mu[..., 2, :] + beta * red + gamma * green]
    scaled = (x - torch.stack(means, dim=-2)) / torch.exp(log_s.clamp(min=-7.0))
    half = 1.0 / (levels - 1) / torch.exp(log_s.clamp(min=-7.0))
    # The first level reaches to minus infinity, the last to infinity.
    upper = torch.where(images.unsqueeze(-1) == levels - 1, torch.inf, scaled + half)
    lower = torch.where(images.unsqueeze(-1) == 0, -torch.inf, scaled - half)
    # log(sigmoid(high) - sigmoid(low)) in the lower tail, where both logarithms are exact.
    mirror = scaled > 0
    high, low = torch.where(mirror, -lower, upper), torch.where(mirror, -upper, lower)
    log_high = F.logsigmoid(high)
    log_mass = log_high + torch.log(-torch.expm1(F.logsigmoid(low) - log_high))
    return torch.logsumexp(F.log_softmax(logits, dim=-1) + log_mass.sum(-2), dim=-1)
