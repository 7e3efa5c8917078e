"""normflows' Glow configured as jgen's, and the copying of weights to it. Shared by parity tests and benchmarks.

normflows counts its flows from latents to images, so jgen's forward map is its inverse; its priors depend on nothing,
so the convolutions that jgen's priors have must be zero.
"""

from __future__ import annotations

from typing import Any

import normflows as nf
import numpy as np
import torch


def make_peer(scales: int, depth: int, width: int, shape: tuple[int, int, int], affine: bool = True) -> Any:
    """A MultiscaleFlow over (B, C, H, W) about -1/2 .. 1/2, layer for layer `jgen.models.flow.glow`."""
    height, breadth, channels = shape
    flows, merges, bases = [], [], []
    for level in range(scales):  # normflows' level 0 is jgen's last scale
        halvings = scales - level
        squeezed = channels * 2 ** (halvings + 1)
        blocks = [nf.flows.GlowBlock(squeezed, width, scale=affine, split_mode="channel") for _ in range(depth)]
        flows.append([*blocks, nf.flows.Squeeze()])
        if level > 0:
            merges.append(nf.flows.Merge())
        leaving = squeezed if level == 0 else squeezed // 2
        bases.append(nf.distributions.DiagGaussian((leaving, height // 2**halvings, breadth // 2**halvings)))
    return nf.MultiscaleFlow(bases, flows, merges, class_cond=False)


def copy_weights(peer: Any, params: dict, fixed: dict) -> None:
    """Copies the role "flow" of a Glow without classes, whose priors' convolutions are zero, to a peer."""
    scales = len(params)
    with torch.no_grad():
        for scale in range(scales):
            level = scales - 1 - scale
            part, constants = params[f"scale{scale}"], fixed[f"scale{scale}"]
            blocks = list(peer.flows[level])[:-1]
            for i, block in enumerate(reversed(blocks)):
                copy_block(block, entry(part["steps"], i), entry(constants, i))
            copy_prior(peer.q0[level], part["prior"])


def entry(tree: dict, i: int) -> dict:
    """Entry i of every array of a tree: one layer of a chain."""
    return {name: entry(v, i) if isinstance(v, dict) else np.asarray(v[i]) for name, v in tree.items()}


def put(target: torch.Tensor, value: Any) -> None:
    value = torch.from_numpy(np.array(value))
    target.copy_(value.reshape(target.shape))


def copy_block(block: Any, step: dict, constants: dict) -> None:
    coupling, mix, actnorm = block.flows
    # y = s x + b there is x = s y + b here
    put(actnorm.s, -step["actnorm"]["log_scale"])
    put(actnorm.t, -step["actnorm"]["bias"] * np.exp(-step["actnorm"]["log_scale"]))
    actnorm.data_dep_init_done = torch.tensor(1.0)
    order = constants["mix"]["order"]
    put(mix.P, np.eye(len(order))[order])
    put(mix.L, step["mix"]["lower"])
    put(mix.U, step["mix"]["upper"])
    put(mix.log_S, step["mix"]["log_s"])
    put(mix.sign_S, constants["mix"]["sign"])
    network = step["coupling"]["network"]
    convolutions = [m for m in coupling.flows[1].param_map.net if isinstance(m, torch.nn.Conv2d)]
    for name, theirs in zip(("conv1", "conv2", "conv3"), convolutions):
        kernel, bias = network[name]["kernel"], network[name]["bias"]
        if "log_scale" in network[name]:
            kernel = kernel * np.exp(network[name]["log_scale"])
        elif coupling.flows[1].scale:  # shifts then scales here, in turn there, where a shift is subtracted
            size = bias.shape[0] // 2
            turn = np.arange(2 * size).reshape(2, size).T.ravel()
            sign = np.where(turn < size, -1.0, 1.0).astype(np.float32)
            kernel, bias = kernel[..., turn] * sign, bias[turn] * sign
        else:
            kernel, bias = -kernel, -bias
        put(theirs.weight, kernel.transpose(3, 2, 0, 1))
        put(theirs.bias, bias)


def copy_prior(base: Any, prior: dict) -> None:
    if "given" in prior:
        assert not np.any(prior["given"]["kernel"]), "normflows' priors do not depend on what flows on"
        prior = prior["given"]
    mean, log_std = np.split(np.asarray(prior["bias"]), 2)
    base.loc.copy_(torch.from_numpy(mean.copy())[None, :, None, None].expand_as(base.loc))
    base.log_scale.copy_(torch.from_numpy(log_std.copy())[None, :, None, None].expand_as(base.log_scale))
