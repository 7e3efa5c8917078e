"""Folders in diffusers' layout: config.json and diffusion_pytorch_model.safetensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jgen.core.files import written_whole
from jgen.core.options import as_tuples, check_types
from jgen.errors import UserError, require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TYPES = ("F64", "F32", "F16", "BF16")
USE = "save the model as safetensors, in diffusers model.save_pretrained(FOLDER, safe_serialization=True)"
# Names of attention layers in files of diffusers up to 0.12, and their current names.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

T = TypeVar("T", bound="DataclassInstance")


def read_document(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `UserError` if it cannot be read or is damaged."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    require(isinstance(document, dict), f"{path} is damaged: it is no JSON object")
    return document


def read_fields(cls: type[T], document: Mapping[str, Any], where: Path, needed: tuple[str, ...] = ()) -> T:
    """The fields of a document as a dataclass, whose defaults are those of diffusers.

    A field that the dataclass does not have is an error, unless it is null or false.

    Args:
      needed: fields that must be given, because the document's class has other defaults.
    Raises:
      UserError: unknown or missing fields, or values that jgen has no equivalent of.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    given = {name: as_tuples(value) for name, value in document.items() if not name.startswith("_")}
    for name, value in given.items():
        known = name in names or value is None or value is False
        require(known, f"{where}: {name} is {value!r}: jgen has no such option of {document.get('_class_name')}")
    for name in needed:
        require(name in given, f"{where} lacks {name}")
    made = cls(**{name: value for name, value in given.items() if name in names})
    check_types(made, str(where))
    return made


def find_weights(folder: Path, name: str = WEIGHTS) -> Path:
    """The file of a folder's weights; the half-precision one if there is no other.

    Raises:
      UserError: there is none; for other formats than safetensors, the message says how to convert.
    """
    path = folder / name
    for each in (path, path.with_suffix(f".fp16{path.suffix}")):
        if each.is_file():
            return each
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    pickled = [each for each in names if each.endswith(PICKLED)]
    require(not pickled, f"{folder / (pickled or [''])[0]} is pickled, and to unpickle can run any program: {USE}")
    parts = f"{name}.index.json" in names
    require(not parts, f'{folder} has its weights in parts: save them in one, with max_shard_size="100GB"')
    raise UserError(f"there is no {path}")


def new_name(name: str) -> str:
    """A tensor's name in current versions of diffusers."""
    parts = name.split(".")
    return ".".join(OLD_NAMES.get(part, part) for part in parts) if "attentions" in parts else name


def read_tensors(
    path: Path, wanted: Mapping[str, tuple[int, ...]], rename: Callable[[str], str] = new_name
) -> dict[str, np.ndarray]:
    """The tensors of a file as float32.

    Args:
      wanted: {name: shape} of exactly the tensors that must be in the file.
      rename: maps a name in the file to one in `wanted`, or to "" to skip the tensor.
    Raises:
      UserError: a damaged file, or a tensor that is missing, of another shape, unknown, or not of floats; the first one
        is named.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = {rename(name): name for name in file.keys() if rename(name)}
            for name, shape in wanted.items():
                require(name in names, f"{path} lacks the tensor {name}")
                tensor = file.get_slice(names[name])
                own_shape, kind = tuple(tensor.get_shape()), tensor.get_dtype()
                require(own_shape == shape, f"{path}: the tensor {name} has shape {own_shape}: it must be {shape}")
                require(kind in TYPES, f"{path}: the tensor {name} is of {kind}: it must be one of {', '.join(TYPES)}")
            extra = [name for name in names if name not in wanted]
            require(not extra, f"{path} has the tensor {(extra or [''])[0]}, which this model does not have")
            return {name: file.get_tensor(names[name]).astype(np.float32) for name in wanted}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error


def write_model(folder: Path, class_name: str, fields: Any, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a model's folder.

    Args:
      fields: a dataclass with config.json's fields.
    """
    write_tensors(folder / WEIGHTS, tensors)
    write_document(folder / CONFIG, class_name, dataclasses.asdict(fields))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file of tensors."""
    from safetensors.numpy import save_file

    with written_whole(path) as aside:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, aside, {"format": "pt"})


def write_document(path: Path, class_name: str, fields: Mapping[str, Any]) -> None:
    """Writes a JSON document with its class name."""
    write_json(path, {"_class_name": class_name, **fields})


def write_json(path: Path, document: Any) -> None:
    with written_whole(path) as aside:
        aside.write_text(json.dumps(document, indent=2) + "\n")
