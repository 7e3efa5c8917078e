"""The decoder of DALL-E 2 (unCLIP): a diffusion given the CLIP embedding of its image (Ramesh, Dhariwal, Nichol, Chu &
Chen 2022, arXiv 2204.06125), the last of a chain of runs: CLIP, prior, decoder.

    training       the loss of an objective, given z = u(x) of the image itself, and its text           (section 2.1)
    conditioning   W z added to the embedding of the time, and `tokens` further tokens A z before those of the text
    guidance       D(x_t, null) + s (D(x_t, z) - D(x_t, null)), null of z = 0 and no text: with probability
                   `objective.label_dropout` in training; only the text is dropped with probability `text_dropout`
    sampling       z ~ p(z | c) by the frozen prior (jgen/models/text_to_image/dalle2_prior.py), x ~ p(x | z, c)
    latents        (z, x_T): z = u(x), and x_T by DDIM inversion given z                                  (section 3)
    variations     DDIM of (z, x_T) with eta > 0                                                        (section 3.1)
    interpolation  slerp of both latents of two images                                                  (section 3.2)
    text diffs     z_theta = slerp(z, unit(v(c) - v(c_0)), theta), with x_T as it is                    (section 3.3)

Glossary: x image; c text, c_0 what the image is now; u(x), v(c) the embeddings of the frozen CLIP; theta `strength`.

`invert` gives the latents {"embedding": z, "noise": x_T}, and `decode` makes images from them, with new noise if none
is given: so it decodes any embedding, without a prior or a text. `interpolate` interpolates both; `edit` applies the
text difference, with c_0 given by `source_text`, or makes variations if there is no text. The loss, the samplers and
the network (a U-Net or a transformer) are those of the objective, whose options are `--model.objective...`. Upsamplers
give larger images (`--cascade`).

Differs from the paper: the text's tokens are encoded by the frozen CLIP; whenever z is dropped, the text is too; z is
L2-normalised, then scaled by sqrt(D); without c_0 the difference is v(c) itself.

Measured: text alignment 1.0 % on the shapes' test split, whose pairs of shape and colour training does not show, and
42 % have as many objects as their captions say: colours and places follow the text, shapes do not yet (docs/dalle.md).
16 steps of DDIM with guidance 2; 2,000 steps of `python train.py configs/text_to_image/dalle2_decoder.py:shapes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
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
    Loss,
    Phase,
    Roles,
    frozen_context,
)
from jgen.core.tokens import token_field
from jgen.errors import defaults_of, require, require_latents, require_positive
from jgen.models.diffusion.objectives import Objective, make_objective
from jgen.models.text_to_image.clip import (
    EMBEDDINGS,
    check_clip,
    image_embedding,
    text_embedding,
    text_features,
    to_unit,
    width_of,
)
from jgen.nn.cross_attention import Tokens
from jgen.prob.interpolation import slerp
from jgen.samplers import diffusion

CLIP = (*EMBEDDINGS, "encode_text")  # what the frozen CLIP must provide
NAMES = ("vector", "context", "negative_context")  # what the objective is conditioned on instead of embedding and text
# Fields of the objective's model that are taken over unchanged.
SHARED = ("inpainting", "inverting", "decoding", "interpolation", "evaluations", "numbers", "best")
EDITED_BY = ("steps", "guidance_scale", "eta", "strength", "sampler")  # the options that `edit` reads
NO_PRIOR = "a prior gives the embeddings of texts, give its run with --frozen.prior; decode makes images of embeddings"


@dataclass(frozen=True)
class PriorSampling:
    """Options of sampling from the prior."""

    candidates: int = 2
    """Embeddings drawn from the prior per text; the one closest to the text's embedding is used."""
    prior_guidance_scale: float = 1.0
    """Guidance scale of the prior; 1: no guidance."""


@dataclass(frozen=True)
class Sampling(diffusion.Sampling, PriorSampling):
    """Options of sampling: the objective's, and the prior's."""


@dataclass(frozen=True)
class Editing(Sampling):
    """Options of editing; it uses steps, guidance_scale, eta and strength only."""

    strength: float = 0.3
    """theta, from 0 to 1: how far the embedding is moved towards that of the text."""


@dataclass(frozen=True)
class Config:
    """A diffusion given CLIP embeddings of images."""

    objective: Objective
    """The objective, its network and its sampling options."""
    text: str = "text"
    """Field of text tokens, such as text or caption, that the CLIP reads."""
    tokens: int = 4
    """Number of tokens that the embedding is projected to, for attention."""
    attends_text: bool = True
    """Also attend to the tokens of the text."""
    text_dropout: float = 0.5
    """Probability of training without the tokens of the text."""
    prior: PriorSampling = field(default_factory=PriorSampling)

    optional_texts: ClassVar[tuple[str, ...]] = ("source",)

    @property
    def sampling(self) -> Sampling:
        """Default options of sampling."""
        return Sampling(**vars(self.objective.sampling) | vars(self.prior))


class Decoder(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`.

    model: the objective's, conditioned on a vector and a context. clip, prior: frozen; prior: None without one.
    embedding, width: D, and the features of a token.
    """

    config: Config
    model: GenerativeModel
    clip: GenerativeModel
    prior: GenerativeModel | None
    embedding: int
    width: int

    @property
    def layer(self) -> nn.Dense:
        """A, which projects an embedding to its tokens."""
        return nn.Dense(self.config.tokens * self.width)


def make(
    config: Config, data: DataSpec, *, clip: GenerativeModel, prior: GenerativeModel | None = None
) -> GenerativeModel:
    """A diffusion for the images of `data` given their embeddings, or given its field `config.text` by a prior.

    Args:
      clip: a model that provides `embed_image`, `embed_text` and `encode_text`.
      prior: a model that provides `draw_embedding`, for the same CLIP; None: images can be made from embeddings only.
    Raises:
      UserError: no such field of tokens, a CLIP or prior for other images or texts, options out of range, or an invalid
        objective.
    """
    spec = token_field(data, config.text)
    check_config(config, data, clip, prior)
    dimensions, width = (width_of(clip, name, config.text) for name in ("embed_text", "encode_text"))
    length = config.tokens + spec.shape[0] * config.attends_text
    fields = {"vector": ArraySpec((dimensions,), "float32"), "context": ArraySpec((length, width), "float32")}
    model = make_objective(config.objective, DataSpec(data.image, {**data.fields, **fields}))
    decoder = Decoder(config, model, clip, prior, dimensions, width)
    with defaults_of("prior"):
        check_sampling(decoder, config.sampling)
    phases = [p._replace(trains=(*p.trains, "embedding"), loss=partial(loss, decoder, p)) for p in model.phases]
    by_text = ("sample", "trajectory", "inpaint") if prior is not None else ()
    others = tuple(name for name in model.conditions if name not in NAMES)
    passed: dict[str, Any] = {name: partial(given_text, decoder, name) for name in by_text}
    editing = Editing(**vars(config.sampling) | {"sampler": "ddim"})
    return GenerativeModel(
        name="dalle2_decoder",
        data=data,
        init=partial(init, decoder),
        phases=tuple(phases),
        **{name: getattr(model, name) for name in SHARED} | passed,
        sampling=config.sampling,
        check_sampling=partial(check_sampling, decoder),
        conditions=(config.text, *others),
        unconditional=("invert", "decode", "edit"),
        optional={f"source_{config.text}": config.text},
        validate=partial(validate, decoder),
        invert=partial(invert, decoder),
        decode=partial(decode, decoder),
        edit=partial(edit, decoder),
        editing=editing,
        functions={"count_evaluations": partial(given_text, decoder, "count_evaluations")} if by_text else {},
        shared=("clip",),
        why_not={"log_prob": "its bound is given the embedding of the image itself, and no probability of the image"}
        | dict.fromkeys(("sample", "trajectory", "inpaint"), NO_PRIOR),
    )


def init(decoder: Decoder, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_embedding, key_model = rng.split_key(key, 2)
    own = {"embedding": decoder.layer.init(key_embedding, jnp.zeros((1, decoder.embedding)))["params"]}
    ctx = Context(jnp.int32(0), None, own, frozen=frozen)
    z = image_embedding(decoder.clip, ctx, batch["image"][:1])  # networks are initialised with one example
    cond = condition(decoder, own, ctx, z, {decoder.config.text: batch[decoder.config.text][:1]})
    params, extra = decoder.model.init(key_model, {**batch, **cond}, frozen)
    return {**params, **own}, extra


def condition(
    decoder: Decoder, params: Roles, ctx: Context, z: jax.Array, given: Cond, keep: jax.Array | None = None
) -> Cond:
    """The conditions of the objective's model: `given` with the vector and the contexts computed from embeddings (B,
    D), and from the text in `given`, if there is one.

    Args:
      keep: bool (B,), whether an example's text is attended to; None: always.
    """
    text, shape = decoder.config.text, (len(z), decoder.config.tokens, decoder.width)
    vector = math.sqrt(decoder.embedding) * to_unit(z)
    own, null = (
        decoder.layer.apply({"params": params["embedding"]}, x).reshape(shape) for x in (vector, jnp.zeros_like(vector))
    )
    counts = jnp.ones(shape[:2], bool)
    context, negative = Tokens(own, counts), Tokens(null, counts)
    if decoder.config.attends_text:
        length = decoder.clip.data.fields[text].shape[0]
        features, mask = jnp.zeros((len(z), length, decoder.width)), jnp.zeros((len(z), length), bool)
        nothing = mask
        if text in given:
            encoded = text_features(decoder.clip, ctx, jnp.asarray(given[text]))
            features, mask = encoded.features, ~nothing if encoded.mask is None else encoded.mask
            mask = mask if keep is None else mask & keep[:, None]
        context = Tokens(*(jnp.concatenate(parts, axis=1) for parts in ((own, features), (counts, mask))))
        negative = Tokens(*(jnp.concatenate(parts, axis=1) for parts in ((null, features), (counts, nothing))))
    others = {name: value for name, value in given.items() if name not in (text, f"source_{text}")}
    return {**others, "vector": vector, "context": context, "negative_context": negative}


def loss(decoder: Decoder, phase: Phase, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    key_drop, key_loss = rng.split(keys, 2)
    keep = ~rng.bernoulli(key_drop, decoder.config.text_dropout)
    z = image_embedding(decoder.clip, ctx, batch["image"])
    return phase.loss(params, ctx, key_loss, condition(decoder, params, ctx, z, batch, keep))


def validate(decoder: Decoder, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """The objective's scores, given the embeddings of the images themselves."""
    assert decoder.model.validate is not None
    z = image_embedding(decoder.clip, ctx, batch["image"])
    return decoder.model.validate(params, ctx, keys, condition(decoder, params, ctx, z, batch))


def given_text(
    decoder: Decoder, name: str, params: Roles, ctx: Context, keys: jax.Array, *inputs: Any, **options: Any
) -> jax.Array:
    """A function of the objective's model, given embeddings that the prior draws for the text in its last argument.

    Raises:
      UserError: a source text, which only editing uses.
    """
    *rest, cond = inputs
    text, defaults = decoder.config.text, vars(decoder.config.prior)
    require(f"source_{text}" not in cond, f"source_{text} is given: {name} takes none, only edit")
    assert decoder.prior is not None
    key_prior, key_image = rng.split(keys, 2)
    own = {option: options.pop(option, default) for option, default in defaults.items()}
    prior, inner = frozen_context(ctx, "prior")
    asked = {"guidance_scale": own["prior_guidance_scale"], "candidates": own["candidates"]}
    z = decoder.prior.functions["draw_embedding"](prior, inner, key_prior, {text: cond[text]}, **asked)
    function = getattr(decoder.model, name, None) or decoder.model.functions[name]
    return function(params, ctx, key_image, *rest, condition(decoder, params, ctx, z, cond), **options)


def invert(
    decoder: Decoder, params: Roles, ctx: Context, keys: jax.Array, images: jax.Array, cond: Cond, **options: Any
) -> dict[str, jax.Array]:
    """{"embedding": z (B, D), "noise": x_T (B, H, W, C)} of images, whose text, where it is given, is attended to."""
    assert decoder.model.invert is not None
    z = image_embedding(decoder.clip, ctx, images)
    own = condition(decoder, params, ctx, z, cond)
    return {"embedding": z, "noise": decoder.model.invert(params, ctx, keys, images, own, **options)}


def decode(
    decoder: Decoder, params: Roles, ctx: Context, keys: jax.Array, latents: Any, cond: Cond, **options: Any
) -> jax.Array:
    """uint8 images from latents as returned by `invert`; if they have no noise, it is drawn.

    Raises:
      UserError: latents of other names or shapes.
    """
    assert decoder.model.decode is not None
    names = set(latents) if isinstance(latents, dict) else {"one array"}
    shown = ", ".join(sorted(names))
    require({"embedding"} <= names <= {"embedding", "noise"}, f"latents have {shown}: it must be embedding and noise")
    z = latents["embedding"]
    require_latents(z, (decoder.embedding,), "embeddings")
    key_start, key_steps = rng.split(keys, 2)
    noise = latents["noise"] if "noise" in latents else rng.normal(key_start, decoder.model.images.shape)
    own = condition(decoder, params, ctx, jnp.asarray(z), cond)
    return decoder.model.decode(params, ctx, key_steps, noise, own, **options)


def edit(
    decoder: Decoder, params: Roles, ctx: Context, keys: jax.Array, images: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    """Images whose embeddings are moved towards the text, or from the source text towards it; variations without a
    text."""
    text, source = decoder.config.text, f"source_{decoder.config.text}"
    require(source not in cond or text in cond, f"{source} is given without {text}: say what the image should become")
    defaults = Editing(**vars(decoder.config.sampling) | {"sampler": "ddim"})
    o = replace(defaults, **options)
    way = {"steps": o.steps, "guidance_scale": o.guidance_scale}
    others = {name: value for name, value in cond.items() if name not in (text, source)}
    latents = invert(decoder, params, ctx, keys, images, others, **way)
    if text in cond:
        v = text_embedding(decoder.clip, ctx, jnp.asarray(cond[text]))
        if source in cond:
            v = v - text_embedding(decoder.clip, ctx, jnp.asarray(cond[source]))
        z = to_unit(latents["embedding"])
        latents["embedding"] = slerp(z, to_unit(v), jnp.full(len(z), o.strength))
    return decode(decoder, params, ctx, keys, latents, others, **way, eta=o.eta)


def check_sampling(decoder: Decoder, o: Sampling) -> None:
    """Raises `UserError` for options out of range, or not used by editing."""
    assert decoder.model.check_sampling is not None
    decoder.model.check_sampling(o)
    require(o.candidates >= 1, f"candidates is {o.candidates}: it must be above zero")
    scale = o.prior_guidance_scale
    require(0 <= scale < math.inf, f"prior_guidance_scale is {scale}: it must be zero or above, and finite")
    if not isinstance(o, Editing):
        return
    require(0 <= o.strength <= 1, f"strength is {o.strength}: it must be from 0 to 1")
    require(o.sampler == "ddim", f"sampler is {o.sampler}: edit goes to noise and back by ddim, set it to ddim")
    for name, default in vars(decoder.config.sampling).items():
        same = name in EDITED_BY or getattr(o, name) == default
        require(same, f"{name} is {getattr(o, name)}: edit does not read it, only {', '.join(EDITED_BY[:-1])}")


def check_config(config: Config, data: DataSpec, clip: GenerativeModel, prior: GenerativeModel | None) -> None:
    """Raises `UserError` for options out of range, or unsuitable frozen models."""
    check_clip(clip, data, config.text, CLIP)
    require_positive(tokens=config.tokens)
    require(0 <= config.text_dropout <= 1, f"text_dropout is {config.text_dropout}: it must be from 0 to 1")
    unread = config.attends_text or config.text_dropout == Config.text_dropout
    require(unread, f"text_dropout is {config.text_dropout}: a decoder that does not attend to the text has none")
    if prior is None:
        return
    provides = "draw_embedding" in prior.functions
    require(provides, f"frozen.prior is a {prior.name}: it must provide draw_embedding, as a dalle2_prior does")
    same = prior.conditions == (config.text,)
    require(same, f"frozen.prior is conditioned on {', '.join(prior.conditions)}: it must be the text, {config.text}")
    theirs, own = prior.data.fields[config.text], data.fields[config.text]
    require(theirs == own, f"frozen.prior was trained on {config.text} of {theirs}: the data has {own}")
