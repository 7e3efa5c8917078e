"""Networks in plain PyTorch that match jgen's layer by layer and need no other package: a U-Net, a dense VAE and Glow.

Submodules have the names of jgen's parameters, so that `take` copies parameters by name. NCHW, channels-last in memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def take(module: nn.Module, tree: dict[str, Any]) -> None:
    """Copies jgen's parameters into the module; none may be left over on either side."""
    names: dict[str, np.ndarray] = {}

    def walk(node: dict[str, Any], path: list[str]) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                walk(value, [*path, name])
            else:
                leaf = {"kernel": "weight", "scale": "weight"}.get(name, name)
                names[".".join([*path, leaf])] = np.asarray(value)

    walk(tree, [])
    parameters = dict(module.named_parameters())
    assert parameters.keys() == names.keys(), parameters.keys() ^ names.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            array = names[name]
            if array.ndim == 4:
                array = array.transpose(3, 2, 0, 1)
            elif array.ndim == 2 and name.endswith("weight"):
                array = array.T
            assert parameter.numel() == array.size, name
            parameter.copy_(torch.from_numpy(array.copy()).reshape(parameter.shape))


class Block(nn.Module):
    def __init__(self, inputs: int, features: int, width: int, groups: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, features)
        self.conv1 = nn.Conv2d(inputs, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.embedding = nn.Linear(width, features)
        if inputs != features:
            self.shortcut = nn.Conv2d(inputs, features, 1)
        self.dropout, self.same = dropout, inputs == features

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.embedding(embedding)[:, :, None, None]
        h = self.conv2(F.dropout(F.silu(self.norm2(h)), self.dropout, self.training))
        return h + (x if self.same else self.shortcut(x))


class Attention(nn.Module):
    def __init__(self, channels: int, head_dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.head_dim = head_dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)
        heads = (batch, height * width, channels // self.head_dim, self.head_dim)
        q, k, v = (part.reshape(heads).transpose(1, 2) for part in self.qkv(h).chunk(3, -1))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, channels)
        return x + self.out(h).transpose(1, 2).reshape(x.shape)


class Table(nn.Module):
    """Embedding vectors of integers."""

    def __init__(self, num: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(num, width))


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """LN(x) (1 + scale) + shift; x (B, L, E), shift and scale (B, E)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.modulation, self.qkv = nn.Linear(width, 6 * width), nn.Linear(width, 3 * width)
        self.out, self.wide, self.narrow = (nn.Linear(a * width, b * width) for a, b in ((1, 1), (1, 4), (4, 1)))
        self.heads = heads

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c).chunk(6, -1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)) for part in self.qkv(modulated(x, shift_a, scale_a)).chunk(3, -1)
        )
        h = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
        x = x + gate_a[:, None] * self.out(h.transpose(1, 2).flatten(2))
        h = F.gelu(self.wide(modulated(x, shift_m, scale_m)), approximate="tanh")
        return x + gate_m[:, None] * self.narrow(h)


class DiT(nn.Module):
    """x (B, 4, H, W), t (B,), label (B,) to (B, 4, H, W): `jgen.nn.dit.DiT` with patches of 2 x 2."""

    def __init__(self, size: int, width: int, layers: int, heads: int, num_classes: int):
        super().__init__()
        self.patches, self.time1, self.time2 = nn.Linear(16, width), nn.Linear(256, width), nn.Linear(width, width)
        self.classes, self.modulation = Table(num_classes, width), nn.Linear(width, 2 * width)
        self.pixels, self.grid = nn.Linear(width, 16), size // 2
        for i in range(layers):
            self.add_module(f"block{i}", DiTBlock(width, heads))
        self.blocks = [getattr(self, f"block{i}") for i in range(layers)]
        self.register_buffer("frequencies", torch.exp(-math.log(10_000.0) / 127 * torch.arange(128)))
        quarter = torch.exp(-math.log(10_000.0) / (width // 4) * torch.arange(width // 4, dtype=torch.float64))
        y, x = torch.meshgrid(*[torch.arange(self.grid, dtype=torch.float64)] * 2, indexing="ij")
        angles = [place.flatten()[:, None] * quarter[None] for place in (x, y)]
        self.register_buffer("positions", torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1).float())

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        batch, grid = x.shape[0], self.grid
        h = x.permute(0, 2, 3, 1).reshape(batch, grid, 2, grid, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, 16)
        h = self.patches(h) + self.positions
        angles = t.float()[:, None] * self.frequencies[None]
        c = self.time2(F.silu(self.time1(torch.cat([angles.sin(), angles.cos()], 1))))
        c = F.silu(c + self.classes.embedding[label])
        for block in self.blocks:
            h = block(h, c)
        h = self.pixels(modulated(h, *self.modulation(c).chunk(2, -1)))
        h = h.reshape(batch, grid, grid, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(batch, 2 * grid, 2 * grid, 4)
        return h.permute(0, 3, 1, 2)


class UNet(nn.Module):
    """x (B, 3, H, W), t (B,) to (B, 3, H, W): `jgen.nn.unet.UNet` without classes."""

    def __init__(self, size: int, channels: tuple[int, ...], head_dim: int, groups: int, dropout: float):
        super().__init__()
        self.base, self.plan_down, self.plan_up = channels[0], [], []
        width = 4 * self.base
        self.time1, self.time2 = nn.Linear(self.base, width), nn.Linear(width, width)
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        skips, inputs, height = [channels[0]], channels[0], size

        def block(name: str, into: int, features: int) -> str:
            self.add_module(name, Block(into, features, width, groups, dropout))
            return name

        def attend(name: str, features: int, height: int) -> str:
            if height != 16 and not name.startswith("middle"):
                return ""
            self.add_module(name, Attention(features, head_dim, groups))
            return name

        for level, features in enumerate(channels):
            for i in range(2):
                step = (block(f"down{level}_block{i}", inputs, features),)
                self.plan_down.append((*step, attend(f"down{level}_attention{i}", features, height)))
                inputs = features
                skips.append(features)
            if level < len(channels) - 1:
                name = f"down{level}_downsample"
                self.add_module(name, nn.Conv2d(features, features, 3, stride=2, padding=1))
                self.plan_down.append((name, ""))
                skips.append(features)
                height //= 2
        block("middle_block0", inputs, channels[-1])
        attend("middle_attention", channels[-1], height)
        block("middle_block1", channels[-1], channels[-1])
        inputs = channels[-1]
        for level, features in reversed(list(enumerate(channels))):
            for i in range(3):
                step = (block(f"up{level}_block{i}", inputs + skips.pop(), features),)
                self.plan_up.append((*step, attend(f"up{level}_attention{i}", features, height)))
                inputs = features
            if level > 0:
                name = f"up{level}_upsample"
                self.add_module(name, nn.Conv2d(features, features, 3, padding=1))
                self.plan_up.append((name, ""))
                height *= 2
        self.norm_out = nn.GroupNorm(groups, channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)
        half = self.base // 2
        frequencies = torch.exp(-math.log(10_000.0) / max(half - 1, 1) * torch.arange(half))
        self.register_buffer("frequencies", frequencies)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        angles = t.float()[:, None] * self.frequencies[None]
        embedding = F.silu(self.time1(torch.cat([angles.sin(), angles.cos()], 1)))
        embedding = F.silu(self.time2(embedding))
        h = self.conv_in(x)
        skips = [h]
        for name, attention in self.plan_down:
            layer = getattr(self, name)
            h = layer(h, embedding) if "block" in name else layer(h)
            h = getattr(self, attention)(h) if attention else h
            skips.append(h)
        h = self.middle_block1(self.middle_attention(self.middle_block0(h, embedding)), embedding)
        for name, attention in self.plan_up:
            layer = getattr(self, name)
            if "block" in name:
                h = layer(torch.cat([h, skips.pop()], 1), embedding)
                h = getattr(self, attention)(h) if attention else h
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h))).float()


class Dense(nn.Module):
    """The dense layers of `jgen.nn.autoencoder.DenseLayers`, without residual blocks."""

    def __init__(self, inputs: int, features: int):
        super().__init__()
        self.dense0 = nn.Linear(inputs, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.dense0(x))


class Half(nn.Module):
    """An encoder or a decoder: a hidden layer and an output."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.layers, self.out = Dense(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(x))


class VAE(nn.Module):
    """Binary pixels (B, P) of 0 and 1 to the negative bound, nats per image (scalar)."""

    def __init__(self, pixels: int, hidden: int, latent: int):
        super().__init__()
        self.encoder, self.decoder = Half(pixels, hidden, 2 * latent), Half(latent, hidden, pixels)

    def means(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(2 * x - 1).chunk(2, -1)[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mu, logvar = self.encoder(2 * x - 1).float().chunk(2, -1)
        logits = self.decoder(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)).float()
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        divergence = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
        return (reconstruction + divergence).mean()


class GlowStep(nn.Module):
    """Actnorm, an invertible 1x1 convolution and an affine coupling, on (B, C, H, W)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.channels, half = channels, channels // 2
        self.log_scale, self.bias = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.lower, self.upper = (nn.Parameter(torch.zeros(channels, channels)) for _ in range(2))
        self.log_s = nn.Parameter(torch.zeros(channels))
        self.register_buffer("order", torch.arange(channels))
        self.register_buffer("sign", torch.ones(channels))
        self.conv1 = nn.Conv2d(half, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.conv3 = nn.Conv2d(width, channels, 3, padding=1)
        self.scale1, self.scale2 = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = x.shape[2] * x.shape[3]
        x = x * self.log_scale.exp()[None, :, None, None] + self.bias[None, :, None, None]
        eye = torch.eye(self.channels, device=x.device)
        lower = torch.tril(self.lower, -1) + eye
        upper = torch.triu(self.upper, 1) + torch.diag(self.sign * self.log_s.exp())
        x = F.conv2d(x, (lower @ upper)[self.order][:, :, None, None])
        x_a, x_b = x.chunk(2, 1)
        h = F.relu(
            F.conv2d(x_a, self.conv1.weight * self.scale1.exp()[:, None, None, None], self.conv1.bias, padding=1)
        )
        h = F.relu(F.conv2d(h, self.conv2.weight * self.scale2.exp()[:, None, None, None], self.conv2.bias))
        shift, raw = self.conv3(h).float().chunk(2, 1)
        log_scale = F.logsigmoid(raw + 2.0)
        y_b = (x_b + shift) * log_scale.exp()
        log_det = places * (self.log_scale.sum() + self.log_s.sum()) + log_scale.sum((1, 2, 3))
        return torch.cat([x_a, y_b], 1), log_det

    def take(self, step: dict[str, Any], fixed: dict[str, Any], i: int) -> None:
        """Copies the parameters of step i of a chain."""
        network = step["coupling"]["network"]
        pairs = [
            (self.log_scale, step["actnorm"]["log_scale"]),
            (self.bias, step["actnorm"]["bias"]),
            (self.lower, step["mix"]["lower"]),
            (self.upper, step["mix"]["upper"]),
            (self.log_s, step["mix"]["log_s"]),
            (self.order, fixed["mix"]["order"]),
            (self.sign, fixed["mix"]["sign"]),
            (self.scale1, network["conv1"]["log_scale"]),
            (self.scale2, network["conv2"]["log_scale"]),
        ]
        with torch.no_grad():
            for target, value in pairs:
                target.copy_(torch.from_numpy(np.array(value[i])))
            for conv, name in ((self.conv1, "conv1"), (self.conv2, "conv2"), (self.conv3, "conv3")):
                conv.weight.copy_(torch.from_numpy(np.array(network[name]["kernel"][i]).transpose(3, 2, 0, 1).copy()))
                conv.bias.copy_(torch.from_numpy(np.array(network[name]["bias"][i])))


class Glow(nn.Module):
    """x (B, 3, H, W), centred at 0, to its log density, nats (B,): `jgen.models.flow.glow` without classes."""

    def __init__(self, scales: int, depth: int, width: int):
        super().__init__()
        channels = [3 * 2 ** (scale + 2) for scale in range(scales)]
        self.scales = nn.ModuleList(nn.ModuleList(GlowStep(c, width) for _ in range(depth)) for c in channels)
        priors = [nn.Conv2d(c // 2, c, 3, padding=1) for c in channels[:-1]]
        self.priors, self.last = nn.ModuleList(priors), nn.Parameter(torch.zeros(2 * channels[-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(x.shape[0], device=x.device)
        for number, steps in enumerate(self.scales):
            x = F.pixel_unshuffle(x, 2)
            for step in steps:
                x, log_det = step(x)
                total = total + log_det
            if number < len(self.scales) - 1:
                x, z = x.chunk(2, 1)
                mean, log_std = self.priors[number](x).float().chunk(2, 1)
            else:
                z = x
                mean, log_std = (part.expand_as(z) for part in self.last[None, :, None, None].chunk(2, 1))
            eps = (z - mean) * torch.exp(-log_std)
            total = total - (0.5 * eps**2 + 0.5 * math.log(2 * math.pi) + log_std).sum((1, 2, 3))
        return total

    def take(self, params: dict[str, Any], fixed: dict[str, Any]) -> None:
        """Copies jgen's parameters."""
        last = len(self.scales) - 1
        with torch.no_grad():
            for number, steps in enumerate(self.scales):
                part = params[f"scale{number}"]
                for i, step in enumerate(steps):
                    step.take(part["steps"], fixed[f"scale{number}"], i)
                if number == last:
                    self.last.copy_(torch.from_numpy(np.array(part["prior"]["bias"])))
                else:
                    given = part["prior"]["given"]
                    weight = np.array(given["kernel"]).transpose(3, 2, 0, 1).copy()
                    self.priors[number].weight.copy_(torch.from_numpy(weight))
                    self.priors[number].bias.copy_(torch.from_numpy(np.array(given["bias"])))
