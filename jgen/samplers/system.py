"""What a system of a denoiser and a process has beside its loss: guided sampling, and the likelihood of its flow.

denoising = denoising_by_class(unet, config, denoise, process)
model = with_samplers(GenerativeModel(name=..., init=..., phases=...), denoising)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jgen.core import failures
from jgen.core import keys as rng
from jgen.core.model import Cond, Context, GenerativeModel, ImageSpec, Roles, frozen_context
from jgen.errors import defaults_of
from jgen.nn.class_unet import ClassUNet
from jgen.prob.pixels import to_uint8
from jgen.prob.process import Process
from jgen.samplers import ode
from jgen.samplers.diffusion import Sampling, check_path, check_sampling, draw, evaluations
from jgen.samplers.guidance import autoguided, classifier_free

# Options that a compiled sampler takes as numbers: guidance but for the scales that take one evaluation a step.
NUMBERS = {"guidance_scale": (0.0, 1.0)}


class Denoising(NamedTuple):
    """A denoiser and how it is sampled from.

    denoise:       (params, ctx, x_t, t, cond) -> x_0, float (B, H, W, C), at times t (B,) in (0, 1].
    process:       (params) -> the process, which may be learned.
    sampling:      the defaults.
    without_class: cond -> the condition that stands for none, of the same shapes; for guidance.
    guidable:      whether there is one that the model was trained with, or a guide; needs: what that would take.
    num_timesteps: T of the chain that the model was trained on; 0 in continuous time.
    guide:         the model of role "guide", to guide with in place of the model without its condition.
    """

    denoise: Callable[..., jax.Array]
    process: Callable[[Roles], Process]
    images: ImageSpec
    sampling: Sampling
    without_class: Callable[[Cond], Cond]
    guidable: bool
    needs: str
    num_timesteps: int = 0
    guide: GenerativeModel | None = None


class Options(Protocol):
    """The fields that the Config of a class-conditional system has for its sampling."""

    @property
    def class_conditional(self) -> bool: ...
    @property
    def label_dropout(self) -> float: ...
    @property
    def sampling(self) -> Sampling: ...


def denoising_by_class(
    unet: ClassUNet,
    config: Options,
    denoise: Callable[..., jax.Array],
    process: Callable[[Roles], Process],
    num_timesteps: int = 0,
    guide: GenerativeModel | None = None,
    needs: str = "class_conditional and label_dropout",
) -> Denoising:
    """The denoiser of a U-Net that may be conditioned on the class: see `Denoising`."""
    guidable = (config.class_conditional and config.label_dropout > 0) or guide is not None
    where = unet.images, config.sampling, unet.without_class
    return Denoising(denoise, process, *where, guidable, needs, num_timesteps, guide)


def with_samplers(model: GenerativeModel, denoising: Denoising) -> GenerativeModel:
    """The model with sampling, and with the functions `denoise` and `process` that it lends.

    Raises:
      UserError: defaults that it cannot sample with.
    """
    check = partial(check_options, denoising)
    with defaults_of("sampling"):
        check(denoising.sampling)
    return model._replace(
        sample=partial(sample, denoising),
        trajectory=partial(trajectory, denoising),
        sampling=denoising.sampling,
        check_sampling=check,
        evaluations=guided_evaluations,
        numbers=NUMBERS,
        functions={"denoise": denoising.denoise, "process": lambda params, ctx: denoising.process(params)},
    )


def with_flow_likelihood(model: GenerativeModel, denoising: Denoising, scoring: ode.Scoring) -> GenerativeModel:
    """The model with the likelihood that its probability flow gives (see `jgen.samplers.ode`).

    Raises:
      UserError: options of the solver that are out of their range.
    """
    ode.check_ode(scoring.tolerance, scoring.probes)
    return model._replace(log_prob=partial(log_prob, denoising, scoring), scoring=scoring, likelihood="estimate")


def guided_evaluations(o: Sampling) -> int:
    """Evaluations of the network for an image: two in place of one where there is guidance."""
    return evaluations(o) * (1 if o.guidance_scale in NUMBERS["guidance_scale"] else 2)


def with_states(
    model: GenerativeModel, states: Callable[..., jax.Array], evaluations: Callable[[Any], int]
) -> GenerativeModel:
    """The model of another way from noise to images with its functions `sample` and `trajectory`.

    Args:
      states: (params, ctx, keys, cond, **sampling) -> float (n, B, H, W, C) in about [-1, 1]; the last is the sample.
    """
    levels = model.images.levels

    def sample(params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
        return to_uint8(states(params, ctx, keys, cond, **options)[-1], levels)

    def trajectory(params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
        return to_uint8(jnp.moveaxis(states(params, ctx, keys, cond, **options), 0, 1), levels)

    return model._replace(sample=sample, trajectory=trajectory, evaluations=evaluations)


def check_options(denoising: Denoising, o: Sampling) -> None:
    """Raises `UserError` for options that the system cannot sample with."""
    check_sampling(o, num_timesteps=denoising.num_timesteps, guidable=denoising.guidable, needs=denoising.needs)


def guided_draw(
    denoising: Denoising, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, o: Sampling
) -> tuple[jax.Array, jax.Array | None]:
    """Samples x_0 with guidance, and the denoised images on the way: see `draw`."""
    process, scale, interval = denoising.process(params), o.guidance_scale, o.guidance_interval
    strong = partial(denoising.denoise, params, ctx)
    weak = None
    if denoising.guide is not None:
        weak = partial(denoising.guide.functions["denoise"], *frozen_context(ctx, "guide"))

    def guided(x_t: jax.Array, t: jax.Array, both: Cond) -> jax.Array:
        if weak is not None:
            return autoguided(strong, weak, both["cond"], scale, process, interval)(x_t, t)
        return classifier_free(strong, both["cond"], both["null"], scale, process, interval)(x_t, t)

    key_start, key_steps = rng.split(keys, 2)
    noise = rng.normal(key_start, denoising.images.shape)
    both = {"cond": cond, "null": denoising.without_class(cond)}
    return draw(guided, both, process, o, noise, key_steps, denoising.num_timesteps)


def sample(denoising: Denoising, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    """Images, uint8 (B, H, W, C)."""
    o = replace(denoising.sampling, **options)
    x_0, _ = guided_draw(denoising, params, ctx, keys, cond, o)
    failures.report(failure_of(o), ~jnp.all(jnp.isfinite(x_0), axis=(1, 2, 3)))
    return to_uint8(x_0, denoising.images.levels)


def trajectory(
    denoising: Denoising, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    """The denoised image at each time, and then the sample: uint8 (B, n + 1, H, W, C)."""
    o = replace(denoising.sampling, **options)
    check_path(o)
    x_0, estimates = guided_draw(denoising, params, ctx, keys, cond, o)
    assert estimates is not None
    return to_uint8(jnp.concatenate([jnp.moveaxis(estimates, 0, 1), x_0[:, None]], axis=1), denoising.images.levels)


def failure_of(o: Sampling) -> str:
    """What it means that a sample is not finite."""
    if o.sampler == "ode":
        return f"the solver of sampler ode did not converge at tolerance {o.tolerance:g}"
    return f"sampler {o.sampler} left the range of numbers"


def log_prob(
    denoising: Denoising,
    scoring: ode.Scoring,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    x: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    """An estimate of log P(x) in nats, float32 (B,), x uint8 (B, H, W, C): see `ode.log_prob`."""
    o = replace(scoring, **options)
    denoiser = partial(denoising.denoise, params, ctx)
    nats = ode.log_prob(denoiser, denoising.process(params), x, cond, keys, denoising.images.levels, o)
    failures.report(f"the solver of the likelihood did not converge at tolerance {o.tolerance:g}", ~jnp.isfinite(nats))
    return nats
