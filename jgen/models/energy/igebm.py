"""An energy-based model trained with Langevin dynamics and a replay buffer (Du & Mordatch 2019, arXiv 1903.08689).

    density    p(x | y) = exp(-f(x, y) / T) / Z_y,  x in [-1, 1]^D                                               (1)
    sampling   x <- x - s grad f(x, y) + noise eps,  T = noise^2 / (2 s)          section 3.1, equation 1       (2)
    loss       E_data f(x+) - E_chain f(x-) + alpha (E f(x+)^2 + E f(x-)^2)       section 3.2, equations 2, 3   (3)
    chains     x- are `steps` steps from a chain of the replay buffer, or from uniform noise with the
               probability `restart`                                              section 3.2                   (4)
    a sum      p(x | y) p(x | y') ~ exp(-(f(x, y) + f(x, y')) / T)                section 4.5                   (5)
    normaliser log Z_y by annealed importance sampling (jgen/samplers/annealing.py) from the uniform density      (6)
    images     log P(image | y) = log E_u p(image + u | y),  u uniform on [0, 1)^D                               (7)

The paper's step size and noise imply a temperature T: the energy in nats is f / T. `log_prob` is the bound (7) with u
drawn and log Z_y estimated; the mean of the annealing weights is unbiased, so the estimate of log Z_y is too low in
expectation, and that of log P too high. `gen.normaliser` gives a confidence interval over the chains.

Glossary: x dequantised image, x+ of the data, x- of a chain; y class; f energy of the network; s step size; D pixels.

Differs from the paper: a chain keeps its class while it is in the buffer; chains are reflected at the walls of the box
instead of being clipped to it, and images are dequantised, so that (1) is a density; SiLU instead of leaky ReLU;
gradients are not clipped inside the chains; each example of a batch has its own part of the buffer.

Measured: a classifier assigns 95.9 % of samples to the class that they were conditioned on, Fréchet distance 25.6 on
the 8x8 digits (FD-digits; 22.6 between training and test images), 1,000 Langevin steps from noise; an estimate of
2.175 bits/dim, whose log Z by class is 87 to 132 nats with 95 % intervals 4 to 16 nats wide (8 chains of 3,000 steps),
so rather too low a number of bits than too high; 3,000 steps of `python train.py configs/energy/igebm.py:digits`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import failures
from jgen.core import keys as rng
from jgen.core.model import (
    Batch,
    Cond,
    Context,
    DataSpec,
    Frozen,
    GenerativeModel,
    Loss,
    Phase,
    Roles,
    select,
    select_first,
)
from jgen.errors import defaults_of, require, require_labels, require_positive, require_temperature
from jgen.nn.energy import EnergyNetwork, check_network
from jgen.prob.dequantisation import dequantise, importance_bound, quantise
from jgen.prob.importance import log_mean
from jgen.samplers import replay
from jgen.samplers.annealing import anneal
from jgen.samplers.langevin import langevin, temperature_of

DIVERGED = "the Langevin steps of size {size:g} diverge: train with a smaller --model.step-size"
NOT_FINITE = "Langevin steps of size {size:g} may diverge: a smaller --model.step-size helps"


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    steps: int = 200
    """Langevin steps from uniform noise."""
    temperature: float = 1.0
    """Factor on the temperature T: 1 samples from the model, below 1 favours likely images."""
    compose: tuple[int, ...] = ()
    """Further classes whose energies are added to the label's."""


@dataclass(frozen=True)
class Scoring:
    """Options of log_prob."""

    samples: int = 1
    """Draws of the dequantisation noise; more draws give a tighter bound."""
    chains: int = 32
    """Annealed chains per class, from which log Z is estimated."""
    steps: int = 1000
    """Annealing steps."""


@dataclass(frozen=True)
class Config:
    """An energy-based model with a spectrally normalised residual network."""

    channels: tuple[int, ...] = (128, 128, 256, 256)
    """Channels of the network at the image's size, at 1/2 of it, at 1/4, ..., or units of its dense layers."""
    blocks: int = 2
    """Residual blocks of each entry of channels but the first."""
    convolutional: bool = True
    """Convolutions, or dense layers, which are faster for small images."""
    input_scale: float = 1.0
    """Factor on the network's input x; spectral normalisation bounds the network's slope, so images of few pixels need
    more."""
    steps: int = 60
    """Langevin steps of a chain in a training step."""
    step_size: float = 10.0
    """Step size s of the Langevin dynamics, in units of the network's energy."""
    noise: float = 0.005
    """Standard deviation of a Langevin step's noise; the image's range is [-1, 1]."""
    buffer_size: int = 10_000
    """Chains in the replay buffer, divided equally between the examples of a batch."""
    restart: float = 0.05
    """Probability that a chain is restarted from uniform noise."""
    alpha: float = 1.0
    """Weight of the squared energies in the loss."""
    class_conditional: bool = True
    """Condition on the class label."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, energies and chains stay float32."""
    sampling: Sampling = field(default_factory=Sampling)
    scoring: Scoring = field(default_factory=Scoring)


class Ebm(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`."""

    config: Config
    data: DataSpec
    network: EnergyNetwork

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("label",) if self.config.class_conditional else ()

    @property
    def rows(self) -> int:
        """Number of classes, each with its own normaliser; 1 without classes."""
        return self.data.num_classes if self.config.class_conditional else 1

    def one_hot(self, label: jax.Array | None) -> jax.Array | None:
        return None if label is None else jax.nn.one_hot(label, self.data.num_classes)


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """An energy-based model for the image shape, levels and classes of `data`.

    Raises:
      UserError: images that cannot be halved `len(channels) - 1` times, or options out of their range.
    """
    check_config(config, data)
    network = EnergyNetwork(config.channels, config.blocks, config.convolutional, jnp.dtype(config.dtype))
    ebm = Ebm(config, data, network)
    return GenerativeModel(
        name="igebm",
        data=data,
        init=partial(init, ebm),
        phases=(Phase(trains=("energy",), loss=partial(loss, ebm)),),
        sample=partial(sample, ebm),
        sampling=config.sampling,
        check_sampling=partial(check_sampling, data.num_classes),
        conditions=ebm.conditions,
        log_prob=partial(log_prob, ebm),
        scoring=config.scoring,
        likelihood="estimate",
        prepare_scoring=partial(prepare_scoring, ebm),
        energy=partial(energy, ebm),
        inpaint=partial(inpaint, ebm),
        by_example=("buffer",),
        if_not_finite=NOT_FINITE.format(size=config.step_size),
    )


def init(ebm: Ebm, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_network, key_buffer = jax.random.split(key)
    x, num = batch["image"], batch["image"].shape[0]
    slots = replay.slots_of(ebm.config.buffer_size, num)
    one_hot = ebm.one_hot(select_first(batch, ebm.conditions).get("label"))
    variables = ebm.network.init(key_network, jnp.zeros((1, *x.shape[1:])), one_hot)
    keys = rng.image_keys(key_buffer, jnp.arange(num))
    buffer = {"x": 2.0 * rng.uniform(keys, (slots, *x.shape[1:])) - 1.0}
    if ebm.conditions:
        labels = jnp.asarray(batch["label"], jnp.int32)  # of each slot, in the frequencies of the batch
        buffer["label"] = jnp.stack([jnp.roll(labels, slot) for slot in range(slots)], axis=1)
    return {"energy": variables["params"]}, {"spectral": variables["batch_stats"], "buffer": buffer}


def network_energy(
    ebm: Ebm, params: Roles, ctx: Context, x: jax.Array, label: jax.Array | None, train: bool = False
) -> tuple[jax.Array, Any]:
    """f(x, y), float32 (B,), of x in [-1, 1], and the state of the spectral norms, updated where `train`."""
    variables = {"params": params["energy"], "batch_stats": ctx.extra["spectral"]}
    scaled = ebm.config.input_scale * x
    values, new = ebm.network.apply(variables, scaled, ebm.one_hot(label), train, mutable=["batch_stats"])
    return values, new["batch_stats"]


def to_box(x: jax.Array, levels: int) -> jax.Array:
    """Dequantised images in [0, levels) to [-1, 1)."""
    return x * (2.0 / levels) - 1.0


def loss(ebm: Ebm, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    c, num = ebm.config, keys.shape[0]
    key_data, key_take, key_new, key_chain = rng.split(keys, 4)
    real = to_box(dequantise(key_data, batch["image"]), ebm.data.image.levels)
    new = {"x": 2.0 * rng.uniform(key_new, real.shape[1:]) - 1.0, **select(batch, ebm.conditions)}
    chains, slot = replay.take(ctx.extra["buffer"], key_take, new, c.restart)
    fixed = jax.lax.stop_gradient(params)

    def gradient(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(network_energy(ebm, fixed, ctx, x, chains.get("label"))[0]))(x)

    how: dict[str, Any] = {"step_size": c.step_size, "noise": c.noise, "reflecting": True}
    x, diverged = langevin(gradient, key_chain, chains["x"], steps=c.steps, **how)
    x = jax.lax.stop_gradient(x)
    label = jnp.concatenate([batch["label"], chains["label"]]) if ebm.conditions else None
    values, spectral = network_energy(ebm, params, ctx, jnp.concatenate([real, x]), label, train=True)
    positive, negative = values[:num], values[num:]
    value = jnp.mean(positive - negative + c.alpha * (positive**2 + negative**2))  # equation 3
    value = jnp.where(jnp.any(diverged), jnp.nan, value)  # such a step is skipped
    metrics = {"energy_data": jnp.mean(positive), "energy_chains": jnp.mean(negative)}
    buffer = replay.put(ctx.extra["buffer"], slot, {**chains, "x": x})
    return value, (metrics, {"spectral": spectral, "buffer": buffer})


def nats(ebm: Ebm, params: Roles, ctx: Context, x: jax.Array, label: jax.Array | None) -> jax.Array:
    """f(x, y) / T, (B,), of x in [-1, 1]."""
    temperature = temperature_of(ebm.config.step_size, ebm.config.noise)
    return network_energy(ebm, params, ctx, x, label)[0] / temperature


def energy(ebm: Ebm, params: Roles, ctx: Context, keys: jax.Array, images: jax.Array, cond: Cond) -> jax.Array:
    x = to_box(images.astype(jnp.float32) + 0.5, ebm.data.image.levels)  # the middle of each level
    return nats(ebm, params, ctx, x, cond.get("label"))


def sample(ebm: Ebm, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    key_start, key_chain = rng.split(keys, 2)
    x = 2.0 * rng.uniform(key_start, ebm.data.image.shape) - 1.0
    return draw(ebm, params, ctx, key_chain, x, None, cond, options)


def inpaint(
    ebm: Ebm,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    images: jax.Array,
    mask: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    """The same chains with the known pixels held fixed."""
    key_start, key_known, key_chain = rng.split(keys, 3)
    known, levels = mask[..., None], ebm.data.image.levels
    x = 2.0 * rng.uniform(key_start, ebm.data.image.shape) - 1.0
    x = jnp.where(known, to_box(dequantise(key_known, images), levels), x)
    return jnp.where(known, images, draw(ebm, params, ctx, key_chain, x, ~known, cond, options))


def draw(
    ebm: Ebm,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    x: jax.Array,
    movable: jax.Array | None,
    cond: Cond,
    options: dict[str, Any],
) -> jax.Array:
    """uint8 images at the end of chains from x in [-1, 1]; see `langevin` for `movable`."""
    o, c = replace(ebm.config.sampling, **options), ebm.config
    check_sampling(ebm.data.num_classes, o)
    labels = [cond.get("label"), *(jnp.full(keys.shape[0], other, jnp.int32) for other in o.compose)]

    def gradient(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: sum(jnp.sum(network_energy(ebm, params, ctx, x, y)[0]) for y in labels))(x)  # (5)

    how: dict[str, Any] = {"steps": o.steps, "step_size": c.step_size, "reflecting": True, "movable": movable}
    x, diverged = langevin(gradient, keys, x, noise=c.noise * math.sqrt(o.temperature), **how)
    failures.report(DIVERGED.format(size=c.step_size), diverged)
    levels = ebm.data.image.levels
    return quantise((x + 1.0) * (0.5 * levels), levels)


def prepare_scoring(ebm: Ebm, params: Roles, ctx: Context, **options: Any) -> Roles:
    """log Z of every class of the density of dequantised images in [0, levels)^D, by chains of keys of `ctx.key`."""
    o, shape = replace(ebm.config.scoring, **options), ebm.data.image.shape
    require_positive(chains=o.chains, steps=o.steps)
    num = ebm.rows * o.chains
    keys = rng.image_keys(rng.stream(ctx.key, rng.NORMALISER), jnp.arange(num))
    key_start, key_anneal = rng.split(keys, 2)
    label = jnp.arange(num) % ebm.rows if ebm.conditions else None
    size, levels = ebm.data.image.size, ebm.data.image.levels

    def base(x: jax.Array) -> jax.Array:  # the uniform density, by dequantised units
        return jnp.full(x.shape[0], size * math.log(levels)) + 0.0 * jnp.sum(x.reshape(x.shape[0], -1), axis=1)

    start = 2.0 * rng.uniform(key_start, shape) - 1.0
    how: dict[str, Any] = {"steps": o.steps, "reflecting": True}
    _, log_w, accepted = anneal(base, lambda x: nats(ebm, params, ctx, x, label), key_anneal, start, **how)
    # The weights are of densities by dequantised units: exp(-base) is 1 / levels^D, and so is the uniform one's.
    by_row = log_w.reshape(o.chains, ebm.rows)
    return {"normaliser": {"log_z": log_mean(by_row), "log_weights": by_row, "accepted": jnp.mean(accepted)}}


def log_prob(
    ebm: Ebm, params: Roles, ctx: Context, keys: jax.Array, images: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    o, label = replace(ebm.config.scoring, **options), cond.get("label")
    require_positive(samples=o.samples)
    extra = ctx.extra if "normaliser" in ctx.extra else prepare_scoring(ebm, params, ctx, **options)
    log_z = extra["normaliser"]["log_z"][jnp.zeros(keys.shape[0], jnp.int32) if label is None else label]

    def log_density(x: jax.Array) -> jax.Array:
        return -nats(ebm, params, ctx, to_box(x, ebm.data.image.levels), label) - log_z

    return importance_bound(log_density, keys, images, o.samples)  # equation 7


def check_sampling(num_classes: int, o: Sampling) -> None:
    """Raises `UserError` for options of sampling out of their range."""
    require_positive(steps=o.steps)
    require_temperature(o.temperature)
    for other in o.compose:
        inside = 0 <= other < num_classes
        known = f"there are the classes 0 to {num_classes - 1}" if num_classes else "the model has no classes"
        require(inside, f"compose has {other}: {known}")


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    c = config
    require_positive(steps=c.steps, step_size=c.step_size, noise=c.noise)
    require_positive(buffer_size=c.buffer_size, input_scale=c.input_scale)
    require(0 <= c.restart <= 1, f"restart is {c.restart}: it must be from 0 to 1")
    require(0 <= c.alpha < math.inf, f"alpha is {c.alpha}: it must be zero or above, and finite")
    check_network(data.image, c.channels, c.blocks, c.convolutional)
    require_labels(data.num_classes, "class_conditional", c.class_conditional, False)
    with defaults_of("sampling"):
        check_sampling(data.num_classes if c.class_conditional else 0, c.sampling)
    with defaults_of("scoring"):
        require_positive(samples=c.scoring.samples, chains=c.scoring.chains, steps=c.scoring.steps)
