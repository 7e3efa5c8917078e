"""Correspondence of layers in jgen and in diffusers: their names, and the layouts of their arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

Tensors = Mapping[str, np.ndarray]  # by diffusers' names
Kind = Literal["linear", "conv", "pointwise", "norm", "embedding", "cosines_first", "patches"]


class Layer(NamedTuple):
    """One layer.

    path:  its path in jgen's parameters, such as "down0_block1/conv1".
    names: its name in diffusers; three if jgen has queries, keys and values in one layer.
    kind:  how its arrays differ in diffusers. "pointwise": a linear layer that is a 1x1 convolution there;
           "cosines_first": a linear layer on an embedding whose cosines come before its sines there; "patches": a
           linear layer on patches, which is a convolution there.
    patch: height and width of a patch.
    """

    path: str
    names: tuple[str, ...]
    kind: Kind = "linear"
    patch: int = 0


def layer(path: str, name: str, kind: Kind = "linear", patch: int = 0) -> Layer:
    return Layer(path, (name,), kind, patch)


def attention(path: str, name: str, norm: str = "group_norm") -> list[Layer]:
    """Self-attention after a normalisation."""
    qkv = Layer(f"{path}/qkv", tuple(f"{name}.to_{letter}" for letter in "qkv"))
    return [layer(f"{path}/norm", f"{name}.{norm}", "norm"), qkv, layer(f"{path}/out", f"{name}.to_out.0")]


def residual_block(path: str, name: str, embedding: bool) -> list[Layer]:
    """A residual block of a U-Net, with a shortcut that `present` leaves out if the block has none.

    Args:
      embedding: whether it has a layer for the time embedding.
    """
    layers = [layer(f"{path}/norm{i}", f"{name}.norm{i}", "norm") for i in (1, 2)]
    layers += [layer(f"{path}/conv{i}", f"{name}.conv{i}", "conv") for i in (1, 2)]
    layers += [layer(f"{path}/embedding", f"{name}.time_emb_proj")] * embedding
    return [*layers, layer(f"{path}/shortcut", f"{name}.conv_shortcut", "pointwise")]


def swapped_halves(kernel: np.ndarray) -> np.ndarray:
    """A kernel (inputs, outputs) with the two halves of its inputs swapped."""
    return np.roll(kernel, len(kernel) // 2, axis=0)


def to_weight(one: Layer, kernel: np.ndarray) -> np.ndarray:
    """Converts a kernel of jgen to diffusers' layout."""
    if one.kind == "conv":
        return kernel.transpose(3, 2, 0, 1)
    if one.kind == "patches":
        return kernel.reshape(one.patch, one.patch, -1, kernel.shape[1]).transpose(3, 2, 0, 1)
    if one.kind == "pointwise":
        return kernel.T[:, :, None, None]
    return swapped_halves(kernel).T if one.kind == "cosines_first" else kernel.T


def to_kernel(one: Layer, weight: np.ndarray) -> np.ndarray:
    """The inverse of `to_weight`."""
    if one.kind == "conv":
        return weight.transpose(2, 3, 1, 0)
    if one.kind == "patches":
        return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
    if one.kind == "pointwise":
        return weight[:, :, 0, 0].T
    return swapped_halves(weight.T) if one.kind == "cosines_first" else weight.T


# jgen's name for a weight that is not called "kernel".
WEIGHTS = {"norm": "scale", "embedding": "embedding"}


def find(params: Mapping[str, Any], path: str) -> Any:
    """The arrays of a layer, or None if there is no such layer."""
    for part in path.split("/"):
        if part not in params:
            return None
        params = params[part]
    return params


def present(layers: Iterable[Layer], params: Mapping[str, Any]) -> list[Layer]:
    """The layers that occur in these parameters."""
    return [one for one in layers if find(params, one.path) is not None]


def to_tensors(layers: Iterable[Layer], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters with diffusers' names and layouts, as views if possible."""
    tensors = {}
    for one in layers:
        leaves = find(params, one.path)
        for leaf, array in leaves.items():
            is_kernel = leaf == "kernel"
            name = "bias" if leaf == "bias" else "weight"
            for place, part in zip(one.names, np.split(np.asarray(array), len(one.names), axis=-1)):
                tensors[f"{place}.{name}"] = to_weight(one, part) if is_kernel else part
    return tensors


def to_params(layers: Iterable[Layer], tensors: Tensors) -> dict[str, Any]:
    """The inverse of `to_tensors`, as nested dictionaries."""
    params: dict[str, Any] = {}
    for one in layers:
        place = params
        for part in one.path.split("/"):
            place = place.setdefault(part, {})
        name, convert = WEIGHTS.get(one.kind, "kernel"), converter(one)
        place[name] = np.concatenate([convert(tensors[f"{part}.weight"]) for part in one.names], axis=-1)
        if f"{one.names[0]}.bias" in tensors:
            place["bias"] = np.concatenate([tensors[f"{part}.bias"] for part in one.names])
    return params


def converter(one: Layer) -> Callable[[np.ndarray], np.ndarray]:
    """The function that converts a layer's weight to jgen's array."""
    return (lambda weight: weight) if one.kind in WEIGHTS else (lambda weight: to_kernel(one, weight))


def no_memory(shapes: Any) -> Any:
    """Arrays of these shapes (a tree with `shape`) that take no memory; their `to_tensors` gives the wanted shapes."""
    import jax

    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
