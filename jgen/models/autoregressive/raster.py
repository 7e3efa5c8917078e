"""What all autoregressive models over pixels in raster order share: everything but the network.

loss          -log p(x | h), h the condition, averaged over images and dimensions
log_prob      sum_i log p(x_i | x_<i, h), exact
sample        x_i ~ p(x_i | x_<i, h), one after another, with cached activations
inpaint       as `sample`, given the pixels kept by a mask, which must come first in raster order
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
    Frozen,
    GenerativeModel,
    Loss,
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
    """First argument of the functions below, bound by `make_raster_model` with `functools.partial`.

    log_likelihood(params, x, cond, key_drop) -> log p(x | cond) in nats, float32 (B,), of uint8 images; key_drop:
    dropout keys (B,) or None.
    draw(params, keys, cond, x, mask, options) -> integer images (B, H, W, C). Pixels where mask is true are copied from
    x, the others are sampled; with mask None all are sampled. `options` is the model's Sampling.
    """

    data: DataSpec
    conditions: tuple[str, ...]
    sampling: Any
    log_likelihood: Callable[[Roles, jax.Array, Cond, jax.Array | None], jax.Array]
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
    """A `GenerativeModel` with an exact likelihood and a sampler that can start from the first pixels.

    Args:
      init: `GenerativeModel.init`.
      role: name of the role that holds the parameters.
      loss: loss of the training phase; default: negative log likelihood per dimension.
      check_sampling, functions: the fields of `GenerativeModel`.
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


def make_pixelcnn_model(
    name: str,
    network: Any,
    config: Any,
    data: DataSpec,
    score: Callable[[jax.Array, jax.Array], jax.Array] = categorical_log_prob,
    sampler: Callable[..., jax.Array] = sample_raster,
    check_sampling: Callable[[Any], None] | None = None,
) -> GenerativeModel:
    """A `GenerativeModel` of an autoregressive `network`, which predicts each pixel from the previous ones and, if
    `config.class_conditional`, the class.

    Args:
      network: a linen module, (x, label, key_drop) to outputs (B, H, W, ...), logits (B, H, W, C, levels) by default,
        whose parameters become the role "pixelcnn".
      config: the system's Config, checked: see `check_raster`.
      score: (outputs, x) -> log p(x) in nats, (B,), of uint8 images x.
      sampler: a function with the signature of `sample_raster`; its options are the fields of `config.sampling`.
      check_sampling: the check of these options; default: that of `jgen.samplers.truncation`.
    """
    conditions = ("label",) if config.class_conditional else ()

    def init(key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
        label = select_first(batch, conditions).get("label")
        return {"pixelcnn": network.init(key, batch["image"][:1], label)["params"]}, {}

    def log_likelihood(params: Roles, x: jax.Array, cond: Cond, key_drop: jax.Array | None) -> jax.Array:
        return score(network.apply({"params": params["pixelcnn"]}, x, cond.get("label"), key_drop), x)

    def draw(
        params: Roles, keys: jax.Array, cond: Cond, x: jax.Array | None, mask: jax.Array | None, options: Any
    ) -> jax.Array:
        label, spec = cond.get("label"), data.image
        given = {"images": x, "mask": mask, **vars(options)}
        return sampler(network, params["pixelcnn"], keys, label, spec.shape, spec.levels, **given)

    def conditionals(params: Roles, ctx: Context, x: jax.Array, cond: Cond) -> jax.Array:
        return network.apply({"params": params["pixelcnn"]}, x, cond.get("label"))

    raster = Raster(data, conditions, config.sampling, log_likelihood, draw)
    check = check_sampling or partial(check_truncated, data.image.levels)
    functions = {"conditionals": conditionals}
    return make_raster_model(name, raster, init, "pixelcnn", check_sampling=check, functions=functions)


def nll_per_dim(raster: Raster, log_p: jax.Array) -> Loss:
    """(loss, (metrics, new extra)) of a phase, from log p(x) in nats, (B,): the mean negative log likelihood per
    dimension in nats, and the metric "bits_per_dim"."""
    mean, size = jnp.mean(log_p), raster.data.image.size
    return -mean / size, ({"bits_per_dim": bits_per_dim(mean, size)}, {})


def nll_loss(raster: Raster, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    (key_drop,) = rng.split(keys, 1)
    return nll_per_dim(
        raster, raster.log_likelihood(params, batch["image"], select(batch, raster.conditions), key_drop)
    )


def validate(raster: Raster, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    log_p = raster.log_likelihood(params, batch["image"], select(batch, raster.conditions), None)
    return {"nll": -log_p, "bits_per_dim": bits_per_dim(log_p, raster.data.image.size)}


def log_prob(raster: Raster, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    return raster.log_likelihood(params, x, cond, None)


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
    """Raises `UserError` if the configuration is invalid for this data."""
    sizes = {"first_kernel": config.first_kernel, "kernel": config.kernel}
    check_network(data.image.channels, config.features, config.hidden, config.blocks, sizes, config.dropout)
    with defaults_of("sampling"):
        check_truncated(data.image.levels, config.sampling)
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
