"""An experiment as data: nested frozen dataclasses, to and from JSON, and the model that they describe."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from dataclasses import dataclass, field
from typing import Any

from jgen.core.model import GenerativeModel, ImageSpec
from jgen.core.options import as_tuples, check_types
from jgen.data.config import Config as DataConfig
from jgen.errors import UserError, require
from jgen.train.config import Config as TrainConfig


@dataclass(frozen=True)
class Experiment:
    """Everything that a run is made from. `model` is the Config of a system's module, which also has its `make`."""

    model: Any
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    first_stage: str = ""
    """Run directory of the trained model that this one stands on, for systems of two stages."""
    seed: int = 0
    """Seed of the initialisation, the noise and the order of data."""


def make_model(
    config: Any, images: ImageSpec, axis_name: str | None = None, first_stage: GenerativeModel | None = None
) -> GenerativeModel:
    """The model of a system's Config, by `make(config, images, axis_name)` of the module that defines the Config.

    A system of two stages has `make(config, images, axis_name, first_stage)`, and receives the model of the first.

    Raises:
      UserError: whatever is wrong with the Config or the images, in one line.
    """
    require(min(images.shape) >= 1, f"images have the shape {images.shape}: every size must be above zero")
    require(2 <= images.levels <= 256, f"images have {images.levels} levels: they must have from 2 to 256")
    require(images.num_classes >= 0, f"images have {images.num_classes} classes: they must have zero or more")
    make = getattr(sys.modules[type(config).__module__], "make", None)
    require(make is not None, f"model is {config!r}: it must be the Config of a system")
    if "first_stage" not in inspect.signature(make).parameters:
        require(first_stage is None, "first_stage is given, but this system stands on no other: leave it empty")
        return make(config, images, axis_name)
    require(first_stage is not None, "first_stage is empty: this system needs the run of a trained first stage")
    return make(config, images, axis_name, first_stage)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"model.width": 64, ...}: every value of nested dataclasses under its dotted name."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        flat |= (
            flatten(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else {f"{prefix}{f.name}": value}
        )
    return flat


def to_json(config: Any) -> dict[str, Any]:
    """Nested dataclasses as JSON objects, each with its class as "class": "module:name"."""
    cls = type(config)
    document: dict[str, Any] = {"class": f"{cls.__module__}:{cls.__qualname__}"}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        document[f.name] = to_json(value) if dataclasses.is_dataclass(value) else value
    return document


def from_json(document: Any, where: str = "config.json") -> Any:
    """The dataclasses of `to_json`. Only modules under `jgen.` are imported.

    Raises:
      UserError: a class outside jgen or unknown, missing or unknown fields, values of a wrong type.
    """
    require(isinstance(document, dict) and isinstance(document.get("class"), str), f"{where}: no class is named")
    module_name, _, class_name = document["class"].partition(":")
    require(
        module_name.startswith("jgen."), f"{where}: class {document['class']!r} is outside jgen and is not imported"
    )
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: class {document['class']!r} does not exist in this jgen") from error
    require(isinstance(cls, type) and dataclasses.is_dataclass(cls), f"{where}: {document['class']!r} is no dataclass")
    values = {name: value for name, value in document.items() if name != "class"}
    names = {f.name for f in dataclasses.fields(cls)}
    missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
    require(not missing, f"{where}: {class_name} lacks {', '.join(missing)}")
    require(not unknown, f"{where}: {class_name} has the unknown {', '.join(map(repr, unknown))}")
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = from_json(value, where)
        elif isinstance(value, list):
            values[name] = as_tuples(value)
    made = cls(**values)
    check_types(made, where)
    if isinstance(made, Experiment):
        is_system = hasattr(sys.modules[type(made.model).__module__], "make") and hasattr(made.model, "sampling")
        require(is_system, f"{where}: model is {made.model!r}: it must be the Config of a system")
    return made
