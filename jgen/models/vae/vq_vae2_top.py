"""VQ-VAE-2, the prior of the top codes (Razavi, van den Oord & Vinyals 2019, arXiv 1906.00446, section 3.2).

    autoencoder  codes (t, b) = encode(x); trained before and frozen                        (`jgen.models.vae.vq_vae2`)
    prior        p(t | h) = prod_i p(t_i | t_<i, h), a Gated PixelCNN with causal attention  (`jgen.nn.code_pixelcnn`)
    loss         - log p(t | h), a mean over images and codes

Top codes alone do not make an image, so there is no `sample`: `functions["sample_codes"](params, ctx, keys, cond,
temperature)` draws top codes, int32 (B, h, w, 1), for the prior of the bottom codes, which depends on this run
(`jgen.models.vae.vq_vae2_bottom`). `encode` and `decode` are the autoencoder's; `validate` scores the top codes, in
nats.

Glossary: x an image; t, b its top and bottom codes, t_<i those above and to the left; h the class as a one-hot vector.

Differs from the paper: attention follows gated layers, which are residual only in the horizontal stack, and is not
followed by a gate; learned position embeddings are added to the input of attention; the learning rate decays.

Measured: 6.53 nats of the 4 top codes of the digits' validation images, of 11.09 for uniform codes, 800 steps of
`python train.py configs/vae/vq_vae2_top.py:digits`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    select,
    select_first,
)
from jgen.errors import require_labels
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

WHY_NO_SAMPLES = "top codes alone are no image: train configs/vae/vq_vae2_bottom.py on it, which draws images"


@dataclass(frozen=True)
class Config:
    """A prior over the top codes of a VQ-VAE-2."""

    network: code_pixelcnn.Config = field(default_factory=code_pixelcnn.Config)
    class_conditional: bool = True
    """Condition on the class label."""


class Prior(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`.

    `codes` is the specification of the top codes.
    """

    autoencoder: GenerativeModel
    codes: ImageSpec
    network: code_pixelcnn.CodePixelCNN
    conditions: tuple[str, ...]


def make(config: Config, data: DataSpec, *, autoencoder: GenerativeModel) -> GenerativeModel:
    """A distribution over the first of two grids of codes of a frozen autoencoder.

    Args:
      autoencoder: any model with two grids of `codes`, top and bottom, with its `encode` and `decode`.
    Raises:
      UserError: an autoencoder without two grids, sizes that the network cannot be built with, options out of range.
    """
    check_config(config, data, autoencoder)
    top, conditions = autoencoder.codes[0], ("label",) * config.class_conditional
    network = code_pixelcnn.make_network(config.network, top, data.num_classes if conditions else 0)
    prior = Prior(autoencoder, top, network, conditions)
    return GenerativeModel(
        name="vq_vae2_top",
        data=data,
        init=partial(init, prior),
        phases=(Phase(trains=("prior",), loss=partial(loss, prior)),),
        conditions=conditions,
        validate=partial(validate, prior),
        best=("nll_codes", "min"),
        encode=partial(encode, prior),
        decode=partial(decode, prior),
        codes=autoencoder.codes,
        functions={"sample_codes": partial(sample_codes, prior)},
        why_not={"sample": WHY_NO_SAMPLES},
    )


def init(prior: Prior, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    codes = jnp.zeros((1, *prior.codes.shape), jnp.int32)
    return {"prior": prior.network.init(key, codes, select_first(batch, prior.conditions))["params"]}, {}


def code_log_prob(
    prior: Prior, params: Roles, ctx: Context, keys: jax.Array, batch: Batch, key_drop: jax.Array | None
) -> jax.Array:
    """log p(t | h) of the images' top codes, float32 (B,)."""
    top, _ = codes_of(prior.autoencoder, "autoencoder", ctx, keys, batch)
    logits = prior.network.apply({"params": params["prior"]}, top, select(batch, prior.conditions), key_drop)
    return categorical_log_prob(logits, top)


def loss(prior: Prior, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    key_encode, key_drop = rng.split(keys, 2)
    return code_loss(code_log_prob(prior, params, ctx, key_encode, batch, key_drop), prior.codes)


def validate(prior: Prior, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return code_scores(code_log_prob(prior, params, ctx, keys, batch, None), prior.codes)


def sample_codes(
    prior: Prior, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, temperature: float = 1.0
) -> jax.Array:
    """Top codes, int32 (B, h, w, 1), in one compiled program."""
    spec, cond = prior.codes, select(cond, prior.conditions)
    return sample_raster(prior.network, params["prior"], keys, cond, spec.shape, spec.levels, temperature)


def encode(prior: Prior, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> Any:
    return codes_of(prior.autoencoder, "autoencoder", ctx, keys, {**cond, "image": x})


def decode(prior: Prior, params: Roles, ctx: Context, keys: jax.Array, codes: Any, cond: Cond) -> jax.Array:
    return images_of(prior.autoencoder, "autoencoder", ctx, keys, codes, cond)


def check_config(config: Config, data: DataSpec, autoencoder: GenerativeModel) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    check_autoencoder(autoencoder, data, "autoencoder", 2, "a vq_vae2")
    check_conditions(autoencoder, "autoencoder", config.class_conditional)
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
