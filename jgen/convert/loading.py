"""Reads folders in diffusers' layout, as runs or as models to sample from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from jgen.convert import autoencoder_kl as kl_names
from jgen.convert import text_to_image
from jgen.convert import unet as unet_names
from jgen.convert.reading import Loaded, find, read_autoencoder, read_transformer, read_unet, write_run
from jgen.core.model import Context, FrozenModel
from jgen.data import dataset as datasets
from jgen.data.config import Config as Data
from jgen.data.config import located
from jgen.errors import require, require_choice
from jgen.experiment import Experiment
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser

AUTOENCODER = "autoencoder"  # the role of the first stage
TYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Options:
    """The command's options that `read` uses."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    null_class: bool = False
    data: Data = field(default_factory=lambda: Data(name=""))
    train: Train = field(default_factory=lambda: Train(optimiser=Optimiser(learning_rate=1e-4)))
    seed: int = 0


def load_folder(folder: Path, dtype: Literal["float32", "bfloat16"] = "float32") -> tuple[Any, ...]:
    """The arguments of a `Generator` for a folder's model, in memory: nothing is written.

    Args:
      dtype: the computation type of a text-to-image pipeline, float32 or bfloat16.
    Raises:
      UserError: something in the folder is missing or damaged, or not supported by jgen.
    """
    from jgen import runs

    require_choice("dtype", dtype, TYPES)
    options = replace(Options(), dtype=dtype)
    model, first, tokenizers, _ = read(folder, options)
    frozen: runs.FrozenRuns = {}
    if first is not None:
        arrays = FrozenModel(first.params, first.extra)
        frozen[AUTOENCODER] = runs.FrozenRun(runs.model_of(first.config, first.data, {}), arrays, "", {})
    places = {role: str(folder / "vae") for role in frozen}
    experiment = Experiment(model.config, options.data, options.train, places, options.seed)
    system = runs.model_of(model.config, model.data, frozen)
    ctx = Context(jnp.int32(0), None, model.params, model.extra, runs.frozen_arrays(frozen), True)
    return system, model.params, ctx, experiment, 0, 0.0, tokenizers


def to_run(folder: Path, run: Path, options: Any) -> list[Path]:
    """Converts a folder to runs; returns their paths, an autoencoder's first. Raises `UserError` before anything is
    written."""
    beside = run.with_name(f"{run.name}-vae")
    for place in (run, *[beside] * has_first_stage(folder)):
        require(not (place / "config.json").exists(), f"{place} is a run already: choose another name, or remove it")
    shrunk = options.data.low_resolution
    require(shrunk == 0, f"data.low_resolution is {shrunk}: these models take no image as condition, it must be 0")
    options = replace(options, data=located(options.data))
    loaded = read(folder, options)
    if loaded.first is None:
        write_run(run, loaded.model, options, loaded.dataset, {}, folder)
        return [run]
    write_run(beside, loaded.first, options, loaded.dataset, {}, folder, loaded.tokenizers)
    places = {"autoencoder": beside}
    write_run(run, loaded.model, options, loaded.dataset, places, folder, loaded.tokenizers)
    return [beside, run]


def has_first_stage(folder: Path) -> bool:
    """Whether a folder has an autoencoder and a model of its latents."""
    return text_to_image.is_text_to_image(folder) or find(folder)[1] is not None


def read(folder: Path, options: Any) -> Loaded:
    """Reads a folder. Raises `UserError` if something in it is missing or damaged, or not supported by jgen."""

    def given(tokenizers: Mapping[str, Any]) -> Any:
        return datasets.load(options.data, tokenizers) if options.data.name else None

    if text_to_image.is_text_to_image(folder):
        return text_to_image.read_text_to_image(folder, options.dtype, given)
    plain = options.dtype == "float32"
    require(plain, f"dtype is {options.dtype}: {folder} has no text encoder, and only pipelines that have one take it")
    opened, autoencoder = find(folder)
    dataset = given({})
    spec, first = dataset.spec if dataset else None, None
    if opened.class_name == kl_names.NAME:
        model = read_autoencoder(opened, 0, spec)[0]
    elif opened.class_name == unet_names.NAME:
        model = read_unet(opened, options.null_class, spec)
    else:
        model, first = read_transformer(opened, autoencoder, spec)
    return Loaded(model, first, {}, dataset)
