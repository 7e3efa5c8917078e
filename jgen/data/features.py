"""Features of a TFDS set as fields: their specifications, and how they are read from an example.

    ClassLabel                           a class, int32 ()
    numbers and tensors of one shape     int32, float32, uint8 or bool arrays of that shape
    Image of one shape                   uint8 (H', W', C')
    Text                                 a text, which a tokenizer makes int32 (length,)
    FeaturesDict of numbers of one type  a vector, ordered by name

A feature within a FeaturesDict has a dotted name, such as "attributes.Smiling".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jgen.core.model import ArraySpec
from jgen.errors import UserError, require

RESERVED = ("image", "index", "position")  # fields of every batch
Path = tuple[str, ...]  # the nested names that lead to a feature of an example


class Feature(NamedTuple):
    """A field of a TFDS set.

    spec:  None for a text, whose length in tokens does not depend on the set.
    paths: the features that it is read from.
    read:  (example) -> its array or str.
    """

    spec: ArraySpec | None
    paths: tuple[Path, ...]
    read: Callable[[Any], Any]


def import_tfds() -> Any:
    """The tensorflow_datasets module, without its log lines. Raises `UserError` if it is not installed."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"reading data needs tensorflow-datasets, which does not import here: {error}") from error
    tfds.disable_progress_bar()
    return tfds


def choose_features(features: Any, names: Iterable[str], title: str, moves: Iterable[str]) -> dict[str, Feature]:
    """The fields of a set: its class `label`, if it has one, and the features with these names.

    Args:
      title: the set, for messages.
      moves: the options in use that move the content of an image, such as "data.flip".
    Raises:
      UserError: an unknown name; a feature without a fixed shape and type; a feature with positions in the image, such
        as a mask or a box, if images are moved.
    """
    there = named_features(features)
    fields = {}
    if "label" in features and getattr(features["label"], "num_classes", None) and features["label"].shape == ():
        fields["label"] = make_field(("label",), features["label"], title)
    for name in names:
        choices = ", ".join(other for other in there if other not in RESERVED) or "no features beside its images"
        require(name in there and name not in RESERVED, f"data.fields has {name!r}: {title} has {choices}")
        path, feature = there[name]
        fields[name] = make_field(path, feature, title)
        for option in moves:
            require(
                not has_places(fields[name].spec),
                f"data.fields has {name!r}, which may have places in the image: with {option} it would not move along",
            )
    return fields


def named_features(features: Any, path: Path = ()) -> dict[str, tuple[Path, Any]]:
    """{dotted name: (path, feature)} of all features, including nested ones."""
    named: dict[str, tuple[Path, Any]] = {}
    for key in sorted(features):
        named[".".join((*path, key))] = ((*path, key), features[key])
        if is_dict(features[key]):
            named |= named_features(features[key], (*path, key))
    return named


def is_dict(feature: Any) -> bool:
    return isinstance(feature, import_tfds().features.FeaturesDict)


def subset(features: Any, paths: Iterable[Path]) -> Any:
    """A FeaturesDict of the features at these paths only, which reads examples of the whole FeaturesDict."""
    inner: dict[str, list[Path]] = {}
    for key, *rest in paths:
        inner.setdefault(key, []).append(tuple(rest))
    parts = {key: features[key] if () in rests else subset(features[key], rests) for key, rests in inner.items()}
    return import_tfds().features.FeaturesDict(parts)


def make_field(path: Path, feature: Any, title: str) -> Feature:
    """The field for a feature. Raises `UserError` for a feature without a fixed shape and type."""
    name = ".".join(path)
    if is_dict(feature):
        return make_vector(path, feature, title)
    if is_text(feature):
        return Feature(None, (path,), lambda example: read_text(value_at(example, path), name))
    spec = array_spec(feature)
    if spec is None:
        what = f"of shape {feature.shape} and type {getattr(feature, 'np_dtype', None)}"
        raise UserError(f"data.fields has {name!r}, {what} in {title}: a field must have one shape and be of numbers")
    return Feature(spec, (path,), lambda example: read_array(value_at(example, path), spec, name))


def make_vector(path: Path, feature: Any, title: str) -> Feature:
    """The field for a FeaturesDict whose features are numbers of one type: a vector, ordered by name."""
    name = ".".join(path)
    leaves = [place for place, inner in named_features(feature, path).values() if not is_dict(inner)]
    specs = [array_spec(inner) for _, inner in named_features(feature, path).values() if not is_dict(inner)]
    first = specs[0] if specs else None
    alike = first is not None and all(spec and spec.shape == () and spec.dtype == first.dtype for spec in specs)
    inside = ", ".join(".".join(place) for place in leaves) or "nothing"
    if first is None or not alike:
        raise UserError(f"data.fields has {name!r}, which is not of numbers of one type in {title}: name {inside}")
    nums = [spec.num_values for spec in specs if spec]
    spec = ArraySpec((len(leaves),), first.dtype, max(nums) if all(nums) else 0)

    def read(example: Any) -> np.ndarray:
        return read_array([value_at(example, place) for place in leaves], spec, name)

    return Feature(spec, tuple(leaves), read)


def is_text(feature: Any) -> bool:
    return feature.shape == () and np.dtype(feature.np_dtype).kind in "OSU"


def array_spec(feature: Any) -> ArraySpec | None:
    """The specification of a feature's arrays; None for a feature without a fixed shape, or that is not numeric."""
    shape = feature.shape
    if is_dict(feature) or not isinstance(shape, tuple) or None in shape:
        return None
    kind = np.dtype(feature.np_dtype)
    if kind in (np.dtype(bool), np.dtype(np.uint8)):
        dtype = kind.name
    elif np.issubdtype(kind, np.integer):
        dtype = "int32"
    elif np.issubdtype(kind, np.floating):
        dtype = "float32"
    else:
        return None
    num_values = getattr(feature, "num_classes", None) or (2 if dtype == "bool" else 0)
    if dtype == "uint8" and isinstance(feature, import_tfds().features.Image):
        num_values = num_values or 256
    names = tuple(getattr(feature, "names", None) or ()) if num_values and shape == () else ()
    if names == tuple(map(str, range(num_values))) or len(names) != num_values:
        names = ()
    return ArraySpec(shape, dtype, num_values, names)


def has_places(spec: ArraySpec | None) -> bool:
    """Whether a field may contain positions in the image, as a box, landmarks or a mask do.

    Texts, single numbers and vectors of classes do not.
    """
    return spec is not None and (len(spec.shape) >= 2 or (len(spec.shape) == 1 and spec.num_values == 0))


def value_at(example: Mapping[str, Any], path: Path) -> Any:
    value: Any = example
    for key in path:
        value = value[key]
    return value


def read_text(value: Any, name: str) -> str:
    """A text of an example. Raises `UserError` for bytes that are not UTF-8."""
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"a {name!r} is no UTF-8 text") from error


def read_array(value: Any, spec: ArraySpec, name: str) -> np.ndarray:
    """An array of an example, of the type of `spec`. Raises `UserError` for another shape, or integers beyond 32
    bits."""
    array = np.asarray(value)
    require(array.shape == spec.shape, f"a {name!r} has shape {array.shape}: it must have {spec.shape}")
    if spec.dtype == "int32" and array.dtype != np.int32 and array.size:
        limits = np.iinfo(np.int32)
        fits = limits.min <= array.min() and array.max() <= limits.max
        require(bool(fits), f"a {name!r} has integers up to {array.max()}: they must fit into 32 bits")
    return array.astype(spec.dtype)
