"""The image transformer in PyTorch: one attention over the whole sequence, the sparse patterns being masks of it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def attends(kind: str, i: int, j: int, stride: int, summary: int) -> bool:
    """Whether position i sees position j <= i (Child et al. 2019, sections 4.2 and 4.3)."""
    return {
        "full": True,
        "local": j >= i - stride,
        "column": (i - j) % stride == 0,
        "block": i // stride == j // stride,
        "summary": j % stride >= stride - summary or j == i,
    }[kind]


def make_mask(kind: str, length: int, stride: int, summary: int, prefix: int) -> torch.Tensor:
    """bool (P + N, P + N): the prefix is causal, and all of it seen by the sequence."""
    mask = torch.zeros(prefix + length, prefix + length, dtype=torch.bool)
    for i in range(prefix + length):
        for j in range(i + 1):
            mask[i, j] = j < prefix or attends(kind, i - prefix, j - prefix, stride, summary)
    return mask


class Block(nn.Module):
    def __init__(self, features: int, heads: int, hidden: int, key_features: int):
        super().__init__()
        self.norm_attention, self.norm_feed_forward = (nn.LayerNorm(features, eps=1e-6) for _ in range(2))
        self.query_key_value = nn.Linear(features, 2 * key_features + features)
        self.attention_out = nn.Linear(features, features)
        self.wide, self.narrow = nn.Linear(features, hidden), nn.Linear(hidden, features)
        self.sizes, self.heads = (key_features, key_features, features), heads

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        parts = self.query_key_value(self.norm_attention(x)).split(self.sizes, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm_feed_forward(x)), approximate="tanh"))


class PixelTransformer(nn.Module):
    """Integers (B, H, W, C), classes, transformations and text, each (B,) or (B, T) or None, to (B, H, W, C, levels).

    kinds: the patterns that alternate from block to block.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        sizes: tuple[int, int, int, int],
        layers: int,
        kinds: tuple[str, ...],
        stride: int,
        summary: int,
        num_classes: int = 0,
        transformations: int = 1,
        vocabulary: int = 0,
        text_length: int = 0,
    ):
        super().__init__()
        features, (height, width, channels) = sizes[0], shape
        self.values, self.first = nn.Embedding(levels, features), nn.Embedding(1, features)
        self.rows, self.columns = nn.Embedding(height, features), nn.Embedding(width, features)
        self.channels = nn.Embedding(channels, features)
        if num_classes:
            self.classes = nn.Embedding(num_classes, features)
        if transformations > 1:
            self.transformed = nn.Embedding(transformations, features)
        if vocabulary:
            self.tokens, self.places = nn.Embedding(vocabulary, features), nn.Embedding(text_length, features)
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(features, eps=1e-6), nn.Linear(features, levels)
        length = height * width * channels
        self.masks = [make_mask(kind, length, stride, summary, text_length) for kind in kinds]

    def forward(
        self,
        x: torch.Tensor,
        classes: torch.Tensor | None = None,
        transformation: torch.Tensor | None = None,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch, height, width, channels = x.shape
        values = self.values(x)
        place = self.rows.weight[:, None, None] + self.columns.weight[None, :, None] + self.channels.weight
        before = torch.cat([self.first.weight.expand(batch, 1, -1), values.flatten(1, 3)[:, :-1]], dim=1)
        h = before + place.flatten(0, 2)
        if classes is not None:
            h = h + self.classes(classes)[:, None]
        if transformation is not None:
            h = h + self.transformed(transformation)[:, None]
        if text is not None:
            h = torch.cat([self.tokens(text) + self.places.weight, h], dim=1)
        for number, block in enumerate(self.blocks):
            h = block(h, self.masks[number % len(self.masks)])
        h = h[:, h.shape[1] - height * width * channels :]
        return self.out(self.norm(h)).reshape(*x.shape, -1)
