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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Context, GenerativeModel, ImageSpec, Phase, Roles, Tree
from jgen.errors import defaults_of, require, require_choice, require_labels, require_positive, require_temperature
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


def make_flow(
    name: str, images: ImageSpec, flow: Bijection, conditional: bool, alpha: float, sampling: Sampling, scoring: Scoring
) -> GenerativeModel:
    """The generative model of a bijection, with role "flow". `alpha` is that of the logit, 0 for none.

    Raises:
      UserError: from `sample` a temperature that is not above zero and finite, from `log_prob` samples below 1, from
        `decode` latents of other shapes.
    """

    def init(key: jax.Array, batch: Batch) -> tuple[Roles, Roles]:
        key_flow, key_noise = jax.random.split(key)
        keys = rng.image_keys(key_noise, jnp.arange(batch["image"].shape[0]))
        x, _ = preprocess(dequantise(keys, batch["image"]), images.levels, alpha)
        params, fixed = flow.init(key_flow, x, batch["label"] if conditional else None)
        return {"flow": params}, {"flow": fixed} if jax.tree.leaves(fixed) else {}

    def forward(params: Roles, ctx: Context, x: Any, label: Any) -> tuple[tuple[Any, ...], Any]:
        x, first = preprocess(x, images.levels, alpha)
        latents, log_det = flow.forward(params["flow"], ctx.extra.get("flow", {}), x, label)
        return latents, first + log_det

    def inverse(params: Roles, ctx: Context, latents: tuple[Any, ...], label: Any) -> jax.Array:
        x = flow.inverse(params["flow"], ctx.extra.get("flow", {}), latents, label)
        return quantise(preprocess(x, images.levels, alpha, inverse=True)[0], images.levels)

    def density(params: Roles, ctx: Context, x: Any, label: Any) -> jax.Array:
        latents, log_det = forward(params, ctx, x, label)
        return log_det + sum(sum_image(normal_log_prob(eps, 0.0, 0.0)) for eps in latents)

    def log_density(params: Roles, ctx: Context, keys: jax.Array, x: Any, label: Any) -> jax.Array:
        return density(params, ctx, x, label)

    def bits(params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> jax.Array:
        x = dequantise(keys, batch["image"])
        return bits_per_dim(density(params, ctx, x, batch["label"] if conditional else None), images.size)

    def loss(params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> tuple[jax.Array, tuple[dict, Roles]]:
        return jnp.mean(bits(params, ctx, keys, batch)), ({}, {})

    def validate(params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"bits_per_dim": bits(params, ctx, keys, batch)}

    def sample(
        params: Roles, ctx: Context, keys: jax.Array, label: Any, temperature: float = sampling.temperature
    ) -> jax.Array:
        require_temperature(temperature)
        parts = rng.split(keys, len(flow.shapes))
        eps = tuple(temperature * rng.normal(key, shape) for key, shape in zip(parts, flow.shapes))
        return inverse(params, ctx, eps, label)

    def log_prob(
        params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, label: Any, samples: int = scoring.samples
    ) -> jax.Array:
        require_positive(samples=samples)
        return importance_bound(lambda x: density(params, ctx, x, label), keys, x, samples)

    def encode(params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, label: Any) -> tuple[Any, ...]:
        return forward(params, ctx, dequantise(keys, x, ENCODE_MARGIN), label)[0]

    def decode(params: Roles, ctx: Context, keys: jax.Array, latents: tuple[Any, ...], label: Any) -> jax.Array:
        leaves = tuple(jax.tree.leaves(latents))
        shapes = tuple(eps.shape[1:] for eps in leaves)
        require(shapes == flow.shapes, f"latents have shapes {shapes}: they must be {flow.shapes}")
        return inverse(params, ctx, leaves, label)

    return GenerativeModel(
        name=name,
        images=images,
        init=init,
        phases=(Phase(trains=("flow",), loss=loss),),
        sample=sample,
        sampling=sampling,
        validate=validate,
        log_prob=log_prob,
        scoring=scoring,
        likelihood="lower_bound",
        log_density=log_density,
        encode=encode,
        decode=decode,
        conditional=conditional,
        free_form_jacobian=False,
    )


def check_flow(images: ImageSpec, halvings: int, config: Any) -> None:
    """Raises `UserError` for images that cannot be halved so often, or what any flow cannot be made with.

    Args:
      config: of a flow, with `scales`, `logit_alpha`, `class_conditional`, `dtype`, `sampling` and `scoring`.
    """
    require_positive(scales=config.scales)
    height, width, most = images.height, images.width, 0
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
    require_choice("dtype", config.dtype, ("float32", "bfloat16"))
    require_labels(images.num_classes, "class_conditional", config.class_conditional, False)
    with defaults_of("sampling"):
        require_temperature(config.sampling.temperature)
    with defaults_of("scoring"):
        require_positive(samples=config.scoring.samples)
