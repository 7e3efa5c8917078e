"""diffusers' U-Net configured as jgen's, and the copying of weights to it. Shared by parity tests and benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from same_names import flatten


def make_peer(
    channels: tuple[int, ...],
    blocks: int,
    attention: tuple[int, ...],
    size: int,
    head_dim: int,
    groups: int,
    num_classes: int,
    image_channels: int,
) -> UNet2DModel:
    """A UNet2DModel, parameter for parameter `jgen.nn.unet.UNet`; `num_classes` counts embeddings, 0 for none."""
    attends = [size // 2**level in attention for level in range(len(channels))]
    return UNet2DModel(
        sample_size=size,
        in_channels=image_channels,
        out_channels=image_channels,
        block_out_channels=channels,
        layers_per_block=blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=head_dim,
        norm_num_groups=groups,
        num_class_embeds=num_classes or None,
        flip_sin_to_cos=False,
        freq_shift=1,
    )


def torch_name(name: str, levels: int) -> list[str]:
    """The torch names of a jgen parameter such as "down0_block1/conv1/kernel", as one or, for qkv, three."""
    *path, leaf = name.split("/")
    leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}[leaf]
    top = path[0]
    single = {
        "conv_in": "conv_in",
        "conv_out": "conv_out",
        "norm_out": "conv_norm_out",
        "time1": "time_embedding.linear_1",
        "time2": "time_embedding.linear_2",
        "classes": "class_embedding",
    }
    if top in single:
        return [f"{single[top]}.{leaf}"]
    where, part = top.split("_")
    if where == "middle":
        place = "mid_block"
    elif where.startswith("down"):
        place = f"down_blocks.{where[4:]}"
    else:
        place = f"up_blocks.{levels - 1 - int(where[2:])}"
    if part == "downsample":
        return [f"{place}.downsamplers.0.conv.{leaf}"]
    if part == "upsample":
        return [f"{place}.upsamplers.0.conv.{leaf}"]
    if part.startswith("block"):
        inner = {"embedding": "time_emb_proj", "shortcut": "conv_shortcut"}.get(path[1], path[1])
        return [f"{place}.resnets.{part[5:]}.{inner}.{leaf}"]
    place = f"{place}.attentions.{part.removeprefix('attention') or 0}"
    if path[1] == "norm":
        return [f"{place}.group_norm.{leaf}"]
    if path[1] == "out":
        return [f"{place}.to_out.0.{leaf}"]
    return [f"{place}.to_{letter}.{leaf}" for letter in "qkv"]


def to_torch_layout(array: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """A jgen array in the layout of a torch parameter of that shape."""
    array = np.asarray(array)
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2 and len(shape) == 4:
        array = array.T[:, :, None, None]  # a 1x1 convolution
    elif array.ndim == 2:
        array = array.T
    assert array.shape == shape, (array.shape, shape)
    return torch.from_numpy(array.copy())


def as_torch(params: dict[str, Any], like: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """jgen parameters (or gradients) by their torch names; every name of `like` appears, and no other."""
    tensors = {}
    for name, array in flatten(params).items():
        names = torch_name(name, levels)
        for torch_key, part in zip(names, np.split(np.asarray(array), len(names), axis=-1)):
            if name.startswith("classes"):
                part = part.T
            tensors[torch_key] = to_torch_layout(part, tuple(like[torch_key].shape))
    assert tensors.keys() == like.keys(), set(tensors) ^ set(like)
    return tensors


def copy_unet_weights(peer: UNet2DModel, params: dict[str, Any]) -> None:
    """Loads jgen's U-Net parameters into the peer; nothing is left over on either side."""
    peer.load_state_dict(as_torch(params, peer.state_dict(), len(peer.config.block_out_channels)), strict=True)
