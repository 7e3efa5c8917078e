"""Sparse transformer over pixels (Child, Gray, Radford & Sutskever 2019, arXiv 1904.10509).

    model     p(x | h) = prod_i p(x_i | x_1, ..., x_{i-1}, h), sub-pixels in raster order, each a softmax over levels
    layer     a = attention(norm(y)),  y + a + W_2 gelu(W_1 norm(y + a)), with dropout on both   (equations 12 to 14)
    strided   position i attends to the l positions before it; in the next layer to i - l, i - 2 l, ...    (section 4.3)
    fixed     position i attends to earlier positions of its block of l; in the next layer to the last c of every block
    loss      E_t -log p(t(x) | h, t), a mean over images and dimensions; t a random rotation or reflection (Jun et al.
              2020)
    log_prob  log p(x | h, t = identity), exact
    sampling  x_i ~ softmax(logits_i / temperature), optionally truncated by top-k and top-p, one after another

Glossary: x an image, x_i its i-th value, of N = height x width x channels; h the class and text; y the sequence.

Differs from the papers: attention patterns are interleaved by layer, the first of section 4.3's three options; in the
fixed pattern's second layer a position also attends to itself; class and augmentation are embeddings added at every
position; text tokens are prepended to the image: every image position attends to all of them, and they are not
predicted; of the augmentations, only rotations and reflections are implemented. Sampling caches keys and values: each
new value takes one evaluation, at its position only.

Measured: 1.777 bits/dim on the 8x8 digits in 17 levels, given the class; a classifier assigns 94.4 % of samples to the
class they were conditioned on; FD 21.7 (22.6 for training images); 1,200 steps of
`python train.py configs/autoregressive/image_transformer.py:digits`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import Batch, Cond, Context, DataSpec, Frozen, GenerativeModel, Loss, Roles, select, select_first
from jgen.core.tokens import token_field
from jgen.errors import defaults_of, require, require_labels
from jgen.models.autoregressive.raster import Raster, make_raster_model, nll_per_dim
from jgen.nn.distribution_augmentation import AUGMENTATIONS, needs_squares, transform
from jgen.nn.pixel_transformer import PixelTransformer
from jgen.nn.sparse_attention import check_patterns, make_patterns
from jgen.nn.transformer import check_transformer
from jgen.prob.autoregressive import categorical_log_prob
from jgen.samplers.sequence import sample_sequence
from jgen.samplers.truncation import Sampling, check_sampling


@dataclass(frozen=True)
class Config:
    """A causal transformer over pixels."""

    features: int = 256
    """Width of the transformer; a multiple of the number of heads."""
    layers: int = 12
    """Blocks, each of attention and a feed-forward network; an even number where attention is strided or fixed."""
    heads: int = 4
    """Attention heads."""
    hidden: int = 1024
    """Width of the feed-forward networks."""
    key_features: int = 256
    """Total width of the queries and keys of all heads; a multiple of the number of heads."""
    attention: Literal["dense", "strided", "fixed"] = "dense"
    """Which earlier positions are attended to: all of them, or a sparse pattern."""
    stride: int = 32
    """Stride l of the sparse patterns; must divide height x width x channels, and is best near its square root."""
    summary: int = 8
    """The fixed pattern's c: number of positions at the end of each block that all later blocks attend to."""
    dropout: float = 0.0
    """Dropout rate on a block's residual branches."""
    augmentation: Literal["none", "flip", "transposition", "rotation", "dihedral"] = "none"
    """Distribution augmentation: random rotations and reflections of training images, which the network is conditioned
    on; dihedral: all eight."""
    class_conditional: bool = True
    """Condition on the class label."""
    text: str = ""
    """Field whose text tokens are prepended to the image, such as text or caption; empty: none."""
    remat: bool = False
    """Rematerialise activations in the backward pass: about a third more operations, memory for one layer at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, softmaxes, logits and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


class System(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`."""

    network: PixelTransformer
    config: Config
    data: DataSpec
    conditions: tuple[str, ...]


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A sparse transformer for the image shape, levels and fields of `data`.

    Raises:
      UserError: sizes that the network cannot be built with, a stride that does not divide the sequence, fields
        that the data lacks, or options out of their range.
    """
    check_config(config, data)
    conditions = (*(("label",) if config.class_conditional else ()), *((config.text,) if config.text else ()))
    system = System(make_network(config, data), config, data, conditions)
    raster = Raster(data, conditions, config.sampling, partial(log_likelihood, system), partial(draw, system))
    return make_raster_model(
        "image_transformer",
        raster,
        partial(init, system),
        "transformer",
        loss=partial(loss, system, raster),
        check_sampling=partial(check_sampling, data.image.levels),
        functions={"conditionals": partial(conditionals, system)},
    )


def make_network(config: Config, data: DataSpec) -> PixelTransformer:
    text = data.fields[config.text] if config.text else None
    return PixelTransformer(
        shape=data.image.shape,
        levels=data.image.levels,
        features=config.features,
        heads=config.heads,
        layers=config.layers,
        hidden=config.hidden,
        key_features=config.key_features,
        patterns=make_patterns(config.attention, config.stride, config.summary),
        dropout_rate=config.dropout,
        remat=config.remat,
        num_classes=data.num_classes if config.class_conditional else 0,
        text=config.text,
        vocabulary=text.num_values if text else 0,
        text_length=text.shape[0] if text else 0,
        transformations=len(AUGMENTATIONS[config.augmentation]),
        dtype=jnp.dtype(config.dtype),
    )


def init(system: System, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    cond = select_first(batch, system.conditions)
    return {"transformer": system.network.init(key, batch["image"][:1], cond)["params"]}, {}


def log_likelihood(
    system: System,
    params: Roles,
    x: jax.Array,
    cond: Cond,
    key_drop: jax.Array | None,
    transformation: jax.Array | None = None,
) -> jax.Array:
    """log p(x | h, t), float32 (B,)."""
    logits = system.network.apply({"params": params["transformer"]}, x, cond, transformation, key_drop)
    return categorical_log_prob(logits, x)


def loss(system: System, raster: Raster, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    key_t, key_drop = rng.split(keys, 2)
    x, t, augmentation = batch["image"], None, system.config.augmentation
    if augmentation != "none":
        t = rng.randint(key_t, 0, len(AUGMENTATIONS[augmentation]))
        x = transform(x, t, augmentation)
    return nll_per_dim(raster, log_likelihood(system, params, x, select(batch, system.conditions), key_drop, t))


def conditionals(system: System, params: Roles, ctx: Context, x: jax.Array, cond: Cond) -> jax.Array:
    return system.network.apply({"params": params["transformer"]}, x, cond, method="between_levels")


def draw(
    system: System,
    params: Roles,
    keys: jax.Array,
    cond: Cond,
    x: jax.Array | None,
    mask: jax.Array | None,
    options: Sampling,
) -> jax.Array:
    spec, truncation = system.data.image, (options.temperature, options.top_k, options.top_p)
    params = params["transformer"]
    return sample_sequence(system.network, params, keys, cond, spec.shape, spec.levels, *truncation, x, mask)


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` if the configuration is invalid for this data."""
    patterns = len(make_patterns(config.attention, config.stride, config.summary))
    sizes = (config.features, config.heads, config.layers, config.hidden, config.key_features)
    check_transformer(*sizes, patterns, config.dropout)
    check_patterns(config.attention, config.stride, config.summary, data.image.size)
    height, width = data.image.height, data.image.width
    require(
        height == width or not needs_squares(config.augmentation),
        f"augmentation is {config.augmentation!r}: it turns square images, and these are {height} x {width}",
    )
    if config.text:
        token_field(data, config.text, least=1)
    with defaults_of("sampling"):
        check_sampling(data.image.levels, config.sampling)
    require_labels(data.num_classes, "class_conditional", config.class_conditional, False)
