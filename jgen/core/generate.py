"""Running a model's functions over many images: batched, on all devices, one key an image."""

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
from jgen.core.options import replace_options
from jgen.errors import NotSupported, UserError, require

Progress = Callable[[range], Iterable[int]]
Arrays = dict[str, Any]  # {name: tree of arrays (n, ...)}, with "index" int32 (n,) and "label" int32 (n,) in all

# What each of a model's functions takes beside (params, ctx, keys) and the label, and where its options come from.
INPUTS: dict[str, tuple[str, ...]] = {
    "sample": (),
    "log_prob": ("image",),
    "log_density": ("image",),
    "encode": ("image",),
    "decode": ("latents",),
    "inpaint": ("image", "mask"),
}
OPTIONS = {"sample": "sampling", "inpaint": "sampling", "log_prob": "scoring"}


def resolve_options(model: GenerativeModel, name: str, options: dict[str, Any]) -> Any:
    """The model's options of a function with some replaced. Raises `UserError` for unknown names and wrong types."""
    defaults = getattr(model, OPTIONS[name]) if name in OPTIONS else None
    return replace_options(defaults, options, f"{name} of {model.name}")


def resolve_labels(model: GenerativeModel, label: Any, n: int, start: int) -> np.ndarray | None:
    """int32 (n,) labels of images start .. start + n - 1: given as a number, as n numbers, or None.

    None gives a conditional model the classes in turn, 0, 1, 2, ..., so that image i has the class i mod num_classes.

    Raises:
      UserError: labels out of range, or labels for a model without classes.
    """
    classes = model.images.num_classes
    if not model.conditional:
        require(label is None, f"label is {brief(label)}: {model.name} was trained without classes and takes none")
        return None
    if label is None:
        return ((start + np.arange(n)) % classes).astype(np.int32)
    labels = np.asarray(label)
    if labels.ndim == 0:
        labels = np.full(n, labels)
    require(labels.shape == (n,), f"label has shape {labels.shape}: it must be one number or {n}, one an image")
    require(labels.dtype.kind in "iu", f"label is {brief(label)}: it must be whole numbers")
    bad = labels[(labels < 0) | (labels >= classes)]
    require(bad.size == 0, f"label is {bad[0] if bad.size else ''}: it must be from 0 to {classes - 1}")
    return labels.astype(np.int32)


def brief(value: Any) -> str:
    """A value in a message: its first characters, on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


@lru_cache(maxsize=32)
def compiled(model: GenerativeModel, name: str, options: Any) -> Callable[..., Any]:
    """One of a model's functions with these options, pmapped: (params, ctx, key, arrays) -> its result, (D, b, ...)."""
    chosen = {} if options is None else {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    function = getattr(model, name)

    def call(params: Roles, ctx: Context, key: jax.Array, arrays: Arrays) -> Any:
        keys = rng.image_keys(key, arrays["index"])
        if name == "validate":
            return function(params, ctx, keys, arrays)
        label = arrays["label"] if model.conditional else None
        return function(params, ctx, keys, *(arrays[part] for part in INPUTS[name]), label, **chosen)

    return parallel.pmap(call, split=(None, None, None, 0), split_out=0)


def merge(sharded: Any) -> np.ndarray:
    """(devices, b, ...) on the devices to (devices * b, ...) on the host."""
    array = np.asarray(sharded)
    return array.reshape(-1, *array.shape[2:])


def run_over(
    model: GenerativeModel,
    name: str,
    params: Roles,
    ctx: Context,
    key: jax.Array,
    arrays: Arrays,
    *,
    options: Any = None,
    batch_size: int = 64,
    progress: Progress = iter,
) -> Any:
    """A model's function over n images, on the host: a tree of arrays (n, ...).

    Args:
      name: "validate" or a key of `INPUTS`; arrays: its inputs, with "index", from which the keys come, and "label".
      options: of `resolve_options`. The program is compiled once a batch size, a multiple of the devices.
    Raises:
      UserError: no images, batch_size below 1, or what is no key.
    """
    check_key(key)
    require(batch_size >= 1, f"batch_size is {batch_size}: it must be above zero")
    n = len(arrays["index"])
    require(n >= 1, f"the number of images is {n}: it must be above zero")
    devices = parallel.device_count()
    batch = -(-min(n, batch_size) // devices) * devices
    function = compiled(model, name, options)
    found = []
    for first in progress(range(0, n, batch)):
        where = np.minimum(first + np.arange(batch), n - 1)
        part = parallel.shard(jax.tree.map(lambda array: array[where], arrays))
        found.append(jax.tree.map(merge, function(params, ctx, key, part)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *found)


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
    whole = isinstance(n, (int, np.integer))
    require(whole and n >= 1, f"the number of images is {n}: it must be a whole number above zero")
    n = int(n)
    require(0 <= start <= 2**31 - n, f"start is {start}: image numbers must be from 0 to 2^31 - 1")
    labels = resolve_labels(model, label, n, start)
    arrays = {"index": (start + np.arange(n)).astype(np.int32)}
    arrays["label"] = np.zeros(n, np.int32) if labels is None else labels
    chosen = resolve_options(model, "sample", options)
    where = {"options": chosen, "batch_size": batch_size, "progress": progress}
    return run_over(model, "sample", params, ctx, key, arrays, **where)


def check_key(key: Any) -> None:
    """Raises `UserError` for what is no PRNG key, such as a seed."""
    kind = getattr(key, "dtype", None)
    raw = kind == np.uint32 and key.shape in ((2,), (4,))
    typed = kind is not None and jax.dtypes.issubdtype(kind, jax.dtypes.prng_key) and key.ndim == 0
    if not (raw or typed):
        raise UserError(f"key is {brief(key)}: it must be one PRNG key, such as jax.random.key(0)")


def check_images(model: GenerativeModel, images: Any) -> np.ndarray:
    """The images as uint8 (n, H, W, C). Raises `UserError` for another type, another shape or values out of range."""
    spec = model.images
    shape = f"(n, {', '.join(map(str, spec.shape))})"
    try:
        array = np.asarray(images)
    except ValueError:
        array = np.empty(0, object)
    require(array.dtype != object, f"images are of unlike shapes: they must be one array {shape}")
    require(array.dtype == np.uint8, f"images are {array.dtype}: they must be uint8, 0 to {spec.levels - 1}")
    require(
        array.ndim == 4 and array.shape[1:] == spec.shape and len(array) > 0,
        f"images have shape {array.shape}: they must be {shape}",
    )
    top = int(array.max())
    require(top < spec.levels, f"images have the value {top}: they must be from 0 to {spec.levels - 1}")
    return array


def check_latents(model: GenerativeModel, latents: Any) -> Any:
    """The latents, a tree of arrays (n, ...). Raises `UserError` for none, for unlike n, or for codes out of range.

    Their other sizes are the model's: its `decode` checks them.
    """
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(latents)]
    sizes = {len(array) if array.ndim else 0 for array in arrays}
    shapes = ", ".join(str(array.shape) for array in arrays) or "no shape"
    require(len(sizes) == 1 and sizes != {0}, f"latents have {shapes}: they must be arrays (n, ...), n above zero")
    numbers = all(jax.numpy.issubdtype(array.dtype, np.number) for array in arrays)  # bfloat16 is one to JAX alone
    require(numbers, f"latents are {', '.join(str(array.dtype) for array in arrays)}: they must be numbers")
    if model.codes is not None:
        top = model.codes.levels - 1
        for codes in arrays:
            require(codes.dtype.kind in "iu", f"codes are {codes.dtype}: they must be whole numbers, 0 to {top}")
            bad = codes[(codes < 0) | (codes > top)]
            require(bad.size == 0, f"codes have the value {bad[0] if bad.size else ''}: they must be from 0 to {top}")
    return jax.tree.unflatten(jax.tree.structure(latents), arrays)


def capabilities(model: GenerativeModel) -> list[str]:
    """What a model can do, by the names of the API."""
    found = [name for name in INPUTS if getattr(model, name) is not None]
    if model.encode is not None and model.decode is not None:
        found += ["reconstruct"] + ["interpolate"] * (model.codes is None)
    return found


CAPABILITIES = (*INPUTS, "reconstruct", "interpolate", "classify")


def require_capability(model: GenerativeModel, name: str) -> None:
    """Raises `NotSupported`, naming the model and what it can do, unless it has that capability."""
    if name not in capabilities(model):
        raise NotSupported(f"{model.name} cannot {name}: it can {', '.join(capabilities(model))}")
