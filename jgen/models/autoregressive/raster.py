"""What autoregressive models over pixels in raster order share: all but the network.

loss          -log p(x | h), a mean over images and dimensions
log_prob      sum_i log p(x_i | x_<i, h), exact
sample        x_i ~ softmax(logits_i / temperature), one after another, with cached activations
inpaint       the same after the pixels that a mask keeps, which must be the first in raster order
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Context, GenerativeModel, ImageSpec, Phase, Roles
from jgen.errors import defaults_of, require_choice, require_labels, require_temperature
from jgen.nn.gated_pixelcnn import check_network
from jgen.prob.autoregressive import categorical_log_prob
from jgen.prob.pixels import bits_per_dim
from jgen.samplers.autoregressive import RasterNetwork, check_prefix, sample_raster


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    temperature: float = 1.0
    """The logits are divided by it: below 1 the likelier values are drawn more often; above 0."""


def make_raster(name: str, network: RasterNetwork, config: Any, images: ImageSpec) -> GenerativeModel:
    """A model whose `network` gives the logits of every pixel from those before it.

    Args:
      network: a linen module, (x, label, key_drop) to logits (B, H, W, C, levels), whose parameters become the role
        "pixelcnn".
      config: of the system, checked by `check_raster`.
    """

    def init(key: jax.Array, batch: Batch) -> tuple[Roles, Roles]:
        return {"pixelcnn": network.init(key, batch["image"][:1], batch["label"][:1])["params"]}, {}

    def nats(params: Roles, x: jax.Array, label: jax.Array | None, key_drop: jax.Array | None) -> jax.Array:
        """log p(x | label), float32 (B,)."""
        return categorical_log_prob(network.apply({"params": params["pixelcnn"]}, x, label, key_drop), x)

    def loss(params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> tuple[jax.Array, tuple[dict, Roles]]:
        (key_drop,) = rng.split(keys, 1)
        log_p = jnp.mean(nats(params, batch["image"], batch["label"], key_drop))
        return -log_p / images.size, ({"bits_per_dim": bits_per_dim(log_p, images.size)}, {})

    def validate(params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        log_p = nats(params, batch["image"], batch["label"], None)
        return {"nll": -log_p, "bits_per_dim": bits_per_dim(log_p, images.size)}

    def log_prob(params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, label: jax.Array | None) -> jax.Array:
        return nats(params, x, label, None)

    def sample(params: Roles, ctx: Context, keys: jax.Array, label: jax.Array | None, **options: Any) -> jax.Array:
        return complete(params, keys, label, None, None, **options)

    def inpaint(
        params: Roles,
        ctx: Context,
        keys: jax.Array,
        x: jax.Array,
        mask: jax.Array,
        label: jax.Array | None,
        **options: Any,
    ) -> jax.Array:
        return complete(params, keys, label, x, mask, **options)

    def complete(
        params: Roles,
        keys: jax.Array,
        label: jax.Array | None,
        x: jax.Array | None,
        mask: jax.Array | None,
        **options: Any,
    ) -> jax.Array:
        o = replace(config.sampling, **options)
        found = sample_raster(
            network, params["pixelcnn"], keys, label, images.shape, images.levels, o.temperature, x, mask
        )
        return found.astype(jnp.uint8)

    return GenerativeModel(
        name=name,
        images=images,
        init=init,
        phases=(Phase(trains=("pixelcnn",), loss=loss),),
        sample=sample,
        sampling=config.sampling,
        validate=validate,
        log_prob=log_prob,
        likelihood="exact",
        inpaint=inpaint,
        check_mask=check_prefix,
        conditional=config.class_conditional,
        free_form_jacobian=False,  # triangular: a pixel depends on those before it
    )


def check_raster(config: Any, images: ImageSpec) -> None:
    """Raises `UserError` for a Config that no such model can be made of."""
    sizes = {"first_kernel": config.first_kernel, "kernel": config.kernel}
    check_network(images.channels, config.features, config.hidden, config.blocks, sizes, config.dropout)
    require_choice("dtype", config.dtype, ("float32", "bfloat16"))
    with defaults_of("sampling"):
        require_temperature(config.sampling.temperature)
    require_labels(images.num_classes, "class_conditional", config.class_conditional, False)
