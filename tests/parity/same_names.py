"""Networks in plain PyTorch whose layers have jgen's names: the copying of weights, and the comparison with jgen.

jgen's "decoder/blocks_0/conv/kernel" is PyTorch's "decoder.blocks.0.conv.weight": numbered layers are in a ModuleList.
A peer computes in float64, so that what differs is jgen's rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

# The axes of jgen's kernel in the order of PyTorch's weight.
AXES: dict[type[nn.Module], tuple[int, ...]] = {
    nn.Linear: (1, 0),
    nn.Conv2d: (3, 2, 0, 1),
    nn.ConvTranspose2d: (2, 3, 0, 1),
}
VALUES, GRADIENTS = 5e-6, 5e-5  # limits of differences, relative to the largest value of an array
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def flatten(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """{"encoder/conv/kernel": array, ...}"""
    if not isinstance(tree, dict):
        return {prefix[:-1]: np.asarray(tree)}
    return {name: leaf for key, value in tree.items() for name, leaf in flatten(value, f"{prefix}{key}/").items()}


def by_peer_name(params: Any, peer: nn.Module) -> dict[str, torch.Tensor]:
    """jgen's parameters, or their gradients, by the peer's names and in its layout, float64; none is left over."""
    modules, wanted = dict(peer.named_modules()), dict(peer.named_parameters())
    tensors = {}
    for name, array in flatten(params).items():
        *path, leaf = name.split("/")
        place = ".".join(re.sub(r"_(\d+)$", r".\1", part) for part in path)
        if leaf == "kernel":
            axes = next(axes for kind, axes in AXES.items() if isinstance(modules[place], kind))
            array = array[(None,) * (len(axes) - array.ndim)].transpose(axes)  # a row of a kernel has one axis less
        tensor = torch.from_numpy(array.astype(np.float64))
        name = ".".join(part for part in (place, LEAVES.get(leaf, leaf)) if part)
        assert tensor.shape == wanted[name].shape, (name, tensor.shape, wanted[name].shape)
        tensors[name] = tensor
    assert tensors.keys() == wanted.keys(), set(tensors) ^ set(wanted)
    return tensors


def load(peer: nn.Module, params: Any) -> nn.Module:
    """The peer with jgen's parameters, in float64."""
    peer = peer.double()
    tensors = by_peer_name(params, peer)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.copy_(tensors[name])
    return peer


def assert_close(ours: Any, theirs: torch.Tensor, limit: float, name: str = "") -> None:
    """Equal up to `limit` times the largest absolute value, or times 1e-3 where all are below it."""
    theirs = theirs.detach().numpy()
    scale = max(1e-3, float(np.abs(theirs).max()))
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=limit * scale, err_msg=name)


def compare(
    loss: Callable[[Any], tuple[jax.Array, Any]],
    params: Any,
    peer: nn.Module,
    peer_loss: Callable[[], tuple[torch.Tensor, Any]],
    arrange: Callable[[Any], Any] = dict,
) -> None:
    """A loss, what the network gives on the way to it, and the gradients of all parameters.

    Args:
      loss: params -> (scalar, tree of outputs). peer_loss: () -> the same of `peer`, which gets the weights `params`.
      arrange: a tree of jgen's parameters, or gradients, to one with the peer's names.
    """
    load(peer, arrange(jax.device_get(params)))
    (value, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    peer_value, peer_outputs = peer_loss()
    peer_value.backward()
    for ours, theirs in zip(jax.tree.leaves(outputs), jax.tree.leaves(peer_outputs), strict=True):
        assert_close(ours, theirs, VALUES, "outputs")
    assert_close(value, peer_value, VALUES, "loss")
    ours = by_peer_name(arrange(jax.device_get(gradients)), peer)
    for name, parameter in peer.named_parameters():
        assert_close(ours[name], parameter.grad, GRADIENTS, name)


def nchw(x: Any) -> torch.Tensor:
    """An array (B, H, W, C) to a float64 tensor (B, C, H, W)."""
    return torch.from_numpy(np.asarray(x, np.float64)).permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)
