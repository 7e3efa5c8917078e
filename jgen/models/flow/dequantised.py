"""What the flows share: from a bijection between dequantised images and latents to a generative model.

    log p(x) = log N(f(x); 0, I) + log |det df/dx|,   x = image + u in [0, levels)^D
    log P(image) >= E_u log p(image + u)

A flow answers its latents standardised: the Gaussian of each, learned or not, is a last affine step of f. So the
latents of an image are standard normal under the model, and a temperature scales them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, GenerativeModel, ImageSpec, Phase, Roles, Tree, select
from jgen.errors import defaults_of, require, require_labels, require_positive, require_temperature
from jgen.prob.bijectors import logit
from jgen.prob.dequantisation import dequantise, importance_bound, quantise
from jgen.prob.likelihoods import normal_log_prob, sum_image
from jgen.prob.pixels import bits_per_dim

# An image is encoded with u this far from the borders between levels, so that the rounding of a deep flow in float32
# and back cannot carry a pixel over one. With networks in bfloat16 it still may: inputs that differ by float32's
# rounding can fall to either side of one of theirs.
ENCODE_MARGIN = 1 / 16
# For images on black: the logit of nearly all of [0, 1], as FFJORD's on MNIST (arXiv 1810.01367). The noise on a black
# pixel, one level wide, is then spread as widely as all other levels.
LOGIT_ALPHA = 1e-6


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    temperature: float = 1.0
    """Standard deviation of the latents: 1 draws from the model, less trades diversity for likely images."""


@dataclass(frozen=True)
class Scoring:
    """Options of log_prob."""

    samples: int = 1
    """Draws of the dequantisation noise; their densities' mean comes closer to the probability the more there are."""


class Bijection(NamedTuple):
    """A flow of images (B, H, W, C), about -1/2 .. 1/2 or logits, to latents, a tuple of (B, h, w, c).

    init:    (key, x, label) -> (params, fixed), from the whole first batch.
    forward: (params, fixed, x, label) -> (latents, log_det).
    inverse: (params, fixed, latents, label) -> x.
    shapes:  of the latents of one image.
    """

    init: Callable[[jax.Array, Any, Any], tuple[Tree, Tree]]
    forward: Callable[[Tree, Tree, Any, Any], tuple[tuple[Any, ...], Any]]
    inverse: Callable[[Tree, Tree, tuple[Any, ...], Any], Any]
    shapes: tuple[tuple[int, int, int], ...]


def preprocess(x: Any, levels: int, alpha: float, inverse: bool = False) -> tuple[Any, Any]:
    """[0, levels) to x / levels - 1/2, or where alpha > 0 to its logit, and log_det (B,); or back."""
    constant = jnp.full(x.shape[:1], x[0].size * math.log(levels), x.dtype)
    if inverse:
        x, log_det = logit(x, alpha, inverse=True) if alpha > 0 else (x + 0.5, 0.0)
        return x * levels, log_det + constant
    x = x / levels
    x, log_det = logit(x, alpha) if alpha > 0 else (x - 0.5, 0.0)
    return x, log_det - constant


class Flow(NamedTuple):
    """What the functions of a flow are bound to; `alpha` is that of the logit, 0 for none."""

    bijection: Bijection
    images: ImageSpec
    alpha: float
    conditions: tuple[str, ...]


def make_flow(name: str, data: DataSpec, bijection: Bijection, config: Any) -> GenerativeModel:
    """The generative model of a bijection, with role "flow".

    Args:
      config: of the system, checked by `check_flow`.
    Raises:
      UserError: from `sample` a temperature that is not above zero and finite, from `log_prob` samples below 1, from
        `decode` latents of other shapes.
    """
    conditions = ("label",) if config.class_conditional else ()
    flow = Flow(bijection, data.image, config.logit_alpha, conditions)
    return GenerativeModel(
        name=name,
        data=data,
        init=partial(init, flow),
        phases=(Phase(trains=("flow",), loss=partial(loss, flow)),),
        sample=partial(sample, flow, temperature=config.sampling.temperature),
        sampling=config.sampling,
        conditions=conditions,
        validate=partial(validate, flow),
        best=("bits_per_dim", "min"),
        log_prob=partial(log_prob, flow, samples=config.scoring.samples),
        scoring=config.scoring,
        likelihood="lower_bound",
        log_density=partial(log_density, flow),
        encode=partial(encode, flow),
        decode=partial(decode, flow),
    )


def init(flow: Flow, key: jax.Array, batch: Batch, frozen: Any) -> tuple[Roles, Roles]:
    key_flow, key_noise = jax.random.split(key)
    keys = rng.image_keys(key_noise, jnp.arange(batch["image"].shape[0]))
    x, _ = preprocess(dequantise(keys, batch["image"]), flow.images.levels, flow.alpha)
    params, fixed = flow.bijection.init(key_flow, x, select(batch, flow.conditions).get("label"))
    return {"flow": params}, {"flow": fixed} if jax.tree.leaves(fixed) else {}


def forward(flow: Flow, params: Roles, ctx: Context, x: Any, cond: Cond) -> tuple[tuple[Any, ...], Any]:
    """Latents and log_det of dequantised images."""
    x, first = preprocess(x, flow.images.levels, flow.alpha)
    fixed = ctx.extra.get("flow", {})
    latents, log_det = flow.bijection.forward(params["flow"], fixed, x, cond.get("label"))
    return latents, first + log_det


def inverse(flow: Flow, params: Roles, ctx: Context, latents: tuple[Any, ...], cond: Cond) -> jax.Array:
    """uint8 images of latents."""
    x = flow.bijection.inverse(params["flow"], ctx.extra.get("flow", {}), latents, cond.get("label"))
    return quantise(preprocess(x, flow.images.levels, flow.alpha, inverse=True)[0], flow.images.levels)


def density(flow: Flow, params: Roles, ctx: Context, x: Any, cond: Cond) -> jax.Array:
    """log p(x) of dequantised images, nats (B,)."""
    latents, log_det = forward(flow, params, ctx, x, cond)
    return log_det + sum(sum_image(normal_log_prob(eps, 0.0, 0.0)) for eps in latents)


def log_density(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, x: Any, cond: Cond) -> jax.Array:
    return density(flow, params, ctx, x, cond)


def bits(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> jax.Array:
    """Bits per dimension of uint8 images with one draw of the noise, (B,)."""
    x = dequantise(keys, batch["image"])
    return bits_per_dim(density(flow, params, ctx, x, select(batch, flow.conditions)), flow.images.size)


def loss(
    flow: Flow, params: Roles, ctx: Context, keys: jax.Array, batch: Batch
) -> tuple[jax.Array, tuple[dict, Roles]]:
    return jnp.mean(bits(flow, params, ctx, keys, batch)), ({}, {})


def validate(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {"bits_per_dim": bits(flow, params, ctx, keys, batch)}


def sample(
    flow: Flow, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, *, temperature: float
) -> jax.Array:
    require_temperature(temperature)
    shapes = flow.bijection.shapes
    parts = rng.split(keys, len(shapes))
    eps = tuple(temperature * rng.normal(key, shape) for key, shape in zip(parts, shapes))
    return inverse(flow, params, ctx, eps, cond)


def log_prob(
    flow: Flow, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond, *, samples: int
) -> jax.Array:
    require_positive(samples=samples)
    return importance_bound(lambda x: density(flow, params, ctx, x, cond), keys, x, samples)


def encode(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> tuple[Any, ...]:
    return forward(flow, params, ctx, dequantise(keys, x, ENCODE_MARGIN), cond)[0]


def decode(
    flow: Flow, params: Roles, ctx: Context, keys: jax.Array, latents: tuple[Any, ...], cond: Cond
) -> jax.Array:
    leaves = tuple(jax.tree.leaves(latents))
    shapes, wanted = tuple(eps.shape[1:] for eps in leaves), flow.bijection.shapes
    require(shapes == wanted, f"latents have shapes {shapes}: they must be {wanted}")
    return inverse(flow, params, ctx, leaves, cond)


def check_flow(data: DataSpec, halvings: int, config: Any) -> None:
    """Raises `UserError` for images that cannot be halved so often, or what any flow cannot be made with.

    Args:
      config: of a flow, with `scales`, `logit_alpha`, `class_conditional`, `dtype`, `sampling` and `scoring`.
    """
    require_positive(scales=config.scales)
    images, most = data.image, 0
    height, width = images.height, images.width
    while height % 2 ** (most + 1) == 0 and width % 2 ** (most + 1) == 0:
        most += 1
    fitting = most + config.scales - halvings
    advice = f"scales can be at most {fitting}" if fitting >= 1 else "one scale halves too: use images with even sides"
    require(
        halvings <= most,
        f"images are {height}x{width}: scales {config.scales} needs sides divisible by {2**halvings}; {advice}",
    )
    alpha = config.logit_alpha
    require(0 <= alpha < 0.5, f"logit_alpha is {alpha}: it must be at least 0 and below 0.5")
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
    with defaults_of("sampling"):
        require_temperature(config.sampling.temperature)
    with defaults_of("scoring"):
        require_positive(samples=config.scoring.samples)
