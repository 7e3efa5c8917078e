"""Distances between samples and real images in the features of a network, with the protocol of the measurement.

Real features are cached by the data's hash, the split, the number of images and the network's name, all of which are
reported with the scores.

Processes that work together divide the computation of features; the first process gets them and compares.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jgen.core import parallel
from jgen.core.files import cached_arrays, save_arrays, written_whole
from jgen.core.progress import progress_bar
from jgen.data.dataset import Dataset
from jgen.data.sources import cache_dir
from jgen.errors import require
from jgen.metrics import inception
from jgen.metrics.bootstrap import PATIENCE, bootstrap
from jgen.metrics.classifier import Classifier, in_batches
from jgen.metrics.frechet import distance_of_features, statistics
from jgen.metrics.kernel import MOST, inception_score, kernel_distance
from jgen.metrics.neighbours import NEEDED, memorisation, neighbour_scores
from jgen.nn import efficientnet

STORED_AT_ONCE = 1000  # images per file of intermediate features
FEWEST = 50  # least samples for a distance
MOST_PLACES = 16  # most rows and columns of a classifier's spatial features


class FeatureNetwork(NamedTuple):
    """name: "FID" for the published Inception network only, else "FD-<data, inception or efficientnet-lite0>-<hash>";
    hash: that of the weights.

    apply: uint8 images (n, H, W, C) in 0 .. 255 -> (features (n, D), spatial features (n, S), logits (n, K)), float32.
    batch_size: images per call, after which progress is shown.
    """

    name: str
    hash: str
    apply: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
    batch_size: int = 250


def of_classifier(classifier: Classifier) -> FeatureNetwork:
    """The classifier's hidden layer; its spatial features are the first channels of its last convolution.

    For large images they are averaged to at most 16x16 positions: a covariance of more features than images would be
    uninformative and take hours.
    """

    def apply(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        features, maps, logits = classifier.apply(images)
        maps = maps[..., : inception.SPATIAL_CHANNELS]
        n, height, width, channels = maps.shape
        a, b = (-(-size // MOST_PLACES) for size in (height, width))
        cut = maps[:, : height // a * a, : width // b * b]
        spatial = cut.reshape(n, height // a, a, width // b, b, channels).mean(axis=(2, 4))
        return features, spatial.reshape(n, -1), logits

    return FeatureNetwork(f"FD-{classifier.name}", classifier.name.rsplit("-", 1)[1], apply)


def of_inception(path: str | Path, batch_size: int = 50) -> FeatureNetwork:
    """The Inception network, from a file of its weights. Raises `UserError` as in `inception.load`."""
    weights, digest, published = inception.load(path)
    name = "FID" if published else f"FD-inception-{digest[:8]}"
    return of_weights(name, digest, inception.apply, weights, batch_size)


def of_efficientnet(path: str | Path, batch_size: int = 50) -> FeatureNetwork:
    """EfficientNet-Lite0, from a file of its weights or "installed". Raises `UserError` as in `efficientnet.load`."""
    weights, digest = efficientnet.load(path)
    return of_weights(f"FD-efficientnet-lite0-{digest[:8]}", digest, efficientnet.apply, weights, batch_size)


def of_weights(
    name: str, digest: str, network: Callable[..., Any], weights: dict[str, Any], batch_size: int
) -> FeatureNetwork:
    """Makes a `FeatureNetwork` of (weights, images) -> features, spatial features and logits."""

    @jax.jit
    def run(weights: Any, images: Any) -> Any:
        with jax.default_matmul_precision("highest"):  # as published: accelerators would round
            return network(weights, images)

    def apply(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        features, spatial, logits = in_batches(lambda part: run(weights, part), images, batch_size)
        return features, spatial.reshape(len(images), -1), logits

    return FeatureNetwork(name, digest[:8], apply, batch_size)


Features = tuple[np.ndarray, np.ndarray, np.ndarray]  # features (n, D), spatial features (n, S), logits (n, K)
Fetch = Callable[[int, int], np.ndarray]  # (start, stop) -> uint8 images start .. stop - 1


def features_of(network: FeatureNetwork, num: int, fetch: Fetch, title: str, store: Path | None = None) -> Features:
    """Features, spatial features and logits of `num` images, empty where `features_of_each` returns []. Shows progress
    if it is slow. `store`: as in `features_of_each`."""
    chunk = network.batch_size * max(1, STORED_AT_ONCE // network.batch_size)
    outputs, nothing = features_of_each([network.apply], num, fetch, title, chunk, store), np.zeros((0, 0), np.float32)
    features, spatial, logits = outputs[0] if outputs else (nothing,) * 3
    return features, spatial, logits


def features_of_each(
    networks: Sequence[Callable[[np.ndarray], tuple[np.ndarray, ...]]],
    num: int,
    fetch: Fetch,
    title: str,
    chunk: int,
    store: Path | None = None,
) -> list[tuple[np.ndarray, ...]]:
    """The outputs of several networks for `num` images, of which at most `chunk` are in memory at a time. Of processes
    that work together the first gets them, and the others get [].

    Args:
      store: a folder for the outputs of each chunk, from which an interrupted call resumes; the caller removes it.
        Nothing is stored if there is only one chunk.
    """
    main = parallel.is_main_process()
    parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in networks]
    with progress_bar(total=num, desc=title, unit="image", delay=PATIENCE, leave=False) as progress:
        for start in range(0, num, chunk):
            stop = min(start + chunk, num)
            path = store / f"{start:09d}-{stop:09d}.npz" if store and num > chunk else None
            saved = cached_arrays(path) if path and main else None
            if not parallel.from_main(saved is not None):
                images = fetch(start, stop)
                outputs = [apply(images) for apply in networks]
                del images  # before the next are made
                saved = {f"{i}-{j}": x for i, output in enumerate(outputs) for j, x in enumerate(output)}
                if path and main:
                    with written_whole(path, "; set JGEN_CACHE to another") as aside:
                        save_arrays(aside, saved)
            progress.update(stop - start)
            if saved is None or not main:
                continue
            for i, of_network in enumerate(parts):
                of_network.append(tuple(saved[name] for name in sorted(saved) if name.startswith(f"{i}-")))
    return [tuple(np.concatenate(arrays) for arrays in zip(*chunks)) for chunks in parts if chunks]


class Real(NamedTuple):
    """Features of the first `num` images of a split, with spatial ones if requested. Of processes that work together,
    the first has them."""

    split: str
    num: int
    features: np.ndarray
    spatial: np.ndarray | None


def real_features(
    dataset: Dataset,
    split: str,
    num: int,
    network: FeatureNetwork,
    show: Callable[[dict], np.ndarray],
    protocol: str,
    places: bool = True,
) -> Real:
    """Features of real images, from the cache or computed now.

    Args:
      num: the number of images, the first of the split; 0: all.
      show: converts a batch of the split to uint8 images 0 .. 255, such as after binarisation; protocol: a description
        of it, part of the cache key.
      places: whether to include spatial features, which are large.
    Raises:
      UserError: a split that the data lacks, that has fewer images, or too few for any score, or a cache that cannot be
        written.
    """
    require(split in dataset.splits, f"the data has no split {split}: it has {', '.join(dataset.splits)}")
    there = dataset.splits[split].num
    require(0 <= num <= there, f"{num} images were asked for: {split} of {dataset.name} has {there}")
    num = num or there
    require(num >= NEEDED, f"there are {num} real images of {split}: scores need at least {NEEDED}")
    identity = (dataset.fingerprint, protocol, split, there, num)  # `there`: split sizes matter if splits were cut
    key = hashlib.sha256(repr((*identity, places, network.name, network.hash)).encode()).hexdigest()[:16]
    path = cache_dir() / "features" / f"{dataset.name}-{split}-{num}-{key}.npz"
    main = parallel.is_main_process()
    saved = cached_arrays(path) if main else None
    if not parallel.from_main(saved is not None):

        def fetch(start: int, stop: int) -> np.ndarray:
            return show(dataset.splits[split].fetch(np.arange(start, stop)))

        store = path.with_suffix(".partial")
        features, spatial, _ = features_of(network, num, fetch, f"features of {split}", store)
        saved = {"features": features, **({"spatial": spatial} if places else {})}
        if main:
            with written_whole(path, "; set JGEN_CACHE to another") as aside:
                save_arrays(aside, saved)
            shutil.rmtree(store, ignore_errors=True)
    saved = saved or {"features": np.zeros((0, 0), np.float32)}  # in a process that does not compare them
    return Real(split, num, saved["features"], saved.get("spatial"))


def check_images(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns samples as uint8 (n, H, W, C) of the data's shape. Raises `UserError` for another shape or type."""
    x = np.asarray(images)
    require(x.dtype == np.uint8, f"images are {x.dtype}: they must be uint8, 0 to 255")
    require(x.shape[1:] == tuple(shape), f"images have shape {x.shape[1:]}: the data has {tuple(shape)}")
    return x


def quality(
    samples: Features,
    network: FeatureNetwork,
    real: Real,
    train: Real | None,
    test: Real | None,
    seed: int = 0,
    classes: np.ndarray | None = None,
) -> dict[str, Any]:
    """All distances of samples to real images, in the features of one network.

    Args:
      samples: the result of `features_of` for the samples.
      real: the real images to compare with, with spatial features.
      train, test: the splits for memorisation; None omits it and the scores of real images.
      classes: (n,) of samples that were conditioned on a class, with a fixed number of each class.
    Returns:
      each score with its 95 % interval from resampling the samples (kernel distance: with its standard error), and the
      scores of real images (`reference`).
    Raises:
      UserError: fewer samples than any distance needs.
    """
    assert real.spatial is not None
    features, spatial, logits = samples
    num = len(features)
    require(num >= FEWEST, f"there are {num} images: distances need at least {FEWEST}")

    def frechet(features: np.ndarray, real_features: np.ndarray, rounds: int) -> dict[str, float]:
        statistic = distance_of_features(statistics(real_features))
        return bootstrap(statistic, features, seed=seed, rounds=rounds, classes=classes)._asdict()

    kid, kid_error = kernel_distance(features, real.features, seed=seed, classes=classes)
    sizes = {"num": min(MOST, num), "real_num": min(MOST, real.num)}
    scores = {
        "network": network.name,
        "network_hash": network.hash,
        "num": num,
        "real": {"split": real.split, "num": real.num},
        "frechet_distance": frechet(features, real.features, 100),
        "spatial_frechet_distance": frechet(spatial, real.spatial, 20),  # has many more features
        "kernel_distance": {"value": kid, "standard_error": kid_error, **sizes},
        # It is called inception score only for the published network.
        "inception_score" if network.name == "FID" else "classifier_score": inception_score(logits, seed=seed),
        **neighbour_scores(features, real.features, seed, classes),
    }
    if train is not None and test is not None:
        scores["memorisation"] = memorisation(features, train.features, test.features, seed, classes)
        scores["reference"] = reference(num, real, train, seed)
    return scores


def reference(num: int, real: Real, train: Real, seed: int) -> dict[str, Any] | None:
    """The scores of real training images in place of the samples: the best values to expect on this data.

    Distances of finitely many images are positive, and a test split may differ slightly from the training split. None
    if samples are compared with the training images themselves.

    Args:
      num: the number of samples; as many training images are chosen at random, or all of them.
    """
    if real.split == train.split:
        return None
    features = train.features[np.sort(np.random.default_rng(seed).permutation(train.num)[:num])]
    scores = neighbour_scores(features, real.features, seed)
    return {
        "split": train.split,
        "num": len(features),
        "frechet_distance": float(distance_of_features(statistics(real.features))(features)),
        "kernel_distance": kernel_distance(features, real.features, seed=seed)[0],
        **{name: scores[name]["value"] for name in ("precision", "recall", "density", "coverage")},
    }
