"""pythae's VAE with its default network configured as jgen's, and the copying of weights to it. Also for benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pythae.models import VAE, VAEConfig

HIDDEN = 512  # of pythae's default encoder and decoder: one layer each


def make_peer(shape: tuple[int, int, int], latent: int) -> VAE:
    """A pythae VAE with a Bernoulli decoder, for images (C, H, W): jgen's dense network with one layer of 512."""
    return VAE(VAEConfig(input_dim=shape, latent_dim=latent, reconstruction_loss="bce"))


def by_peer_name(params: dict[str, Any]) -> dict[str, torch.Tensor]:
    """jgen's parameters, or their gradients, by pythae's names: kernels transposed, the head in its two halves."""
    enc, dec = params["encoder"], params["decoder"]
    mu, logvar = ({k: np.split(np.asarray(v), 2, axis=-1)[half] for k, v in enc["out"].items()} for half in (0, 1))
    layers = {
        "encoder.layers.0.0": enc["layers"]["dense0"],
        "encoder.embedding": mu,
        "encoder.log_var": logvar,
        "decoder.layers.0.0": dec["layers"]["dense0"],
        "decoder.layers.1.0": dec["out"],
    }
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.weight"] = torch.from_numpy(np.asarray(layer["kernel"]).T.copy())
        tensors[f"{name}.bias"] = torch.from_numpy(np.asarray(layer["bias"]).copy())
    return tensors
