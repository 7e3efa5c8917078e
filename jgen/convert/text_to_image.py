"""Reads folders of Stable Diffusion pipelines: tokenizers, text encoders, U-Net, autoencoder and scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen.convert import clip_text as text_names
from jgen.convert import condition_unet as unet_names
from jgen.convert import files, text_scheduler
from jgen.convert.layers import no_memory
from jgen.convert.reading import Loaded, Model, hash_of, open_model, read_first_stage, templates
from jgen.core.model import ArraySpec, DataSpec
from jgen.data.clip_text import START, ClipTokenizer
from jgen.errors import require, require_choice
from jgen.models.text_to_image import stable_diffusion

INDEX = "model_index.json"
PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")


class Pipeline(NamedTuple):
    """Properties of a pipeline class. second: whether it has a second text encoder and tokenizer; offset: the
    steps_offset that the pipeline sets in its scheduler, None for the scheduler's own."""

    second: bool
    guidance_scale: float
    offset: int | None
    features: Any


PIPELINES = {
    "StableDiffusionPipeline": Pipeline(False, 7.5, 1, "last"),
    "StableDiffusionXLPipeline": Pipeline(True, 5.0, None, "before_last"),
}


def is_text_to_image(folder: Path) -> bool:
    """Whether a folder is a text-to-image pipeline."""
    if not (folder / INDEX).is_file():
        return False
    document = files.read_document(folder / INDEX)
    return "text_encoder" in document or document.get("_class_name") in PIPELINES


def read_text_to_image(folder: Path, dtype: str, given: Callable[[Mapping[str, ClipTokenizer]], Any]) -> Loaded:
    """Reads a pipeline and its autoencoder.

    Args:
      dtype: the computation type of U-Net and text encoders; given: (tokenizers) -> the given data, or None.
    Raises:
      UserError: a part is missing or damaged, or not supported by jgen.
    """
    document = files.read_document(folder / INDEX)
    name = document.get("_class_name")
    require_choice(f"{folder / INDEX}: _class_name", name, PIPELINES)
    pipeline = PIPELINES[str(name)]
    for part in (*PARTS, *("tokenizer_2", "text_encoder_2") * pipeline.second):
        require((folder / part).is_dir(), f"{folder} lacks {part}/, which a {name} has")
    tokenizer = tokenizer_of(folder, pipeline.second)
    roles = ("text_encoder", *("text_encoder_2",) * pipeline.second)
    encoders = {role: read_encoder(folder / role, tokenizer, dtype) for role in roles}
    unet, fields, network = read_network(folder / "unet", dtype)
    config = config_of(folder, pipeline, document, network, encoders, tokenizer)
    shape = (fields.sample_size or 0, fields.sample_size or 0, fields.in_channels)
    dataset = given({stable_diffusion.TEXT: tokenizer})
    first, scale = read_first_stage(open_model(folder / "vae", None), shape, dataset.spec if dataset else None)
    tokens = ArraySpec(tokenizer.shape, "int32", tokenizer.num_values)
    data = dataset.spec if dataset else DataSpec(first.data.image, {stable_diffusion.TEXT: tokens})
    first, config = first._replace(data=data), replace(config, scaling_factor=float(scale))
    shapes, of_encoders = templates(stable_diffusion.make(config, data, autoencoder=stand_in(first)))
    linear = fields.use_linear_projection
    wanted = unet_names.tensors_of(network, no_memory(shapes["unet"]), linear)
    tensors, sources = read_weights(unet, files.WEIGHTS, wanted)
    params = {"unet": unet_names.params_of(network, tensors, linear)}
    extra: dict[str, Any] = {"latent_scale": np.float32(1.0 / scale)}
    for role, encoder in encoders.items():
        wanted = text_names.tensors_of(encoder, no_memory(of_encoders[role]))
        tensors, digest = read_weights(folder / role, text_names.WEIGHTS, wanted, text_names.new_name)
        extra[role], sources = text_names.params_of(encoder, tensors), sources | digest
    return Loaded(Model(config, data, params, extra, sources), first, {stable_diffusion.TEXT: tokenizer}, dataset)


def stand_in(first: Model) -> Any:
    """The autoencoder's functions."""
    from jgen.models.vae import autoencoder_kl

    return autoencoder_kl.make(first.config, first.data)


def tokenizer_of(folder: Path, second: bool) -> ClipTokenizer:
    """The tokenizer of all text encoders, which differ only in their padding tokens."""
    tokenizer = text_names.read_tokenizer(folder / "tokenizer")
    if not second:
        return tokenizer
    other = text_names.read_tokenizer(folder / "tokenizer_2")
    same = replace(other, padding=tokenizer.padding) == tokenizer
    require(same, f"{folder / 'tokenizer_2'} is another tokenizer than {folder / 'tokenizer'}: they must be the same")
    return replace(tokenizer, padding=tokenizer.padding + other.padding)


def read_encoder(folder: Path, tokenizer: ClipTokenizer, dtype: Any) -> Any:
    """The text encoder that a folder's config.json describes, for this tokenizer."""
    where = require_config(folder)
    encoder = text_names.encoder_of(files.read_document(where), where)
    same = encoder.vocabulary == tokenizer.num_values
    changed = f"the tokenizer has {tokenizer.num_values} ids, and {where} a vocab_size of {encoder.vocabulary}"
    require(same, f"{changed}: it is not the tokenizer that these weights were trained with")
    long = f"the tokenizer's model_max_length is {tokenizer.length}: {where} has {encoder.length} positions"
    require(tokenizer.length == encoder.length, long)
    return replace(encoder, dtype=dtype)


def read_network(folder: Path, dtype: Any) -> tuple[Path, unet_names.Fields, Any]:
    """The U-Net that a folder's config.json describes."""
    where = require_config(folder)
    document = files.read_document(where)
    require_choice(f"{where}: _class_name", document.get("_class_name"), (unet_names.NAME,))
    fields = files.read_fields(unet_names.Fields, document, where)
    require(fields.sample_size is not None, f"{where}: sample_size is null: it must be the height of the latents")
    return folder, fields, replace(unet_names.network_of(fields, where), dtype=dtype)


def require_config(folder: Path) -> Path:
    """The path of a part's config.json. Raises `UserError` if there is none."""
    path = folder / files.CONFIG
    require(path.is_file(), f"there is no {path}")
    return path


def config_of(
    folder: Path, pipeline: Pipeline, index: Mapping[str, Any], network: Any, encoders: Any, tokenizer: ClipTokenizer
) -> stable_diffusion.Config:
    """The system's Config; its scaling factor is the autoencoder's."""
    where = folder / "scheduler" / files.SCHEDULER
    require(where.is_file(), f"there is no {where}")
    scheduler = files.read_document(where)
    chain = text_scheduler.chain_of(scheduler, where)
    options = (chain, pipeline.guidance_scale, pipeline.offset)
    zeros = pipeline.second and index.get("force_zeros_for_empty_prompt", True)
    return stable_diffusion.Config(
        network=network,
        **encoders,
        features=pipeline.features,
        start=tokenizer.ids[START],
        padding=tuple(tokenizer.ids[piece] for piece in tokenizer.padding),
        zeros_for_no_text=bool(zeros),
        sampling=text_scheduler.sampling_of(scheduler, where, *options),
        **chain,
    )


def read_weights(
    folder: Path, name: str, wanted: Mapping[str, np.ndarray], rename: Callable[[str], str] = files.new_name
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a part, which must be exactly those wanted, and {file: hash}."""
    path = files.find_weights(folder, name)
    tensors = files.read_tensors(path, {name: array.shape for name, array in wanted.items()}, rename)
    return tensors, {str(path): hash_of(path)}
