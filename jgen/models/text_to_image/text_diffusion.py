"""Diffusion of images given a text, as in GLIDE and Stable Diffusion (Nichol et al. 2022, arXiv 2112.10741; Rombach,
Blattmann, Lorenz, Esser & Ommer 2022, arXiv 2112.10752).

    c         encode(text), a feature for each token: by a jointly trained transformer, or that of a frozen CLIP run
    network   U-Net or transformer whose blocks attend to c                               (Rombach et al., equation 3)
    training  the loss of an objective, c that of the empty text with probability `objective.label_dropout`
    guidance  D(x_t, c_n) + s (D(x_t, c) - D(x_t, c_n)), c_n of the empty text, or of a negative one: what the image
              should not show                                                 (Ho & Salimans 2022, arXiv 2207.12598)
    editing   prompt-to-prompt: with a source text, its image's attention weights (Hertz et al. 2023, arXiv 2208.01626)
    latents   with --frozen.autoencoder RUN the images are the latents of that run (jgen/models/diffusion/latent.py)

A frozen text encoder, a frozen autoencoder and a U-Net of latents make Stable Diffusion: three runs. Loss, samplers,
likelihood and editing are those of the objective (a chain of noise, EDM or flow matching), whose options are
`--model.objective...`.

Glossary: x_t noisy image; D the denoiser; c a context: features (B, L, D) and which of them count; s guidance_scale.

Differs from the papers: tokens after the end of a text are not attended to; the text encoder is causal, as CLIP's;
prompt-to-prompt takes two texts of equal numbers of tokens, and shares only cross-attention weights, in every step.

Measured: text alignment 1.0 % on the shapes' test split, whose pairs of shape and colour training does not show (the
share of samples that show all that their captions say); 57 % have as many objects, of which 92 % have the colour, 95 %
the size and 17 % the shape that is named: shapes do not follow the text yet. 500 samples, dpmpp_2m, 16 steps, with
guidance 2; 4,500 steps of `python train.py configs/text_to_image/text_diffusion.py:shapes`. See docs/text_to_image.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import failures
from jgen.core import keys as rng
from jgen.core.model import (
    ArraySpec,
    Batch,
    Cond,
    Context,
    DataSpec,
    Frozen,
    GenerativeModel,
    Loss,
    Phase,
    Roles,
    frozen_context,
)
from jgen.core.tokens import END, START, token_field
from jgen.errors import require, require_positive
from jgen.models.diffusion import latent
from jgen.models.diffusion.objectives import Objective, make_objective
from jgen.models.text_to_image.clip import width_of
from jgen.nn.clip import TextEncoder
from jgen.nn.cross_attention import Tokens
from jgen.samplers.diffusion import Sampling

CONTEXT = ("context", "negative_context")  # what the objective is conditioned on instead of the text
# Fields of the objective's model that are taken over unchanged.
SHARED = (
    "sampling",
    "inpainting",
    "editing",
    "inverting",
    "decoding",
    "interpolation",
    "check_sampling",
    "evaluations",
    "numbers",
    "best",
)
LIKELIHOOD = ("scoring", "likelihood", "why_not")


@dataclass(frozen=True)
class Config:
    """A diffusion conditioned on texts. The sizes are those of the jointly trained text encoder, without
    --frozen.text_encoder."""

    objective: Objective
    """The objective of images or latents, its network and its sampling options."""
    text: str = "text"
    """Field of text tokens, such as text or caption."""
    text_width: int = 256
    """Width of the text encoder's transformer."""
    text_heads: int = 4
    """Attention heads of the text encoder."""
    text_layers: int = 4
    """Blocks of the text encoder."""

    optional_texts: ClassVar[tuple[str, ...]] = ("negative", "source")

    @property
    def sampling(self) -> Sampling:
        """Default options of sampling."""
        sampling: Sampling = self.objective.sampling
        return sampling


class TextDiffusion(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`.

    diffusion: the objective's model, of images or of latents, conditioned on a context. encoder: the jointly trained
    one; text_encoder: the frozen one; one of them is None. null: the tokens of the empty text, int32 (T,).
    """

    config: Config
    diffusion: GenerativeModel
    encoder: TextEncoder | None
    text_encoder: GenerativeModel | None
    null: np.ndarray


def make(
    config: Config,
    data: DataSpec,
    *,
    text_encoder: GenerativeModel | None = None,
    autoencoder: GenerativeModel | None = None,
) -> GenerativeModel:
    """A diffusion for the images of `data` and its field `config.text`.

    Args:
      text_encoder: a model that provides `encode_text`, such as a clip; None: a transformer is trained jointly.
      autoencoder: a model with continuous latents, such as an autoencoder_kl; None: the diffusion is in pixel space.
    Raises:
      UserError: no such field of tokens, a text encoder for other texts, or an invalid objective.
    """
    check_config(config, data, text_encoder)
    spec = data.fields[config.text]
    sizes = (config.text_width, config.text_heads, config.text_layers, config.text_width)
    encoder = None if text_encoder else TextEncoder(spec.num_values, spec.shape[0], END, *sizes)
    width = config.text_width if text_encoder is None else width_of(text_encoder, "encode_text", config.text)
    fields = {**data.fields, "context": ArraySpec((spec.shape[0], width), "float32")}
    conditioned = DataSpec(data.image, fields)
    if autoencoder is None:
        diffusion = make_objective(config.objective, conditioned)
    else:
        diffusion = latent.make(latent.Config(config.objective), conditioned, autoencoder=autoencoder)
    null = np.zeros(spec.shape, np.int32)
    null[:2] = START, END
    system = TextDiffusion(config, diffusion, encoder, text_encoder, null)
    own = () if encoder is None else ("text",)
    phases = [p._replace(trains=(*p.trains, *own), loss=partial(loss, system, p)) for p in diffusion.phases]
    others = tuple(name for name in diffusion.conditions if name not in CONTEXT)
    names = ("sample", "trajectory", "log_prob", "inpaint", "edit", "invert", "decode")
    passed: dict[str, Any] = {
        name: partial(given_text, system, name) for name in names if getattr(diffusion, name) is not None
    }
    provided = {name: partial(given_text, system, name) for name in ("denoise", "count_evaluations")}
    functions = {name: provided.get(name, function) for name, function in diffusion.functions.items()}
    return GenerativeModel(
        name="text_diffusion",
        data=data,
        init=partial(init, system),
        phases=tuple(phases),
        **{name: getattr(diffusion, name) for name in SHARED + LIKELIHOOD} | passed,
        conditions=(config.text, *others),
        optional={f"negative_{config.text}": config.text, f"source_{config.text}": config.text},
        validate=partial(validate, system),
        functions=functions,
    )


def init(system: TextDiffusion, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_text, key_diffusion = rng.split_key(key, 2)
    own: Roles = {}
    if system.encoder is not None:
        tokens = batch[system.config.text][:1]
        own = {"text": system.encoder.init(key_text, tokens, method="encode")["params"]}
    ctx = Context(jnp.int32(0), None, own, frozen=frozen)
    texts = {**batch, system.config.text: batch[system.config.text][:1]}  # networks are initialised with one example
    params, extra = system.diffusion.init(key_diffusion, with_context(system, own, ctx, texts), frozen)
    return {**params, **own}, extra


def encode(system: TextDiffusion, params: Roles, ctx: Context, tokens: jax.Array) -> Tokens:
    """c of tokens, int32 (B, T)."""
    if system.text_encoder is not None:
        function = system.text_encoder.functions["encode_text"]
        return jax.lax.stop_gradient(function(*frozen_context(ctx, "text_encoder"), tokens))
    assert system.encoder is not None
    context: Tokens = system.encoder.apply({"params": params["text"]}, tokens, method="encode")
    return context


def with_context(system: TextDiffusion, params: Roles, ctx: Context, given: Cond) -> Cond:
    """A batch or a condition with the context of its text, and that of its negative text or of the empty one."""
    name = system.config.text
    tokens, negative = jnp.asarray(given[name]), given.get(f"negative_{name}")
    context = encode(system, params, ctx, tokens)
    if negative is not None:
        negative_context = encode(system, params, ctx, jnp.asarray(negative))
    else:
        empty = encode(system, params, ctx, jnp.asarray(system.null)[None])
        negative_context = jax.tree.map(lambda x, like: jnp.broadcast_to(x, like.shape), empty, context)
    return {**given, "context": context, "negative_context": negative_context}


def loss(system: TextDiffusion, phase: Phase, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    return phase.loss(params, ctx, keys, with_context(system, params, ctx, batch))


def validate(system: TextDiffusion, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    assert system.diffusion.validate is not None
    return system.diffusion.validate(params, ctx, keys, with_context(system, params, ctx, batch))


def given_text(
    system: TextDiffusion, name: str, params: Roles, ctx: Context, *inputs: Any, **options: Any
) -> jax.Array:
    """A function of the objective's model whose condition, its last argument, is a text, which is encoded once.

    Raises:
      UserError: a negative text without guidance, where it would have no effect, or a source text where no image is
        sampled from noise.
    """
    *rest, cond = inputs
    if f"negative_{system.config.text}" in cond:
        check_negative(system, name, options)
    if f"source_{system.config.text}" in cond:
        require(name == "sample", f"source_{system.config.text} is given: {name} takes none, only sample")
        return near_source(system, params, ctx, rest[0], cond, **options)
    function = getattr(system.diffusion, name, None) or system.diffusion.functions[name]
    result: jax.Array = function(params, ctx, *rest, with_context(system, params, ctx, cond), **options)
    return result


def near_source(
    system: TextDiffusion, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    """Prompt-to-prompt (Hertz et al. 2023, arXiv 2208.01626): the image of a text, sampled with the cross-attention
    weights of the source text's image from the same noise. Both are drawn; the text's image is returned.
    """
    name, n = system.config.text, len(keys)
    source = f"source_{name}"
    differs = ends(cond[name]) != ends(cond[source])
    failures.report(f"{source} and {name} differ in the number of their tokens", differs)
    given = {key: value for key, value in cond.items() if key != source}
    pairs = jax.tree.map(lambda x: jnp.concatenate([jnp.asarray(x)] * 2), given)
    pairs[name] = jnp.concatenate([jnp.asarray(cond[source]), jnp.asarray(cond[name])])
    pairs = with_context(system, params, ctx, pairs)
    offset = jnp.repeat(jnp.array([0, -n], jnp.int32), n, total_repeat_length=2 * n)
    pairs["context"] = pairs["context"]._replace(offset=offset)
    pairs["negative_context"] = pairs["negative_context"]._replace(offset=jnp.zeros_like(offset))
    assert system.diffusion.sample is not None
    with failures.collect() as reports:
        images: jax.Array = system.diffusion.sample(params, ctx, jnp.concatenate([keys, keys]), pairs, **options)
    for what, failed in reports.items():
        failures.report(what, failed[n:])
    return images[n:]


def ends(tokens: jax.Array) -> jax.Array:
    """Position of the end token, int32 (B,)."""
    return jnp.argmax(jnp.asarray(tokens) == END, axis=1)


def check_negative(system: TextDiffusion, name: str, options: dict[str, Any]) -> None:
    """Raises `UserError` for a negative text without guidance, where it would have no effect."""
    require(name != "log_prob", f"negative_{system.config.text} is given: log_prob is not guided, and takes none")
    scale = options.get("guidance_scale", system.config.sampling.guidance_scale)
    guides = isinstance(scale, jax.Array) or scale != 1.0
    require(guides, f"negative_{system.config.text} is given, and guidance_scale is 1: raise it, or give no negative")


def check_config(config: Config, data: DataSpec, text_encoder: GenerativeModel | None) -> None:
    """Raises `UserError` for a field that is no text, a text encoder of other texts, or sizes that do not fit."""
    spec = token_field(data, config.text)
    require_positive(text_width=config.text_width, text_heads=config.text_heads, text_layers=config.text_layers)
    fits = config.text_width % config.text_heads == 0
    require(fits, f"text_width is {config.text_width}: text_heads, {config.text_heads}, must divide it")
    if text_encoder is not None:
        name, provides = text_encoder.name, "encode_text" in text_encoder.functions
        require(provides, f"text_encoder is a {name}: it must be a model that provides encode_text, such as a clip")
        theirs = text_encoder.data.fields.get(config.text)
        same = theirs is not None and (theirs.shape, theirs.num_values) == (spec.shape, spec.num_values)
        wanted = f"{spec.shape[0]} tokens of {spec.num_values}"
        require(
            same, f"text_encoder reads other texts: it must have a field {config.text} of {wanted}, as the data has"
        )
