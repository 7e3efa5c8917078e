"""Sampling and likelihood shared by all diffusion systems. A system itself only defines its network, loss and denoiser.

denoising = denoising_by_class(network, config, denoise, lambda params: process)
model = with_samplers(GenerativeModel(name=..., init=..., phases=...), denoising)
model = with_flow_likelihood(model, denoising, config.scoring)  # where the system has no bound of its own

`scoring` is a `jgen.samplers.ode.Scoring`; `jgen/models/diffusion/score_sde.py` is such a system.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jgen.core import failures
from jgen.core import keys as rng
from jgen.core.model import Cond, Context, GenerativeModel, ImageSpec, Roles, frozen_context
from jgen.errors import defaults_of, require, require_latents
from jgen.nn.conditional_network import ConditionalNetwork
from jgen.prob.degradation import make_degradation
from jgen.prob.interpolation import slerp
from jgen.prob.pixels import to_float, to_uint8
from jgen.prob.process import Denoiser, Process, add_noise
from jgen.samplers import linear, ode, posterior
from jgen.samplers.denoising_error import denoising_error
from jgen.samplers.diffusion import (
    Decoding,
    Editing,
    Inversion,
    Sampling,
    check_editing,
    check_path,
    check_sampling,
    check_unused,
    clip_if,
    draw,
    draw_adaptively,
    draw_from,
    editing_of,
    evaluations,
    last_times,
    start_std,
    times_of,
)
from jgen.samplers.guidance import Conditional, Guidance, autoguided, by_classifier, classifier_free
from jgen.samplers.posterior import Inpainting, Restoring

# The scales are traced, so that another value needs no compilation; 0 and 1 have their own programs, which evaluate one
# model instead of two.
NUMBERS = {"guidance_scale": (0.0, 1.0), "classifier_scale": (0.0,)}
OVERFLOW = "the sample has non-finite values"


class Denoising(NamedTuple):
    """A denoiser and how it is sampled from.

    denoise:       (params, ctx, x_t, t, cond) -> x_0, float (B, H, W, C), at times t (B,) in (0, 1].
    noise_process: (params) -> the noise process (`jgen.prob.process.Process`), which may be learned; unlike the
                   function `process` of `GenerativeModel.functions`, it takes no context.
    sampling:      default options of sampling.
    without_class: cond -> the null condition, of the same shapes, for classifier-free guidance.
    guidable:      whether the model supports guidance.
    guidance_needs: options that guidance requires, for the error message.
    num_timesteps: T, the number of discrete training timesteps; 0 in continuous time.
    guide:         the weak model of autoguidance (role "guide"); None: classifier-free guidance.
    classifier:    a classifier of noisy images (role "classifier"), which provides `noisy_logits`; None for none.
    with_variance: like `denoise`, -> [x_0, v], (B, H, W, 2 C), if the network predicts variances; else None.
    """

    denoise: Callable[..., jax.Array]
    noise_process: Callable[[Roles], Process]
    images: ImageSpec
    sampling: Sampling
    without_class: Callable[[Cond], Cond]
    guidable: bool
    guidance_needs: str
    num_timesteps: int = 0
    guide: GenerativeModel | None = None
    classifier: GenerativeModel | None = None
    with_variance: Callable[..., jax.Array] | None = None


class ClassConditionalConfig(Protocol):
    """Config fields that `denoising_by_class` requires."""

    @property
    def class_conditional(self) -> bool: ...
    @property
    def label_dropout(self) -> float: ...
    @property
    def sampling(self) -> Sampling: ...


def denoising_by_class(
    network: ConditionalNetwork,
    config: ClassConditionalConfig,
    denoise: Callable[..., jax.Array],
    noise_process: Callable[[Roles], Process],
    num_timesteps: int = 0,
    guide: GenerativeModel | None = None,
    classifier: GenerativeModel | None = None,
    guidance_needs: str = "class_conditional and label_dropout",
    with_variance: Callable[..., jax.Array] | None = None,
) -> Denoising:
    """The denoiser of a network that may be class-conditional: see `Denoising`."""
    return Denoising(
        denoise=denoise,
        noise_process=noise_process,
        images=network.images,
        sampling=config.sampling,
        without_class=network.without_class,
        guidable=(network.droppable and config.label_dropout > 0) or guide is not None,
        guidance_needs=guidance_needs,
        num_timesteps=num_timesteps,
        guide=guide,
        classifier=classifier,
        with_variance=with_variance,
    )


def with_samplers(model: GenerativeModel, denoising: Denoising) -> GenerativeModel:
    """Returns `model` with sampling added, and with `denoise`, `process` and `count_evaluations` in `functions`, for
    models built on it.

    Raises:
      UserError: default sampling options that are invalid for this system.
    """
    check = partial(check_sampling_options, denoising)
    with defaults_of("sampling"):
        check(denoising.sampling)
    if denoising.classifier is not None:
        check_classifier(denoising.classifier, model)
    return model._replace(
        conditions=conditions_of(model, denoising.classifier),
        sample=partial(sample, denoising),
        trajectory=partial(trajectory, denoising),
        sampling=denoising.sampling,
        check_sampling=check,
        evaluations=lambda o: evaluations_per_call(o) * evaluations(o),
        numbers=NUMBERS,
        inpaint=partial(inpaint, denoising),
        inpainting=Inpainting(guidance_scale=denoising.sampling.guidance_scale),
        edit=partial(edit, denoising),
        editing=editing_of(denoising.sampling),
        invert=partial(invert, denoising),
        inverting=Inversion(),
        decode=partial(decode, denoising),
        decoding=Decoding(),
        interpolation=slerp,
        energy=partial(energy, denoising),
        restore=partial(restore, denoising),
        restoring=Restoring(),
        functions={
            "denoise": denoising.denoise,
            "process": lambda params, ctx: denoising.noise_process(params),
            "count_evaluations": partial(count_evaluations, denoising),
        },
    )


def with_flow_likelihood(model: GenerativeModel, denoising: Denoising, scoring: ode.Scoring) -> GenerativeModel:
    """The model with the likelihood of its probability flow (see `jgen.samplers.ode`).

    Raises:
      UserError: options of the solver that are out of their range.
    """
    ode.check_ode(scoring.tolerance, scoring.probes)
    return model._replace(log_prob=partial(log_prob, denoising, scoring), scoring=scoring, likelihood="estimate")


def evaluations_per_call(o: Sampling) -> int:
    """Network evaluations per call of the guided denoiser: 1 at guidance scale 1, or 0 without an interval; else 2."""
    one = o.guidance_scale == 1.0 or (o.guidance_scale == 0.0 and not o.guidance_interval)
    return 1 if one else 2


def with_states(
    model: GenerativeModel, states: Callable[..., jax.Array], evaluations: Callable[[Any], int]
) -> GenerativeModel:
    """The model with `sample` and `trajectory` from a function that gives the images after all steps.

    Args:
      states: (params, ctx, keys, cond, **sampling) -> float (n, B, H, W, C) in about [-1, 1]; the last is the sample.
      evaluations: see `GenerativeModel`.
    """
    levels = model.images.levels

    def sample(params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
        return to_images(states(params, ctx, keys, cond, **options)[-1], levels, OVERFLOW)

    def trajectory(params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
        return to_images(jnp.moveaxis(states(params, ctx, keys, cond, **options), 0, 1), levels, OVERFLOW)

    return model._replace(sample=sample, trajectory=trajectory, evaluations=evaluations)


def check_sampling_options(denoising: Denoising, o: Sampling) -> None:
    """Raises `UserError` for sampling options that are invalid for this system."""
    check_sampling(
        o, num_timesteps=denoising.num_timesteps, guidable=denoising.guidable, needs=denoising.guidance_needs
    )
    check_unused(o, denoising.sampling)
    if isinstance(o, Editing):
        check_editing(o)
    channels, learned = denoising.images.channels, denoising.with_variance is not None
    fits = 0 <= o.guidance_channels <= channels
    require(fits, f"guidance_channels is {o.guidance_channels}: it must be from 0 (all) to {channels}")
    require(0 <= o.classifier_scale < math.inf, f"classifier_scale is {o.classifier_scale}: it must be zero or above")
    guided = denoising.classifier is not None or o.classifier_scale == denoising.sampling.classifier_scale
    require(guided, f"classifier_scale is {o.classifier_scale}, but there is no classifier: give --frozen.classifier")
    require(learned or o.variance != "learned", "variance is learned: this network does not predict it")


def conditions_of(model: GenerativeModel, classifier: GenerativeModel | None) -> tuple[str, ...]:
    """A model's conditions, including the class if a classifier guides: the model itself may be unconditional."""
    needs_label = classifier is not None and "label" not in model.conditions
    return ("label", *model.conditions) if needs_label else model.conditions


def check_classifier(classifier: GenerativeModel, model: GenerativeModel) -> None:
    """Raises `UserError` unless a classifier is for noisy images like the model's, and for the classes of its data."""
    name, provides = classifier.name, "noisy_logits" in classifier.functions
    require(provides, f"classifier is a {name}: it must be a classifier of noisy images, such as a noisy_classifier")
    shape, wanted = classifier.images.shape, model.images.shape
    require(shape == wanted, f"classifier is of images {shape}: they must be {wanted}, as in the data")
    levels, wanted_levels = classifier.images.levels, model.images.levels
    require(levels == wanted_levels, f"classifier is of images of {levels} levels: the data has {wanted_levels}")
    classes, wanted_classes = classifier.data.num_classes, model.data.num_classes
    require(classes == wanted_classes, f"classifier is of {classes} classes: the data has {wanted_classes}")


def guided(denoising: Denoising, params: Roles, ctx: Context, o: Sampling) -> Conditional:
    """(x_t, t, {"cond": condition, "null": null condition}) -> x_0 with guidance; [x_0, v] for learned variances."""
    process, channels = denoising.noise_process(params), o.guidance_channels
    strong = partial(denoising.denoise, params, ctx)
    if o.variance == "learned":
        assert denoising.with_variance is not None
        strong, channels = partial(denoising.with_variance, params, ctx), channels or denoising.images.channels
    guidance = Guidance(o.guidance_scale, o.guidance_interval, channels)

    def denoiser(x_t: jax.Array, t: jax.Array, c: Cond) -> jax.Array:
        if denoising.guide is None:
            once = classifier_free(strong, c["cond"], c["null"], process, guidance)
        else:
            weak = partial(denoising.guide.functions["denoise"], *frozen_context(ctx, "guide"))
            once = autoguided(strong, weak, c["cond"], process, guidance)
        if denoising.classifier is not None and not (is_known(o.classifier_scale) and o.classifier_scale == 0.0):
            logits = partial(denoising.classifier.functions["noisy_logits"], *frozen_context(ctx, "classifier"))
            once = by_classifier(once, logits, c["cond"]["label"], process, o.classifier_scale)
        return once(x_t, t)

    return denoiser


def is_known(number: Any) -> bool:
    """Whether a number is known when the program is traced."""
    return not isinstance(number, jax.Array)


def inputs_of_draw(denoising: Denoising, keys: jax.Array, cond: Cond) -> tuple[jax.Array, jax.Array, Cond]:
    """Initial noise, keys for the noise of the sampling steps, and the conditions for `guided`."""
    key_start, key_steps = rng.split(keys, 2)
    noise = rng.normal(key_start, denoising.images.shape)
    return noise, key_steps, {"cond": cond, "null": denoising.without_class(cond)}


def guided_draw(
    denoising: Denoising, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, o: Sampling
) -> tuple[jax.Array, jax.Array | None]:
    """Samples x_0 with guidance, and the denoised estimate at each step: see `draw`."""
    noise, key_steps, both = inputs_of_draw(denoising, keys, cond)
    process, steps = denoising.noise_process(params), denoising.num_timesteps
    return draw(guided(denoising, params, ctx, o), both, process, o, noise, key_steps, steps)


def sample(denoising: Denoising, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    """Images, uint8 (B, H, W, C)."""
    o = replace(denoising.sampling, **options)
    x_0, _ = guided_draw(denoising, params, ctx, keys, cond, o)
    return to_images(x_0, denoising.images.levels, failure_of(o))


def trajectory(
    denoising: Denoising, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    """The denoised image at each evaluation, and then the sample: uint8 (B, n + 1, H, W, C)."""
    o = replace(denoising.sampling, **options)
    check_path(o)
    x_0, estimates = guided_draw(denoising, params, ctx, keys, cond, o)
    assert estimates is not None
    states = jnp.concatenate([jnp.moveaxis(estimates, 0, 1), x_0[:, None]], axis=1)
    return to_images(states, denoising.images.levels, failure_of(o))


def edit(
    denoising: Denoising,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    images: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    """SDEdit (Meng et al. 2022, arXiv 2108.01073): sampling that starts from the images with added noise."""
    o = replace(editing_of(denoising.sampling), **options)
    noise, key_steps, both = inputs_of_draw(denoising, keys, cond)
    process = denoising.noise_process(params)
    times = last_times(times_of(o, process, denoising.num_timesteps), o.strength)
    first = jnp.full(len(noise), times[0], jnp.float32)
    x_t = add_noise(process, to_float(images, denoising.images.levels), first, noise)
    x_0, _ = draw_from(
        guided(denoising, params, ctx, o), both, process, o, times, x_t, key_steps, denoising.num_timesteps
    )
    return to_images(x_0, denoising.images.levels, failure_of(o))


def by_ddim(denoising: Denoising, steps: int, guidance_scale: Any, eta: float = 0.0) -> Sampling:
    """The model's options of sampling with DDIM, without noise where eta is 0."""
    changes: dict[str, Any] = {"sampler": "ddim", "eta": eta, "variance": "beta_tilde", "times": (), "end": "data"}
    return replace(denoising.sampling, **changes, steps=steps, guidance_scale=guidance_scale)


def invert(
    denoising: Denoising,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    images: jax.Array,
    cond: Cond,
    steps: int = Inversion.steps,
    guidance_scale: float = Inversion.guidance_scale,
) -> jax.Array:
    """DDIM inversion: the noise, float (B, H, W, C), that DDIM steps taken backwards map images to."""
    o = by_ddim(denoising, steps, guidance_scale)
    both = {"cond": cond, "null": denoising.without_class(cond)}
    process, denoise = denoising.noise_process(params), guided(denoising, params, ctx, o)
    times = times_of(o, process, denoising.num_timesteps)
    x = to_float(images, denoising.images.levels) * jnp.asarray(process.alpha(times[-1:])[0], jnp.float32)

    def denoiser(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return clip_if(o, denoise(x_t, t, both))

    return linear.run(denoiser, linear.ddim_inversion(process, times), x, keys)[0] / start_std(process, times[0])


def decode(
    denoising: Denoising,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    noise: jax.Array,
    cond: Cond,
    steps: int = Decoding.steps,
    guidance_scale: float = Decoding.guidance_scale,
    eta: float = Decoding.eta,
) -> jax.Array:
    """The images, uint8, that DDIM makes from noise (B, H, W, C)."""
    require_latents(noise, denoising.images.shape)
    o = by_ddim(denoising, steps, guidance_scale, eta)
    both = {"cond": cond, "null": denoising.without_class(cond)}
    process = denoising.noise_process(params)
    x_0, _ = draw(guided(denoising, params, ctx, o), both, process, o, noise, keys, denoising.num_timesteps)
    return to_images(x_0, denoising.images.levels, failure_of(o))


def count_evaluations(
    denoising: Denoising, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any
) -> jax.Array:
    """Network evaluations per sample, int32 (B,); for the sampler "ode" they are counted."""
    o = replace(denoising.sampling, **options)
    noise, _, both = inputs_of_draw(denoising, keys, cond)
    if o.sampler != "ode":
        return jnp.full(len(keys), evaluations_per_call(o) * evaluations(o))
    counts = draw_adaptively(guided(denoising, params, ctx, o), both, denoising.noise_process(params), o, noise)[1]
    return evaluations_per_call(o) * counts


def plain_denoiser(denoising: Denoising, params: Roles, ctx: Context, cond: Cond) -> Denoiser:
    """The denoiser without guidance, clipped if sampling clips."""

    def denoiser(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return clip_if(denoising.sampling, denoising.denoise(params, ctx, x_t, t, cond))

    return denoiser


def energy(denoising: Denoising, params: Roles, ctx: Context, keys: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    """The bound on -log P(x) up to a constant, nats (B,): see `jgen.samplers.denoising_error`."""
    levels, steps = denoising.images.levels, denoising.num_timesteps
    where = plain_denoiser(denoising, params, ctx, cond), denoising.noise_process(params)
    return denoising_error(*where, to_float(x, levels), keys, levels, num_timesteps=steps)


def usual_times(denoising: Denoising, process: Process, steps: int) -> Any:
    """That many times, in the system's default spacing for sampling."""
    return times_of(replace(denoising.sampling, steps=steps, times=()), process, denoising.num_timesteps)


def inpaint(
    denoising: Denoising,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    images: jax.Array,
    mask: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    """uint8 images that equal given ones where the mask, bool (B, H, W), is true: see `jgen.samplers.posterior`."""
    o, levels, known = Inpainting(**options), denoising.images.levels, mask[..., None]
    posterior.check_inpainting(o)
    process, y = denoising.noise_process(params), to_float(images, levels)
    sampling = replace(denoising.sampling, guidance_scale=o.guidance_scale, variance="beta_tilde")
    check_sampling_options(denoising, sampling)
    both, guide = {"cond": cond, "null": denoising.without_class(cond)}, guided(denoising, params, ctx, sampling)

    def denoiser(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return clip_if(sampling, guide(x_t, t, both))

    where = denoiser, process, usual_times(denoising, process, o.steps)
    if o.method == "dps":
        weights = known.astype(y.dtype)
        x_0 = posterior.by_gradient(*where, weights * y, lambda x: weights * x, y.shape[1:], keys, o.step_size)
    else:
        x_0 = posterior.by_replacement(*where, y, known, keys, o.repeats if o.method == "repaint" else 1)
    return jnp.where(known, images, to_images(x_0, levels, f"method {o.method}: {OVERFLOW}"))


def restore(
    denoising: Denoising,
    params: Roles,
    ctx: Context,
    keys: jax.Array,
    measurement: jax.Array,
    cond: Cond,
    **options: Any,
) -> jax.Array:
    """uint8 images given their `measurement`, floats in 0 .. levels - 1: see `jgen.samplers.posterior`."""
    o, spec = Restoring(**options), denoising.images
    posterior.check_restoring(o)
    degradation = make_degradation(o.problem, spec, o.factor)
    wanted = jax.eval_shape(degradation, jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)).shape[1:]
    require_latents(measurement, wanted, "measurements")
    process, y = denoising.noise_process(params), to_float(measurement, spec.levels)
    where = plain_denoiser(denoising, params, ctx, cond), process, usual_times(denoising, process, o.steps)
    noise = 2.0 * o.noise / (spec.levels - 1)
    x_0 = posterior.by_gradient(*where, y, degradation, spec.shape, keys, o.step_size, noise)
    return to_images(x_0, spec.levels, f"restore: {OVERFLOW}")


def to_images(x: jax.Array, levels: int, failure: str) -> jax.Array:
    """Floats (B, ...) in about [-1, 1] as uint8, 0 .. levels - 1; images that are not finite are reported."""
    failures.report(failure, ~jnp.all(jnp.isfinite(x), axis=range(1, x.ndim)))
    return to_uint8(x, levels)


def failure_of(o: Sampling) -> str:
    """Error message for a non-finite sample."""
    if o.sampler == "ode":
        return f"the solver of sampler ode did not converge at tolerance {o.tolerance:g}"
    return f"sampler {o.sampler}: {OVERFLOW}"


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
    nats = ode.log_prob(denoiser, denoising.noise_process(params), x, cond, keys, denoising.images.levels, o)
    failures.report(f"the solver of the likelihood did not converge at tolerance {o.tolerance:g}", ~jnp.isfinite(nats))
    return nats
