"""VQ-VAE-2, the prior of the bottom codes (Razavi, van den Oord & Vinyals 2019, arXiv 1906.00446, section 3.2).

    top          p(t | h), trained before and frozen, on its autoencoder                 (`jgen.models.vae.vq_vae2_top`)
    prior        p(b | t, h) = prod_i p(b_i | b_<i, t, h), a Gated PixelCNN over the bottom codes, conditioned at every
                 location on the top codes through a stack of residual blocks, upsampled    (`jgen.nn.code_pixelcnn`)
    loss         - log p(b | t, h), a mean over images and codes
    sampling     t ~ p(t | h), b ~ p(b | t, h), each one code after another, with cached activations; x = decode(t, b)
                                                                                                (algorithm 2)

Glossary: x an image; t, b its top and bottom codes, b_<i those above and to the left; h the class as a one-hot vector.

A sample is decoded by the autoencoder from sampled codes, without pixel noise, so there is no `log_prob` of images;
`validate` scores the bottom codes given the images' own top codes. The autoencoder is that of the top prior, so both
levels always have the same one.

Differs from the paper: the top codes' features enter every gated layer, through its own 1 x 1 convolutions; the
learning rate decays; no classifier rejects samples (section 3.3).

Measured: a classifier assigns 80.3 % of samples to the class that they were conditioned on, FD 38.5, on the digits, at
temperatures of 0.8 and 0.7 of the top and the bottom codes, 1,200 steps of
`python train.py configs/vae/vq_vae2_bottom.py:digits`; 30.4 nats of the 16 bottom codes of validation images given the
top ones, of 44.4 for uniform codes. Of an autoencoder trained for twice as many steps, whose codes are harder to model,
it was 71.0 % and FD 46.4: with 1,350 images, the priors overfit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
    frozen_context,
    select,
    select_first,
)
from jgen.errors import defaults_of, require, require_labels, require_temperature
from jgen.nn import code_pixelcnn
from jgen.prob.autoregressive import categorical_log_prob
from jgen.prob.code_prior import (
    check_autoencoder,
    check_conditions,
    code_loss,
    code_scores,
    codes_of,
    images_of,
)
from jgen.samplers.autoregressive import sample_raster


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    temperature_top: float = 1.0
    """Divisor of the top codes' logits, above 0; below 1 favours likelier codes."""
    temperature_bottom: float = 1.0
    """Divisor of the bottom codes' logits, above 0; below 1 favours likelier codes."""


@dataclass(frozen=True)
class Config:
    """A prior over the bottom codes of a VQ-VAE-2, given its top codes."""

    network: code_pixelcnn.Config = field(default_factory=code_pixelcnn.Config)
    conditioning_blocks: int = 4
    """Residual blocks of the stack that reads the top codes."""
    class_conditional: bool = True
    """Condition on the class label."""
    sampling: Sampling = field(default_factory=Sampling)


class Prior(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`.

    `codes` is the specification of the bottom codes.
    """

    config: Config
    top: GenerativeModel
    codes: ImageSpec
    network: code_pixelcnn.CodePixelCNN
    stack: code_pixelcnn.ConditioningStack
    conditions: tuple[str, ...]


def make(config: Config, data: DataSpec, *, top: GenerativeModel) -> GenerativeModel:
    """A distribution over images, given by one over the bottom codes of an autoencoder given its top codes.

    Args:
      top: the prior of the top codes, a `vq_vae2_top`: its `sample_codes`, and its autoencoder's `encode`, `decode`.
    Raises:
      UserError: `top` is another kind of model, sizes that the networks cannot be built with, options out of range.
    """
    check_config(config, data, top)
    bottom, c = top.codes[1], config.network
    conditions = ("label",) * config.class_conditional
    network = code_pixelcnn.make_network(c, bottom, data.num_classes if conditions else 0, local=True)
    doublings = doublings_between(*top.codes)
    sizes = (top.codes[0].levels, c.embedding, c.features, config.conditioning_blocks, doublings)
    stack = code_pixelcnn.ConditioningStack(*sizes, jnp.dtype(c.dtype))
    prior = Prior(config, top, bottom, network, stack, conditions)
    return GenerativeModel(
        name="vq_vae2_bottom",
        data=data,
        init=partial(init, prior),
        phases=(Phase(trains=("prior", "stack"), loss=partial(loss, prior)),),
        sample=partial(sample, prior),
        sampling=config.sampling,
        check_sampling=check_sampling,
        conditions=conditions,
        validate=partial(validate, prior),
        best=("nll_codes", "min"),
    )


def init(prior: Prior, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_prior, key_stack = jax.random.split(key)
    top, bottom = (jnp.zeros((1, *spec.shape), jnp.int32) for spec in prior.top.codes)
    local, stack = prior.stack.init_with_output(key_stack, top)
    cond = {**select_first(batch, prior.conditions), "local": local}
    return {"prior": prior.network.init(key_prior, bottom, cond)["params"], "stack": stack["params"]}, {}


def condition(prior: Prior, params: Roles, top: jax.Array, cond: Cond) -> Cond:
    """What the network is conditioned on: the class, and the features of the top codes (B, h, w, 1)."""
    return {**select(cond, prior.conditions), "local": prior.stack.apply({"params": params["stack"]}, top)}


def code_log_prob(
    prior: Prior, params: Roles, ctx: Context, keys: jax.Array, batch: Batch, key_drop: jax.Array | None
) -> jax.Array:
    """log p(b | t, h) of the images' bottom codes given their top codes, float32 (B,)."""
    top, bottom = codes_of(prior.top, "top", ctx, keys, batch)
    cond = condition(prior, params, top, batch)
    return categorical_log_prob(prior.network.apply({"params": params["prior"]}, bottom, cond, key_drop), bottom)


def loss(prior: Prior, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    key_encode, key_drop = rng.split(keys, 2)
    return code_loss(code_log_prob(prior, params, ctx, key_encode, batch, key_drop), prior.codes)


def validate(prior: Prior, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return code_scores(code_log_prob(prior, params, ctx, keys, batch, None), prior.codes)


def sample(prior: Prior, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    o = replace(prior.config.sampling, **options)
    key_top, key_bottom, key_decode = rng.split(keys, 3)
    frozen, inner = frozen_context(ctx, "top")
    draw_top, spec = prior.top.functions["sample_codes"], prior.codes
    top = draw_top(frozen, inner, key_top, prior.top.condition(cond), o.temperature_top)
    given = condition(prior, params, top, cond)
    bottom = sample_raster(
        prior.network, params["prior"], key_bottom, given, spec.shape, spec.levels, o.temperature_bottom
    )
    return images_of(prior.top, "top", ctx, key_decode, (top, bottom), cond)


def doublings_between(top: ImageSpec, bottom: ImageSpec) -> int:
    """Number of doublings from the top's height and width to the bottom's. Raises `UserError` if there is no such
    number."""
    n = (bottom.height // top.height).bit_length() - 1
    fits = (top.height << n, top.width << n) == (bottom.height, bottom.width) if n >= 0 else False
    sizes = f"{top.height}x{top.width} top and {bottom.height}x{bottom.width} bottom codes"
    require(fits, f"frozen.top has {sizes}: the bottom's sizes must be the top's times a power of two")
    return n


def check_sampling(options: Sampling) -> None:
    """Raises `UserError` for a temperature out of its range."""
    require_temperature(options.temperature_top, "temperature_top")
    require_temperature(options.temperature_bottom, "temperature_bottom")


def check_config(config: Config, data: DataSpec, top: GenerativeModel) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    provides = "sample_codes" in top.functions
    require(provides, f"frozen.top is a {top.name}, which provides no sample_codes: it must be a vq_vae2_top")
    check_autoencoder(top, data, "top", 2, "a vq_vae2_top")
    check_conditions(top, "top", config.class_conditional)
    blocks = config.conditioning_blocks
    require(blocks >= 0, f"conditioning_blocks is {blocks}: it must be zero or above")
    with defaults_of("sampling"):
        check_sampling(config.sampling)
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
