"""The networks that are timed against PyTorch, and their sizes. To add one, write an entry here, a function with the
entry's name in `jgen_sides` and, for a peer, one in `torch_sides`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Largest relative distance (norm of the difference over the norm) between the outputs of jgen and of its peer.
SAME = {"float32": 2e-2, "bfloat16": 6e-2}
CLASSES = 1000  # for class-conditional cases


@dataclass(frozen=True)
class Case:
    """A network that both sides build.

    full, small:    sizes, the arguments of both functions; `small` is for runs on CPU.
    precisions:     "float32", for which both libraries are set to use TF32 on GPUs, and "bfloat16"; the small run uses
                    the last.
    variants:       the peer's variants, {size: names}.
    """

    title: str
    full: dict[str, Any]
    small: dict[str, Any]
    precisions: tuple[str, ...] = ("float32",)
    variants: tuple[str, ...] = ("eager", "compile")
    small_variants: tuple[str, ...] = ("eager",)
    peer: str = "PyTorch"
    note: str = ""
    goals: dict[str, float] = field(default_factory=dict)

    def sizes(self, small: bool) -> dict[str, Any]:
        return self.small if small else self.full


CASES = {
    "unet": Case(
        "DDPM U-Net of CIFAR-10, 35.7M",
        {"size": 32, "channels": (128, 256, 256, 256), "head_dim": 256, "groups": 32, "batch": 128, "drawn": 64},
        {"size": 16, "channels": (16, 32), "head_dim": 16, "groups": 8, "batch": 4, "drawn": 4},
        precisions=("bfloat16", "float32"),
        goals={"train ratio": 0.9, "train use bfloat16": 0.35, "ddim ratio": 0.8},
    ),
    "dcgan": Case(
        "DCGAN, 64x64",
        {"size": 64, "channels": (64, 128, 256, 512), "latent": 100, "batch": 128},
        {"size": 16, "channels": (16, 32), "latent": 16, "batch": 8},
        variants=("eager", "compile", "graphs"),
        goals={"train ratio": 0.9},
    ),
    "gated_pixelcnn": Case(
        "Gated PixelCNN, cached sampler",
        {"size": 28, "levels": 256, "blocks": 7, "features": 64, "hidden": 128, "batch": 64, "passes": 40},
        {"size": 8, "levels": 16, "blocks": 2, "features": 8, "hidden": 8, "batch": 4, "passes": 4},
        note="PyTorch runs the network over the whole image for every pixel; some of its passes are timed",
        goals={"sample ratio": 0.9},
    ),
    "vae": Case(
        "VAE, dense",
        {"size": 28, "hidden": 512, "latent": 40, "batch": 128},
        {"size": 8, "hidden": 64, "latent": 8, "batch": 16},
        variants=("eager", "compile", "graphs"),
        small_variants=("eager", "compile"),
        goals={"train ratio": 0.9, "train_20_a_call ratio": 0.9},
    ),
    "glow": Case(
        "Glow, 3 scales of 8 steps",
        {"size": 32, "scales": 3, "depth": 8, "width": 512, "batch": 64},
        {"size": 8, "scales": 2, "depth": 2, "width": 16, "batch": 8},
        goals={"train ratio": 0.9},
    ),
    "dit_b": Case(
        "DiT-B/2 on 32x32x4 latents, 130M",
        {"size": 32, "features": 768, "layers": 12, "heads": 12, "batch": 64},
        {"size": 8, "features": 32, "layers": 2, "heads": 2, "batch": 4},
        precisions=("bfloat16", "float32"),
        goals={"train ratio": 0.9},
    ),
    "dit_xl": Case(
        "DiT-XL/2 on 32x32x4 latents, 675M",
        {"size": 32, "features": 1152, "layers": 28, "heads": 16, "batch": 32},
        {"size": 8, "features": 32, "layers": 9, "heads": 2, "batch": 4},
        precisions=("bfloat16",),
        variants=("compile",),
        goals={"train ratio": 0.9, "train use": 0.5},
    ),
    "adm": Case(
        "ADM of 64x64 ImageNet, 296M, hybrid loss",
        {"size": 64, "channels": (192, 384, 576, 768), "blocks": 3, "attention": (32, 16, 8), "batch": 32},
        {"size": 8, "channels": (16, 32), "blocks": 1, "attention": (4,), "batch": 4},
        precisions=("bfloat16",),
        variants=(),
        small_variants=(),
        note="there is no peer",
    ),
}


def random_images(batch: int, size: int, channels: int, levels: int = 256) -> np.ndarray:
    """uint8 (B, size, size, channels), the same on both sides."""
    return np.random.default_rng(0).integers(0, levels, (batch, size, size, channels)).astype(np.uint8)


def labels(batch: int) -> np.ndarray:
    """Classes, int32 (B,)."""
    return np.random.default_rng(2).integers(0, CLASSES, batch).astype(np.int32)


def latent_inputs(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise (B, size, size, 4), times 1 .. 1000."""
    draw = np.random.default_rng(1)
    x = draw.standard_normal((batch, size, size, 4), dtype=np.float32)
    return x, draw.integers(1, 1001, batch).astype(np.int32)


def unet_inputs(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise (B, size, size, 3), times 1 .. 1000."""
    draw = np.random.default_rng(1)
    x = draw.standard_normal((batch, size, size, 3), dtype=np.float32)
    return x, draw.integers(1, 1001, batch).astype(np.int32)


def latents(batch: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, width), dtype=np.float32)
