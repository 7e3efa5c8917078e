"""PixelCNN (van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv 1601.06759), with its blind spot.

    model     p(x) = prod_i p(x_i | x_1, ..., x_{i-1}), pixels row by row                (equation 1)
              p(x_i | x_<i) = p(R | x_<i) p(G | R, x_<i) p(B | R, G, x_<i)               (equation 2)
              each a softmax over the levels                                             (section 3.1)
    block     h + W_3 relu(W_2 * relu(W_1 relu(h))), W_2 a masked convolution            (figure 5)
    loss      -log p(x), a mean over images and dimensions; log_prob is exact
    sampling  x_i ~ softmax(logits_i / temperature), one after another

Glossary: x an image; x_<i the pixels above and to the left; h features; mask A hides the own channel of the own pixel,
mask B does not. Blind spot: pixels above and far to the right, which no path of masked convolutions reaches.

Differs from the paper: the class may add a bias in every block, and dropout is an option; sampling keeps activations,
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
from jgen.nn.gated_pixelcnn import check_network
from jgen.nn.pixelcnn import PixelCNN
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
    """PixelCNN: residual blocks of masked convolutions."""

    features: int = 64
    """Width of the masked convolutions, half of that between blocks; a multiple of the images' channels."""
    blocks: int = 12
    """Residual blocks after the first layer."""
    first_kernel: int = 7
    """Size n of the first layer's masked n x n convolution; odd."""
    kernel: int = 3
    """Size of the other layers' masked convolutions; odd."""
    hidden: int = 256
    """Width of the output's middle layer; a multiple of the images' channels."""
    dropout: float = 0.0
    """Dropout rate in the residual blocks."""
    class_conditional: bool = False
    """Condition on the label; the paper does not."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's arithmetic; parameters, logits and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, images: ImageSpec, axis_name: str | None = None) -> GenerativeModel:
    """A PixelCNN over images of that shape, number of levels and classes.

    Args:
      axis_name: the device axis to synchronise batch statistics over; this model has none and ignores it.
    Raises:
      UserError: sizes that the network cannot be built with, or options out of their range.
    """
    check_config(config, images)
    network = PixelCNN(
        levels=images.levels,
        channels=images.channels,
        features=config.features,
        blocks=config.blocks,
        hidden=config.hidden,
        first_size=config.first_kernel,
        size=config.kernel,
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
        name="pixelcnn",
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
    """Raises `UserError` for a configuration that no PixelCNN can be made of."""
    sizes = {"first_kernel": config.first_kernel, "kernel": config.kernel}
    check_network(images.channels, config.features, config.hidden, config.blocks, sizes, config.dropout)
    require_choice("dtype", config.dtype, ("float32", "bfloat16"))
    check_temperature(config.sampling.temperature)
    require(
        images.num_classes > 0 or not config.class_conditional,
        "class_conditional is True, but the data has no labels: set --model.class-conditional False",
    )
