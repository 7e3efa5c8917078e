"""PyTorch's side of the cases: the same networks, weights, batches and precision.

float32 uses TF32 where the device has it; bfloat16 is autocast over float32 parameters. Variants: "eager", "compile"
(torch.compile) and "graphs" (torch.compile that replays CUDA graphs); networks of images are channels-last, and cuDNN
measures which of its convolutions is fastest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from side_by_side import load_weights
from torch.nn.functional import mse_loss, softplus

from on_device import cases, torch_networks

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
LAST = torch.channels_last


class Task(NamedTuple):
    """run(n) runs the task n times and waits; if it is only a part of the whole, its time is multiplied by `times`."""

    run: Callable[[int], Any]
    times: float = 1.0


class Side(NamedTuple):
    tasks: dict[str, Task]
    output: np.ndarray


def set_up(precision: str) -> Any:
    """The context in which a side runs."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    return partial(torch.autocast, DEVICE, torch.bfloat16, enabled=precision == "bfloat16")


def sync() -> None:
    if CUDA:
        torch.cuda.synchronize()


def compiled(function: Any, variant: str) -> Any:
    modes = {"compile": None, "graphs": "reduce-overhead"}
    return torch.compile(function, mode=modes[variant]) if variant in modes else function


def repeat(once: Callable[[], Any]) -> Callable[[int], None]:
    def run(n: int) -> None:
        for _ in range(n):
            once()
        sync()

    return run


def nchw(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, C) as float32 (B, C, H, W) on the device."""
    return torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2).float().contiguous(memory_format=LAST)


def stepping(loss: Callable[[], Any], network: Any, average: Any, betas: tuple[float, float] = (0.9, 0.999)) -> Any:
    """A function that does a step of Adam on the loss, and updates the moving average if there is one."""
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-4, betas=betas, fused=True)
    weights = list(network.parameters())
    averages = [] if average is None else list(average.parameters())

    def step() -> None:
        value = loss()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        if averages:
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1e-3)

    return step


def unet(
    folder: Path,
    cast: Any,
    variant: str,
    *,
    size: int,
    channels: tuple[int, ...],
    head_dim: int,
    groups: int,
    batch: int,
    drawn: int,
) -> Side:
    net = torch_networks.UNet(size, tuple(channels), head_dim, groups, 0.1)
    torch_networks.take(net, load_weights(folder))
    net = net.to(DEVICE).to(memory_format=LAST)
    average, run = copy.deepcopy(net), compiled(net, variant)
    drawing = compiled(average.eval(), variant)
    images = nchw(cases.random_images(batch, size, 3)) / 127.5 - 1
    x, t = cases.unet_inputs(batch, size)
    x_t, t = nchw(x), torch.from_numpy(t).to(DEVICE)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).to(DEVICE)

    def loss() -> Any:
        step = torch.randint(0, 1000, (batch,), device=DEVICE)
        a, eps = alpha_bar[step][:, None, None, None], torch.randn_like(images)
        with cast():
            predicted = run(a.sqrt() * images + (1 - a).sqrt() * eps, step + 1)
        return mse_loss(predicted, eps)

    times = torch.linspace(999, 0, 50).round().long().to(DEVICE)

    def ddim() -> Any:
        with torch.no_grad(), cast():
            z = torch.randn(drawn, 3, size, size, device=DEVICE).contiguous(memory_format=LAST)
            for i in range(50):
                a, b = alpha_bar[times[i]], alpha_bar[times[i + 1]] if i < 49 else torch.ones((), device=DEVICE)
                eps = drawing(z, times[i].expand(drawn) + 1)
                x_0 = ((z - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
                z = b.sqrt() * x_0 + (1 - b).sqrt() * (z - a.sqrt() * x_0) / (1 - a).sqrt()
        return ((z + 1) * 127.5).round().clamp(0, 255).byte().cpu()

    with torch.no_grad(), cast():
        output = average(x_t, t).permute(0, 2, 3, 1).cpu().numpy()
    return Side({"train": Task(repeat(stepping(loss, net, average))), "ddim": Task(repeat(ddim))}, output)


def dit(
    folder: Path, cast: Any, variant: str, *, size: int, features: int, layers: int, heads: int, batch: int
) -> Side:
    net = torch_networks.DiT(size, features, layers, heads, cases.CLASSES + 1)
    torch_networks.take(net, load_weights(folder))
    net = net.to(DEVICE)
    average, run = copy.deepcopy(net), compiled(net, variant)
    x, t = cases.latent_inputs(batch, size)
    x, t, label = nchw(x), torch.from_numpy(t).to(DEVICE), torch.from_numpy(cases.labels(batch)).to(DEVICE).long()
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).to(DEVICE)

    def loss() -> Any:
        step = torch.randint(0, 1000, (batch,), device=DEVICE)
        a, eps = alpha_bar[step][:, None, None, None], torch.randn_like(x)
        given = torch.where(torch.rand(batch, device=DEVICE) < 0.1, cases.CLASSES, label)
        with cast():
            predicted = run(a.sqrt() * x + (1 - a).sqrt() * eps, step + 1, given)
        return mse_loss(predicted.float(), eps)

    def forward() -> Any:
        with torch.no_grad(), cast():
            return run(x, t, label)

    output = forward().float().permute(0, 2, 3, 1).cpu().numpy()
    return Side({"train": Task(repeat(stepping(loss, net, average))), "forward": Task(repeat(forward))}, output)


def dcgan(
    folder: Path, cast: Any, variant: str, *, size: int, channels: tuple[int, ...], latent: int, batch: int
) -> Side:
    import dcgan_peer

    nets = dcgan_peer.make_peers(tuple(channels), latent, size, 3, load_weights(folder))
    gen, disc = (net.to(DEVICE).to(memory_format=LAST) for net in nets)
    average = copy.deepcopy(gen)
    run_gen, run_disc, draw = (compiled(net, variant) for net in (gen, disc, gen))
    real = nchw(cases.random_images(batch, size, 3)) / 127.5 - 1

    def noise() -> Any:
        return torch.randn(batch, latent, device=DEVICE)

    def loss_disc() -> Any:
        with cast():
            with torch.no_grad():
                fake = run_gen(noise()).clone()
            first = softplus(-run_disc(real).float()).mean()
            return first + softplus(run_disc(fake).float()).mean()

    def loss_gen() -> Any:
        with cast():
            return softplus(-run_disc(run_gen(noise())).float()).mean()

    update_disc = stepping(loss_disc, disc, None, (0.5, 0.999))
    update_gen = stepping(loss_gen, gen, average, (0.5, 0.999))

    def train() -> None:
        update_disc()
        disc.requires_grad_(False)  # skips the weight gradients, which the generator's update does not need
        update_gen()
        disc.requires_grad_(True)

    def sample(z: Any = None, network: Any = draw) -> np.ndarray:
        gen.eval()
        with torch.no_grad(), cast():
            x = network(noise() if z is None else z)
            x = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        gen.train()
        return x

    output = sample(torch.from_numpy(cases.latents(batch, latent)).to(DEVICE), gen)
    return Side({"train": Task(repeat(train)), "sample": Task(repeat(sample))}, output)


def gated_pixelcnn(
    folder: Path,
    cast: Any,
    variant: str,
    *,
    size: int,
    levels: int,
    blocks: int,
    features: int,
    hidden: int,
    batch: int,
    passes: int,
) -> Side:
    import torch_pixelcnn

    net = torch_pixelcnn.GatedPixelCNN(levels, features, blocks, hidden, 7, 3, 1).eval()
    net.copy_from(load_weights(folder))
    net = net.to(DEVICE)
    with torch.no_grad():  # sampling needs no masks at run time: they are multiplied in once
        for module in net.modules():
            if isinstance(module, torch_pixelcnn.MaskedConv2d):
                module.weight.mul_(module.mask)
                module.mask.fill_(1)
        images = torch.from_numpy(cases.random_images(batch, size, 1, levels).astype(np.int64))
        with cast():
            logits = net(images.permute(0, 3, 1, 2).to(DEVICE)).float()
    forward = compiled(net, variant)

    def sample() -> None:
        x = torch.zeros(batch, 1, size, size, dtype=torch.int64, device=DEVICE)
        with torch.no_grad(), cast():
            for position in range(passes):
                i, j = divmod(position, size)
                drawn = torch.distributions.Categorical(logits=forward(x)[:, :, i, j].float(), validate_args=False)
                x[:, 0, i, j] = drawn.sample()

    output = logits.permute(0, 2, 3, 1).cpu().numpy()
    return Side({"sample": Task(repeat(sample), size * size / passes)}, output)


def vae(folder: Path, cast: Any, variant: str, *, size: int, hidden: int, latent: int, batch: int) -> Side:
    net = torch_networks.VAE(size * size, hidden, latent)
    torch_networks.take(net, load_weights(folder))
    net = net.to(DEVICE)
    x = torch.from_numpy(cases.random_images(batch, size, 1, 2).reshape(batch, -1)).to(DEVICE).float()
    run = compiled(net, variant)

    def loss() -> Any:
        with cast():
            return run(x)

    with torch.no_grad(), cast():
        output = net.means(x).float().cpu().numpy()
    train = Task(repeat(stepping(loss, net, None)))
    return Side({"train": train, "train_20_a_call": train._replace(times=20.0)}, output)  # the same, 20 times


def glow(folder: Path, cast: Any, variant: str, *, size: int, scales: int, depth: int, width: int, batch: int) -> Side:
    tree = load_weights(folder)
    net = torch_networks.Glow(scales, depth, width)
    net.take(tree["params"], tree["fixed"])
    net = net.to(DEVICE).to(memory_format=LAST)
    average, run = copy.deepcopy(net), compiled(net, variant)
    pixels = nchw(cases.random_images(batch, size, 3))

    def loss() -> Any:
        with cast():
            return -run((pixels + torch.rand_like(pixels)) / 256 - 0.5).mean()

    with torch.no_grad(), cast():
        output = net((pixels + 0.5) / 256 - 0.5).cpu().numpy() / pixels[0].numel() - np.log(256)
    return Side({"train": Task(repeat(stepping(loss, net, average)))}, output)


SIDES: dict[str, Any] = {"unet": unet, "dcgan": dcgan, "gated_pixelcnn": gated_pixelcnn, "vae": vae, "glow": glow}
SIDES |= {"dit_b": dit, "dit_xl": dit}


def make(case: str, precision: str, small: bool, folder: Path, variant: str) -> Side:
    """PyTorch's side of a case, with the weights in the folder."""
    return SIDES[case](folder, set_up(precision), variant, **cases.CASES[case].sizes(small))
