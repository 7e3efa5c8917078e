"""The very deep VAE in PyTorch: both paths, and its divergences from `torch.distributions`."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

Levels = tuple[tuple[int, int], ...]  # (height and width of the maps, number of blocks), ...


def gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, features: int, height: int):
        super().__init__()
        size = 3 if height > 2 else 1
        self.conv1 = nn.Conv2d(inputs, features, 1)
        self.conv2, self.conv3 = (nn.Conv2d(features, features, size, padding=size // 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return gelu(self.conv3(gelu(self.conv2(gelu(self.conv1(gelu(x)))))))


class Block(nn.Module):
    def __init__(self, width: int, bottleneck: int, height: int):
        super().__init__()
        self.bottleneck, self.out = Bottleneck(width, bottleneck, height), nn.Conv2d(bottleneck, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(self.bottleneck(x))


class StochasticBlock(nn.Module):
    def __init__(self, width: int, bottleneck: int, latent: int, height: int):
        super().__init__()
        self.posterior, self.prior = Bottleneck(2 * width, bottleneck, height), Bottleneck(width, bottleneck, height)
        self.posterior_out, self.prior_out = (nn.Conv2d(bottleneck, 2 * latent, 1) for _ in range(2))
        self.features, self.latents = nn.Conv2d(bottleneck, width, 1), nn.Conv2d(latent, width, 1)
        self.block = Block(width, bottleneck, height)

    def forward(self, x: torch.Tensor, h: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next x, and KL(q || p) of every image, for the latents of the noise eps."""
        q = to_normal(self.posterior_out(self.posterior(torch.cat([x, h], dim=1))))
        prior_outputs = self.prior(x)
        p = to_normal(self.prior_out(prior_outputs))
        z = q.mean + q.stddev * eps
        x = x + self.features(prior_outputs) + self.latents(z)
        return self.block(x), kl_divergence(q, p).sum((1, 2, 3))


def to_normal(out: torch.Tensor) -> Normal:
    mean, log_std = out.chunk(2, dim=1)
    return Normal(mean, torch.exp(log_std))


class Encoder(nn.Module):
    def __init__(self, levels: Levels, channels: int, width: int, bottleneck: int):
        super().__init__()
        self.levels, self.conv_in = levels, nn.Conv2d(channels, width, 3, padding=1)
        for height, blocks in levels:
            for number in range(blocks):
                self.add_module(f"level{height}_block{number}", Block(width, bottleneck, height))

    def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        h, features = self.conv_in(x), {}
        for height, blocks in self.levels:
            h = F.adaptive_avg_pool2d(h, height)
            for number in range(blocks):
                features[height] = h  # what enters the last block, which pooling follows
                h = getattr(self, f"level{height}_block{number}")(h)
        return features | {height: h}


class Decoder(nn.Module):
    def __init__(
        self, levels: Levels, width: int, bottleneck: int, latent: int, outputs: int, bias_height: int, num_classes: int
    ):
        super().__init__()
        self.levels, self.bias_height = levels, bias_height
        for height, blocks in levels:
            if height <= bias_height:
                self.register_parameter(f"bias{height}", nn.Parameter(torch.zeros(height, height, width)))
            for number in range(blocks):
                self.add_module(f"level{height}_block{number}", StochasticBlock(width, bottleneck, latent, height))
        self.classes, self.out = nn.Embedding(num_classes, width), nn.Conv2d(width, outputs, 1)

    def forward(
        self, features: dict[int, torch.Tensor], label: torch.Tensor, noise: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What describes the pixels, (B, outputs, H, W), and the divergences, (B, layers)."""
        x, kl, draws = self.classes(label)[:, :, None, None], [], iter(noise)
        for height, blocks in self.levels:
            x = F.interpolate(x, size=height, mode="nearest")
            if height <= self.bias_height:
                x = x + getattr(self, f"bias{height}").permute(2, 0, 1)
            for number in range(blocks):
                x, divergence = getattr(self, f"level{height}_block{number}")(x, features[height], next(draws))
                kl.append(divergence)
        return self.out(x), torch.stack(kl, dim=1)


class VdVae(nn.Module):
    def __init__(self, encoder: Encoder, decoder: Decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
