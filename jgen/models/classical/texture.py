"""What the texture systems share: the model is a picture's statistics, and samples are images optimised to have them.

A texture has the same statistics everywhere. A model of it is therefore those statistics phi*, as means over the crops
of a picture, and a sample is an image with the same statistics:

    e(z)^2  = sum_g |(phi_g(z) - phi*_g) / s_g|^2 / sum_g |phi*_g / s_g|^2
    sample  = the end of descent on e(z)^2 + w |excess(z)|^2, from Gaussian noise with the texture's spectrum

where g are kinds of statistics, |.|^2 is the mean square over a kind, s are units in which all statistics are of order
one, and the excess is the amount by which a pixel exceeds the range of the source. An image has the source's mean
colour by construction. Nothing is trained by gradients: a step updates phi* to the mean over all crops seen so far;
before the first step, phi* is that of faint white noise.

Descent is in the coordinates u of z = F^-1 A F u, with F the Fourier transform and A(f) the gain that gives white noise
the texture's spectrum: all frequencies then converge equally fast. Channels are decorrelated first, z = W (x - m), by
the mean and the covariance of the colours of the first batch. Samples have periodic boundaries, so that they tile, and
their size is an option of sampling.

Descent amplifies rounding errors, so each image is computed separately: it depends neither on the batch nor on the
number of devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core.model import Batch, Cond, Context, DataSpec, Frozen, GenerativeModel, ImageSpec, Loss, Phase, Roles
from jgen.errors import defaults_of, require
from jgen.samplers.lbfgs import minimise

Tree = Any
RANGE_WEIGHT = 0.1  # w
CONTRAST = 0.3  # variance of the noise that a texture is before its first step; that of the source is 1
FLOOR = 1e-6  # of the variance of a colour, pixels being 0 to 1


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    size: int = 0
    """Height and width of the images; 0: the data's."""
    steps: int = 200
    """L-BFGS evaluations of the statistics and their gradient."""


class Kind(NamedTuple):
    """The statistics of a system.

    statistics: (colour, z (H, W, C), source) -> a tree of arrays, means over positions; `source`: whether z is a crop,
                whose boundaries are not periodic, rather than a sample.
    scales_of:  (statistics) -> a tree like it, the units s.
    spectrum:   (statistics, height, width) -> A, (C, height, width).
    check_size: (height, width, what they are of) -> None, raises UserError for image sizes that it does not support.
    """

    statistics: Callable[[Tree, jax.Array, bool], Tree]
    scales_of: Callable[[Tree], Tree]
    spectrum: Callable[[Tree, int, int], jax.Array]
    check_size: Callable[[int, int, str], None]


class Texture(NamedTuple):
    """First argument of the functions below, bound by `make_texture` with `functools.partial`."""

    images: ImageSpec
    kind: Kind
    sampling: Any  # a dataclass with the fields of `Sampling`, and perhaps others


def make_texture(name: str, data: DataSpec, kind: Kind, sampling: Any) -> GenerativeModel:
    """A texture system of these statistics.

    Raises:
      UserError: image sizes that the statistics do not support, or sampling options out of range.
    """
    texture = Texture(data.image, kind, sampling)
    kind.check_size(data.image.height, data.image.width, "an image of the data")
    with defaults_of("sampling"):
        check_sampling(texture, sampling)
    return GenerativeModel(
        name=name,
        data=data,
        init=partial(init, texture),
        phases=(Phase(trains=(), loss=partial(loss, texture)),),
        sample=partial(sample, texture),
        sampling=sampling,
        check_sampling=partial(check_sampling, texture),
        sampled=partial(sampled, texture),
        validate=partial(validate, texture),
        best=("error", "min"),
        functions={"texture_error": partial(texture_error, texture)},
        why_not={"log_prob": "a texture is a set of statistics, not a density"},
    )


def check_sampling(texture: Texture, options: Any) -> None:
    require(options.size >= 0, f"size is {options.size}: it must be above zero, or 0 for the data's")
    require(options.steps >= 1, f"steps is {options.steps}: it must be above zero")
    if options.size:
        texture.kind.check_size(options.size, options.size, "size")


def sampled(texture: Texture, options: Any) -> ImageSpec:
    """What `sample` draws."""
    size = options.size
    return replace(texture.images, height=size, width=size) if size else texture.images


def init(texture: Texture, key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
    x = to_floats(texture, batch["image"])
    flat = x.reshape(-1, x.shape[-1])
    mean = jnp.mean(flat, axis=0)
    covariance = (flat - mean[None, :]).T @ (flat - mean[None, :]) / len(flat)
    variance, axes = jnp.linalg.eigh(covariance)
    deviation = jnp.sqrt(jnp.maximum(variance, FLOOR))
    colour = {"mean": mean, "to": axes / deviation[None, :], "back": (axes * deviation[None, :]).T}
    noise = to_colours(colour, CONTRAST * jax.random.normal(key, (1, *x.shape[1:]), jnp.float32))
    return {}, {"colour": colour, "statistics": jax.tree.map(lambda a: a[0], statistics_of(texture, colour, noise))}


def to_floats(texture: Texture, images: jax.Array) -> jax.Array:
    """uint8 images as floats from 0 to 1."""
    return images.astype(jnp.float32) / (texture.images.levels - 1)


def decorrelated(colour: Tree, x: jax.Array) -> jax.Array:
    """z of images (..., C) from 0 to 1."""
    return (x - colour["mean"].reshape((1,) * (x.ndim - 1) + (-1,))) @ colour["to"]


def to_colours(colour: Tree, z: jax.Array) -> jax.Array:
    """Images, about 0 to 1, of z (..., C)."""
    return z @ colour["back"] + colour["mean"].reshape((1,) * (z.ndim - 1) + (-1,))


def statistics_of(texture: Texture, colour: Tree, x: jax.Array) -> Tree:
    """The statistics of each crop (B, H, W, C), floats from 0 to 1, and the mean and the range of its colours."""
    phi = jax.vmap(lambda one: texture.kind.statistics(colour, decorrelated(colour, one), True))(x)
    places = (1, 2)
    return {"phi": phi, "mean": jnp.mean(x, places), "least": jnp.min(x, places), "greatest": jnp.max(x, places)}


def distance(texture: Texture, phi: Tree, to: Tree) -> jax.Array:
    """e^2 of statistics phi, in the units of `to`."""

    def squares(tree: Tree) -> jax.Array:
        return sum((jnp.mean(leaf**2) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))

    scales = texture.kind.scales_of(to)
    error = jax.tree.map(lambda a, b, s: (a - b) / s, phi, to, scales)
    return squares(error) / squares(jax.tree.map(jnp.divide, to, scales))


def loss(texture: Texture, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
    """e of the crops relative to the means before this step; and the new means."""
    known = ctx.extra["statistics"]
    values = statistics_of(texture, ctx.extra["colour"], to_floats(texture, batch["image"]))
    errors = jax.vmap(lambda phi: distance(texture, phi, known["phi"]))(values["phi"])
    part = 1.0 / (ctx.step + 1)
    new = jax.tree.map(lambda old, each: old + part * (jnp.mean(each, axis=0) - old), known, values)
    return jnp.mean(jnp.sqrt(errors)), ({}, {"statistics": new})


def texture_error(texture: Texture, params: Roles, ctx: Context, x: jax.Array, source: bool = False) -> jax.Array:
    """e of uint8 images (B, H, W, C) of any size; `source`: crops of pictures, whose boundaries are not periodic."""
    colour, target = ctx.extra["colour"], ctx.extra["statistics"]["phi"]

    def error(one: jax.Array) -> jax.Array:
        phi = texture.kind.statistics(colour, decorrelated(colour, one), source)
        return jnp.sqrt(distance(texture, phi, target))

    return jax.lax.map(error, to_floats(texture, x))


def validate(texture: Texture, params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {"error": texture_error(texture, params, ctx, batch["image"], True)}


def sample(texture: Texture, params: Roles, ctx: Context, keys: jax.Array, cond: Cond, **options: Any) -> jax.Array:
    o = replace(texture.sampling, **options)
    colour, target = ctx.extra["colour"], ctx.extra["statistics"]
    images = sampled(texture, o)
    gain = texture.kind.spectrum(target["phi"], images.height, images.width)

    mean = decorrelated(colour, target["mean"])

    def image_of(u: jax.Array) -> jax.Array:
        z = jnp.moveaxis(jnp.fft.ifft2(jnp.fft.fft2(u) * gain).real, 0, -1)
        return z - jnp.mean(z, axis=(0, 1), keepdims=True) + mean[None, None]

    def objective(u: jax.Array) -> jax.Array:
        z = image_of(u)
        x = to_colours(colour, z)
        beyond = jnp.maximum(x - target["greatest"][None, None], 0) + jnp.maximum(target["least"][None, None] - x, 0)
        excess = RANGE_WEIGHT * jnp.mean(jnp.square(beyond @ colour["to"]))
        return distance(texture, texture.kind.statistics(colour, z, False), target["phi"]) + excess

    def one(key: jax.Array) -> jax.Array:
        u, _ = minimise(objective, jax.random.normal(key, gain.shape, jnp.float32), o.steps)
        return to_levels(to_colours(colour, image_of(u)), images.levels)

    return jax.lax.map(one, keys)


def to_levels(x: jax.Array, levels: int) -> jax.Array:
    """uint8 images of floats from 0 to 1."""
    return jnp.clip(jnp.round(x * (levels - 1)), 0, levels - 1).astype(jnp.uint8)
