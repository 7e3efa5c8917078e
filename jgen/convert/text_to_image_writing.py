"""Writes folders of Stable Diffusion pipelines: the inverse of jgen/convert/text_to_image.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jgen.convert import autoencoder_kl as kl_names
from jgen.convert import clip_text as text_names
from jgen.convert import condition_unet as unet_names
from jgen.convert import files, text_scheduler
from jgen.convert.text_to_image import INDEX, PIPELINES
from jgen.core.model import ImageSpec
from jgen.errors import require
from jgen.models.text_to_image import stable_diffusion

CHAIN = ("num_timesteps", "schedule", "beta_1", "beta_T", "prediction")


def write_text_to_image(folder: Path, run: str, gen: Any, first: Any) -> None:
    """Writes the pipeline of a run of `stable_diffusion`.

    Args:
      first: the configuration of its autoencoder.
    Raises:
      UserError: the run has options that diffusers' pipelines lack; raised before anything is written.
    """
    config: stable_diffusion.Config = gen.config.model
    name = pipeline_of(run, config)
    tokenizer, image = gen.tokenizers[stable_diffusion.TEXT], gen.model.images
    latents = ImageSpec(image.height // first.network.factor, image.width // first.network.factor, 0, 0)
    square = latents.height == latents.width
    require(square, f"{run} is of images {image.height}x{image.width}: {unet_names.NAME} has square ones")
    # As published: version 1 has convolutions around the transformers, and equally many heads at all levels.
    linear = len(set(config.network.heads)) > 1
    fields = unet_names.fields_of(config.network, latents.height, first.network.latent_channels, linear)
    chain = {part: getattr(config, part) for part in CHAIN}
    scheduler, steps = text_scheduler.document_of(chain, config.sampling)
    vae = kl_names.fields_of(first.network, image.height, image.channels, config.scaling_factor)
    params, extra, frozen = jax.device_get((gen.params, gen.ctx.extra, gen.ctx.frozen["autoencoder"].params))
    tensors = unet_names.tensors_of(config.network, params["unet"], linear)
    files.write_model(folder / "unet", unet_names.NAME, fields, tensors)
    files.write_model(folder / "vae", kl_names.NAME, vae, kl_names.tensors_of(first.network, frozen))
    files.write_document(folder / "scheduler" / files.SCHEDULER, scheduler, steps)
    parts = {"unet": ["diffusers", unet_names.NAME], "vae": ["diffusers", kl_names.NAME]}
    parts["scheduler"] = ["diffusers", scheduler]
    for (role, encoder), padding in zip(config.text_encoders.items(), tokenizer.padding):
        own = role.replace("text_encoder", "tokenizer")
        text_names.write_tokenizer(folder / own, tokenizer, padding)
        files.write_json(folder / role / files.CONFIG, text_names.document_of(encoder))
        files.write_tensors(folder / role / text_names.WEIGHTS, text_names.tensors_of(encoder, extra[role]))
        parts |= {role: ["transformers", text_names.class_of(encoder)], own: ["transformers", "CLIPTokenizer"]}
    files.write_document(folder / INDEX, name, {**parts, **others_of(name, config)})


def pipeline_of(run: str, config: stable_diffusion.Config) -> str:
    """The pipeline class of a run. Raises `UserError` if there is none."""
    second = config.text_encoder_2 is not None
    name = next(name for name, pipeline in PIPELINES.items() if pipeline.second == second)
    features = PIPELINES[name].features
    require(config.features == features, f"{run} attends to the features {config.features}: {name} to {features}")
    zeros = config.zeros_for_no_text and not second
    require(not zeros, f"{run} has zeros for no text: {name} has the empty text")
    return name


def others_of(name: str, config: stable_diffusion.Config) -> dict[str, Any]:
    """The entries of model_index.json besides those of the written parts."""
    if PIPELINES[name].second:
        return {"force_zeros_for_empty_prompt": config.zeros_for_no_text}
    return {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
