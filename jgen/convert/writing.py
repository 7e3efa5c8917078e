"""Conversion of runs to folders in diffusers' layout."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from jgen.convert import autoencoder_kl as kl_names
from jgen.convert import dit as dit_names
from jgen.convert import files, scheduler
from jgen.convert import unet as unet_names
from jgen.convert.text_to_image_writing import write_text_to_image
from jgen.core.model import FrozenModel, ImageSpec
from jgen.errors import require
from jgen.models.diffusion import ddpm, dit, latent
from jgen.models.text_to_image import stable_diffusion
from jgen.models.vae import autoencoder_kl
from jgen.nn import dit as dit_networks
from jgen.nn import unet as unet_networks

SYSTEMS = "ddpm, dit and latent with a ddpm objective, stable_diffusion and autoencoder_kl"


def to_folder(run: str, folder: Path, step: Any, ema: bool) -> None:
    """Writes the weights of a run as the folder of a model or of a pipeline.

    Raises:
      UserError: a folder that is not empty, no such run, or a run without an equivalent in diffusers.
    """
    import jgen

    require(not folder.exists() or not any(folder.iterdir()), f"{folder} is not empty: name another folder")
    gen = jgen.load(run, step=step, ema=ema)
    params, config, data = jax.device_get(gen.params), gen.config.model, gen.model.data
    if isinstance(config, autoencoder_kl.Config):
        write_autoencoder(folder, config, gen.model.images, params, 1.0)
        return
    if isinstance(config, stable_diffusion.Config):
        write_text_to_image(folder, run, gen, autoencoder_of(run, gen))
        return
    objective = getattr(config, "objective", config)
    known = isinstance(config, (ddpm.Config, dit.Config, latent.Config)) and isinstance(objective, ddpm.Config)
    require(known, f"{run} is a {gen.model.name}: diffusers has models for {SYSTEMS} only")
    others = [name for name in gen.model.conditions if name != "label"]
    require(not others, f"{run} is conditioned on {', '.join(others)}: diffusers' models are of classes only")
    if isinstance(objective.network, unet_networks.Config):
        require(config is objective, f"{run} is a U-Net of latents: diffusers has no UNet2DModel with an AutoencoderKL")
        write_unet(folder, objective, gen.model.images, data.num_classes, params["unet"])
        return
    write_transformer(folder, run, gen, objective, params["dit"])


def write_autoencoder(folder: Path, config: Any, image: ImageSpec, params: Any, scaling_factor: float) -> None:
    fields = kl_names.fields_of(config.network, image.height, image.channels, scaling_factor)
    files.write_model(folder, kl_names.NAME, fields, kl_names.tensors_of(config.network, params))


def write_unet(folder: Path, objective: ddpm.Config, image: ImageSpec, num_classes: int, params: Any) -> None:
    """Writes a pipeline of a U-Net, without the "no class" embedding if it was never trained."""
    require(objective.bound_variance != "learned", f"bound_variance is learned: {unet_names.NAME} predicts none")
    rows = (num_classes + (objective.label_dropout > 0)) * objective.class_conditional
    fields = unet_names.fields_of(objective.network, (image.height, image.width), image.channels, rows)
    tensors = unet_names.tensors_of(objective.network, counted(objective, params))
    if rows:
        tensors["class_embedding.weight"] = tensors["class_embedding.weight"][:rows]
    files.write_model(folder / "unet", unet_names.NAME, fields, tensors)
    write_scheduler(folder, objective)
    write_index(folder, "DDIMPipeline", unet=unet_names.NAME)


def write_transformer(folder: Path, run: str, gen: Any, objective: ddpm.Config, params: Any) -> None:
    """Writes a transformer and its scheduler; for a model of latents, a pipeline."""
    data, network = gen.model.data, objective.network
    assert isinstance(network, dit_networks.Config)
    num_classes = data.num_classes * objective.class_conditional
    height, width, channels = data.image.shape
    first = None
    if isinstance(gen.config.model, latent.Config):
        first = autoencoder_of(run, gen)
        factor, channels = first.network.factor, first.network.latent_channels
        height, width = height // factor, width // factor
    outputs = channels * (2 if objective.bound_variance == "learned" else 1)
    fields = dit_names.fields_of(network, (height, width), channels, outputs, num_classes)
    tensors = dit_names.tensors_of(network, counted(objective, params))
    files.write_model(folder / "transformer", dit_names.NAME, fields, tensors)
    write_scheduler(folder, objective)
    if first is None:
        return
    frozen: FrozenModel = gen.ctx.frozen["autoencoder"]
    factor_of_scale = 1.0 / float(gen.ctx.extra["latent_scale"])
    write_autoencoder(folder / "vae", first, data.image, jax.device_get(frozen.params), factor_of_scale)
    names = {"id2label": dict(enumerate(data.label_names))} if data.label_names else {}
    write_index(folder, "DiTPipeline", names, transformer=dit_names.NAME, vae=kl_names.NAME)


def autoencoder_of(run: str, gen: Any) -> autoencoder_kl.Config:
    """The configuration of the autoencoder that a run depends on."""
    from jgen.runs import find_frozen, load_experiment

    place = find_frozen(Path(run).expanduser(), gen.config.frozen, {})["autoencoder"]
    config = load_experiment(place)[0].model
    known = isinstance(config, autoencoder_kl.Config)
    require(known, f"{run} depends on {place}, which is no autoencoder_kl: {kl_names.NAME} is one")
    return config


def counted(objective: ddpm.Config, params: Any) -> Any:
    """The parameters of a network whose time steps are counted from 0, as in diffusers."""
    if objective.first_timestep == 0:
        return params
    first = params["time1"]
    return {**params, "time1": {**first, "kernel": scheduler.counted_from_zero(first["kernel"])}}


def write_scheduler(folder: Path, objective: ddpm.Config) -> None:
    fields = asdict(scheduler.fields_of(objective))
    del fields["variance_type"]  # a field of DDPMScheduler
    files.write_document(folder / "scheduler" / files.SCHEDULER, "DDIMScheduler", fields)


def write_index(folder: Path, pipeline: str, others: Any = None, **parts: str) -> None:
    """Writes model_index.json, which lists the parts of a pipeline."""
    classes = {name: ["diffusers", class_name] for name, class_name in parts.items()}
    index = {**(others or {}), **classes, "scheduler": ["diffusers", "DDIMScheduler"]}
    files.write_document(folder / "model_index.json", pipeline, index)
