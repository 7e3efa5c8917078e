"""What all autoregressive models over pixels in raster order share: everything but the network.

loss          -log p(x | h), a mean over images and dimensions
log_prob      sum_i log p(x_i | x_<i, h), exact
sample        x_i ~ p(x_i | x_<i, h), one after another, with cached activations
inpaint       as `sample`, given the pixels that a mask keeps, which must be the first in raster order
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
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
    GenerativeModel,
    LossFn,
    Phase,
    Roles,
    select,
    select_first,
)
from jgen.errors import defaults_of, require_labels
from jgen.nn.gated_pixelcnn import check_network
from jgen.prob.autoregressive import categorical_log_prob
from jgen.prob.pixels import bits_per_dim
from jgen.samplers.autoregressive import check_prefix, sample_raster
from jgen.samplers.truncation import check_sampling as check_truncated


class Raster(NamedTuple):
    """What `make_raster_model` binds the functions below to.

    nats(params, x, cond, key_drop) -> log p(x | cond), float32 (B,), of uint8 images; key_drop: (B,) keys or None.
    draw(params, keys, cond, x, mask, options) -> integer images (B, H, W, C): sampled, but for the pixels where the
    mask is true, which are those of x; None samples all. `options` is the model's Sampling.
    """

    data: DataSpec
    conditions: tuple[str, ...]
    sampling: Any
    nats: Callable[[Roles, jax.Array, Cond, jax.Array | None], jax.Array]
    draw: Callable[[Roles, jax.Array, Cond, jax.Array | None, jax.Array | None, Any], jax.Array]


def make_raster_model(
    name: str,
    raster: Raster,
    init: Callable[..., tuple[Roles, Roles]],
    role: str,
    loss: LossFn | None = None,
    check_sampling: Callable[[Any], None] | None = None,
    functions: Mapping[str, Callable[..., Any]] = {},
) -> GenerativeModel:
    """A model that has an exact `nats` and a sampler that can start from the first pixels.

    Args:
      init, functions: the contract's. role: that of the parameters. loss: the phase's, by default -log p of the batch.
    """
    return GenerativeModel(
        name=name,
        data=raster.data,
        init=init,
        phases=(Phase(trains=(role,), loss=loss or partial(nll_loss, raster)),),
        sample=partial(sample, raster),
        sampling=raster.sampling,
        check_sampling=check_sampling,
        conditions=raster.conditions,
        validate=partial(validate, raster),
        best=("nll", "min"),
        log_prob=partial(log_prob, raster),
        likelihood="exact",
        inpaint=partial(inpaint, raster),
        check_mask=check_prefix,
        functions=functions,
    )


def make_raster(
    name: str,
    network: Any,
    config: Any,
    data: DataSpec,
    score: Callable[[jax.Array, jax.Array], jax.Array] = categorical_log_prob,
    sampler: Callable[..., jax.Array] = sample_raster,
    check_sampling: Callable[[Any], None] | None = None,
) -> GenerativeModel:
    """A model whose `network` describes the distribution of every pixel given those before it and, if asked, the class.

    Args:
      network: a linen module, (x, label, key_drop) to outputs (B, H, W, ...), logits (B, H, W, C, levels) by default,
        whose parameters become the role "pixelcnn".
      config: the system's Config, checked: see `check_raster`.
      score: (outputs, x) to the nats of uint8 images, (B,). sampler: with the arguments of `sample_raster`
        but for its options, which are the fields of `config.sampling`, checked by `check_sampling`.
    """
    conditions = ("label",) if config.class_conditional else ()

    def init(key: jax.Array, batch: Batch, frozen: Any) -> tuple[Roles, Roles]:
        label = select_first(batch, conditions).get("label")
        return {"pixelcnn": network.init(key, batch["image"][:1], label)["params"]}, {}

    def nats(params: Roles, x: jax.Array, cond: Cond, key_drop: jax.Array | None) -> jax.Array:
        return score(network.apply({"params": params["pixelcnn"]}, x, cond.get("label"), key_drop), x)

    def draw(
        params: Roles, keys: jax.Array, cond: Cond, x: jax.Array | None, mask: jax.Array | None, options: Any
    ) -> jax.Array:
        label, spec = cond.get("label"), data.image
        given = {"images": x, "mask": mask, **vars(options)}
        return sampler(network, params["pixelcnn"], keys, label, spec.shape, spec.levels, **given)

    def conditionals(params: Roles, ctx: Context, x: jax.Array, cond: Cond) -> jax.Array:
        return network.apply({"params": params["pixelcnn"]}, x, cond.get("label"))

    raster = Raster(data, conditions, config.sampling, nats, draw)
    check = check_sampling or partial(check_truncated, data.image.levels)
    functions = {"conditionals": conditionals}
    return make_raster_model(name, raster, init, "pixelcnn", check_sampling=check, functions=functions)


def bits_loss(raster: Raster, log_p: jax.Array) -> tuple[jax.Array, tuple[dict, Roles]]:
    """What a phase's loss returns, of the nats (B,) of a batch."""
    mean, size = jnp.mean(log_p), raster.data.image.size
    return -mean / size, ({"bits_per_dim": bits_per_dim(mean, size)}, {})


def nll_loss(
    raster: Raster, params: Roles, ctx: Context, keys: jax.Array, batch: Batch
) -> tuple[jax.Array, tuple[dict, Roles]]:
    (key_drop,) = rng.split(keys, 1)
    return bits_loss(raster, raster.nats(params, batch["image"], select(batch, raster.conditions), key_drop))


def validate(raster: Raster, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    log_p = raster.nats(params, batch["image"], select(batch, raster.conditions), None)
    return {"nll": -log_p, "bits_per_dim": bits_per_dim(log_p, raster.data.image.size)}


def log_prob(raster: Raster, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    return raster.nats(params, x, cond, None)


def sample(raster: Raster, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    return raster.draw(params, keys, cond, None, None, replace(raster.sampling, **options)).astype(jnp.uint8)


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
    return raster.draw(params, keys, cond, x, mask, replace(raster.sampling, **options)).astype(jnp.uint8)


def check_raster(config: Any, data: DataSpec) -> None:
    """Raises `UserError` for a Config that no such model can be made of."""
    sizes = {"first_kernel": config.first_kernel, "kernel": config.kernel}
    check_network(data.image.channels, config.features, config.hidden, config.blocks, sizes, config.dropout)
    with defaults_of("sampling"):
        check_truncated(data.image.levels, config.sampling)
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
