"""The contract: what every generative model in jgen is.

A model is a record of pure functions over arrays, made by `make(config, images, axis_name)` in its own module. Every
model is a distribution over uint8 images with values 0 .. levels - 1: `sample` draws from it and `log_prob` scores
images under it, in nats of discrete probability, so that unlike families stand in one table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

Tree = Any  # a pytree of arrays
Roles = dict[str, Tree]  # {role: tree}, such as {"gen": ..., "disc": ...}
# What `log_prob` may be, and the word for it in a table; a model without it says "none".
LIKELIHOODS = {"exact": "exact", "lower_bound": "bound", "estimate": "estimate"}


@dataclass(frozen=True)
class ImageSpec:
    """What is inferred from the data, once, before a model is made.

    `levels` is the number of values a pixel takes (2 is binary, 256 is 8 bit); `num_classes` is 0 without labels.
    """

    height: int
    width: int
    channels: int
    num_classes: int
    levels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.height, self.width, self.channels)

    @property
    def size(self) -> int:
        """Dimensions of an image: H * W * C."""
        return self.height * self.width * self.channels


class Context(NamedTuple):
    """What a loss or a sampler may read beside the parameters. It is read-only and has these five fields only.

    step:     int32 scalar, the number of steps taken before this one.
    ema:      {role: tree}, the moving average of the parameters; of a role that has none, the parameters themselves.
    extra:    {role: tree}, state that is updated without gradients (batch statistics, codebooks, ...).
    frozen:   what an earlier run left, never copied into the state or the average; `{"first_stage": (params, extra)}`
              for a system of two stages: see `first_stage_context`.
    averaged: bool, whether the parameters that a function is given with this context are the average. The trained
              weights and their average have different batch statistics.
    """

    step: Any
    ema: Roles
    extra: Roles
    frozen: Roles
    averaged: Any = True


def first_stage_context(ctx: Context) -> tuple[Roles, Context]:
    """The parameters of the frozen first stage and the context to call its functions with."""
    params, extra = ctx.frozen["first_stage"]
    return params, Context(ctx.step, params, extra, {})


Batch = dict[str, Any]  # {"image": uint8 (B, H, W, C), "label": int32 (B,), "index": int32 (B,)}
LossFn = Callable[[Roles, Context, Any, Batch], tuple[Any, tuple[dict[str, Any], Roles]]]


class Phase(NamedTuple):
    """One alternation of a training step: which roles move, by which loss.

    loss(params, ctx, keys, batch) -> (scalar, (metrics, new_extra)). The loss and the metrics are means over the
    examples given; `new_extra` holds the roles of `extra` that changed, whole, and is averaged over devices and
    accumulation steps, so that statistics which are means over examples come out as over the whole batch.

    repeats: how often the phase runs in a step, each time on a batch of its own (WGAN's critic: 5).
    every:   the phase runs in the steps that are multiples of this number (lazy regularisation: 16).
    project: {role: tree} -> {role: tree}, applied to the parameters of the trained roles after each update (the weight
             clipping of WGAN).
    name:    what its loss and its gradient norm are called in the logs, in a model of several phases; "" takes the
             roles that it trains.
    """

    trains: tuple[str, ...]
    loss: LossFn
    repeats: int = 1
    every: int = 1
    project: Callable[[Roles], Roles] | None = None
    name: str = ""


class GenerativeModel(NamedTuple):
    """A generative model as a record of pure functions. `keys` is always one PRNG key an example, shape (B,).

    name:        the system's name, for messages.
    images:      the images it is a distribution over.
    init:        (key, batch) -> (params, extra); `batch` is the first global batch.
    phases:      what one training step does, in order.
    sample:      (params, ctx, keys, label, **sampling) -> uint8 (B, H, W, C); label int32 (B,); None without classes.
    sampling:    a frozen dataclass with the default of every option of `sample` and `inpaint`.
    validate:    (params, ctx, keys, batch) -> {name: float32 (B,)}, scores an example at the time of validation.
    log_prob:    (params, ctx, keys, images, label, **scoring) -> float32 (B,), nats of discrete probability an image.
    scoring:     a frozen dataclass with the default of every option of `log_prob`.
    likelihood:  what `log_prob` is: "exact", "lower_bound", "estimate" or "none".
    log_density: (params, ctx, keys, x, label) -> float32 (B,), exact nats; x dequantised, floats in [0, levels).
    encode:      (params, ctx, keys, images, label) -> latents, a tree of arrays (B, ...).
    decode:      (params, ctx, keys, latents, label) -> uint8 images.
    codes:       where `encode` gives discrete codes, uint8 or int32 (B, h, w, c): their specification; `levels` is the
                 size of the codebook, and may be above 256.
    inpaint:     (params, ctx, keys, images, mask, label, **sampling) -> uint8 images; bool (B, H, W), true where a
                 pixel is kept.
    check_mask:  raises UserError for a mask (H, W) that `inpaint` cannot serve.
    averages:    the roles whose average is kept, to sample and score with; None for all.
    conditional: whether `label` is used.
    free_form_jacobian: whether the map from noise to images (or back) may be any function; false where it has to be
                 triangular or invertible layer by layer, so that its determinant can be had.
    """

    name: str
    images: ImageSpec
    init: Callable[..., tuple[Roles, Roles]]
    phases: tuple[Phase, ...]
    sample: Callable[..., Any]
    sampling: Any = None
    validate: Callable[..., dict[str, Any]] | None = None
    log_prob: Callable[..., Any] | None = None
    scoring: Any = None
    likelihood: str = "none"
    log_density: Callable[..., Any] | None = None
    encode: Callable[..., Any] | None = None
    decode: Callable[..., Any] | None = None
    codes: ImageSpec | None = None
    inpaint: Callable[..., Any] | None = None
    check_mask: Callable[[Any], None] | None = None
    averages: tuple[str, ...] | None = None
    conditional: bool = False
    free_form_jacobian: bool = True
