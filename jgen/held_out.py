"""Scores of what a trained model says of held-out images: their likelihood, and its reconstructions of them.

`arguments`, here, are those of `jgen.evaluate`: of them split, num, likelihood_images, seed and batch_size are read.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import jax
import numpy as np

from jgen.core import keys as rng
from jgen.data.transforms import make_transform
from jgen.errors import require
from jgen.prob.pixels import bits_per_dim

AT_ONCE = 1000  # images that are read and binarised at once


def progress(title: str) -> Any:
    """Shows on the console how far batches have come, and the time left."""
    from tqdm import tqdm

    return lambda chunks: tqdm(chunks, desc=title, unit="batch", file=sys.stderr)


def split_as_seen(gen: Any, dataset: Any, arguments: Any, num: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """A key for scoring, and the first images of the split, as the model sees them, with their labels; num 0: all."""
    split, parts = dataset.splits[arguments.split], []
    num = num or arguments.num or split.num
    key_data, key_score = jax.random.split(jax.random.key(arguments.seed))
    transform = jax.jit(make_transform(gen.config.data, gen.model.images.levels, train=False))
    for start in range(0, num, AT_ONCE):
        places = np.arange(start, min(start + AT_ONCE, num))
        batch = split.fetch(places)
        parts.append((np.asarray(transform(rng.image_keys(key_data, places), batch)["image"]), batch["label"]))
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return key_score, images, labels


def reconstruction(gen: Any, dataset: Any, arguments: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """What the model makes of the split's images, their labels, and how far they are from the images.

    Returns:
      uint8 (n, H, W, C), int (n,), and: the mean squared error of images in [0, 1] and its PSNR in dB; of a model of
      codes their number, how many are used, and the perplexity of their frequencies.
    """
    key, images, labels = split_as_seen(gen, dataset, arguments, 0)
    where = {"label": labels if gen.model.conditional else None, "batch_size": arguments.batch_size}
    latents = gen.encode(key, images, **where)
    made = gen.decode(key, latents, **where)
    error = np.mean(((made.astype(np.float64) - images) / (gen.model.images.levels - 1)) ** 2)
    found = {"split": arguments.split, "num": len(images), "binarise": gen.config.data.binarise, "mse": error}
    found["psnr"] = -10 * np.log10(error) if error > 0 else None
    if gen.model.codes is not None:
        counts = np.bincount(latents.ravel(), minlength=gen.model.codes.levels)
        p = counts[counts > 0] / counts.sum()
        found |= {"codes": len(counts), "codes_used": len(p), "perplexity": np.exp(-np.sum(p * np.log(p)))}
    return made, labels, found


def likelihood(gen: Any, dataset: Any, arguments: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The likelihood of held-out images, with its kind and protocol. Raises `UserError` where it is not finite."""
    key_score, images, labels = split_as_seen(gen, dataset, arguments, arguments.likelihood_images)
    num, label = len(images), labels if gen.model.conditional else None
    start = time.time()
    where = {"label": label, "batch_size": arguments.batch_size, "progress": progress("scoring")}
    nats = gen.log_prob(key_score, images, **where, **options).astype(np.float64)
    wrong = int(np.sum(~np.isfinite(nats)))
    require(wrong == 0, f"the likelihood of {wrong} of {num} images is not finite: it cannot be averaged")
    bits = bits_per_dim(nats, gen.model.images.size)
    error = lambda x: x.std(ddof=1) / np.sqrt(num) if num > 1 else None
    levels, binarise = gen.model.images.levels, gen.config.data.binarise
    protocol = {"split": arguments.split, "num": num, "binarise": binarise, "levels": levels}
    if gen.model.conditional:
        protocol["given"] = "class"
    if gen.model.log_density is not None:  # of continuous images: whole numbers are scored with noise in [0, 1) added
        protocol["dequantisation"] = "uniform"
    return {
        "kind": gen.likelihood,
        "nats": {"mean": nats.mean(), "standard_error": error(nats)},
        "bits_per_dim": {"mean": bits.mean(), "standard_error": error(bits)},
        "protocol": {**protocol, "seed": arguments.seed, **options},
        "seconds": round(time.time() - start, 1),
    }
