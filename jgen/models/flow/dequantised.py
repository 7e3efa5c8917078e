"""What all flows share: a generative model from a bijection between dequantised images and latents.

    log p(x) = log N(f(x); 0, I) + log |det df/dx|,   x = image + u in [0, levels)^D
    log P(image) >= E_u log p(image + u)

Latents are standardised: if a latent has a learned Gaussian prior, its mean and scale are a last affine step of f. So
the latents of an image are standard normal under the model, and a temperature scales all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.core.model import (
    Batch,
    Cond,
    Context,
    DataSpec,
    Frozen,
    GenerativeModel,
    ImageSpec,
    Loss,
    Phase,
    Roles,
    Tree,
    select,
)
from jgen.errors import defaults_of, require, require_labels, require_positive, require_temperature
from jgen.nn.variational_noise import VariationalNoise
from jgen.prob.dequantisation import Proposal, dequantise, importance_bound, preprocess, quantise, uniform
from jgen.prob.likelihoods import normal_log_prob, sum_image
from jgen.prob.pixels import bits_per_dim
from jgen.samplers import latent_posterior

# An image is encoded with u at least this far from 0 and from 1, so that the rounding errors of a deep flow in float32,
# forward and backward, cannot change a pixel's level. With networks in bfloat16 they still may: inputs that differ by a
# rounding error of float32 can be rounded to different bfloat16 numbers.
ENCODE_MARGIN = 1 / 16
# For images with a black background: the logit of nearly all of [0, 1], as in FFJORD on MNIST (arXiv 1810.01367). It
# makes the interval of level 0, over which dequantisation spreads black pixels, as wide as those of all other levels
# together.
LOGIT_ALPHA = 1e-6


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    temperature: float = 1.0
    """Standard deviation of the latents: 1 samples from the model, below 1 trades diversity for likelier images."""


@dataclass(frozen=True)
class Scoring:
    """Options of log_prob."""

    samples: int = 1
    """Draws of the dequantisation noise; more draws give a tighter bound."""


class Bijection(NamedTuple):
    """An invertible map of images (B, H, W, C), in [-1/2, 1/2] or as logits, to latents, a tuple of (B, h, w, c).

    init:    (key, x, label) -> (params, fixed), where x is the whole first batch; `fixed` holds what is not trained.
    forward: (params, fixed, x, label) -> (latents, log_det).
    inverse: (params, fixed, latents, label) -> x.
    shapes:  shapes of the latents of one image.
    """

    init: Callable[[jax.Array, Any, Any], tuple[Tree, Tree]]
    forward: Callable[[Tree, Tree, Any, Any], tuple[tuple[Any, ...], Any]]
    inverse: Callable[[Tree, Tree, tuple[Any, ...], Any], Any]
    shapes: tuple[tuple[int, int, int], ...]


class Dequantiser(NamedTuple):
    """Dequantisation noise with a learned density: the role "dequantiser".

    init:    (key, uint8 images) -> params.
    propose: (params, keys, uint8 images) -> (dequantised images, log q of their noise).
    """

    init: Callable[[jax.Array, jax.Array], Tree]
    propose: Callable[[Tree, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Flow(NamedTuple):
    """First argument of the functions below, bound by `make_flow` with `functools.partial`. `alpha` is that of the
    logit, 0 for none; `proposal` draws the noise for the bound on likelihoods, unless there is a `dequantiser`."""

    bijection: Bijection
    images: ImageSpec
    alpha: float
    conditions: tuple[str, ...]
    proposal: Proposal = uniform
    dequantiser: Dequantiser | None = None


def flow_of(
    data: DataSpec,
    bijection: Bijection,
    config: Any,
    proposal: Proposal = uniform,
    dequantiser: Dequantiser | None = None,
) -> Flow:
    """The flow of a bijection with the options of a system's Config."""
    conditions = ("label",) if config.class_conditional else ()
    return Flow(bijection, data.image, config.logit_alpha, conditions, proposal, dequantiser)


def variational(data: DataSpec, width: int, dtype: DTypeLike) -> Dequantiser:
    """The dequantiser of Flow++ (Ho et al. 2019, arXiv 1902.00275, section 3.1): noise by a flow given the image."""
    images = data.image
    network = VariationalNoise(images.levels, width, dtype=dtype)

    def init(key: jax.Array, x: jax.Array) -> Tree:
        return network.init(key, x, jnp.zeros(x.shape))["params"]

    def propose(params: Tree, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        u, log_q = network.apply({"params": params}, x, rng.normal(keys, images.shape))
        level = x.astype(jnp.float32)
        return jnp.clip(level + u, level, jnp.nextafter(level + 1.0, 0.0)), log_q

    return Dequantiser(init, propose)


def proposal_of(flow: Flow, params: Roles) -> Proposal:
    """The proposal that draws the noise in training and in likelihoods."""
    if flow.dequantiser is None:
        return flow.proposal
    return partial(flow.dequantiser.propose, params["dequantiser"])


def make_flow(name: str, data: DataSpec, flow: Flow, config: Any) -> GenerativeModel:
    """The generative model of a flow, whose parameters are the role "flow", and "dequantiser" where there is one.

    Args:
      config: the system's Config, checked by `check_flow`.
    Raises:
      UserError: from `sample` a temperature that is not above zero and finite, from `log_prob` samples below 1, from
        `decode` latents of other shapes.
    """
    return GenerativeModel(
        name=name,
        data=data,
        init=partial(init, flow),
        phases=(Phase(trains=("flow", "dequantiser") if flow.dequantiser else ("flow",), loss=partial(loss, flow)),),
        sample=partial(sample, flow, temperature=config.sampling.temperature),
        sampling=config.sampling,
        conditions=flow.conditions,
        validate=partial(validate, flow),
        best=("bits_per_dim", "min"),
        log_prob=partial(log_prob, flow, samples=config.scoring.samples),
        scoring=config.scoring,
        likelihood="lower_bound",
        log_density=partial(log_density, flow),
        encode=partial(encode, flow),
        decode=partial(decode, flow),
        inpaint=partial(inpaint, flow),
        inpainting=latent_posterior.Inpainting(),
        functions={"draw_dequantised": partial(draw_dequantised, flow)},
    )


def init(flow: Flow, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_flow, key_noise = jax.random.split(key)
    keys = rng.image_keys(key_noise, jnp.arange(batch["image"].shape[0]))
    x, _ = preprocess(dequantise(keys, batch["image"]), flow.images.levels, flow.alpha)
    params, fixed = flow.bijection.init(key_flow, x, select(batch, flow.conditions).get("label"))
    roles = {"flow": params}
    if flow.dequantiser is not None:
        roles["dequantiser"] = flow.dequantiser.init(rng.stream(key_noise, rng.NETWORK), batch["image"])
    return roles, {"flow": fixed} if jax.tree.leaves(fixed) else {}


def forward(flow: Flow, params: Roles, ctx: Context, x: jax.Array, cond: Cond) -> tuple[tuple[Any, ...], Any]:
    """Latents and log_det of dequantised images."""
    x, log_det_preprocess = preprocess(x, flow.images.levels, flow.alpha)
    fixed = ctx.extra.get("flow", {})
    latents, log_det = flow.bijection.forward(params["flow"], fixed, x, cond.get("label"))
    return latents, log_det_preprocess + log_det


def inverse(flow: Flow, params: Roles, ctx: Context, latents: tuple[Any, ...], cond: Cond) -> jax.Array:
    """uint8 images of latents."""
    return quantise(dequantised_of(flow, params, ctx, latents, cond), flow.images.levels)


def dequantised_of(flow: Flow, params: Roles, ctx: Context, latents: tuple[Any, ...], cond: Cond) -> jax.Array:
    """Dequantised images of latents, float32 (B, H, W, C)."""
    x = flow.bijection.inverse(params["flow"], ctx.extra.get("flow", {}), latents, cond.get("label"))
    return preprocess(x, flow.images.levels, flow.alpha, inverse=True)[0]


def density(flow: Flow, params: Roles, ctx: Context, x: jax.Array, cond: Cond) -> jax.Array:
    """log p(x) of dequantised images, nats (B,)."""
    latents, log_det = forward(flow, params, ctx, x, cond)
    return log_det + sum(sum_image(normal_log_prob(eps, 0.0, 0.0)) for eps in latents)


def log_density(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    return density(flow, params, ctx, x, cond)


def bits(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> jax.Array:
    """Bits per dimension of uint8 images with one draw of the noise, (B,)."""
    x, log_q = proposal_of(flow, params)(keys, batch["image"])
    return bits_per_dim(density(flow, params, ctx, x, select(batch, flow.conditions)) - log_q, flow.images.size)


def loss(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    return jnp.mean(bits(flow, params, ctx, keys, batch)), ({}, {})


def validate(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {"bits_per_dim": bits(flow, params, ctx, keys, batch)}


def sample(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, *, temperature: float) -> jax.Array:
    require_temperature(temperature)
    return quantise(draw_dequantised(flow, params, ctx, keys, cond, temperature), flow.images.levels)


def draw_dequantised(
    flow: Flow, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, temperature: float
) -> jax.Array:
    """Samples before rounding, float32 (B, H, W, C) in about [0, levels), differentiable in the parameters."""
    shapes = flow.bijection.shapes
    parts = rng.split(keys, len(shapes))
    eps = tuple(temperature * rng.normal(key, shape) for key, shape in zip(parts, shapes))
    return dequantised_of(flow, params, ctx, eps, cond)


def log_prob(
    flow: Flow, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond, *, samples: int
) -> jax.Array:
    require_positive(samples=samples)
    return importance_bound(lambda x: density(flow, params, ctx, x, cond), keys, x, samples, proposal_of(flow, params))


def encode(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> tuple[Any, ...]:
    return forward(flow, params, ctx, dequantise(keys, x, ENCODE_MARGIN), cond)[0]


def decode(flow: Flow, params: Roles, ctx: Context, keys: jax.Array, latents: tuple[Any, ...], cond: Cond) -> jax.Array:
    leaves = tuple(jax.tree.leaves(latents))
    shapes, wanted = tuple(eps.shape[1:] for eps in leaves), flow.bijection.shapes
    require(shapes == wanted, f"latents have shapes {shapes}: they must be {wanted}")
    return inverse(flow, params, ctx, leaves, cond)


def inpaint(
    flow: Flow,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    images: jax.Array,
    mask: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    """By Markov chains in latent space: see `jgen.samplers.latent_posterior`."""

    def back(latents: tuple[Any, ...]) -> jax.Array:
        return flow.bijection.inverse(params["flow"], ctx.extra.get("flow", {}), latents, cond.get("label"))

    latents = latents_given(flow, back, keys, images, mask, latent_posterior.Inpainting(**options))
    return jnp.where(mask[..., None], images, inverse(flow, params, ctx, latents, cond))


def latents_given(
    flow: Flow,
    back: Callable[[tuple[Any, ...]], jax.Array],
    keys: jax.Array,
    images: jax.Array,
    mask: jax.Array,
    o: latent_posterior.Inpainting,
) -> tuple[Any, ...]:
    """Latents of images whose pixels are near those of uint8 `images` where bool `mask` (B, H, W) is true.

    Args:
      back: the bijection's inverse, differentiable, without its preprocessing.
    """
    shapes, levels = flow.bijection.shapes, flow.images.levels
    sizes = [math.prod(shape) for shape in shapes]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]

    def latents_of(z: jax.Array) -> tuple[Any, ...]:
        return tuple(part.reshape(-1, *shape) for part, shape in zip(jnp.split(z, ends[:-1], axis=1), shapes))

    def decode(z: jax.Array) -> jax.Array:
        return preprocess(back(latents_of(z)), levels, flow.alpha, inverse=True)[0]

    middle = images.astype(jnp.float32) + 0.5  # of each level
    return latents_of(latent_posterior.complete(decode, keys, sum(sizes), middle, mask, levels, o))


def check_flow(data: DataSpec, halvings: int, config: Any) -> None:
    """Raises `UserError` for images that cannot be halved `halvings` times, or invalid options.

    Args:
      config: a flow's Config, with `scales` and the options of `check_options`.
    """
    require_positive(scales=config.scales)
    height, width = data.image.height, data.image.width
    max_halvings = 0
    while height % 2 ** (max_halvings + 1) == 0 and width % 2 ** (max_halvings + 1) == 0:
        max_halvings += 1
    max_scales = max_halvings + config.scales - halvings
    advice = "one scale halves too: use images with even sides"
    advice = f"scales can be at most {max_scales}" if max_scales >= 1 else advice
    require(
        halvings <= max_halvings,
        f"images are {height}x{width}: scales {config.scales} needs sides divisible by {2**halvings}; {advice}",
    )
    check_options(data, config)


def check_options(data: DataSpec, config: Any) -> None:
    """Raises `UserError` for invalid options among those that all flows have.

    Args:
      config: a flow's Config, with `logit_alpha`, `class_conditional`, `sampling` and `scoring`.
    """
    alpha = config.logit_alpha
    require(0 <= alpha < 0.5, f"logit_alpha is {alpha}: it must be at least 0 and below 0.5")
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
    with defaults_of("sampling"):
        require_temperature(config.sampling.temperature)
    with defaults_of("scoring"):
        require_positive(samples=config.scoring.samples)
