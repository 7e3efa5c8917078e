"""A small classifier of a data set, trained once and cached, which predicts the classes of samples.

Convolutions, ReLU and max pooling, a hidden layer, a softmax; trained by Adam with a decaying learning rate on randomly
shifted images. Weights trained on another machine differ, so the name contains their hash; the published ones are in
configs/classifiers/.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jgen.core import parallel
from jgen.core.files import cached_arrays, read_arrays, save_arrays, written_whole
from jgen.core.progress import progress_bar
from jgen.data.batches import batch_positions
from jgen.data.dataset import Dataset, has_labels, require_labels_of
from jgen.data.sources import cache_dir
from jgen.errors import require
from jgen.metrics.bootstrap import bootstrap


@dataclass(frozen=True)
class Recipe:
    """Architecture and training of a classifier."""

    widths: tuple[int, ...] = (32, 64)
    """Channels of each level, which has two convolutions, and half the height and width of the level before."""
    features: int = 128
    """Width of the hidden layer: the features."""
    epochs: int = 5
    """Passes over the training split."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 2e-3
    """Adam's initial learning rate, with a cosine decay to zero."""
    shift: int = 2
    """Largest random shift of images along each axis, in pixels."""
    seed: int = 0
    """Seed of weights, shifts and data order."""


class Network(nn.Module):
    """uint8 images (B, H, W, C) to (features (B, F), the last convolution's maps (B, h, w, W_last), logits (B, K))."""

    recipe: Recipe
    num_classes: int

    @nn.compact
    def __call__(self, images: Any) -> tuple[Any, Any, Any]:
        x = images.astype(jnp.float32) / 127.5 - 1.0
        for level, width in enumerate(self.recipe.widths):
            for layer in range(2):
                x = nn.relu(nn.Conv(width, (3, 3), name=f"conv{level}_{layer}")(x))
            maps = x
            x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
        features = nn.relu(nn.Dense(self.recipe.features, name="hidden")(x.reshape(len(x), -1)))
        return features, maps, nn.Dense(self.num_classes, name="logits")(features)


class Classifier(NamedTuple):
    """A trained classifier.

    name: "<data>-<hash of the weights>"; accuracy: on the data's test split, None if it has no labels.
    apply: uint8 images (n, H, W, C) in 0 .. 255 -> (features (n, F), maps (n, h, w, W), logits (n, K)), float32.
    """

    name: str
    accuracy: float | None
    apply: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def load(dataset: Dataset, recipe: Recipe, published: Path | None = None) -> Classifier:
    """The classifier of a data set: from a folder of published ones, from the cache, or trained now.

    Args:
      dataset: a data set with classes. Its images are scaled to 0 .. 255, whatever its levels.
      published: a folder of classifiers, named as in the cache; one for the same data and recipe is used unchanged, so
        that distances are measured in the same features on every machine.
    Raises:
      UserError: a set without classes, a damaged published classifier, or a cache that cannot be written.
    """
    spec, num_classes = dataset.spec.image, dataset.spec.num_classes
    require(num_classes > 1, f"{dataset.name} has no classes: a classifier cannot be trained on it")
    require_labels_of(dataset, "train", "a classifier cannot be trained on it")
    identity = [dataset.fingerprint, dataset.splits["train"].num, list(spec.shape), num_classes]
    key = hashlib.sha256(json.dumps([dataclasses.asdict(recipe), *identity]).encode()).hexdigest()[:12]
    path = cache_dir() / "classifiers" / f"{dataset.name}-{key}.npz"
    is_published = published is not None and (published / path.name).exists()
    if published is not None and is_published:
        path = published / path.name
    network = Network(recipe, num_classes)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *spec.shape), jnp.uint8))
    leaves, structure = jax.tree.flatten(shapes["params"])

    def read_or_train() -> dict[str, np.ndarray]:
        saved = read_arrays(path) if is_published else cached_arrays(path)
        if saved is None:
            params, accuracy = train(network, dataset, recipe)
            trained = {str(i): np.asarray(array) for i, array in enumerate(jax.tree.leaves(params))}
            saved = {"accuracy": np.asarray(accuracy), **trained}
            with written_whole(path, "; set JGEN_CACHE to another") as aside:
                save_arrays(aside, saved)
        return saved

    saved = parallel.arrays_from_main(read_or_train)  # the same on all, even if caches are not shared
    arrays, accuracy = [saved[str(i)] for i in range(len(leaves))], float(saved["accuracy"])
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:8]
    run = evaluator(network, jax.tree.unflatten(structure, arrays))
    return Classifier(f"{dataset.name}-{digest}", accuracy if np.isfinite(accuracy) else None, run)


def evaluator(network: Network, params: Any, batch_size: int = 250) -> Callable[[np.ndarray], tuple]:
    """The network as a function of any number of images, in batches of a fixed size."""

    @jax.jit
    def apply(images: Any) -> Any:
        with jax.default_matmul_precision("highest"):  # features are compared between machines
            return network.apply({"params": params}, images)

    return partial(in_batches, apply, size=batch_size)


def in_batches(apply: Callable[[np.ndarray], Any], images: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Applies `apply`, a function of `size` images, to any number of them; the last batch is padded with zeros.
    Processes that work together divide the batches."""
    results = []
    number, num = parallel.processes()
    for start in range(0, len(images), size * num):
        part = images[start + number * size :][:size]
        padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
        left = len(images) - start
        results.append([array[:left] for array in parallel.gather_rows(apply(padded))])
    return tuple(np.concatenate(arrays) for arrays in zip(*results))


def train(network: Network, dataset: Dataset, recipe: Recipe) -> tuple[Any, float]:
    """(parameters, accuracy on the test split or NaN if it has no labels)."""
    split = dataset.splits["train"]
    steps = max(1, recipe.epochs * split.num // recipe.batch_size)
    key = jax.random.key(recipe.seed)
    params = jax.jit(network.init)(key, split.fetch(np.arange(1))["image"])["params"]
    optimiser = optax.adam(optax.cosine_decay_schedule(recipe.learning_rate, steps))

    def step(params: Any, state: Any, number: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        keys = jax.random.split(jax.random.fold_in(key, number), len(images))

        def shifted(k: jax.Array, image: Any) -> Any:
            by = jax.random.randint(k, (2,), 0, 2 * recipe.shift + 1)
            margin = (recipe.shift, recipe.shift)
            padded = jnp.pad(image, (margin, margin, (0, 0)), mode="edge")
            return jax.lax.dynamic_slice(padded, (by[0], by[1], 0), image.shape)

        moved = jax.vmap(shifted)(keys, images)

        def loss(params: Any) -> Any:
            logits = network.apply({"params": params}, moved)[2]
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    compiled, state = jax.jit(step, donate_argnums=(0, 1)), optimiser.init(params)
    for number in progress_bar(range(steps), desc=f"training a classifier of {dataset.name}", unit="step"):
        batch = split.fetch(batch_positions(recipe.seed, number, recipe.batch_size, split.num))
        params, state = compiled(params, state, number, batch["image"], batch["label"])
    if not has_labels(dataset, "test"):
        return params, float("nan")
    test = dataset.splits["test"].fetch(np.arange(dataset.splits["test"].num))
    predicted = evaluator(network, params)(test["image"])[2].argmax(-1)
    return params, float(np.mean(predicted == test["label"]))


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Raises `UserError` for labels out of range."""
    first, last = int(labels.min()), int(labels.max())
    fits = first >= 0 and last < num_classes
    require(fits, f"labels are from {first} to {last}: they must be 0 to {num_classes - 1}")


def label_accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How well a classifier's logits (n, K) of conditional samples agree with the classes (n,) they are conditioned on.

    Returns:
      accuracy: the fraction classified as their condition; low, high: its interval, by resampling within classes;
      by_class: the accuracy by class; classes: how many of the K classes are predicted; balance: the entropy of the
      predicted classes divided by that of the conditions, 1 if they are equally uniform.
    Raises:
      UserError: classes that the classifier does not have.
    """
    read, num_classes = logits.argmax(-1), logits.shape[-1]
    check_labels(labels, num_classes)
    value, low, high = bootstrap(np.mean, (read == labels).astype(np.float64), most=1.0, classes=labels)
    by_class = {int(k): float(np.mean(read[labels == k] == k)) for k in np.unique(labels)}

    def entropy(x: np.ndarray) -> float:
        p = np.bincount(x, minlength=num_classes) / len(x)
        return float(-np.sum(p[p > 0] * np.log(p[p > 0])))

    uniformity = entropy(labels)
    return {
        "accuracy": value,
        "low": low,
        "high": high,
        "by_class": by_class,
        "classes": int(len(np.unique(read))),
        "balance": entropy(read) / uniformity if uniformity > 0 else 1.0,
    }
