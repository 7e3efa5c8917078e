"""jgen's side of the cases: the programs of train.py and sample.py, on random images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import save_weights, shaken

from jgen.core import parallel
from jgen.core.generate import run_over, sample_images
from jgen.core.keys import image_keys
from jgen.core.model import ArraySpec, Context, DataSpec, GenerativeModel, ImageSpec
from jgen.models.diffusion import ddpm
from jgen.models.flow import glow
from jgen.models.gan import dcgan
from jgen.models.vae import vae
from jgen.nn import dit
from jgen.nn import unet as networks
from jgen.nn.gated_pixelcnn import GatedPixelCNN
from jgen.train.config import Config, Optimiser
from jgen.train.optimisers import average_decay, make_optimiser
from jgen.train.packing import pack_roles
from jgen.train.step import TrainState, init_state, make_train_step, make_train_steps
from on_device import cases
from on_device.costs import matrix_flops

AVERAGED = Config(ema_decay=0.999)
IN_A_CALL = 20  # steps of the dense VAE


class Task(NamedTuple):
    """run(n) runs the task n times and waits. images, flops (of matrix products): per run."""

    run: Callable[[int], Any]
    images: int
    flops: float


class Side(NamedTuple):
    tasks: dict[str, Task]
    output: np.ndarray
    parameters: int


def start(model: GenerativeModel, batch: dict[str, np.ndarray], training: Config) -> tuple[TrainState, Any]:
    """The initial state, and the step."""
    roles = {role for phase in model.phases for role in phase.trains}
    optimisers = {role: make_optimiser(training, role) for role in roles}
    averages = training.ema_decay > 0

    def init(batch: Any) -> TrainState:
        return init_state(model, optimisers, jax.random.key(0), batch, averages)

    step = make_train_step(model, optimisers, ema_decay=average_decay(training) if averages else None)
    return jax.jit(init, compiler_options=parallel.compiler_options())(batch), step


def with_params(state: TrainState, params: Any) -> TrainState:
    return state._replace(params=params, ema=pack_roles(params) if state.ema else state.ema)


def training_task(state: TrainState, step: Any, batch: dict[str, np.ndarray]) -> Task:
    """Steps on one batch. It takes ownership of the state."""
    flops = matrix_flops(lambda state, batch: step(state, {}, batch, 0)[1], state, batch)
    held = [parallel.replicate(state)]

    def run(n: int) -> None:
        for _ in range(n):
            held[0], _ = step(held[0], {}, batch, 0)
        jax.block_until_ready(held[0])

    return Task(run, len(batch["index"]), flops)


def batch_of(images: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": images, "index": np.arange(len(images), dtype=np.int32)}


def size_of(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def unet(
    folder: Path,
    dtype: Any,
    *,
    size: int,
    channels: tuple[int, ...],
    head_dim: int,
    groups: int,
    batch: int,
    drawn: int,
) -> Side:
    """A training step with dropout, Adam and the moving average of the weights; 50 steps of DDIM."""
    network = networks.Config(tuple(channels), 2, (16,), head_dim, groups, dropout=0.1, dtype=dtype)
    data = DataSpec(ImageSpec(size, size, 3, 256))
    model = ddpm.make(ddpm.Config(network=network, class_conditional=False), data)
    examples = batch_of(cases.random_images(batch, size, 3))
    state, step = start(model, examples, AVERAGED)
    params = {"unet": shaken(state.params["unet"], 0.02)}
    save_weights(folder, params["unet"])
    placed, ctx = parallel.replicate(params), parallel.replicate(Context(jnp.int32(0), None, params))
    net = networks.make_unet(network, data.image, 0)
    x, t = cases.unet_inputs(batch, size)
    forward = jax.jit(lambda p, x, t: net.apply({"params": p}, x, t, None, None))
    one = matrix_flops(forward, params["unet"], x[:drawn], t[:drawn])

    def ddim(n: int) -> None:
        for i in range(n):
            sample_images(model, placed, ctx, jax.random.key(i), drawn, batch_size=drawn, steps=50)

    tasks = {"train": training_task(with_params(state, params), step, examples), "ddim": Task(ddim, drawn, 50 * one)}
    return Side(tasks, np.asarray(forward(placed["unet"], x, t)), size_of(params))


def denoiser(config: ddpm.Config, images: ImageSpec, x: np.ndarray) -> tuple[Any, GenerativeModel, Any, Any]:
    """The initial state of a class-conditional diffusion model, the model, its step and its batch of images x."""
    data = DataSpec(images, {"label": ArraySpec((), "int32", cases.CLASSES)})
    model, examples = ddpm.make(config, data), {**batch_of(x), "label": cases.labels(len(x))}
    state, step = start(model, examples, AVERAGED)
    return state, model, step, examples


def dit_(folder: Path, dtype: Any, *, size: int, features: int, layers: int, heads: int, batch: int) -> Side:
    """A class-conditional training step, Adam and the moving average of the weights; one evaluation of the network."""
    network, images = dit.Config(2, features, layers, heads, dtype=dtype), ImageSpec(size, size, 4, levels=0)
    x, t = cases.latent_inputs(batch, size)
    state, _, step, examples = denoiser(ddpm.Config(network=network), images, x)
    params = shaken(state.params["dit"], 0.02)
    blocks = {f"block{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(layers)}
    save_weights(folder, {**{name: tree for name, tree in params.items() if name != "blocks"}, **blocks})
    net, placed = dit.make_dit(network, images, cases.CLASSES + 1), parallel.replicate(params)
    forward = jax.jit(lambda p, x, t, label: net.apply({"params": p}, x, t, label, None))
    arrays = (placed, x, t, examples["label"])

    def evaluate(n: int) -> None:
        for _ in range(n):
            jax.block_until_ready(forward(*arrays))

    train = training_task(with_params(state, {"dit": params}), step, examples)
    tasks = {"train": train, "forward": Task(evaluate, batch, matrix_flops(forward, *arrays))}
    return Side(tasks, np.asarray(forward(*arrays)), size_of(params))


def adm_(
    folder: Path,
    dtype: Any,
    *,
    size: int,
    channels: tuple[int, ...],
    blocks: int,
    attention: tuple[int, ...],
    batch: int,
) -> Side:
    """A class-conditional training step with learned variances, Adam and the moving average of the weights."""
    sizes: dict[str, Any] = {"channels": tuple(channels), "blocks": blocks, "attention": tuple(attention)}
    head_dim, groups = min(64, channels[0]), min(32, channels[0])
    network = networks.Config(**sizes, head_dim=head_dim, groups=groups, dtype=dtype, architecture="adm")
    config = ddpm.Config(network=network, schedule="cosine", bound_variance="learned", label_dropout=0.0)
    images = cases.random_images(batch, size, 3)
    state, model, step, examples = denoiser(config, ImageSpec(size, size, 3, 256), images)
    x, times = cases.unet_inputs(batch, size)[0], np.full(batch, 0.5, np.float32)
    parameters, cond = size_of(state.params), {"label": examples["label"]}
    denoise = jax.jit(lambda p: model.functions["denoise"](p, Context(jnp.int32(0), None), x, times, cond))
    output = np.asarray(denoise(state.params))
    return Side({"train": training_task(state, step, examples)}, output, parameters)


def dcgan_(folder: Path, dtype: Any, *, size: int, channels: tuple[int, ...], latent: int, batch: int) -> Side:
    """An update of the discriminator and one of the generator, Adam, the moving average of the weights."""
    config = dcgan.Config(channels=tuple(channels), latent=latent, conditioning="none", dtype=dtype)
    model = dcgan.make(config, DataSpec(ImageSpec(size, size, 3, 256)))
    training = Config(optimiser=Optimiser(beta1=0.5), ema_decay=0.999)
    examples = batch_of(cases.random_images(batch, size, 3))
    state, step = start(model, examples, training)
    save_weights(folder, state.params)
    params = parallel.replicate(state.params)
    ctx = parallel.replicate(Context(jnp.int32(0), None, params, state.extra))
    arrays = {"latents": cases.latents(batch, latent), "cond": {}, "index": examples["index"]}
    output = run_over(model, "decode", params, ctx, jax.random.key(0), arrays, batch_size=batch)

    def sample(n: int) -> None:
        for i in range(n):
            sample_images(model, params, ctx, jax.random.key(i), batch, batch_size=batch)

    keys = image_keys(jax.random.key(0), jnp.arange(batch))
    flops = matrix_flops(lambda p, c, z: model.decode(p, c, keys, z, {}), params, ctx, cases.latents(batch, latent))
    tasks = {"train": training_task(state, step, examples), "sample": Task(sample, batch, flops)}
    return Side(tasks, output, size_of(params))


def gated_pixelcnn(
    folder: Path,
    dtype: Any,
    *,
    size: int,
    levels: int,
    blocks: int,
    features: int,
    hidden: int,
    batch: int,
    passes: int,
) -> Side:
    """Sampling all pixels from cached features."""
    from jgen.samplers.autoregressive import sample_raster

    network = GatedPixelCNN(levels, 1, features, blocks, hidden, 7, 3, dtype=jnp.dtype(dtype))
    images = cases.random_images(batch, size, 1, levels).astype(np.int32)
    params = shaken(jax.jit(network.init)(jax.random.key(0), images)["params"], 0.05)
    save_weights(folder, params)
    params = jax.device_put(params)
    keys = image_keys(jax.random.key(1), jnp.arange(batch))
    draw = jax.jit(lambda p: sample_raster(network, p, keys, None, (size, size, 1), levels))
    logits = jax.jit(network.apply)({"params": params}, images)[:, :, :, 0]

    def sample(n: int) -> None:
        for _ in range(n):
            jax.block_until_ready(draw(params))

    flops = matrix_flops(draw, params)
    return Side({"sample": Task(sample, batch, flops)}, np.asarray(logits), size_of(params))


def vae_(folder: Path, dtype: Any, *, size: int, hidden: int, latent: int, batch: int) -> Side:
    """A training step: the bound of binary images, Adam; as a single call, and as one of 20 in a call."""
    config = vae.Config(network="dense", widths=(hidden,), blocks=0, latent=latent, decoder="bernoulli", dtype=dtype)
    model = vae.make(config, DataSpec(ImageSpec(size, size, 1, 2)))
    examples = batch_of(cases.random_images(batch, size, 1, 2))
    training = Config(optimiser=Optimiser(learning_rate=1e-3), ema_decay=0.0)
    state, step = start(model, examples, training)
    save_weights(folder, state.params)
    ctx = Context(0, None, state.params, state.extra)
    means = np.asarray(model.encode(state.params, ctx, None, examples["image"], {}))
    size_of_all, single = size_of(state.params), training_task(state, step, examples)
    optimisers = {role: make_optimiser(training, role) for role in state.params}
    steps, held = make_train_steps(model, optimisers, IN_A_CALL), [parallel.replicate(state)]
    together = {name: np.concatenate([array] * IN_A_CALL) for name, array in examples.items()}

    def in_calls(n: int) -> None:
        for _ in range(n):
            held[0], _ = steps(held[0], {}, together, 0)
        jax.block_until_ready(held[0])

    calls = Task(in_calls, IN_A_CALL * batch, IN_A_CALL * single.flops)
    return Side({"train": single, "train_20_a_call": calls}, means, size_of_all)


def glow_(folder: Path, dtype: Any, *, size: int, scales: int, depth: int, width: int, batch: int) -> Side:
    """A training step: uniform dequantisation, the density, Adam, the moving average of the weights."""
    config = glow.Config(scales=scales, depth=depth, width=width, class_conditional=False, dtype=dtype)
    model = glow.make(config, DataSpec(ImageSpec(size, size, 3, 256)))
    images = cases.random_images(batch, size, 3)
    state, step = start(model, batch_of(images), AVERAGED)
    params = shaken(state.params, 0.01)
    save_weights(folder, {"params": params["flow"], "fixed": jax.device_get(state.extra["flow"])})
    x = images.astype(np.float32) + 0.5
    ctx = Context(jnp.int32(0), None, params, state.extra)
    density = jax.jit(lambda p, c: model.log_density(p, c, None, x, {}))(params, ctx)
    task = training_task(with_params(state, params), step, batch_of(images))
    return Side({"train": task}, np.asarray(density) / x[0].size, size_of(params))


SIDES: dict[str, Any] = {"unet": unet, "dcgan": dcgan_, "gated_pixelcnn": gated_pixelcnn, "vae": vae_, "glow": glow_}
SIDES |= {"dit_b": dit_, "dit_xl": dit_, "adm": adm_}


def make(case: str, precision: str, small: bool, folder: Path) -> Side:
    """jgen's side of a case; it saves its weights in the folder."""
    return partial(SIDES[case], folder, precision)(**cases.CASES[case].sizes(small))
