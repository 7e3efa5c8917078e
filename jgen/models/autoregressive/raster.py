"""What all autoregressive models over pixels in raster order share: everything but the network.

loss          -log p(x | h), a mean over images and dimensions
log_prob      sum_i log p(x_i | x_<i, h), exact
sample        x_i ~ p(x_i | x_<i, h), one after another, with cached activations
inpaint       as `sample`, given the pixels that a mask keeps, which must be the first in raster order
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, GenerativeModel, Phase, Roles, select, select_first
from jgen.errors import defaults_of, require_labels, require_temperature
from jgen.nn.gated_pixelcnn import check_network
from jgen.prob.autoregressive import categorical_log_prob
from jgen.prob.pixels import bits_per_dim
from jgen.samplers.autoregressive import check_prefix, sample_raster


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    temperature: float = 1.0
    """The logits are divided by it: below 1 favours the likelier values; above 0."""


class Raster(NamedTuple):
    """What `make_raster` binds the functions below to."""

    network: Any
    config: Any
    data: DataSpec
    conditions: tuple[str, ...]
    score: Callable[[jax.Array, jax.Array], jax.Array]
    sampler: Callable[..., jax.Array]


def make_raster(
    name: str,
    network: Any,
    config: Any,
    data: DataSpec,
    score: Callable[[jax.Array, jax.Array], jax.Array] = categorical_log_prob,
    sampler: Callable[..., jax.Array] = sample_raster,
) -> GenerativeModel:
    """A model whose `network` describes the distribution of every pixel given those before it.

    Args:
      network: a linen module, (x, label, key_drop) to outputs (B, H, W, ...), logits (B, H, W, C, levels) by default,
        whose parameters become the role "pixelcnn".
      config: the system's Config, checked: see `check_raster`.
      score: (outputs, x) to the nats of uint8 images, (B,). sampler: with the arguments of `sample_raster`.
    """
    raster = Raster(network, config, data, ("label",) if config.class_conditional else (), score, sampler)
    return GenerativeModel(
        name=name,
        data=data,
        init=partial(init, raster),
        phases=(Phase(trains=("pixelcnn",), loss=partial(loss, raster)),),
        sample=partial(sample, raster),
        sampling=config.sampling,
        conditions=raster.conditions,
        validate=partial(validate, raster),
        best=("nll", "min"),
        log_prob=partial(log_prob, raster),
        likelihood="exact",
        inpaint=partial(inpaint, raster),
        check_mask=check_prefix,
        functions={"conditionals": partial(conditionals, raster)},
    )


def init(raster: Raster, key: jax.Array, batch: Batch, frozen: Any) -> tuple[Roles, Roles]:
    label = select_first(batch, raster.conditions).get("label")
    return {"pixelcnn": raster.network.init(key, batch["image"][:1], label)["params"]}, {}


def nats(raster: Raster, params: Roles, x: jax.Array, cond: Cond, key_drop: jax.Array | None) -> jax.Array:
    """log p(x | label), float32 (B,)."""
    outputs = raster.network.apply({"params": params["pixelcnn"]}, x, cond.get("label"), key_drop)
    return raster.score(outputs, x)


def loss(
    raster: Raster, params: Roles, ctx: Context, keys: jax.Array, batch: Batch
) -> tuple[jax.Array, tuple[dict, Roles]]:
    (key_drop,) = rng.split(keys, 1)
    size = raster.data.image.size
    log_p = jnp.mean(nats(raster, params, batch["image"], select(batch, raster.conditions), key_drop))
    return -log_p / size, ({"bits_per_dim": bits_per_dim(log_p, size)}, {})


def validate(raster: Raster, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    log_p = nats(raster, params, batch["image"], select(batch, raster.conditions), None)
    return {"nll": -log_p, "bits_per_dim": bits_per_dim(log_p, raster.data.image.size)}


def log_prob(raster: Raster, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    return nats(raster, params, x, cond, None)


def conditionals(raster: Raster, params: Roles, ctx: Context, x: jax.Array, cond: Cond) -> jax.Array:
    return raster.network.apply({"params": params["pixelcnn"]}, x, cond.get("label"))


def sample(raster: Raster, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    return complete(raster, params, keys, cond, None, None, **options)


def inpaint(
    raster: Raster,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    x: jax.Array,
    mask: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    return complete(raster, params, keys, cond, x, mask, **options)


def complete(
    raster: Raster,
    params: Roles,
    keys: jax.Array,
    cond: Cond,
    x: jax.Array | None,
    mask: jax.Array | None,
    **options: Any,
) -> jax.Array:
    """uint8 images: sampled, but for the pixels where the mask is true, which are those of x; None samples all."""
    o = replace(raster.config.sampling, **options)
    spec, label = raster.data.image, cond.get("label")
    params = params["pixelcnn"]
    drawn = raster.sampler(raster.network, params, keys, label, spec.shape, spec.levels, o.temperature, x, mask)
    return drawn.astype(jnp.uint8)


def check_raster(config: Any, data: DataSpec) -> None:
    """Raises `UserError` for a Config that no such model can be made of."""
    sizes = {"first_kernel": config.first_kernel, "kernel": config.kernel}
    check_network(data.image.channels, config.features, config.hidden, config.blocks, sizes, config.dropout)
    with defaults_of("sampling"):
        require_temperature(config.sampling.temperature)
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
