"""Running a model's sampler and scores over many images: batched, on all devices, one key an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.model import Context, GenerativeModel, Roles
from jgen.errors import NotSupported, require

Progress = Callable[[range], Iterable[int]]


def resolve_options(model: GenerativeModel, options: dict[str, Any]) -> Any:
    """The model's sampling options with some replaced. Raises `UserError` for a name the model does not know."""
    if model.sampling is None:
        require(not options, f"{model.name} has no sampling options; found {', '.join(options)}")
        return None
    known = [field.name for field in dataclasses.fields(model.sampling)]
    for name in options:
        require(name in known, f"unknown sampling option {name!r}: {model.name} takes {', '.join(known)}")
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return dataclasses.replace(model.sampling, **frozen)


def resolve_labels(model: GenerativeModel, label: Any, n: int, start: int) -> np.ndarray | None:
    """int32 (n,) labels of images start .. start + n - 1: given as a number, as n numbers, or None.

    None gives a conditional model the classes in turn, 0, 1, 2, ..., so that image i has the class i mod num_classes.

    Raises:
      UserError: labels out of range, or labels for a model without classes.
    """
    classes = model.images.num_classes
    if not model.conditional:
        require(label is None, f"label is {label}: {model.name} was trained without classes and takes none")
        return None
    if label is None:
        return ((start + np.arange(n)) % classes).astype(np.int32)
    labels = np.asarray(label)
    if labels.ndim == 0:
        labels = np.full(n, labels)
    require(labels.shape == (n,), f"label has shape {labels.shape}: it must be one number or {n}, one an image")
    require(labels.dtype.kind in "iu", f"label is {label}: it must be whole numbers")
    bad = labels[(labels < 0) | (labels >= classes)]
    require(bad.size == 0, f"label is {bad[0] if bad.size else ''}: it must be from 0 to {classes - 1}")
    return labels.astype(np.int32)


@lru_cache(maxsize=16)
def compiled_sampler(model: GenerativeModel, options: Any) -> Callable[..., Any]:
    """The pmapped sampler of a model with these options; it is compiled once a batch size."""
    chosen = {} if options is None else {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}

    def sample(params: Roles, ctx: Context, key: jax.Array, index: jax.Array, label: Any) -> jax.Array:
        return model.sample(params, ctx, rng.image_keys(key, index), label, **chosen)

    return parallel.pmap(sample, split=(None, None, None, 0, 0), split_out=0)


@lru_cache(maxsize=16)
def compiled_scores(model: GenerativeModel, name: str) -> Callable[..., Any]:
    """The pmapped `log_prob` or `validate` of a model, as (params, ctx, key, batch) -> (B,) arrays."""

    def scores(params: Roles, ctx: Context, key: jax.Array, batch: dict[str, Any]) -> Any:
        keys = rng.image_keys(key, batch["index"])
        if name == "validate":
            assert model.validate is not None
            return model.validate(params, ctx, keys, batch)
        assert model.log_prob is not None
        return model.log_prob(params, ctx, keys, batch["image"], batch["label"] if model.conditional else None)

    return parallel.pmap(scores, split=(None, None, None, 0), split_out=0)


def chunks(n: int, batch_size: int) -> tuple[int, range]:
    """The batch that is compiled for, a multiple of the devices, and where each chunk of n items starts."""
    devices = parallel.device_count()
    batch = -(-min(n, batch_size) // devices) * devices
    return batch, range(0, n, batch)


def merge(sharded: Any) -> np.ndarray:
    """(devices, b, ...) on the devices to (devices * b, ...) on the host."""
    array = np.asarray(sharded)
    return array.reshape(-1, *array.shape[2:])


def sample_images(
    model: GenerativeModel,
    params: Roles,
    ctx: Context,
    key: jax.Array,
    n: int,
    *,
    label: Any = None,
    start: int = 0,
    batch_size: int = 64,
    progress: Progress = iter,
    **options: Any,
) -> np.ndarray:
    """Images start .. start + n - 1: uint8 (n, H, W, C), 0 .. levels - 1. Image i has the key `fold_in(key, i)`.

    Raises:
      UserError: n or batch_size below 1, start below 0, labels out of range, unknown or impossible options.
    """
    require(n >= 1, f"the number of images is {n}: it must be above zero")
    require(0 <= start <= 2**31 - n, f"start is {start}: image numbers must be from 0 to 2^31 - 1")
    require(batch_size >= 1, f"batch_size is {batch_size}: it must be above zero")
    labels = resolve_labels(model, label, n, start)
    sampler = compiled_sampler(model, resolve_options(model, options))
    batch, starts = chunks(n, batch_size)
    found = []
    for first in progress(starts):
        where = np.minimum(first + np.arange(batch), n - 1)
        index = parallel.shard((start + where).astype(np.int32))
        chosen = parallel.shard(labels[where] if labels is not None else np.zeros(batch, np.int32))
        found.append(merge(sampler(params, ctx, key, index, chosen)))
    return np.concatenate(found)[:n]


def score_images(
    model: GenerativeModel,
    name: str,
    params: Roles,
    ctx: Context,
    key: jax.Array,
    batch: dict[str, np.ndarray],
    *,
    batch_size: int = 64,
    progress: Progress = iter,
) -> Any:
    """The model's `log_prob` or `validate` of a batch of any size, on the host: float32 (n,) or a dict of them."""
    n = len(batch["image"])
    scores = compiled_scores(model, name)
    size, starts = chunks(n, batch_size)
    found = []
    for first in progress(starts):
        where = np.minimum(first + np.arange(size), n - 1)
        part = parallel.shard({name: array[where] for name, array in batch.items()})
        found.append(jax.tree.map(merge, scores(params, ctx, key, part)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *found)


def check_images(model: GenerativeModel, images: Any) -> np.ndarray:
    """The images as uint8 (n, H, W, C). Raises `UserError` for another type, another shape or values out of range."""
    array = np.asarray(images)
    spec = model.images
    require(array.dtype == np.uint8, f"images are {array.dtype}: they must be uint8, 0 to {spec.levels - 1}")
    require(
        array.ndim == 4 and array.shape[1:] == spec.shape and len(array) > 0,
        f"images have shape {array.shape}: they must be (n, {', '.join(map(str, spec.shape))})",
    )
    top = int(array.max())
    require(top < spec.levels, f"images have the value {top}: they must be from 0 to {spec.levels - 1}")
    return array


CAPABILITIES = ("sample", "log_prob", "encode", "decode", "reconstruct", "interpolate", "inpaint", "classify")


def capabilities(model: GenerativeModel) -> list[str]:
    """What a model can do, by the names of the API."""
    return [name for name in CAPABILITIES if getattr(model, name, None) is not None]


def require_capability(model: GenerativeModel, name: str) -> None:
    """Raises `NotSupported`, naming the model and what it can do, unless it has that capability."""
    if name not in capabilities(model):
        raise NotSupported(f"{model.name} cannot {name}: it can {', '.join(capabilities(model))}")
