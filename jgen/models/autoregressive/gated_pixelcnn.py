"""Gated PixelCNN (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves & Kavukcuoglu 2016, arXiv 1606.05328).

    model     p(x | h) = prod_i p(x_i | x_1, ..., x_{i-1}, h), pixels row by row         (equations 1, 3)
              p(x_i | x_<i, h) = p(R | x_<i, h) p(G | R, x_<i, h) p(B | R, G, x_<i, h), each a softmax over the levels
    layer     y = tanh(W_f * x + V_f h) . sigmoid(W_g * x + V_g h)                       (equation 4)
    loss      -log p(x | h), a mean over images and dimensions; log_prob is exact
    sampling  x_i ~ softmax(logits_i / temperature), one after another

Glossary: x an image; x_<i the pixels above and to the left; h the class as a one-hot vector, W the masked kernels of a
vertical stack (all rows above) and a horizontal one (the own row, and what the vertical stack found).

Differs from the paper: the class enters both stacks; the first layer has no residual connection, its input being an
image; dropout is an option; no up- or down-sampling and no location-dependent conditioning. Sampling keeps activations,
so that a pixel costs one column of the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Context, GenerativeModel, ImageSpec, Phase, Roles
from jgen.errors import require, require_choice
from jgen.nn.gated_pixelcnn import GatedPixelCNN, check_network
from jgen.prob.autoregressive import categorical_log_prob
from jgen.prob.pixels import bits_per_dim
from jgen.samplers.autoregressive import check_prefix, check_temperature, sample_raster


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    temperature: float = 1.0
    """The logits are divided by it: below 1 the likelier values are drawn more often; above 0."""


@dataclass(frozen=True)
class Config:
    """Gated PixelCNN: a vertical and a horizontal stack of gated masked convolutions."""

    features: int = 96
    """Width of each stack; a multiple of the images' channels."""
    blocks: int = 12
    """Gated layers after the first."""
    first_kernel: int = 7
    """Size n of the first layer's masked n x n convolution; odd."""
    kernel: int = 3
    """Size of the other layers' masked convolutions; odd."""
    hidden: int = 256
    """Width of the output's middle layer; a multiple of the images' channels."""
    embedding: int = 0
    """Length of the vector learned for each level, in place of its value; 0: the value, scaled to [-1, 1]."""
    dropout: float = 0.0
    """Dropout rate in the gated layers."""
    class_conditional: bool = True
    """Condition on the label."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's arithmetic; parameters, logits and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, images: ImageSpec, axis_name: str | None = None) -> GenerativeModel:
    """A Gated PixelCNN over images of that shape, number of levels and classes.

    Args:
      axis_name: the device axis to synchronise batch statistics over; this model has none and ignores it.
    Raises:
      UserError: sizes that the network cannot be built with, or options out of their range.
    """
    check_config(config, images)
    network = GatedPixelCNN(
        levels=images.levels,
        channels=images.channels,
        features=config.features,
        blocks=config.blocks,
        hidden=config.hidden,
        first_size=config.first_kernel,
        size=config.kernel,
        embedding=config.embedding,
        num_classes=images.num_classes if config.class_conditional else 0,
        dropout_rate=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )

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
        name="gated_pixelcnn",
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
    )


def check_config(config: Config, images: ImageSpec) -> None:
    """Raises `UserError` for a configuration that no Gated PixelCNN can be made of."""
    sizes = {"first_kernel": config.first_kernel, "kernel": config.kernel}
    check_network(images.channels, config.features, config.hidden, config.blocks, sizes, config.dropout)
    require(config.embedding >= 0, f"embedding is {config.embedding}: it must be above zero, or 0 for scaled values")
    require_choice("dtype", config.dtype, ("float32", "bfloat16"))
    check_temperature(config.sampling.temperature)
    require(
        images.num_classes > 0 or not config.class_conditional,
        "class_conditional is True, but the data has no labels: set --model.class-conditional False",
    )
