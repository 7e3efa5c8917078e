"""Consistency models (Song, Dhariwal, Chen & Sutskever 2023, arXiv 2303.01469), as improved by Song & Dhariwal 2024
(arXiv 2310.14189); equations are A of the first and B of the second.

    f(x, sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4),  f(x, sigma_min) = x                         (A, eq. 5)
    loss      E w d(f(x_0 + sigma_{i+1} eps, sigma_{i+1}), sg f(x', sigma_i)),  w = 1 / (sigma_{i+1} - sigma_i)
      training       x' = x_0 + sigma_i eps                                                              (A, eq. 10)
      distillation   x' = a Heun step of the teacher's flow from x_0 + sigma_{i+1} eps to sigma_i         (A, eq. 7)
    d(x, y) = sqrt(||x - y||^2 + c^2) - c,  c = 0.00054 sqrt(D)                                           (B, eq. 7)
    sampling  f from noise, then for each further sigma: f of the image noised again                     (A, alg. 1)

The N noise levels are evenly spaced in sigma^(1/7); N doubles during training (B, equation 11). An example's level is
the one whose interval contains a log-normal random number (B, equation 10). sg stops the gradient.

Glossary: x_0 data in [-1, 1]; f the consistency function; F the network; D the dimensions of an image.

Differs from the papers: the U-Net is DDPM's; the model is class-conditional without guidance; N doubles every
`double_every` steps up to `levels_last`; given a run with the role `teacher`, training distils it.

Measured: Fréchet distance 25.6 on the 8x8 digits (FD-digits) in two evaluations, a classifier assigns 98.3 % of samples
to the class that they were conditioned on; 2,500 steps of `python train.py configs/diffusion/consistency.py:digits`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, GenerativeModel, Loss, Phase, Roles, frozen_context
from jgen.errors import defaults_of, require, require_positive
from jgen.nn import unet as networks
from jgen.nn.conditional_network import ConditionalNetwork, make_conditional_network
from jgen.prob.likelihoods import sum_image
from jgen.prob.pixels import to_float
from jgen.prob.process import edm, per_image
from jgen.samplers.guidance import require_same_process
from jgen.samplers.system import with_states

RHO = 7.0


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    sigmas: tuple[float, ...] = (0.8,)
    """Noise levels, decreasing below sigma_max, at which the image is noised again, one evaluation each; none: one
    step."""
    clip: bool = True
    """Clip the image to [-1, 1] before it is noised again."""


@dataclass(frozen=True)
class Config:
    """A function from any point of a diffusion's probability flow to its end point, the data."""

    network: networks.Config = field(default_factory=networks.Config)
    class_conditional: bool = True
    """Condition on the class label."""
    sigma_data: float = 0.5
    """Standard deviation of the data in [-1, 1]."""
    sigma_min: float = 0.002
    """Noise level at which the function is the identity."""
    sigma_max: float = 80.0
    """Noise level from which sampling begins."""
    levels_first: int = 10
    """Noise levels at the start of training."""
    levels_last: int = 1280
    """Largest number of noise levels."""
    double_every: int = 50_000
    """Steps after which the noise levels are doubled."""
    p_mean: float = -1.1
    """Mean of the logarithm of the noise level in training."""
    p_std: float = 2.0
    """Standard deviation of the logarithm of the noise level in training."""
    sampling: Sampling = Sampling()


class Consistency(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`."""

    config: Config
    network: ConditionalNetwork
    teacher: GenerativeModel | None


def make(config: Config, data: DataSpec, *, teacher: GenerativeModel | None = None) -> GenerativeModel:
    """A consistency model for the image shape, levels and classes of `data`.

    Args:
      teacher: a diffusion model in EDM's process with the same sigma_max, to distil.
    Raises:
      UserError: sizes that the U-Net cannot be built with, options out of their range, or a teacher of another process.
    """
    check_config(config, data, teacher)
    model = Consistency(config, make_conditional_network(config, data, small_t=True), teacher)
    system = GenerativeModel(
        name="consistency",
        data=data,
        init=model.network.init_roles,
        phases=(Phase(trains=(model.network.role,), loss=partial(loss, model)),),
        sampling=config.sampling,
        conditions=model.network.conditions,
    )
    return with_states(system, partial(states, model), lambda o: 1 + len(o.sigmas))


def num_levels(config: Config, step: Any) -> jax.Array:
    """N at a training step: `levels_first` + 1, doubled again and again, `levels_last` + 1 at most; float32."""
    doublings = jnp.floor(step / config.double_every)
    return jnp.minimum(config.levels_first * 2.0**doublings, config.levels_last) + 1.0


def level_noise(config: Config, i: jax.Array, n: jax.Array) -> jax.Array:
    """sigma_i of n levels, i = 0 .. n - 1."""
    low, high = config.sigma_min ** (1 / RHO), config.sigma_max ** (1 / RHO)
    return (low + i / (n - 1.0) * (high - low)) ** RHO


def draw_levels(config: Config, keys: jax.Array, n: jax.Array) -> jax.Array:
    """i (B,), 0 .. n - 2: the interval [sigma_i, sigma_{i+1}] of a log-normal number within sigma_min and sigma_max."""
    low, high = (jax.scipy.special.ndtr((math.log(s) - config.p_mean) / config.p_std) for s in noise_range(config))
    u = low + (high - low) * rng.uniform(keys, ())
    sigma = jnp.exp(config.p_mean + config.p_std * jax.scipy.special.ndtri(u))
    ends = [s ** (1 / RHO) for s in noise_range(config)]
    position = (sigma ** (1 / RHO) - ends[0]) / (ends[1] - ends[0])
    return jnp.clip(jnp.floor(position * (n - 1.0)), 0.0, n - 2.0)


def noise_range(config: Config) -> tuple[float, float]:
    return config.sigma_min, config.sigma_max


def consistency_function(
    model: Consistency, params: Roles, x: jax.Array, sigma: jax.Array, cond: Cond, key_drop: jax.Array | None
) -> jax.Array:
    """f(x, sigma), (B, H, W, C); sigma (B,)."""
    data, above = model.config.sigma_data, sigma - model.config.sigma_min
    total = sigma**2 + data**2
    skip, out, scale = data**2 / (above**2 + data**2), data * above * total**-0.5, total**-0.5
    skip, out, scale = (per_image(c, x) for c in (skip, out, scale))
    noise = jnp.log(sigma) / 4.0
    return skip * x + out * model.network(params, scale * x, noise, cond, key_drop)


def teacher_step(
    model: Consistency, ctx: Context, x: jax.Array, high: jax.Array, low: jax.Array, cond: Cond
) -> jax.Array:
    """A Heun step of the teacher's flow dx/dsigma = (x - D(x; sigma)) / sigma from noise `high` to `low`, (B,) each."""
    assert model.teacher is not None
    params, frozen_ctx = frozen_context(ctx, "teacher")
    denoise = model.teacher.functions["denoise"]

    def slope(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return (x - denoise(params, frozen_ctx, x, sigma / model.config.sigma_max, cond)) / per_image(sigma, x)

    length = per_image(low - high, x)
    first = slope(x, high)
    return x + 0.5 * length * (first + slope(x + length * first, low))


def loss(model: Consistency, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    config, cond = model.config, model.network.cond(batch)
    key_level, key_eps, key_drop = rng.split(keys, 3)
    n = num_levels(config, ctx.step)
    i = draw_levels(config, key_level, n)
    low, high = level_noise(config, i, n), level_noise(config, i + 1.0, n)
    x_0 = to_float(batch["image"], model.network.images.levels)
    eps = rng.normal(key_eps, model.network.images.shape)
    noisy = x_0 + per_image(high, x_0) * eps
    if model.teacher is None:
        nearer = x_0 + per_image(low, x_0) * eps
    else:
        nearer = teacher_step(model, ctx, noisy, high, low, cond)
    # The same dropout at both noise levels (2024, section 3.2).
    prediction = consistency_function(model, params, noisy, high, cond, key_drop)
    target = jax.lax.stop_gradient(consistency_function(model, params, nearer, low, cond, key_drop))
    c = 0.00054 * math.sqrt(model.network.images.size)
    distance = jnp.sqrt(sum_image((prediction - target) ** 2) + c**2) - c
    return jnp.mean(distance / (high - low)), ({"levels": n}, {})


def states(model: Consistency, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    """The image after each evaluation, float (n, B, H, W, C), in about [-1, 1]."""
    o = replace(model.config.sampling, **options)
    check_sampling(o, model.config)
    images = [jnp.zeros((len(keys), *model.network.images.shape))]
    for number, sigma in enumerate((model.config.sigma_max, *o.sigmas)):
        # From sigma_min, the noise level that the function's output counts as having, to sigma.
        added = math.sqrt(sigma**2 - model.config.sigma_min**2) if number else sigma
        noisy = images[-1] + added * rng.normal(rng.fold_in(keys, number), model.network.images.shape)
        x = consistency_function(model, params, noisy, jnp.full(len(keys), sigma), cond, None)
        images.append(jnp.clip(x, -1.0, 1.0) if o.clip else x)
    return jnp.stack(images[1:])


def check_sampling(o: Sampling, config: Config) -> None:
    """Raises `UserError` for noise that does not decrease between sigma_max and sigma_min."""
    falling = all(a > b for a, b in zip((config.sigma_max, *o.sigmas), (*o.sigmas, config.sigma_min)))
    limits = f"below sigma_max, {config.sigma_max}, to above sigma_min, {config.sigma_min}"
    require(falling, f"sigmas are {o.sigmas}: they must decrease, {limits}")


def check_config(config: Config, data: DataSpec, teacher: GenerativeModel | None) -> None:
    """Raises `UserError` if the configuration is invalid for this data or this teacher."""
    names = ("sigma_data", "sigma_min", "sigma_max", "levels_first", "levels_last", "double_every", "p_std")
    require_positive(**{name: getattr(config, name) for name in names})
    low, high = noise_range(config)
    require(low < high, f"sigma_min is {low}: it must be below sigma_max, {high}")
    first, last = config.levels_first, config.levels_last
    require(first <= last, f"levels_first is {first}: it must be at most levels_last, {last}")
    if teacher is not None:
        require_same_process("teacher", teacher, edm(config.sigma_max), data, config.class_conditional)
    with defaults_of("sampling"):
        check_sampling(config.sampling, config)
