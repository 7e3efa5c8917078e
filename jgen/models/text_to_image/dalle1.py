"""DALL-E: one transformer over a text and the codes of its image (Ramesh et al. 2021, arXiv 2102.12092).

    first stage  codes k = encode(x), images x = decode(k); trained before and frozen        (`jgen.models.vae.dvae`)
    transformer  p(c, k) = prod_i p(c_i | c_<i) prod_j p(k_j | k_<j, c), one causal sequence        (section 2.2)
    loss         - w log p(c) / (T - 1) - (1 - w) log p(k | c) / (h w),  w = 1/8                    (section 2.2)
    sampling     k ~ p(k | c), one code after another with cached keys and values;  x = decode(k)
    re-ranking   of several candidates the image x with the greatest u(x) . v(c), of a CLIP         (section 2.6)

Glossary: x image; k its h x w codes; c text of T tokens, start, end and padding included; u, v CLIP's embeddings.

For texts alone, `functions` provides `complete_text`, which continues them, and `text_log_prob`, log p(c) in nats. A
sample is decoded by the first stage without pixel noise, so there is no `log_prob` of images; `validate` scores texts
and codes.

Differs from the paper: the text's loss is divided by the length T - 1, not by the number of tokens without padding, so
that it is a mean over examples; padding after the end has probability 1 and is not learned; attention is dense, or the
strided pair of Child et al. (2019) instead of rows, columns and a convolution; texts are not lowercased, and no BPE
dropout.

Measured: text alignment 1.0 % on the shapes' test split (65 % have as many objects as their captions say), and 17.50
nats a caption, whose entropy is 17.46 (docs/dalle.md); 800 steps of
`python train.py configs/text_to_image/dalle1.py:shapes`, when validation scores were still falling.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core.model import (
    ArraySpec,
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
    select_first,
)
from jgen.core.tokens import token_field
from jgen.errors import defaults_of, require
from jgen.models.text_to_image.clip import check_clip, image_embedding, text_embedding
from jgen.nn.sparse_attention import MASKED, Pattern, check_patterns, make_patterns
from jgen.nn.text_image_transformer import TextImageTransformer, TextTransformer
from jgen.nn.transformer import check_transformer
from jgen.prob.autoregressive import categorical_log_prob
from jgen.prob.code_prior import check_autoencoder, code_scores, codes_of, images_of
from jgen.prob.pixels import bits_per_dim
from jgen.samplers.sequence import sample_sequence
from jgen.samplers.truncation import Sampling as Truncation
from jgen.samplers.truncation import check_sampling as check_truncated

ROLE = "autoencoder"


@dataclass(frozen=True)
class Sampling(Truncation):
    """Options of sampling."""

    candidates: int = 1
    """Candidate images per text; the one that the frozen CLIP finds closest to the text is returned."""


@dataclass(frozen=True)
class Config:
    """A causal transformer over texts and codes."""

    text: str = "text"
    """Field of text tokens, such as text or caption."""
    features: int = 256
    """Width of the transformer; a multiple of the number of heads."""
    layers: int = 8
    """Blocks, each of attention and a feed-forward network; an even number where attention is strided."""
    heads: int = 4
    """Attention heads."""
    hidden: int = 1024
    """Width of the feed-forward networks."""
    attention: Literal["dense", "strided"] = "dense"
    """Earlier codes that a code attends to: all, or (strided) alternately the last row's worth and its column."""
    dropout: float = 0.0
    """Dropout rate on a block's residual branches."""
    text_weight: float = 1 / 8
    """Weight w of the text in the loss, from 0 to 1."""
    remat: bool = False
    """Rematerialise activations in the backward pass: about a third more operations, memory for one layer at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, softmaxes, logits and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


class Dalle(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`.

    `codes` is the specification of the autoencoder's grid; `text_network` continues texts with the parameters of
    `network`.
    """

    config: Config
    autoencoder: GenerativeModel
    clip: GenerativeModel | None
    codes: ImageSpec
    network: TextImageTransformer
    text_network: TextTransformer


def make(
    config: Config, data: DataSpec, *, autoencoder: GenerativeModel, clip: GenerativeModel | None = None
) -> GenerativeModel:
    """A distribution over images given a text, and over texts, on the codes of a frozen autoencoder.

    Args:
      autoencoder: any model that has one grid of `codes`, with its `encode` and `decode`.
      clip: a model that provides `embed_image` and `embed_text`, to choose among candidates.
    Raises:
      UserError: an autoencoder without codes, a CLIP for other images or texts, no such field of tokens, sizes that the
        network cannot be built with, or options out of range.
    """
    codes, text = check_config(config, data, autoencoder, clip)
    patterns = make_patterns(config.attention, codes.width, 1)
    sizes: dict[str, Any] = {
        "shape": codes.shape,
        "levels": codes.levels,
        "features": config.features,
        "heads": config.heads,
        "layers": config.layers,
        "hidden": config.hidden,
        "key_features": config.features,
        "dropout_rate": config.dropout,
        "remat": config.remat,
        "text": config.text,
        "vocabulary": text.num_values,
        "text_length": text.shape[0],
        "dtype": jnp.dtype(config.dtype),
    }
    network = TextImageTransformer(patterns=patterns, **sizes)
    text_network = TextTransformer(patterns=(Pattern("full"),) * len(patterns), **sizes)
    dalle = Dalle(config, autoencoder, clip, codes, network, text_network)
    return GenerativeModel(
        name="dalle1",
        data=data,
        init=partial(init, dalle),
        phases=(Phase(trains=("transformer",), loss=partial(loss, dalle)),),
        sample=partial(sample, dalle),
        sampling=config.sampling,
        check_sampling=partial(check_sampling, dalle),
        conditions=(config.text,),
        validate=partial(validate, dalle),
        best=("nll_codes", "min"),
        functions={"complete_text": partial(complete_text, dalle), "text_log_prob": partial(text_log_prob, dalle)},
        why_not={"log_prob": "images of the same codes are one image: `validate` scores the codes, nll_codes"},
    )


def init(dalle: Dalle, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    codes = jnp.zeros((1, *dalle.codes.shape), jnp.int32)
    cond = select_first(batch, (dalle.config.text,))
    return {"transformer": dalle.network.init(key, codes, cond)["params"]}, {}


def log_probs(
    dalle: Dalle, params: Roles, codes: jax.Array, tokens: jax.Array, key_drop: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """log p(c) and log p(k | c), float32 (B,) each."""
    cond = {dalle.config.text: tokens}
    text_logits, code_logits = dalle.network.apply({"params": params["transformer"]}, codes, cond, key_drop)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(text_logits), tokens[:, 1:, None], axis=2)[..., 0]
    log_p = jnp.where(log_p > MASKED / 2, log_p, 0.0)  # impossible texts, such as random tokens, do not contribute
    return jnp.sum(log_p, axis=1), categorical_log_prob(code_logits, codes)


def score(
    dalle: Dalle, params: Roles, ctx: Context, keys: jax.Array, batch: Batch, key_drop: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """`log_probs` of a batch's texts and of the codes of its images."""
    codes = codes_of(dalle.autoencoder, ROLE, ctx, keys, batch)
    return log_probs(dalle, params, codes, batch[dalle.config.text], key_drop)


def loss(dalle: Dalle, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    key_encode, key_drop = rng.split(keys, 2)
    log_text, log_codes = (jnp.mean(x) for x in score(dalle, params, ctx, key_encode, batch, key_drop))
    w, length = dalle.config.text_weight, dalle.network.text_length
    total = -w * log_text / (length - 1) - (1 - w) * log_codes / dalle.codes.size
    return total, ({"nll_text": -log_text, "bits_per_code": bits_per_dim(log_codes, dalle.codes.size)}, {})


def validate(dalle: Dalle, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Nats of a text and of the codes given it, and bits per code."""
    log_text, log_codes = score(dalle, params, ctx, keys, batch, None)
    return {"nll_text": -log_text, **code_scores(log_codes, dalle.codes)}


def sample(dalle: Dalle, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    o = replace(dalle.config.sampling, **options)
    key_codes, key_decode = rng.split(keys, 2)
    shape, levels = dalle.codes.shape, dalle.codes.levels

    def candidate(number: jax.Array) -> jax.Array:
        own = rng.fold_in(key_codes, number)
        truncation = (o.temperature, o.top_k, o.top_p)
        codes = sample_sequence(dalle.network, params["transformer"], own, cond, shape, levels, *truncation)
        return images_of(dalle.autoencoder, ROLE, ctx, key_decode, codes, cond)

    if o.candidates == 1:
        return candidate(jnp.int32(0))
    images = jax.lax.map(candidate, jnp.arange(o.candidates))
    best = jnp.argmax(jax.lax.map(lambda x: clip_products(dalle, ctx, x, cond), images), axis=0)
    return jnp.take_along_axis(images, best[None, :, None, None, None], axis=0)[0]


def clip_products(dalle: Dalle, ctx: Context, images: jax.Array, cond: Cond) -> jax.Array:
    """u(x) . v(c), float32 (B,), of uint8 images and their texts."""
    assert dalle.clip is not None
    u, v = image_embedding(dalle.clip, ctx, images), text_embedding(dalle.clip, ctx, cond[dalle.config.text])
    return jnp.sum(u * v, axis=-1)


def text_log_prob(dalle: Dalle, params: Roles, ctx: Context, tokens: jax.Array) -> jax.Array:
    """log p(c), nats, float32 (B,), of texts as tokens (B, T)."""
    codes = jnp.zeros((tokens.shape[0], *dalle.codes.shape), jnp.int32)  # which no token of the text depends on
    return log_probs(dalle, params, codes, tokens, None)[0]


def complete_text(
    dalle: Dalle,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    tokens: jax.Array,
    known: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """Texts, int32 (B, T), that begin with the first `known` (B,) of the tokens (B, T), start included."""
    batch, length = tokens.shape
    given = tokens[:, 1:].reshape(batch, 1, length - 1, 1)
    mask = (jnp.arange(1, length)[None] < known[:, None])[:, None]
    levels, text = dalle.network.vocabulary, dalle.text_network
    shape, truncation = (1, length - 1, 1), (temperature, top_k, top_p)
    drawn = sample_sequence(text, params["transformer"], keys, {}, shape, levels, *truncation, given, mask)
    return jnp.concatenate([tokens[:, :1], drawn.reshape(batch, length - 1)], axis=1)


def check_sampling(dalle: Dalle, o: Sampling) -> None:
    """Raises `UserError` for options out of range, or several candidates without a CLIP to choose among them."""
    check_truncated(dalle.codes.levels, o)
    require(o.candidates >= 1, f"candidates is {o.candidates}: it must be above zero")
    why = "a CLIP chooses among them, give its run with --frozen.clip"
    require(o.candidates == 1 or dalle.clip is not None, f"candidates is {o.candidates}: {why}")


def check_config(
    config: Config, data: DataSpec, autoencoder: GenerativeModel, clip: GenerativeModel | None
) -> tuple[ImageSpec, ArraySpec]:
    """The specifications of codes and text. Raises `UserError` if the configuration is invalid for this data."""
    check_autoencoder(autoencoder, data, ROLE, 1, "a dvae")
    needs = ", ".join(autoencoder.conditions)
    require(not needs, f"frozen.{ROLE} is a {autoencoder.name} that needs {needs} to decode, which no text gives")
    text, codes = token_field(data, config.text), autoencoder.codes[0]
    patterns = make_patterns(config.attention, codes.width, 1)
    sizes = (config.features, config.heads, config.layers, config.hidden, config.features)
    check_transformer(*sizes, len(patterns), config.dropout)
    check_patterns(config.attention, codes.width, 1, codes.size)
    require(0 <= config.text_weight <= 1, f"text_weight is {config.text_weight}: it must be from 0 to 1")
    with defaults_of("sampling"):
        check_truncated(codes.levels, config.sampling)
        o = config.sampling
        require(o.candidates >= 1, f"candidates is {o.candidates}: it must be above zero")
    if clip is not None:
        check_clip(clip, data, config.text)
    return codes, text
