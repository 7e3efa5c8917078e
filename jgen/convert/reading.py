"""Conversion of folders in diffusers' layout to runs."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.convert import autoencoder_kl as kl_names
from jgen.convert import dit as dit_names
from jgen.convert import files, scheduler
from jgen.convert import unet as unet_names
from jgen.convert.layers import no_memory
from jgen.core.model import ArraySpec, DataSpec, GenerativeModel, ImageSpec
from jgen.errors import require, require_choice
from jgen.models.diffusion import ddpm, dit, latent
from jgen.models.vae import autoencoder_kl

CLASSES = (dit_names.NAME, dit_names.OLD_NAME, unet_names.NAME, kl_names.NAME)
CLASS_EMBEDDING = "class_embedding.weight"  # of the U-Net


class Model(NamedTuple):
    """A model that was read from a folder.

    config:    the Config of the jgen system; for latent diffusion it is made once the autoencoder is known.
    data:      the images, and their classes.
    params, extra: the system's parameters and further arrays.
    sources:   {file: hash} of the weights.
    """

    config: Any
    data: DataSpec
    params: dict[str, Any]
    extra: dict[str, Any]
    sources: dict[str, str]


class Loaded(NamedTuple):
    """The content of a folder: a model, the autoencoder of its latents or None, and the tokenizers of its texts.

    dataset: the given data, or None.
    """

    model: Model
    first: Model | None
    tokenizers: Mapping[str, Any]
    dataset: Any


class ModelFolder(NamedTuple):
    """A model's folder, its config.json, and the noise schedule next to it, if any."""

    folder: Path
    document: dict[str, Any]
    class_name: str
    scheduler: Path | None

    @property
    def where(self) -> Path:
        return self.folder / files.CONFIG


def find(folder: Path) -> tuple[ModelFolder, ModelFolder | None]:
    """The model in a folder, or in the folder of a pipeline, and the pipeline's autoencoder.

    Raises:
      UserError: no such folder, or a folder without such a model.
    """
    pickled = folder.is_file() and folder.suffix in files.PICKLED
    require(not pickled, f"{folder} is pickled, and to unpickle can run any program: {files.USE}")
    require(folder.is_dir(), f"there is no folder {folder}")
    places = [folder, folder / "transformer", folder / "unet"]
    model = next((place for place in places if (place / files.CONFIG).is_file()), None)
    layout = f"it has no {files.CONFIG}, nor has transformer/ or unet/ in it"
    require(model is not None, f"{folder} is not in diffusers' layout: {layout}")
    assert model is not None
    schedules = [folder / "scheduler" / files.SCHEDULER, folder / files.SCHEDULER]
    opened = open_model(model, next((path for path in schedules if path.is_file()), None))
    has_latents = model.name == "transformer" and (folder / "vae").is_dir()
    return opened, open_model(folder / "vae", None) if has_latents else None


def open_model(folder: Path, schedule: Path | None) -> ModelFolder:
    """Opens a model's folder and reads its config.json."""
    document = files.read_document(folder / files.CONFIG)
    require_choice(f"{folder / files.CONFIG}: _class_name", document.get("_class_name"), CLASSES)
    return ModelFolder(folder, document, document["_class_name"], schedule)


def class_names(folder: Path, num_classes: int) -> tuple[str, ...]:
    """The names of a pipeline's classes, made unique; () if they have none."""
    path = folder / "model_index.json"
    labels = files.read_document(path).get("id2label") if path.is_file() else None
    if not isinstance(labels, dict) or set(labels) != set(map(str, range(num_classes))):
        return ()
    names = [str(labels[str(i)]) for i in range(num_classes)]
    return tuple(f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names))


def data_of(image: ImageSpec, num_classes: int, names: tuple[str, ...], given: DataSpec | None) -> DataSpec:
    """The specification of a model's images and classes: that of the given data, or with 256 levels.

    Raises:
      UserError: data of other images or classes.
    """
    if given is None:
        label = {"label": ArraySpec((), "int32", num_classes, names)} if num_classes else {}
        return DataSpec(image, label)
    same = given.image.shape == image.shape and num_classes in (0, given.num_classes)
    own = f"the data has images {given.image.shape} and {given.num_classes} classes"
    require(same, f"{own}: the weights are of images {image.shape} and {num_classes} classes")
    return given


def templates(model: GenerativeModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shapes of a model's parameters and of its further arrays; nothing is computed."""
    batch = {name: jax.ShapeDtypeStruct((1, *f.shape), f.dtype) for name, f in model.data.fields.items()}
    kind = "uint8" if model.images.levels else "float32"
    batch["image"] = jax.ShapeDtypeStruct((1, *model.images.shape), kind)
    return jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch, {}), batch)


def template(model: GenerativeModel) -> dict[str, Any]:
    """The shapes of a model's parameters; nothing is computed."""
    return templates(model)[0]


def weights(opened: ModelFolder, tensors_of: Callable[[Any], dict[str, np.ndarray]], params: Any, rows: int = 0) -> Any:
    """The tensors of a model's file, which must be exactly those of its parameters, and {file: hash}.

    Args:
      tensors_of: parameters to {name: array}; params: shapes of the parameters.
      rows: rows of the class embedding in the file; 0: as many as in the parameters.
    """
    path = files.find_weights(opened.folder)
    wanted = {name: array.shape for name, array in tensors_of(no_memory(params)).items()}
    if rows:
        wanted[CLASS_EMBEDDING] = (rows, *wanted[CLASS_EMBEDDING][1:])
    tensors = files.read_tensors(path, wanted)
    return tensors, {str(path): hash_of(path)}


def hash_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def objective_of(opened: ModelFolder, learned: bool, clips: bool = True, **options: Any) -> ddpm.Config:
    """The noise schedule of a model's scheduler; that of DDPM if there is none.

    Args:
      clips: whether sampling clips images if there is no scheduler.
    """
    if opened.scheduler is None:
        print(f"{opened.folder} has no {files.SCHEDULER}: its noise is taken to be DDPM's", file=sys.stderr)
        return scheduler.objective_of(scheduler.Fields(clip_sample=clips), "DDIMScheduler", "", learned, **options)
    document = files.read_document(opened.scheduler)
    fields = files.read_fields(scheduler.Fields, document, opened.scheduler)
    return scheduler.objective_of(fields, document.get("_class_name"), opened.scheduler, learned, **options)


def read_autoencoder(opened: ModelFolder, size: int, given: DataSpec | None) -> tuple[Model, float]:
    """Reads an `AutoencoderKL` and its scaling factor.

    Args:
      size: height and width of the images; 0: those of the data, or of config.json.
    """
    fields = files.read_fields(kl_names.Fields, opened.document, opened.where)
    network = kl_names.network_of(fields, opened.where)
    height, width = (size, size) if size or given is None else given.image.shape[:2]
    height, width = height or fields.sample_size, width or fields.sample_size
    data = data_of(ImageSpec(height, width, fields.in_channels, 256), 0, (), given)
    config = autoencoder_kl.Config(network)
    shapes = template(autoencoder_kl.make(config, data))
    tensors, sources = weights(opened, lambda params: kl_names.tensors_of(network, params), shapes)
    return Model(config, data, kl_names.params_of(network, tensors), {}, sources), fields.scaling_factor


def read_unet(opened: ModelFolder, null_class: bool, given: DataSpec | None) -> Model:
    """Reads a `UNet2DModel`.

    Args:
      null_class: whether its last class means "no class".
    """
    fields = files.read_fields(unet_names.Fields, opened.document, opened.where)
    network = unet_names.network_of(fields, opened.where)
    rows = fields.num_class_embeds or 0
    num_classes = rows - null_class
    require(
        rows > 1 or not null_class, f"{opened.where} has {rows} classes: with --null-class it must have more than 1"
    )
    image = ImageSpec(*unet_names.image_size(fields, opened.where), fields.in_channels, 256)
    data = data_of(image, num_classes, class_names(opened.folder.parent, num_classes), given)
    options: dict[str, Any] = {"class_conditional": num_classes > 0, "label_dropout": 0.1 if null_class else 0.0}
    config = objective_of(opened, learned=False, network=network, **options)
    shapes = template(ddpm.make(config, data))["unet"]
    tensors, sources = weights(opened, lambda params: unet_names.tensors_of(network, params), shapes, rows)
    if rows and not null_class:  # jgen's embedding has a row for "no class", which such a network never uses
        tensors[CLASS_EMBEDDING] = np.pad(tensors[CLASS_EMBEDDING], ((0, 1), (0, 0)))
    params = unet_names.params_of(network, tensors, fields.flip_sin_to_cos)
    return Model(config, data, {"unet": params}, {}, sources)


def read_transformer(
    opened: ModelFolder, autoencoder: ModelFolder | None, given: DataSpec | None
) -> tuple[Model, Model | None]:
    """Reads a `DiTTransformer2DModel`, and the `AutoencoderKL` of its latents, None for a model of images."""
    needed = dit_names.OLD_DEFAULTS if opened.class_name == dit_names.OLD_NAME else ()
    fields = files.read_fields(dit_names.Fields, opened.document, opened.where, needed)
    network = dit_names.network_of(fields, opened.where)
    learned = fields.out_channels == 2 * fields.in_channels
    objective = objective_of(opened, learned, clips=autoencoder is None, network=network)
    shape, num_classes = (fields.sample_size, fields.sample_size, fields.in_channels), fields.num_embeds_ada_norm
    names = class_names(opened.folder.parent, num_classes)
    first, scale = None, 1.0
    if autoencoder is None:
        config: Any = dit.Config(objective)
        data = data_of(ImageSpec(*shape, levels=256), num_classes, names, given)
        model = dit.make(config, data)
    else:
        clips = f"{opened.scheduler}: clip_sample is true: latents have no range to be clipped to, it must be false"
        require(not objective.sampling.clip, clips)
        first, scale = read_first_stage(autoencoder, shape, given)
        config, data = latent.Config(objective), data_of(first.data.image, num_classes, names, given)
        first = first._replace(data=data)
        model = latent.make_objective(objective, DataSpec(ImageSpec(*shape, levels=0), data.fields))
    tensors, sources = weights(opened, lambda params: dit_names.tensors_of(network, params), template(model)["dit"])
    params = {"dit": dit_names.params_of(network, tensors, opened.folder)}
    extra = {} if autoencoder is None else {"latent_scale": jnp.float32(1.0 / scale)}
    return Model(config, data, params, extra, sources), first


def read_first_stage(opened: ModelFolder, shape: tuple[int, int, int], given: DataSpec | None) -> tuple[Model, float]:
    """Reads the autoencoder for latents of this shape, and its scaling factor."""
    require_choice(f"{opened.where}: _class_name", opened.class_name, (kl_names.NAME,))
    channels = opened.document.get("latent_channels", kl_names.Fields.latent_channels)
    wanted = f"{opened.where}: latent_channels is {channels}: the transformer's in_channels is {shape[2]}"
    require(channels == shape[2], wanted)
    blocks = opened.document.get("block_out_channels")
    require(isinstance(blocks, list) and len(blocks) > 0, f"{opened.where}: block_out_channels is {blocks!r}")
    return read_autoencoder(opened, shape[0] * 2 ** (len(blocks or ()) - 1), given)


def write_run(
    run: Path,
    model: Model,
    options: Any,
    dataset: Any,
    frozen_places: Mapping[str, Path],
    converted: Path,
    tokenizers: Mapping[str, Any] | None = None,
) -> None:
    """Writes a run directory at step 0.

    Args:
      options: the command's options; dataset: the given data, or None; frozen_places: {role: run}.
      converted: the folder that was converted; tokenizers: of the model's texts.
    """
    import jgen
    from jgen import runs
    from jgen.core import keys as rng
    from jgen.data.dataset import Dataset
    from jgen.experiment import Experiment
    from jgen.train import checkpoints
    from jgen.train.config import ema_enabled
    from jgen.train.logs import Window
    from jgen.train.loop import role_optimisers
    from jgen.train.run_directory import RunDirectory, read_config, read_json
    from jgen.train.step import init_state

    places = {role: str(place) for role, place in frozen_places.items()}
    experiment = Experiment(model.config, options.data, options.train, places, options.seed)
    frozen = runs.load_frozen(places, {}, jgen.load)
    system = runs.model_of(model.config, model.data, frozen)
    optimisers = role_optimisers(system, options.train)
    loaded = system._replace(init=lambda key, batch, frozen: (model.params, model.extra))
    state = init_state(loaded, optimisers, rng.seed_key(options.seed), {}, ema_enabled(options.train))
    data = dataset or Dataset("", model.data, {}, "", tokenizers or {})
    directory = RunDirectory(run)
    try:
        runs.open_run(directory, experiment, replace_spec(data, model.data), frozen)
        directory.note_start(0, options.seed)
        environment = read_json(run / "environment.json")
        origin = {"folder": str(converted.absolute()), "sha256": model.sources}
        directory.write("environment.json", {**environment, "converted_from": origin})
        writer = checkpoints.Writer(directory.checkpoints, keep=1, keep_every=0)
        try:
            writer.save(state, {"window": Window().state, "seconds": 0.0, "config": read_config(run)})
        finally:
            writer.close()
    finally:
        directory.close()


def replace_spec(dataset: Any, spec: DataSpec) -> Any:
    return dataset._replace(spec=spec)
