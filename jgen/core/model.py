"""The interface that every model in jgen implements.

A model is a record of pure functions over arrays, made by `make(config, data)` in its own module. A model that draws
images is a distribution over uint8 images with values 0 .. levels - 1: `sample` draws from it and `log_prob` scores
images under it, in nats of discrete probability, so that different families can be compared in one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from jgen.core import keys as rng

Tree = Any  # a pytree of arrays
Roles = dict[str, Tree]  # {role: tree}; a role names the parameters of one network, such as "gen" or "disc"
Batch = dict[str, Any]  # {"image": uint8 (B, H, W, C), "index": int32 (B,), "position": float32 (B,), <field>: ...}
Cond = dict[str, Any]  # {field: array (B, ...)}: what a model is conditioned on, {} without
# The kinds of `log_prob`, and the word for each in a table; "none" for a model without it.
LIKELIHOODS = {"exact": "exact", "lower_bound": "bound", "estimate": "estimate"}


@dataclass(frozen=True)
class ImageSpec:
    """Shape of an image, and `levels`, the number of values that a pixel takes (2 is binary, 256 is 8 bit).

    For a model of another model's latents, the latents play the role of images; levels = 0 marks them as floats.
    """

    height: int
    width: int
    channels: int
    levels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.height, self.width, self.channels)

    @property
    def size(self) -> int:
        """Dimensions of an image: H * W * C."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class ArraySpec:
    """Specification of a further array per example: a class, text tokens, a low-resolution image, style images, a mask.

    `shape` is () for a number, such as a class. Integers run from 0 to `num_values` - 1; 0 for floats and for integers
    without a bound. `names` are the names of the values 0 .. num_values - 1, such as class names; () without any.
    """

    shape: tuple[int, ...]
    dtype: str
    num_values: int = 0
    names: tuple[str, ...] = field(default=(), repr=False)  # not in the repr, from which cache hashes are computed

    @property
    def is_class(self) -> bool:
        return self.shape == () and self.num_values > 0

    @property
    def value_names(self) -> tuple[str, ...]:
        """`names`, or the numbers "0", "1", ... where there are none."""
        return self.names or tuple(map(str, range(self.num_values)))


@dataclass(frozen=True)
class DataSpec:
    """The specification that is inferred from the data before a model is made: its images and its further fields."""

    image: ImageSpec
    fields: Mapping[str, ArraySpec] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.image, tuple(sorted(self.fields.items(), key=lambda item: item[0]))))

    @property
    def num_classes(self) -> int:
        """The number of values of the field `label`; 0 without such a field."""
        return self.fields["label"].num_values if "label" in self.fields else 0

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the values of the field `label`; () if there are only numbers."""
        return self.fields["label"].names if "label" in self.fields else ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the values of the field `label`, or their numbers as text; () without such a field."""
        return self.fields["label"].value_names if "label" in self.fields else ()


class FrozenModel(NamedTuple):
    """The arrays of an earlier run that a model depends on: averaged parameters, state, and its own frozen models."""

    params: Roles
    extra: Roles
    frozen: Mapping[str, FrozenModel] = {}


Frozen = Mapping[str, FrozenModel]  # {role: arrays of the run}, what a model depends on


class Context(NamedTuple):
    """Read-only inputs of a loss or a sampler, in addition to the parameters.

    step:     int32 scalar, the number of steps taken before this one.
    key:      one PRNG key for draws that all examples of a phase, or all images of a call, share, such as the length at
              which a Russian-roulette estimator is truncated, or the offset of stratified diffusion times. All other
              draws take the keys of the examples.
    ema:      {role: tree}, the moving average of the parameters; for a role that has none, the parameters themselves.
    extra:    {role: tree}, state that is updated without gradients (batch statistics, codebooks, replay buffers).
    frozen:   {role: FrozenModel}, the arrays of earlier runs, never copied into the state or the average: see
              `frozen_context`.
    averaged: bool, whether the parameters passed along with this context are the moving average: the trained weights
              and their average have different batch statistics.
    """

    step: Any
    key: Any = None
    ema: Roles = {}
    extra: Roles = {}
    frozen: Frozen = {}
    averaged: Any = True


def frozen_parameters(frozen: Frozen) -> list[Any]:
    """The parameters of the models that a model depends on, and of those that they depend on in turn."""
    return [[model.params, frozen_parameters(model.frozen)] for model in frozen.values()]


def frozen_context(ctx: Context, role: str) -> tuple[Roles, Context]:
    """The parameters of a frozen model, and the context to call its functions with."""
    model = ctx.frozen[role]
    key = None if ctx.key is None else rng.stream(ctx.key, rng.FROZEN)
    return model.params, Context(ctx.step, key, model.params, model.extra, model.frozen)


Loss = tuple[jax.Array, tuple[dict[str, Any], Roles]]  # a loss, its metrics, the roles of `extra` that change
LossFn = Callable[[Roles, Context, jax.Array, Batch], Loss]


def always(step: int) -> bool:
    """The schedule of a phase that runs in every step."""
    return True


def every(number: int) -> Callable[[int], bool]:
    """The schedule of a phase that runs in the steps that are multiples of `number` (lazy regularisation: 16)."""
    return always if number == 1 else lambda step: step % number == 0


class Phase(NamedTuple):
    """One gradient update within a training step: which roles it trains, and with which loss.

    loss(params, ctx, keys, batch) -> (scalar, (metrics, new_extra)). The loss and the metrics are means over the
    examples given; the scalar is logged as `loss`, followed by the phase's name in a model of several phases.
    `new_extra` holds the roles of `extra` that changed, whole. It is averaged over devices and accumulation steps, so
    that statistics which are means over examples come out as over the whole batch; a role in
    `GenerativeModel.by_example` belongs to the examples instead, and is not averaged.

    trains:  the roles whose parameters are updated; () for a phase that only updates `extra`, without a gradient.
    repeats: how often the phase runs in a step, each time on a batch of its own (WGAN's critic: 5).
    runs:    step -> whether the phase runs in that step (counted from 0), asked on the host: see `every`. A program is
             compiled for each set of phases that run together.
    project: {role: tree} -> {role: tree}, applied to the parameters of the trained roles after each update (the weight
             clipping of WGAN).
    name:    what its loss and its gradient norm are called in the logs, in a model of several phases; "" takes the
             roles that it trains.
    """

    trains: tuple[str, ...]
    loss: LossFn
    repeats: int = 1
    runs: Callable[[int], bool] = always
    project: Callable[[Roles], Roles] | None = None
    name: str = ""


class GenerativeModel(NamedTuple):
    """A model as a record of pure functions. `keys` is always one PRNG key per example, shape (B,).

    name:        the system's name, for messages.
    data:        the specification of the data: the images and the further fields.
    init:        (key, batch, frozen) -> (params, extra); `batch` is the first global batch, `frozen` that of a context.
    phases:      what one training step does, in order.
    sample:      (params, ctx, keys, cond, **sampling) -> uint8 (B, H, W, C); None for a model that draws no images (a
                 classifier, a text encoder, an autoencoder without a prior).
    trajectory:  (params, ctx, keys, cond, **sampling) -> uint8 (B, n, H, W, C): images on the way to the sample, which
                 is the last of them.
    sampling:    a frozen dataclass with the default of every option of `sample` and `trajectory`.
    sampled:     (options) -> the ImageSpec of what `sample` draws with these values of `sampling`, where they choose
                 the size; None: that of `data`.
    check_sampling: (options) -> None, raises UserError for values of `sampling` that the model cannot sample with,
                 before there is a program. None where `sample` does so itself.
    evaluations: (options) -> how often `sample` evaluates the network per image, 0 if that depends on the image; None
                 if network evaluations do not measure the cost of sampling, as in autoregressive models.
    numbers:     {option of `sampling`: values that are compiled as constants}: the options that are passed as traced
                 scalars, so that all other values share one program ({"guidance_scale": (0.0, 1.0)}).
    conditions:  the fields of the data that make up `cond` in every signature; () for an unconditional model.
    unconditional: names of the functions for which every field of `cond` is optional.
    optional:    {name: field}, further optional entries of `cond`, with the specification of that field: negative_text
                 (a negative prompt), source_text (the caption of the image that is edited).
    validate:    (params, ctx, keys, batch) -> {name: float32 (B,)}, scores per example at the time of validation.
    best:        (validation score, "min" or "max") by which one checkpoint is better than another; None where no score
                 tells, as in an adversarial game.
    log_prob:    (params, ctx, keys, images, cond, **scoring) -> float32 (B,), nats of discrete probability an image.
    scoring:     a frozen dataclass with the default of every option of `log_prob`.
    prepare_scoring: (params, ctx, **scoring) -> the roles of `extra` to score with, computed once before `log_prob`:
                 an energy's normaliser, {"normaliser": {"log_z": (K,), "log_weights": (chains, K), ...}}, K classes or
                 1. Without them in `extra`, `log_prob` computes them itself, by the same key `ctx.key`.
    likelihood:  what `log_prob` is: "exact", "lower_bound", "estimate" or "none".
    log_density: (params, ctx, keys, x, cond) -> float32 (B,), exact nats; x dequantised, floats in [0, levels).
    energy:      (params, ctx, keys, images, cond) -> float32 (B,), -log p in nats up to a constant.
    encode:      (params, ctx, keys, images, cond) -> latents, a tree of arrays (B, ...).
    decode:      (params, ctx, keys, latents, cond) -> uint8 images.
    decoding:    a frozen dataclass with the default of every option of `decode`, where it has any.
    invert:      (params, ctx, keys, images, cond, **inverting) -> latents for `decode`, of a model without `encode`:
                 found by gradient-based optimisation, or by running the sampler's steps in reverse.
    inverting:   a frozen dataclass with the default of every option of `invert`.
    interpolation: (a, b, w) -> interpolated latents, applied leaf by leaf; w (B,) in [0, 1]. None: linear. Required
                 where latents come from `invert`.
    codes:       where `encode` returns discrete codes, one int array (B, h, w, c) or a tuple of them: the ImageSpec of
                 each grid; `levels` is the size of the codebook, and may be above 256. () where latents are not codes.
    inpaint:     (params, ctx, keys, images, mask, cond, **inpainting) -> uint8 images; bool (B, H, W), true where a
                 pixel is kept.
    inpainting:  a frozen dataclass with the default of every option of `inpaint`; None: they are those of `sampling`.
    edit:        (params, ctx, keys, images, cond, **editing) -> uint8 images like those given, changed towards `cond`.
    editing:     a frozen dataclass with the default of every option of `edit`.
    restore:     (params, ctx, keys, measurement, cond, **restoring) -> uint8 images (B, H, W, C) reconstructed from
                 linear measurements of them (`jgen.prob.degradation`), float (B, ...) on the pixel scale
                 0 .. levels - 1.
    restoring:   a frozen dataclass with the default of every option of `restore`.
    check_mask:  raises UserError for a mask (H, W) that `inpaint` does not support.
    prepare: (params, ctx, keys, cond) -> the roles of `extra` to sample with, computed once before sampling (standing
                 batch statistics).
    check_training: (steps) -> None, raises UserError if `steps` are too few to complete the schedule by which networks
                 grow. None if a run may have any length.
    functions:   {name: function}, what the model provides to models that depend on it, with the signatures
                 denoise(params, ctx, x_t, t, cond) -> x_0, float (B, H, W, C), of noisy images at times (B,) in (0, 1];
                 process(params, ctx) -> jgen.prob.process.Process, the noise at each time, which may be learned;
                 count_evaluations(params, ctx, keys, cond, **sampling) -> int32 (B,), of the network by `sample`;
                 encode_continuous(params, ctx, keys, x) -> latents, float (B, h, w, c), of images in [-1, 1];
                 draw_noise(keys) -> (eps_z, eps_x), the standard normal noise that a VAE turns into an image;
                 pixels_of_noise(params, ctx, eps_z, eps_x, cond) -> that image before it is rounded, on about [-1, 1],
                 and its mean, float (B, H, W, C);
                 draw_dequantised(params, ctx, keys, cond, temperature) -> float (B, H, W, C) in about [0, levels),
                 samples of a flow, differentiable in its parameters;
                 decode_continuous(params, ctx, latents) -> float (B, H, W, C) in about [-1, 1];
                 sample_codes(params, ctx, keys, cond, temperature) -> int32 (B, h, w, c), of the first grid of codes;
                 texture_error(params, ctx, images) -> float32 (B,), how far statistics of uint8 images of any size are
                 from those of the texture, relative to these;
                 mix_styles(params, ctx, (keys, keys), (cond, cond)) -> uint8 images with the coarse styles of samples
                 of the first keys and the fine styles of samples of the second;
                 logits(params, ctx, x) -> (B, classes), of images as floats in [-1, 1];
                 noisy_logits(params, ctx, x, log_snr) -> (B, classes), of noisy images scaled to the variance of data,
                 at half the log signal-to-noise ratio (B,);
                 conditionals(params, ctx, x, cond) -> (B, H, W, ...), the parameters of the distribution of each pixel
                 given those before it, differentiable in x, float (B, H, W, C) in 0 .. levels - 1;
                 embed_image(params, ctx, x) -> (B, features), L2-normalised;
                 embed_text(params, ctx, tokens) -> (B, features), L2-normalised;
                 scale(params, ctx) -> (), the logit scale (inverse temperature) of their products;
                 draw_embedding(params, ctx, keys, cond, **sampling) -> (B, features), of images of that condition;
                 encode_text(params, ctx, tokens) -> jgen.nn.cross_attention.Tokens, the features of each token;
                 text_log_prob(params, ctx, tokens) -> float32 (B,), nats of texts as tokens (B, T);
                 complete_text(params, ctx, keys, tokens, known, temperature, top_k, top_p) -> int32 (B, T), texts that
                 begin with the first `known`, (B,), of the tokens, the start included.
    shared:      frozen roles that must be the same run here and in every frozen model that has that role: a prior
                 trained on a different CLIP is refused.
    averages:    the roles that have a moving average, to sample and score with; None for all.
    by_example:  the roles of `extra` with per-example arrays (B, ...): entry i belongs to example i of the global
                 batch, and they are split over devices and microbatches (replay buffers, negatives).
    whole_batch: whether the loss depends on the whole batch, as a contrastive loss does. Such a loss gathers the batch
                 over the devices (`jgen.core.parallel`), and cannot be accumulated over microbatches.
    if_not_finite: advice for the error message of a run that stops because of non-finite numbers; "" for none.
    why_not:     {capability: reason}: why the model lacks a capability that a user may expect, and what to use instead;
                 part of the message of `NotSupported`.
    """

    name: str
    data: DataSpec
    init: Callable[[jax.Array, Batch, Frozen], tuple[Roles, Roles]]
    phases: tuple[Phase, ...]
    sample: Callable[..., Any] | None = None
    trajectory: Callable[..., Any] | None = None
    sampling: Any = None
    sampled: Callable[[Any], ImageSpec] | None = None
    check_sampling: Callable[[Any], None] | None = None
    evaluations: Callable[[Any], int] | None = None
    numbers: Mapping[str, tuple[float, ...]] = {}
    conditions: tuple[str, ...] = ()
    unconditional: tuple[str, ...] = ()
    optional: Mapping[str, str] = {}
    validate: Callable[..., dict[str, Any]] | None = None
    best: tuple[str, str] | None = None
    log_prob: Callable[..., Any] | None = None
    scoring: Any = None
    prepare_scoring: Callable[..., Roles] | None = None
    likelihood: str = "none"
    log_density: Callable[..., Any] | None = None
    energy: Callable[..., Any] | None = None
    encode: Callable[..., Any] | None = None
    decode: Callable[..., Any] | None = None
    invert: Callable[..., Any] | None = None
    decoding: Any = None
    inverting: Any = None
    interpolation: Callable[..., Any] | None = None
    codes: tuple[ImageSpec, ...] = ()
    inpaint: Callable[..., Any] | None = None
    inpainting: Any = None
    check_mask: Callable[[Any], None] | None = None
    edit: Callable[..., Any] | None = None
    editing: Any = None
    restore: Callable[..., Any] | None = None
    restoring: Any = None
    prepare: Callable[..., Roles] | None = None
    check_training: Callable[[int], None] | None = None
    functions: Mapping[str, Callable[..., Any]] = {}
    shared: tuple[str, ...] = ()
    averages: tuple[str, ...] | None = None
    by_example: tuple[str, ...] = ()
    whole_batch: bool = False
    if_not_finite: str = ""
    why_not: Mapping[str, str] = {}

    def __hash__(self) -> int:
        return hash((self.name, self.init, self.phases))  # the mappings have no hash

    @property
    def images(self) -> ImageSpec:
        return self.data.image

    def condition(self, batch: Batch) -> Cond:
        """The fields of a batch that the model is conditioned on."""
        return select(batch, self.conditions)


def select(batch: Mapping[str, Any], conditions: tuple[str, ...]) -> Cond:
    """The fields of a batch with these names."""
    return {name: batch[name] for name in conditions}


def select_first(batch: Mapping[str, Any], conditions: tuple[str, ...]) -> Cond:
    """The fields with these names, of the first example only, (1, ...), to initialise a network with."""
    return jax.tree.map(lambda x: x[:1], select(batch, conditions))
