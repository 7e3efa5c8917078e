"""Stable Diffusion with published weights, versions 1.x, 2.x and XL (Rombach, Blattmann, Lorenz, Esser & Ommer 2022,
arXiv 2112.10752; Podell et al. 2023, arXiv 2307.01952).

    z         encode(x) / scale, latents of a frozen autoencoder                                    (section 3.1)
    c         a feature for each token of a text, of one or two of CLIP's encoders; XL: c also pooled, and sizes
    network   a U-Net whose blocks attend to c: eps, x_0 or v at t = 1 .. T of a chain               (equation 3)
    loss      E || eps - eps_theta(z_t, t, c) ||^2, c without the text with probability `text_dropout`
    guidance  D(z_t, c_n) + s (D(z_t, c) - D(z_t, c_n)), c_n of the negative text or, without one, of the empty text; in
              XL, of zeros                                              (Ho & Salimans 2022, arXiv 2207.12598)

Glossary: x image in [-1, 1]; z latents (B, h, w, c); D the denoiser; c context (B, T, D); s guidance_scale.

It is created by `jgen.load(FOLDER)` or `python -m jgen.convert FOLDER RUN` from a folder in diffusers' layout. The
autoencoder is a frozen run; the text encoders are in `extra`, since training changes the U-Net only. To train a
text-to-image model from scratch, see jgen/models/text_to_image/text_diffusion.py.

Differs from the papers: training only continues from published weights; XL is always given sizes of an uncropped image,
and has no refiner. There is no safety checker.

Measured: with random weights, the images equal those of diffusers' pipelines to one grey level, for every version, kind
of prediction and sampler in `tests/parity/test_stable_diffusion_parity.py`. Nothing is trained, so there is no score.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
    frozen_context,
)
from jgen.errors import defaults_of, require, require_positive
from jgen.models.diffusion import latent
from jgen.models.text_to_image.text_diffusion import check_negative
from jgen.nn import clip_text, condition_unet
from jgen.nn.cross_attention import Tokens
from jgen.prob.likelihoods import mean_image
from jgen.prob.pixels import to_float
from jgen.prob.process import Process, add_noise, discrete, from_x0, to_x0
from jgen.prob.schedules import make_schedule
from jgen.samplers.diffusion import Sampling
from jgen.samplers.system import Denoising, with_samplers

TEXT = "text"  # the condition
DRAWING = ("sample", "trajectory", "edit", "inpaint", "invert", "decode")  # of latents, which are then decoded
SAMPLING = Sampling(spacing="leading", offset=1, end="first", guidance_scale=7.5, clip=False)


@dataclass(frozen=True)
class Config:
    """A latent diffusion conditioned on texts; the defaults are those of version 1."""

    network: condition_unet.Config = condition_unet.Config()
    text_encoder: clip_text.Config = clip_text.Config()
    text_encoder_2: clip_text.Config | None = None
    """The second text encoder (XL)."""
    features: Literal["last", "before_last"] = "last"
    """Which features of a text encoder are attended to; before_last: the input of its last block."""
    start: int = 49406
    """The token that begins a text."""
    padding: tuple[int, ...] = (49407,)
    """The padding token of each text encoder."""
    zeros_for_no_text: bool = False
    """Whether a missing negative text is replaced by features of zeros, instead of the empty text."""
    text_dropout: float = 0.1
    """Probability of training without the text, for guidance."""
    scaling_factor: float = 0.18215
    """Factor on the autoencoder's latents."""
    num_timesteps: int = 1000
    """T, the steps of the chain."""
    schedule: Literal["linear", "cosine", "quadratic", "sigmoid"] = "quadratic"
    """Noise schedule; quadratic is what diffusers calls scaled_linear."""
    beta_1: float = 0.00085
    """First variance (all schedules but cosine)."""
    beta_T: float = 0.012
    """Last variance (all schedules but cosine)."""
    prediction: Literal["eps", "x0", "v"] = "eps"
    """What the network predicts."""
    sampling: Sampling = field(default_factory=lambda: SAMPLING)

    @property
    def text(self) -> str:
        """The field of its texts."""
        return TEXT

    @property
    def text_encoders(self) -> dict[str, clip_text.Config]:
        """By role."""
        others = {} if self.text_encoder_2 is None else {"text_encoder_2": self.text_encoder_2}
        return {"text_encoder": self.text_encoder, **others}


class StableDiffusion(NamedTuple):
    """First argument of the functions below, bound by `make` with `functools.partial`.

    encoders: of texts, by role. latents: their shape.
    """

    config: Config
    process: Process
    network: condition_unet.ConditionUNet
    encoders: dict[str, clip_text.ClipTextEncoder]
    autoencoder: GenerativeModel
    latents: ImageSpec
    images: ImageSpec

    @property
    def empty(self) -> np.ndarray:
        """The tokens of the empty text, int32 (encoders, T)."""
        c = self.config
        tokens = [np.full(c.text_encoder.length, padding, np.int32) for padding in c.padding]
        for row in tokens:
            row[:2] = c.start, c.text_encoder.end
        return np.stack(tokens)


def make(config: Config, data: DataSpec, *, autoencoder: GenerativeModel) -> GenerativeModel:
    """Stable Diffusion for the images of `data` and its field of texts, by CLIP's tokens.

    Args:
      autoencoder: a model that provides `encode_continuous` and `decode_continuous`, such as an autoencoder_kl.
    Raises:
      UserError: data without such texts, an autoencoder of other images, or sizes that do not fit each other.
    """
    check_config(config, data)
    latent.check_autoencoder(autoencoder, data)
    latents = ImageSpec(*latent.latent_shape(autoencoder), levels=0)
    condition_unet.check_condition_unet(config.network, latents)
    with defaults_of("sampling"):
        latent.check_clip(config.sampling)
    process = discrete(make_schedule(config.schedule, config.num_timesteps, config.beta_1, config.beta_T))
    network = condition_unet.ConditionUNet(config.network, latents.channels)
    encoders = {role: clip_text.ClipTextEncoder(sizes) for role, sizes in config.text_encoders.items()}
    sd = StableDiffusion(config, process, network, encoders, autoencoder, latents, data.image)
    denoising = Denoising(
        denoise=partial(denoise, sd),
        noise_process=lambda params: process,
        images=latents,
        sampling=config.sampling,
        without_class=without_text,
        guidable=True,
        guidance_needs="a text",
        num_timesteps=config.num_timesteps,
    )
    model = GenerativeModel(
        name="stable_diffusion",
        data=data,
        init=partial(init, sd),
        phases=(Phase(trains=("unet",), loss=partial(loss, sd)),),
        conditions=(TEXT,),
        optional={f"negative_{TEXT}": TEXT},
        validate=partial(validate, sd),
        best=("mse", "min"),
        why_not={"log_prob": "a decoded image is without pixel noise, so that it has no probability of its own"},
    )
    latent_model = with_samplers(model, denoising)
    decoding = latent.Latent(latent_model, autoencoder, data.image)
    drawing: dict[str, Any] = {
        name: partial(given_text, sd, partial(getattr(latent, name), decoding)) for name in DRAWING
    }
    count = partial(given_text, sd, latent_model.functions["count_evaluations"])
    check = partial(latent.check_sampling, decoding)
    return latent_model._replace(**drawing, check_sampling=check, functions={"count_evaluations": count})


def check_config(config: Config, data: DataSpec) -> None:
    """Raises `UserError` for data without texts, or sizes that do not fit each other."""
    encoders, network = config.text_encoders, config.network
    require_positive(num_timesteps=config.num_timesteps, scaling_factor=config.scaling_factor)
    require(0 <= config.text_dropout < 1, f"text_dropout is {config.text_dropout}: it must be from 0 to below 1")
    num, first = len(config.padding), config.text_encoder
    require(num == len(encoders), f"padding is {config.padding}: it must be a token for each text encoder")
    for sizes in encoders.values():
        clip_text.check_text_encoder(sizes)
        alike = (sizes.vocabulary, sizes.length) == (first.vocabulary, first.length)
        require(alike, "text_encoder and text_encoder_2 must have one vocabulary and one length")
    width = sum(sizes.features for sizes in encoders.values())
    require(network.context == width, f"network.context is {network.context}: the text encoders give {width}")
    last = list(encoders.values())[-1]
    fits = network.pooled in (0, last.projection or last.features)
    require(fits, f"network.pooled is {network.pooled}: the last text encoder gives {last.projection or last.features}")
    spec, shape = data.fields.get(TEXT), (first.length,) if num == 1 else (num, first.length)
    wanted = f"it must have a field {TEXT} of tokens {shape}, 0 to {first.vocabulary - 1}, CLIP's"
    known = spec is not None and (spec.shape, spec.num_values) == (shape, first.vocabulary)
    require(known, f"the data has {', '.join(data.fields) or 'no fields'}: {wanted}")


def init(sd: StableDiffusion, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    key_unet, *keys = jax.random.split(key, 1 + len(sd.encoders))
    tokens = jnp.zeros((1, sd.config.text_encoder.length), jnp.int32)
    extra: Roles = {"latent_scale": jnp.float32(1.0 / sd.config.scaling_factor)}
    for key_text, (role, encoder) in zip(keys, sd.encoders.items()):
        extra[role] = encoder.init(key_text, tokens)["params"]
    cond = embedded(sd, extra, jnp.asarray(sd.empty)[None])
    z = jnp.zeros((1, *sd.latents.shape))
    return {"unet": sd.network.init(key_unet, z, jnp.zeros(1), *inputs_of(sd, cond))["params"]}, extra


def embedded(sd: StableDiffusion, extra: Roles, tokens: jax.Array) -> Cond:
    """c of tokens (B, T) or (B, encoders, T): {"context": (B, T, D), "pooled": (B, P) where the network takes it}."""
    rows = tokens.reshape(len(tokens), len(sd.encoders), -1)
    features = [e.apply({"params": extra[role]}, rows[:, i]) for i, (role, e) in enumerate(sd.encoders.items())]
    context = jnp.concatenate([getattr(each, sd.config.features) for each in features], axis=-1)
    return {"context": context, "pooled": features[-1].pooled} if sd.config.network.pooled else {"context": context}


def no_text(sd: StableDiffusion, extra: Roles, like: Cond) -> Cond:
    """c without a text, for as many examples as `like` has."""
    if sd.config.zeros_for_no_text:
        return jax.tree.map(jnp.zeros_like, like)
    empty = embedded(sd, extra, jnp.asarray(sd.empty)[None])
    return jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), empty, like)


def with_context(sd: StableDiffusion, extra: Roles, cond: Cond) -> Cond:
    """c of a condition's text and, as negative_context and negative_pooled, of its negative text or of none."""
    given = embedded(sd, extra, cond[TEXT])
    name = f"negative_{TEXT}"
    negative = embedded(sd, extra, cond[name]) if name in cond else no_text(sd, extra, given)
    return {**given, **{f"negative_{part}": array for part, array in negative.items()}}


def without_text(cond: Cond) -> Cond:
    """The condition with the negative context instead of the positive one."""
    parts = [part for part in ("context", "pooled") if part in cond]
    return {**cond, **{part: cond[f"negative_{part}"] for part in parts}}


def inputs_of(sd: StableDiffusion, cond: Cond) -> tuple[Any, ...]:
    """The network's inputs beside z and t: tokens, and for XL the pooled text and the sizes of the image."""
    tokens = Tokens(cond["context"])
    if "pooled" not in cond:
        return (tokens,)
    height, width = sd.images.height, sd.images.width
    sizes = jnp.asarray([height, width, 0, 0, height, width], jnp.float32)  # original size, crop offset, target size
    return tokens, cond["pooled"], jnp.broadcast_to(sizes, (len(tokens.features), len(sizes)))


def output_of(sd: StableDiffusion, params: Roles, z_t: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
    """What the network predicts at times t (B,) in (0, 1]; it counts steps from 0."""
    step = t * sd.config.num_timesteps - 1.0
    output: jax.Array = sd.network.apply({"params": params["unet"]}, z_t, step, *inputs_of(sd, cond))
    return output


def denoise(sd: StableDiffusion, params: Roles, ctx: Context, z_t: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
    """The z_0 that the network predicts."""
    return to_x0(sd.config.prediction, sd.process, z_t, t, output_of(sd, params, z_t, t, cond))


def errors(sd: StableDiffusion, params: Roles, ctx: Context, keys: jax.Array, batch: Batch, cond: Cond) -> jax.Array:
    """At a random t, the squared error of the network's output, a mean over latents, float32 (B,)."""
    key_encode, key_t, key_eps = rng.split(keys, 3)
    encode = partial(sd.autoencoder.functions["encode_continuous"], *frozen_context(ctx, "autoencoder"))
    x = to_float(batch["image"], sd.images.levels)
    z = jax.lax.stop_gradient(encode(key_encode, x)) / ctx.extra["latent_scale"]
    t = rng.randint(key_t, 1, sd.config.num_timesteps + 1) / sd.config.num_timesteps
    eps = rng.normal(key_eps, sd.latents.shape)
    z_t = add_noise(sd.process, z, t, eps)
    target = eps if sd.config.prediction == "eps" else from_x0(sd.config.prediction, sd.process, z_t, t, z)
    return mean_image((output_of(sd, params, z_t, t, cond) - target) ** 2)


def loss(sd: StableDiffusion, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    key_error, key_drop = rng.split(keys, 2)
    given = embedded(sd, ctx.extra, batch[TEXT])
    drop = rng.bernoulli(key_drop, sd.config.text_dropout)

    def chosen(without: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(jnp.where(drop.reshape(-1, *[1] * (x.ndim - 1)), without, x))

    cond = jax.tree.map(chosen, no_text(sd, ctx.extra, given), given)
    return jnp.mean(errors(sd, params, ctx, key_error, batch, cond)), ({}, {})


def validate(sd: StableDiffusion, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {"mse": errors(sd, params, ctx, keys, batch, embedded(sd, ctx.extra, batch[TEXT]))}


def given_text(
    sd: StableDiffusion, function: Any, params: Roles, ctx: Context, *inputs: Any, **options: Any
) -> jax.Array:
    """A function whose condition, its last argument, is a text, which is encoded once."""
    *others, cond = inputs
    if f"negative_{TEXT}" in cond:
        system: Any = sd
        check_negative(system, "sample", options)
    result: jax.Array = function(params, ctx, *others, with_context(sd, ctx.extra, cond), **options)
    return result
