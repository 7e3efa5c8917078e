"""Running a model's functions over many images: batched, on all devices of this process, one key per image.

Processes that work together (`parallel.together`) divide the images, and each receives all results.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import numpy as np
from numpy.typing import ArrayLike

from jgen.core import failures, parallel
from jgen.core import keys as rng
from jgen.core.model import ArraySpec, Cond, Context, GenerativeModel, ImageSpec, Roles
from jgen.core.options import replace_options
from jgen.errors import NotSupported, UserError, require

Progress = Callable[[range], Iterable[int]]
Arrays = dict[str, Any]  # {name: tree of arrays (n, ...)}, with "index" int32 (n,) and the tree "cond" in all

# For each function of a model: its inputs between (params, ctx, keys) and cond, and the field with its options.
INPUTS: dict[str, tuple[str, ...]] = {
    "sample": (),
    "trajectory": (),
    "log_prob": ("image",),
    "log_density": ("image",),
    "energy": ("image",),
    "encode": ("image",),
    "decode": ("latents",),
    "invert": ("image",),
    "inpaint": ("image", "mask"),
    "edit": ("image",),
    "restore": ("measurement",),
}
RUN_AHEAD = 2  # batches dispatched to the devices before the first is fetched
TAKEN = -1.0  # placeholder for an option that is passed as a traced scalar
OPTIONS = {"sample": "sampling", "trajectory": "sampling", "inpaint": "inpainting", "restore": "restoring"}
OPTIONS |= {"log_prob": "scoring", "invert": "inverting", "decode": "decoding", "edit": "editing"}
SAMPLES = ("sampling", "editing")  # the fields with options of a sampler


def options_of(model: GenerativeModel, name: str) -> str:
    """The model's field with the options of a function; "" for a function without options."""
    own = OPTIONS.get(name, "")
    return "sampling" if own == "inpainting" and model.inpainting is None else own


def resolve_options(model: GenerativeModel, name: str, options: dict[str, Any]) -> Any:
    """A function's default options with some replaced. Raises `UserError` for unknown names and wrong types."""
    own = options_of(model, name)
    defaults = getattr(model, own) if own else None
    resolved = replace_options(defaults, options, f"{name} of {model.name}")
    if model.check_sampling is not None and own in SAMPLES:
        model.check_sampling(resolved)
    return resolved


def sampled_images(model: GenerativeModel, options: Mapping[str, Any]) -> ImageSpec:
    """The shape and levels of the images that `sample` draws with these options."""
    if model.sampled is None:
        return model.images
    return model.sampled(resolve_options(model, "sample", dict(options)))


def split_numbers(model: GenerativeModel, name: str, options: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Splits options into compile-time constants and traced scalars: see `GenerativeModel.numbers`."""
    if options_of(model, name) not in SAMPLES:
        return options, {}
    own = {option: getattr(options, option) for option in model.numbers}
    taken = {option: value for option, value in own.items() if value not in model.numbers[option]}
    numbers = {option: np.asarray(value, np.float32) for option, value in taken.items()}
    return (dataclasses.replace(options, **dict.fromkeys(taken, TAKEN)) if taken else options), numbers


def resolve_conditions(
    model: GenerativeModel, given: Mapping[str, Any], n: int, start: int = 0, name: str = "sample"
) -> Cond:
    """The conditions of images start .. start + n - 1, as {field: array (n, ...)}, for the model's function `name`.

    Each is given as one value for all images, or as n values. If a class is not given, image i has class
    i mod num_values. Omitted conditions that are optional (`GenerativeModel.optional`), or belong to a function that
    does not require conditions (`GenerativeModel.unconditional`), are left out.

    Raises:
      UserError: a field that the model is not conditioned on, a missing field that is not a class, or a value of
        another shape, type or range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for field, value in given.items():
        takes = f"it takes {', '.join(model.conditions)}" if model.conditions else "it takes no conditions"
        known = field in model.conditions or field in model.optional
        require(known, f"{field} is {brief(value)}: {model.name} was trained without it, {takes}")
    cond = {}
    for field in model.conditions:
        spec = model.data.fields[field]
        if field in given:
            cond[field] = resolve_condition(field, spec, given[field], n)
        elif name not in model.unconditional:
            require(spec.is_class, f"{field} is missing: {model.name} is conditioned on it, and it has no default")
            cond[field] = ((start + np.arange(n)) % spec.num_values).astype(spec.dtype)
    for field, like in model.optional.items():
        if field in given:
            cond[field] = resolve_condition(field, model.data.fields[like], given[field], n)
    return cond


def resolve_condition(name: str, spec: ArraySpec, value: Any, n: int) -> np.ndarray:
    """One condition as an array (n, *spec.shape) of type spec.dtype. Raises `UserError` if it does not fit."""
    array = np.asarray(value)
    if spec.names and array.dtype.kind == "U":
        array = named_values(name, spec, array)
    one = "one number" if spec.shape == () else f"an array {spec.shape}"
    require(
        array.shape in (spec.shape, (n, *spec.shape)),
        f"{name} has shape {array.shape}: it must be {one} or {n}, one per image",
    )
    whole = np.issubdtype(np.dtype(spec.dtype), np.integer)
    kinds = "b" if spec.dtype == "bool" else "iu" if whole else "iuf"
    words = {"b": "true or false", "iu": "whole numbers", "iuf": "numbers"}[kinds]
    require(array.dtype.kind in kinds, f"{name} is {brief(value)}: it must be {words}")
    if spec.num_values:
        bad = array[(array < 0) | (array >= spec.num_values)]
        first = bad.flat[0] if bad.size else ""
        require(bad.size == 0, f"{name} is {first}: it must be from 0 to {spec.num_values - 1}")
    return np.broadcast_to(array.astype(spec.dtype), (n, *spec.shape))  # takes no memory for one value


def named_values(name: str, spec: ArraySpec, given: np.ndarray) -> np.ndarray:
    """Converts values given by name to their numbers. Raises `UserError` for an unknown name."""
    numbers = {each: number for number, each in enumerate(spec.names)}
    for each in given.flat:
        require_known(name, str(each), spec.names)
    return np.array([numbers[str(each)] for each in given.flat], np.int64).reshape(given.shape)


def require_known(name: str, value: str, names: tuple[str, ...]) -> None:
    """Raises `UserError` for a value that is not one of these names; the message lists some of them."""
    some = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
    require(value in names, f"{name} is {brief(value)!r}: it must be one of {some}")


def brief(value: Any) -> str:
    """A value for a message: its first characters, on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


@lru_cache(maxsize=32)
def compiled(model: GenerativeModel, name: str, options: Any) -> Callable[..., Any]:
    """One of a model's functions with these options, pmapped: (params, ctx, key, numbers, arrays) -> (result, reports),
    arrays (D, b, ...). The numbers replace the options of the same names; reports are those of `jgen.core.failures`."""
    chosen = {} if options is None else {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    function = getattr(model, name)

    def call(params: Roles, ctx: Context, key: jax.Array, numbers: dict[str, Any], arrays: Arrays) -> Any:
        keys = rng.image_keys(key, arrays["index"])
        ctx = ctx._replace(key=rng.shared_key(key))
        with failures.collect() as reports:
            if name == "validate":
                return function(params, ctx, keys, arrays), reports
            inputs = (arrays[part] for part in INPUTS[name])
            return function(params, ctx, keys, *inputs, arrays["cond"], **chosen | numbers), reports

    return parallel.pmap(call, split=(None, None, None, None, 0), split_out=0, local=True)


def merge(sharded: Any) -> np.ndarray:
    """Converts (devices, b, ...) on the devices to (devices * b, ...) on the host."""
    array = np.asarray(sharded)
    return array.reshape(-1, *array.shape[2:])


def batch_of(n: int, batch_size: int, num: int = 1) -> int:
    """The number of images to compute at a time, a multiple of the number of devices.

    For fewer images than `batch_size` it is the next power of two, so that few programs are compiled for any n. With
    `num` processes, each computes this many at a time.
    """
    devices = parallel.local_device_count()
    rounds = -(-n // (batch_size * num)) if num > 1 else 1
    share = -(-n // (num * rounds))
    size = min(batch_size, 1 << (share - 1).bit_length())
    return -(-size // devices) * devices


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
    """Applies a model's function to n images; returns a tree of arrays (n, ...) on the host. See `batches_over`."""
    where: dict[str, Any] = {"options": options, "batch_size": batch_size, "progress": progress}
    parts = list(batches_over(model, name, params, ctx, key, arrays, **where))
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def batches_over(
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
) -> Iterator[Any]:
    """Applies a model's function to n images, batch by batch in order; yields trees of arrays (b, ...) on the host.
    Processes that work together each compute a batch at a time, and each of them receives all results.

    Args:
      name: "validate" or a key of `INPUTS`; arrays: its inputs, with "index", which determines the keys, and "cond".
      options: the result of `resolve_options`. The program is compiled once per value of `batch_of`.
    Raises:
      UserError: no images, batch_size below 1, an invalid key, or images that failed (`jgen.core.failures`).
    """
    key = check_key(key)
    require(batch_size >= 1, f"batch_size is {batch_size}: it must be above zero")
    n = len(arrays["index"])
    require(n >= 1, f"the number of images is {n}: it must be above zero")
    number, num = parallel.processes()
    batch = batch_of(n, batch_size, num if name != "validate" else 1)  # scores may depend on the whole batch
    at_once = batch * num  # images computed at a time, by all processes
    static, numbers = split_numbers(model, name, options)
    function = compiled(model, name, static)
    running: deque[Any] = deque()  # dispatched and not fetched yet, so that devices do not wait for the host
    fetched = 0

    def fetch() -> Any:
        nonlocal fetched
        own = slice(min(fetched + number * batch, n), min(fetched + (number + 1) * batch, n))
        result, reports = jax.tree.map(merge, running.popleft())
        with parallel.failing_together():
            failed = {what: rows[: own.stop - own.start] for what, rows in reports.items()}
            failures.check(failed, arrays["index"][own])
        rows = min(at_once, n - fetched)
        fetched += rows
        return jax.tree.map(lambda x: x[:rows], parallel.gather_rows(result))

    for first in progress(range(0, n, at_once)):
        rows = np.minimum(first + number * batch + np.arange(batch), n - 1)
        running.append(function(params, ctx, key, numbers, parallel.shard(take_rows(arrays, rows))))
        if len(running) > RUN_AHEAD:
            yield fetch()
    while running:
        yield fetch()


def take_rows(arrays: Arrays, rows: np.ndarray) -> Arrays:
    """These rows of every array."""
    return {name: jax.tree.map(lambda x: x[rows], tree) for name, tree in arrays.items()}


def sample_images(
    model: GenerativeModel,
    params: Roles,
    ctx: Context,
    key: jax.Array,
    n: int,
    *,
    cond: Mapping[str, Any] | None = None,
    start: int = 0,
    batch_size: int = 64,
    progress: Progress = iter,
    **options: Any,
) -> np.ndarray:
    """Images start .. start + n - 1: uint8 (n, H, W, C), 0 .. levels - 1; see `sample_batches`."""
    where: dict[str, Any] = {"start": start, "batch_size": batch_size, "progress": progress}
    parts = list(sample_batches(model, params, ctx, key, n, "sample", cond=cond, **where, **options))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def sample_batches(
    model: GenerativeModel,
    params: Roles,
    ctx: Context,
    key: jax.Array,
    n: int,
    name: Literal["sample", "trajectory"] = "sample",
    *,
    cond: Mapping[str, Any] | None = None,
    start: int = 0,
    batch_size: int = 64,
    progress: Progress = iter,
    **options: Any,
) -> Iterator[np.ndarray]:
    """Images start .. start + n - 1, a batch at a time: uint8 (b, H, W, C), 0 .. levels - 1. Image i has the key
    `fold_in(key, i)`.

    Args:
      name: the model's function; "trajectory" gives (b, steps, H, W, C).
      cond: {field: one value for all images, or n}: see `resolve_conditions`.
    Raises:
      UserError: n or batch_size below 1, start below 0, conditions out of range, unknown or impossible options.
      NotSupported: the model draws no images.
    """
    require_capability(model, name)
    whole = isinstance(n, (int, np.integer))
    require(whole and n >= 1, f"the number of images is {n}: it must be a whole number above zero")
    n = int(n)
    require(0 <= start <= 2**31 - n, f"start is {start}: image numbers must be from 0 to 2^31 - 1")
    arrays = {"index": (start + np.arange(n)).astype(np.int32), "cond": resolve_conditions(model, cond or {}, n, start)}
    chosen = resolve_options(model, name, options)
    where = {"options": chosen, "batch_size": batch_size, "progress": progress}
    return batches_over(model, name, params, ctx, key, arrays, **where)


def prepared(model: GenerativeModel, params: Roles, ctx: Context, key: jax.Array, n: int = 256) -> Context:
    """The context for sampling, with `extra` updated by `model.prepare` on n images.

    Args:
      key: the run's key, so that the result does not depend on what is sampled.
    """
    if model.prepare is None:
        return ctx
    key = rng.stream(key, rng.PREPARE)
    keys = rng.image_keys(key, jax.numpy.arange(n))
    ctx_with_key = ctx._replace(key=rng.shared_key(key))
    extra = jax.jit(model.prepare)(params, ctx_with_key, keys, resolve_conditions(model, {}, n))
    return ctx._replace(extra={**ctx.extra, **extra})


def prepared_for_scoring(model: GenerativeModel, params: Roles, ctx: Context, key: jax.Array, options: Any) -> Roles:
    """The result of `model.prepare_scoring` for the options of `log_prob` and the key of that call.

    Raises:
      NotSupported: the model has no `prepare_scoring`.
    """
    if model.prepare_scoring is None:
        raise NotSupported(f"{model.name} has no normaliser that is estimated from chains")
    prepare = jax.jit(partial(model.prepare_scoring, **dataclasses.asdict(options)))
    return prepare(params, ctx._replace(key=rng.shared_key(check_key(key))))


def check_key(key: Any) -> jax.Array:
    """Returns the key as a typed key. Raises `UserError` for anything else, such as a seed, and for keys of other
    generators than threefry, with which an image's noise would depend on its batch.
    """
    kind = getattr(key, "dtype", None)
    if kind == np.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(key, impl="threefry2x32")
    typed = kind is not None and jax.dtypes.issubdtype(kind, jax.dtypes.prng_key) and key.ndim == 0
    if not typed:
        raise UserError(f"key is {brief(key)}: it must be one PRNG key, such as jax.random.key(0)")
    generator = str(jax.random.key_impl(key))
    is_threefry = generator == "threefry2x32"
    require(is_threefry, f"key is one of {generator}: it must be threefry's, jax.random.key(0, impl='threefry2x32')")
    return key


def check_images(model: GenerativeModel, images: ArrayLike) -> np.ndarray:
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
    """The latents, a tree of arrays (n, ...). Raises `UserError` for an empty tree, for arrays of different n, or for
    codes out of range.

    The other dimensions are checked by the model's `decode`.
    """
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(latents)]
    sizes = {len(array) if array.ndim else 0 for array in arrays}
    shapes = ", ".join(str(array.shape) for array in arrays) or "no shape"
    require(len(sizes) == 1 and sizes != {0}, f"latents have {shapes}: they must be arrays (n, ...), n above zero")
    numbers = all(jax.numpy.issubdtype(array.dtype, np.number) for array in arrays)  # NumPy does not know bfloat16
    require(numbers, f"latents are {', '.join(str(array.dtype) for array in arrays)}: they must be numbers")
    for codes, spec in zip(arrays, model.codes):
        top = spec.levels - 1
        require(codes.dtype.kind in "iu", f"codes are {codes.dtype}: they must be whole numbers, 0 to {top}")
        bad = codes[(codes < 0) | (codes > top)]
        require(bad.size == 0, f"codes have the value {bad[0] if bad.size else ''}: they must be from 0 to {top}")
    return jax.tree.unflatten(jax.tree.structure(latents), arrays)


# For capabilities built from other functions: what they need, for the message of `NotSupported`.
REQUIREMENTS = {
    "reconstruct": "that takes encode and decode",
    "interpolate": "that takes continuous latents, from encode or invert, and decode",
    "classify": "that takes a likelihood or an energy given a class",
    "retrieve": "that takes embed_image and embed_text",
    "anomaly_score": "that takes a likelihood or an energy",
}


def capabilities(model: GenerativeModel) -> list[str]:
    """The capabilities of a model, by their names in the API."""
    names = [name for name in INPUTS if getattr(model, name) is not None]
    if model.encode is not None and model.decode is not None:
        names += ["reconstruct"] + ["interpolate"] * (not model.codes)
    elif model.invert is not None and model.decode is not None and model.interpolation is not None:
        names.append("interpolate")
    scores = model.log_prob is not None or model.energy is not None
    if scores and any(model.data.fields[name].is_class for name in model.conditions):
        names.append("classify")
    if {"embed_image", "embed_text"} <= set(model.functions):
        names += ["classify", "retrieve"]
    return names + ["anomaly_score"] * scores


def require_capability(model: GenerativeModel, name: str) -> None:
    """Raises `NotSupported` unless the model has this capability; the message names the model, the reason if it gives
    one, and its capabilities."""
    if name not in capabilities(model):
        can = ", ".join([*capabilities(model), *model.functions])
        reason = model.why_not.get(name, REQUIREMENTS.get(name, ""))
        reason = f"{reason}; " if reason else ""
        raise NotSupported(f"{model.name} cannot {name}: {reason}it can {can or 'only be trained'}")
