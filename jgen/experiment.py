"""Experiments as nested frozen dataclasses: conversion to and from JSON, and making the model that they describe."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jgen.core.model import DataSpec, GenerativeModel
from jgen.core.options import as_tuples, check_types
from jgen.data.config import Config as DataConfig
from jgen.errors import UserError, require
from jgen.train.config import Config as TrainConfig


@dataclass(frozen=True)
class Experiment:
    """Everything that defines a run. `model` is the Config of a system; `make` in the same module builds the model."""

    model: Any
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    frozen: dict[str, str] = field(default_factory=dict)
    """Run directories of the frozen models that this system uses: ROLE PATH pairs, or --frozen.ROLE PATH if listed."""
    seed: int = 0
    """Seed of the initialisation, the noise and the data order."""


def frozen_roles(config: Any) -> dict[str, bool]:
    """{role: whether it must be given} of the models that a system depends on: the keyword arguments of its `make`."""
    parameters = inspect.signature(make_of(config)).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}


def make_of(config: Any) -> Any:
    """The function `make` of the module that defines a Config. Raises `UserError` if there is none."""
    make = getattr(sys.modules[type(config).__module__], "make", None)
    require(make is not None, f"model is {config!r}: it must be the Config of a system")
    return make


def check_roles(config: Any, frozen: Iterable[str]) -> None:
    """Raises `UserError` for a role that a system does not take, or a required role that is not given."""
    given, roles = set(frozen), frozen_roles(config)
    takes = f"this system takes {', '.join(roles)}" if roles else "this system depends on no other"
    for role in sorted(given):
        require(role in roles, f"frozen has {role!r}: {takes}")
    for role, needed in roles.items():
        require(role in given or not needed, f"frozen.{role} is missing: this system needs the run of a trained {role}")


def make_model(config: Any, data: DataSpec, frozen: Mapping[str, GenerativeModel] | None = None) -> GenerativeModel:
    """The model of a system's Config, by `make(config, data, *, role=model, ...)` of the module that defines it.

    Args:
      frozen: the models that this one depends on, by role.
    Raises:
      UserError: the Config, the data or the frozen models are invalid; the message is one line.
    """
    image, frozen = data.image, dict(frozen or {})
    require(min(image.shape) >= 1, f"images have the shape {image.shape}: every size must be above zero")
    require(2 <= image.levels <= 256, f"images have {image.levels} levels: they must have from 2 to 256")
    check_types(config, "model")
    check_roles(config, frozen)
    return make_of(config)(config, data, **frozen)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"model.width": 64, ...}: every value of nested dataclasses and dictionaries under its dotted name."""
    if not (dataclasses.is_dataclass(config) or isinstance(config, Mapping)):
        return {prefix.removesuffix("."): config}
    flat: dict[str, Any] = {}
    for name, value in entries(config).items():
        flat |= flatten(value, f"{prefix}{name}.")
    return flat


def entries(config: Any) -> dict[str, Any]:
    """{name: value} of a dataclass or a dictionary."""
    if isinstance(config, Mapping):
        return dict(config)
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def to_json(config: Any) -> Any:
    """Nested dataclasses as JSON objects, each with an entry "class": "module:name"; dictionaries are unchanged."""
    if not (dataclasses.is_dataclass(config) or isinstance(config, Mapping)):
        return config
    document = {name: to_json(value) for name, value in entries(config).items()}
    if isinstance(config, Mapping):
        return document
    return {"class": f"{type(config).__module__}:{type(config).__qualname__}", **document}


def from_json(document: Any, where: str = "config.json") -> Any:
    """The inverse of `to_json`. A missing field takes its default, so that runs of older versions of jgen load.

    A class may have a static method `upgrade(document)`, which converts the document of an older version of jgen to the
    current form. Only modules under `jgen.` are imported.

    Raises:
      UserError: a class outside jgen or unknown, unknown fields, missing fields without a default, wrong types.
    """
    require(isinstance(document, dict) and isinstance(document.get("class"), str), f"{where}: no class is named")
    cls = find_class(document["class"], where)
    document = getattr(cls, "upgrade", dict)(document)
    values = {name: from_value(value, where) for name, value in document.items() if name != "class"}
    fields = {f.name: f for f in dataclasses.fields(cls)}
    no_default = dataclasses.MISSING
    needed = {n for n, f in fields.items() if f.default is no_default and f.default_factory is no_default}
    missing, unknown = sorted(needed - set(values)), sorted(set(values) - set(fields))
    require(not missing, f"{where}: {cls.__name__} lacks {', '.join(missing)}")
    require(not unknown, f"{where}: {cls.__name__} has the unknown {', '.join(map(repr, unknown))}")
    made = cls(**values)
    check_types(made, where)
    if isinstance(made, Experiment):
        is_system = hasattr(sys.modules[type(made.model).__module__], "make")
        require(is_system, f"{where}: model is {made.model!r}: it must be the Config of a system")
    return made


def from_value(value: Any, where: str) -> Any:
    """Converts a JSON value: an object that names its class becomes a dataclass, a list a tuple."""
    if isinstance(value, dict):
        if "class" in value:
            return from_json(value, where)
        return {name: from_value(entry, where) for name, entry in value.items()}
    return as_tuples(value) if isinstance(value, list) else value


# Classes that have moved: their names in the configurations of earlier runs, and where they are now.
MOVED_CLASSES = {
    "jgen.models.autoregressive.raster:Sampling": "jgen.samplers.truncation:Sampling",
    "jgen.models.autoregressive.image_transformer:Sampling": "jgen.samplers.truncation:Sampling",
    "jgen.models.gan.dcgan:Sampling": "jgen.models.gan.game:Sampling",
    "jgen.models.vae.vae:Sampling": "jgen.models.vae.bounds:Sampling",
    "jgen.models.vae.vae:Scoring": "jgen.models.vae.bounds:Scoring",
    "jgen.models.vae.vd_vae:Sampling": "jgen.models.vae.bounds:Sampling",
    "jgen.models.vae.vd_vae:Scoring": "jgen.models.vae.bounds:Scoring",
}


def find_class(name: str, where: str) -> Any:
    """The dataclass "module:name". Raises `UserError` if it is outside jgen, unknown, or not a dataclass."""
    module_name, _, class_name = MOVED_CLASSES.get(name, name).partition(":")
    require(module_name.startswith("jgen."), f"{where}: class {name!r} is outside jgen and is not imported")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: class {name!r} does not exist in this jgen") from error
    require(isinstance(cls, type) and dataclasses.is_dataclass(cls), f"{where}: {name!r} is no dataclass")
    return cls
