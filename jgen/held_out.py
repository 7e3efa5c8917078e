"""Scores of a trained model on held-out images: likelihoods, reconstruction errors and validation scores.

`arguments` are those of `jgen.evaluate`; the protocol `Arguments` lists the fields that are read.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np

from jgen import embeddings
from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.generate import resolve_options, run_over
from jgen.core.model import Batch, Cond
from jgen.core.progress import progress_bar
from jgen.data.dataset import Dataset, require_labels_of
from jgen.data.transforms import make_transform
from jgen.errors import require
from jgen.generator import Generator
from jgen.metrics.retrieval import accuracy_by_class, recall
from jgen.prob.pixels import bits_per_dim

AT_ONCE = 1000  # images that are read and binarised at once


class Arguments(Protocol):
    """What to score: see `jgen.evaluate.Arguments`."""

    @property
    def split(self) -> str: ...

    @property
    def num(self) -> int: ...

    @property
    def likelihood_images(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def prompts(self) -> tuple[str, ...]: ...


def progress(title: str) -> Callable[[range], Iterable[int]]:
    """Shows the progress over batches and the time left on the console."""
    return partial(progress_bar, desc=title, unit="batch")


def split_as_seen(gen: Generator, dataset: Dataset, arguments: Arguments, num: int) -> tuple[jax.Array, Batch]:
    """A key for scoring, and the first `num` examples of the split as the model sees them; 0: as many as `arguments`
    says."""
    split, parts = dataset.splits[arguments.split], []
    if "label" in gen.model.conditions:
        require_labels_of(dataset, arguments.split, f"{gen.model.name} scores images of known class only")
    num = num or arguments.num or split.num
    key_data, key_score = (rng.stream(rng.seed_key(arguments.seed), purpose) for purpose in (rng.DATA, rng.SCORE))
    transform = jax.jit(make_transform(gen.config.data, dataset.spec, train=False))
    with parallel.failing_together():  # data that one process cannot read
        for start in range(0, num, AT_ONCE):
            places = np.arange(start, min(start + AT_ONCE, num))
            batch = transform(rng.image_keys(key_data, places), split.fetch(places))
            parts.append({name: np.asarray(array) for name, array in batch.items()})
    return key_score, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sampling_conditions(gen: Generator, dataset: Dataset, arguments: Arguments, num: int) -> Cond:
    """The conditions of `num` samples to be scored: the classes in turn, or else those of the split's examples."""
    fields = gen.model.data.fields
    if all(fields[name].is_class for name in gen.model.conditions):
        return gen.conditions(num)
    available = dataset.splits[arguments.split].num
    _, batch = split_as_seen(gen, dataset, arguments, min(num, available))
    rows = np.arange(num) % available
    return {name: array[rows] for name, array in gen.model.condition(batch).items()}


def reconstruction(
    gen: Generator, dataset: Dataset, arguments: Arguments
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """The model's reconstructions of the split's images, their classes if any, and their errors.

    Returns:
      uint8 (n, H, W, C), int (n,) or None, and scores: the mean squared error of images in [0, 1] and its PSNR in dB;
      for a model with discrete codes, for each of its grids, the result of `code_use`.
    """
    key, batch = split_as_seen(gen, dataset, arguments, 0)
    images, cond = batch["image"], gen.model.condition(batch)
    key_encode, key_decode = rng.split_key(key, 2)
    latents = gen.encode(key_encode, images, batch_size=arguments.batch_size, **cond)
    made = gen.decode(key_decode, latents, batch_size=arguments.batch_size, **cond)
    error = np.mean(((made.astype(np.float64) - images) / (gen.model.images.levels - 1)) ** 2)
    scores = {"split": arguments.split, "num": len(images), "binarise": gen.config.data.binarise, "mse": error}
    scores["psnr"] = -10 * np.log10(error) if error > 0 else None
    grids = [code_use(codes, spec.levels) for codes, spec in zip(jax.tree.leaves(latents), gen.model.codes)]
    if len(grids) == 1:
        scores |= grids[0]
    elif grids:
        scores["grids"] = grids
    return made, batch.get("label"), scores


def code_use(codes: np.ndarray, num_codes: int) -> dict[str, Any]:
    """The size of a codebook, how many of its codes are used, and the perplexity of their frequencies."""
    counts = np.bincount(codes.ravel(), minlength=num_codes)
    p = counts[counts > 0] / counts.sum()
    return {"codes": len(counts), "codes_used": len(p), "perplexity": np.exp(-np.sum(p * np.log(p)))}


def validation(gen: Generator, dataset: Dataset, arguments: Arguments) -> dict[str, Any]:
    """The model's own validation scores, averaged over held-out images, under `held_out`; some depend on the other
    images of the batch."""
    key_score, batch = split_as_seen(gen, dataset, arguments, 0)
    where: dict[str, Any] = {"batch_size": arguments.batch_size, "progress": progress("scoring")}
    scores = run_over(gen.model, "validate", gen.params, gen.ctx, key_score, batch, **where)
    means = {name: float(np.mean(values, dtype=np.float64)) for name, values in scores.items()}
    protocol = {"split": arguments.split, "num": len(batch["image"]), "batch_size": arguments.batch_size}
    return {"held_out": {"scores": means, "protocol": {**protocol, "seed": arguments.seed}}}


def comparison(gen: Generator, dataset: Dataset, arguments: Arguments) -> dict[str, Any]:
    """Scores of a model that compares images with texts, such as CLIP, on the whole split: retrieval of images by text
    and of texts by image, and zero-shot classification if there are classes; {} for other models.

    Raises:
      UserError: prompts are given and the data has no classes.
    """
    if not embeddings.compares(gen.model):
        return {}
    _, batch = split_as_seen(gen, dataset, arguments, 0)
    field = gen.config.model.text
    where = {"batch_size": arguments.batch_size}
    u, v = gen.embed_images(batch["image"], **where), embeddings.embed_tokens(gen, batch[field], **where)
    same = np.unique(batch[field], axis=0, return_inverse=True)[1].reshape(-1)  # equal texts count as one
    scores: dict[str, Any] = {"split": arguments.split, "num": len(u)}
    scores |= {"image_to_text": recall(u, v, same), "text_to_image": recall(v, u, same)}
    return {"retrieval": scores, "zero_shot": zero_shot(gen, dataset, batch, arguments)}


def zero_shot(gen: Generator, dataset: Dataset, batch: Batch, arguments: Arguments) -> dict[str, Any] | None:
    """Zero-shot accuracy with prompts made from the class names, over the images that have a class; None if the data
    has no class names and its texts name no classes."""
    field = gen.config.model.text
    if subjects := dataset.subjects.get(field):
        names, prompts = subjects.names, subjects.prompts
        labels = subjects.classify([dataset.tokenizers[field].decode(row) for row in batch[field]])
    else:
        names, prompts = dataset.spec.label_names, embeddings.PROMPTS
        labels = batch["label"] if names else np.empty(0, int)
    prompts, places = tuple(arguments.prompts) or prompts, np.flatnonzero(labels >= 0)
    if len(names) < 2 or len(places) == 0:
        require(not arguments.prompts, f"prompts are given, and {dataset.name} has no classes that they could name")
        return None
    scores = embeddings.class_scores(gen, batch["image"][places], names, prompts, arguments.batch_size)
    right = np.argmax(scores, axis=1) == labels[places]
    protocol = {"split": arguments.split, "num": len(places), "classes": len(names), "prompts": list(prompts)}
    by_class = accuracy_by_class(scores, labels[places], names)
    return {**protocol, "accuracy": mean_with_error(right.astype(np.float64)), "by_class": by_class}


def texture_errors(gen: Generator, images: np.ndarray) -> np.ndarray:
    """Distance of the statistics of uint8 images (n, H, W, C) from those of the texture, (n,)."""
    function = jax.jit(gen.model.functions["texture_error"])
    return np.asarray(function(gen.params, gen.ctx, images), np.float64)


def texture(gen: Generator, dataset: Dataset, arguments: Arguments, errors: np.ndarray) -> dict[str, Any]:
    """The errors of samples, and for reference those of held-out crops of the same texture."""
    crops = validation(gen, dataset, arguments)["held_out"]
    about = {"num": len(errors), "worst": float(errors.max()), "crops": crops["scores"]["error"]}
    return {"mean": float(errors.mean()), **about, "split": arguments.split, "num_crops": crops["protocol"]["num"]}


def likelihood(gen: Generator, dataset: Dataset, arguments: Arguments, options: dict[str, Any]) -> dict[str, Any]:
    """The likelihood of held-out images, with its kind and protocol. Raises `UserError` if it is not finite."""
    key_score, batch = split_as_seen(gen, dataset, arguments, arguments.likelihood_images)
    images, cond = batch["image"], gen.model.condition(batch)
    num, start = len(images), time.time()
    where: dict[str, Any] = {"batch_size": arguments.batch_size, "progress": progress("scoring")}
    nats = gen.log_prob(key_score, images, **where, **cond, **options).astype(np.float64)
    wrong = int(np.sum(~np.isfinite(nats)))
    require(wrong == 0, f"the likelihood of {wrong} of {num} images is not finite: it cannot be averaged")
    levels, binarise = gen.model.images.levels, gen.config.data.binarise
    protocol = {"split": arguments.split, "num": num, "binarise": binarise, "levels": levels}
    if cond:
        protocol["given"] = " and ".join("class" if name == "label" else name for name in cond)
    if gen.model.log_density is not None:  # a continuous density: uniform noise in [0, 1) is added to pixels
        protocol["dequantisation"] = "variational" if "dequantiser" in gen.params else "uniform"
    normaliser = {}
    if gen.model.prepare_scoring is not None:
        normaliser = {"normaliser": {name: list(x) for name, x in gen.normaliser(key_score, **options).items()}}
        protocol |= dataclasses.asdict(resolve_options(gen.model, "log_prob", options))
    return {
        "kind": gen.likelihood,
        **normaliser,
        "nats": mean_with_error(nats),
        "bits_per_dim": mean_with_error(bits_per_dim(nats, gen.model.images.size)),
        "protocol": {**protocol, "seed": arguments.seed, **options},
        "seconds": round(time.time() - start, 1),
    }


def mean_with_error(x: np.ndarray) -> dict[str, Any]:
    """Mean and standard error; the latter is None for a single number."""
    return {"mean": x.mean(), "standard_error": x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else None}
