"""Scores of samples: their distances to real images, and the classes that a classifier assigns them.

`arguments` are those of `jgen.evaluate`; the protocol `Arguments` lists the fields that are read. Processes that work
together divide the drawing of samples and the computation of features; the first process compares.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jgen import cli, embeddings, held_out
from jgen.core import parallel
from jgen.core.progress import progress_bar
from jgen.data.config import Config as Data
from jgen.data.sources import Judge
from jgen.errors import require

if TYPE_CHECKING:
    from jgen.cascade import Cascade
    from jgen.data.dataset import Dataset
    from jgen.generator import Generator

CLASSIFIERS = Path(__file__).resolve().parents[1] / "configs" / "classifier.py"
CHUNK = 1000  # samples held at a time
IN_GRID = 1000  # samples kept for the grid
CLIP_BATCH = 250  # CLIP's batch size
Compare = Callable[..., dict[str, Any]]  # the result of `make_comparison`
TEXTURE = "texture_error"  # a texture model's function, and the name of its score


class Comparing(Protocol):
    """What to compare samples with, and how: see `jgen.evaluate.Arguments`."""

    @property
    def split(self) -> str: ...

    @property
    def num(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def inception(self) -> str: ...

    @property
    def efficientnet(self) -> str: ...

    @property
    def memorisation(self) -> bool: ...


class Arguments(held_out.Arguments, Comparing, Protocol):
    """The same, and which samples to draw."""

    @property
    def samples(self) -> int: ...

    @property
    def grid(self) -> str: ...


def score_samples(
    gen: Generator, stages: Cascade, data: Dataset, arguments: Arguments, sampling: dict, compare: Compare | None
) -> dict[str, Any]:
    """Draws samples in chunks and compares them with real images, and with the texts that they are conditioned on if
    the data has a judge of these.

    Args:
      stages: the `Cascade` whose first model is `gen`; its images are scored.
      compare: the result of `make_comparison`; None omits comparisons with real images.
    """
    import jax

    from jgen.data.pictures import to_display

    key, num = jax.random.key(arguments.seed), arguments.samples
    cond = held_out.sampling_conditions(gen, data, arguments, num)
    texts = judged_texts(gen, data, cond)
    alignment: dict[str, dict[int, dict[str, np.ndarray]]] = {name: {} for name in texts}  # by chunk's first index
    first: list[np.ndarray] = []  # for the grid
    errors: list[np.ndarray] = []
    seconds, drawn = 0.0, 0

    def draw(start: int, stop: int) -> np.ndarray:
        nonlocal seconds, drawn
        began = time.time()
        part = {name: array[start:stop] for name, array in cond.items()}
        where = {"start": start, "batch_size": arguments.batch_size}
        made = stages.sample(key, stop - start, **where, **part, **sampling)
        seconds, drawn = seconds + time.time() - began, drawn + stop - start
        if TEXTURE in gen.model.functions:
            errors.append(held_out.texture_errors(gen, made))
        images = to_display(made, stages.model.images.levels)
        bar.update(stop - start)
        for name, captions in texts.items():
            alignment[name][start] = data.judges[name](captions[start:stop], images)
        if arguments.grid and sum(map(len, first)) < IN_GRID:
            first.append(images)
        return images

    with progress_bar(total=num, desc="sampling", unit="image") as bar:
        hashes = [cli.model_hash(one) for one in (gen, *stages.upsamplers)]
        made = {"model": hashes, "seed": arguments.seed, "cond": cli.digest_of(cond), "options": sampling}
        scores: dict[str, Any] = {"quality": None, "labels": None}
        if compare is not None:
            scores = compare(draw, num, cond.get("label"), asked_for=True, identity=made)
        for start in range(0, num, CHUNK):
            if compare is None or any(start not in parts for parts in alignment.values()):
                draw(start, min(start + CHUNK, num))  # chunks whose features were cached were not drawn
    if arguments.grid:
        if not first:
            draw(0, min(num, IN_GRID))
        write_first(arguments.grid, np.concatenate(first)[:IN_GRID], cond, data)
    if errors:
        scores[TEXTURE] = held_out.texture(gen, data, arguments, np.concatenate(errors)[:num])
    if alignment:
        scores["alignment"] = {name: mean_scores(parts) for name, parts in alignment.items()}
    took = {"seconds": round(seconds, 1) if drawn == num else None}  # an earlier process may have drawn some
    return {"sampling": {"num": num, "seed": arguments.seed, **took, "options": sampling}, **scores}


def write_first(path: str, images: np.ndarray, cond: dict[str, np.ndarray], data: Dataset) -> None:
    """Writes a grid of the first images, with class names if there are any."""
    if parallel.is_main_process():
        label = cond["label"][: len(images)] if "label" in cond else None
        write_grid(Path(path), images, label, data.spec.label_names)


def judged_texts(gen: Generator, data: Dataset, cond: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """The texts that samples are conditioned on, for the fields that the data has a judge of.

    Raises:
      UserError: texts that cannot be judged, such as truncated captions.
    """
    texts = {name: [data.tokenizers[name].decode(row) for row in cond[name]] for name in data.judges if name in cond}
    for name, captions in texts.items():  # before anything is sampled
        data.judges[name](captions, np.zeros((len(captions), *data.spec.image.shape), np.uint8))
    return texts


def with_clip_score(data: Dataset, clip: Generator) -> dict[str, Judge]:
    """The judges of a data set, with the CLIP score added to the judge of the text field that CLIP takes.

    The score of an image and a text is 100 max(u . v, 0), where u and v are their embeddings (Hessel et al. 2021, arXiv
    2104.08718, equation 1, with 100 instead of 2.5). Since it depends on the weights, it is named clip_score_<hash>.

    Args:
      clip: the generator of a run, such as of jgen/models/text_to_image/clip.py.
    Raises:
      UserError: a run that provides no embeddings, or whose images or fields differ from the data's.
    """
    model = clip.model
    message = f"clip is a {model.name}: it must be a model that provides embed_image and embed_text, such as clip"
    require(embeddings.compares(model), message)
    wanted, shape = data.spec.image.shape, model.images.shape
    require(shape == wanted, f"clip is of images {shape}: they must be {wanted}, as in the data")
    field = clip.config.model.text
    has = ", ".join(data.tokenizers) or "no texts"
    require(field in data.tokenizers, f"clip is of the field {field}: the data has {has}")
    name, encode = f"clip_score_{cli.model_hash(clip)[:8]}", clip.tokenizers[field].encode

    def judge(texts: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
        tokens = np.stack([encode(text) for text in texts])
        u = embeddings.embed_images(clip, images, batch_size=CLIP_BATCH)
        v = embeddings.embed_tokens(clip, tokens, batch_size=CLIP_BATCH)
        own = data.judges[field](texts, images) if field in data.judges else {}
        return {**own, name: 100.0 * np.maximum(np.sum(u * v, axis=1), 0.0)}

    return {**data.judges, field: judge}


def mean_scores(parts: dict[int, dict[str, np.ndarray]]) -> dict[str, Any]:
    """The mean of each of a judge's scores over all samples that it applies to, and the number of samples."""
    ordered = [parts[start] for start in sorted(parts)]
    whole = {name: np.concatenate([part[name] for part in ordered]) for name in ordered[0]}
    about = {name: values[~np.isnan(values)] for name, values in whole.items()}
    means = {name: float(values.mean()) for name, values in about.items() if len(values)}
    return {"num": sum(len(next(iter(part.values()))) for part in ordered), **means}


def make_comparison(dataset: Dataset, config: Data, arguments: Comparing, by_class: bool) -> Compare:
    """A function from samples to their scores: distances to real images, and agreement with a classifier.

    Its arguments are fetch, where fetch(start, stop) returns uint8 samples 0 .. 255; num; their classes or None; and
    whether the samples were conditioned on these. Networks are loaded and the features of real images computed here, so
    that errors are noticed before samples are drawn.

    Args:
      by_class: whether samples will have classes.
    """
    from jgen.data.dataset import json_hash
    from jgen.data.sources import cache_dir
    from jgen.metrics import classifier, quality

    reader = load_reader(dataset, config, arguments, by_class)
    is_given = bool(arguments.inception or arguments.efficientnet)
    require(
        reader is not None or is_given,
        f"{config.name} has no classes to train a feature network on: give a published one's weights, --inception or"
        " --efficientnet, or leave samples out, --samples 0",
    )
    if arguments.inception:
        network = quality.of_inception(arguments.inception)
    elif arguments.efficientnet:
        network = quality.of_efficientnet(arguments.efficientnet)
    else:
        network = quality.of_classifier(reader)
    real, train, test = load_real(dataset, config, arguments, network)
    reads_apart = reader is not None and is_given

    def compare(
        fetch: Any, num: int, labels: np.ndarray | None, asked_for: bool = False, identity: Any = None
    ) -> dict[str, Any]:
        networks = [network.apply, *([reader.apply] if reads_apart and labels is not None else [])]
        names = [network.name, network.hash, reader.name if reader is not None else "", len(networks)]
        store = cache_dir() / "features" / f"samples-{json_hash([identity, names, num])[:16]}.partial"
        folder = store if identity is not None else None
        answers = quality.features_of_each(networks, num, fetch, "features of samples", CHUNK, folder)
        if not parallel.is_main_process():
            return {"quality": None, "labels": None}
        features, spatial, logits = answers[0]
        samples, logits = (features, spatial, logits), answers[-1][2]
        distances = quality.quality(samples, network, real, train, test, arguments.seed, labels if asked_for else None)
        shutil.rmtree(store, ignore_errors=True)
        read = None
        if reader is not None and labels is not None:
            read = classifier.label_accuracy(logits, labels)
            read |= {"classifier": reader.name, "classifier_test_accuracy": reader.accuracy, "num": num}
            if named := dataset.spec.label_names:
                read["by_class"] = {named[number]: value for number, value in read["by_class"].items()}
                read["names"] = list(read["by_class"])
        return {"quality": distances, "labels": read}

    return compare


def load_reader(dataset: Dataset, config: Data, arguments: Comparing, by_class: bool) -> Any:
    """The classifier of samples, whose features are used if no network is given; None if it is not needed."""
    from jgen.metrics import classifier

    is_given = bool(arguments.inception or arguments.efficientnet)
    if dataset.spec.num_classes <= 1 or (is_given and not by_class):
        return None
    if CLASSIFIERS.exists():
        recipe = cli.import_file(CLASSIFIERS).get_recipe(config.name)
    else:
        recipe = classifier.Recipe()
        print(f"no {CLASSIFIERS}: the classifier of the features is trained by the default recipe", file=sys.stderr)
    return classifier.load(dataset, recipe, CLASSIFIERS.parent / "classifiers")


def load_real(dataset: Dataset, config: Data, arguments: Comparing, network: Any) -> tuple[Any, Any, Any]:
    """Features of the split's real images, and, for memorisation, of the whole train and test splits."""
    import jax

    from jgen.core import keys as rng
    from jgen.data.pictures import to_display
    from jgen.data.transforms import make_transform
    from jgen.metrics import quality

    levels = dataset.spec.image.levels
    transform = jax.jit(make_transform(config, dataset.spec, train=False))
    # The 2 is the version of dynamic binarisation's draws: it invalidates cached features when these change.
    protocol = f"{config.binarise} {levels} {f'{arguments.seed} 2' if config.binarise == 'dynamic' else ''}"

    def show(batch: dict[str, np.ndarray]) -> np.ndarray:
        keys = rng.image_keys(rng.stream(rng.seed_key(arguments.seed), rng.DATA), batch["index"])
        return to_display(np.asarray(transform(keys, batch)["image"]), levels)

    def features(split: str, num: int, places: bool) -> Any:
        return quality.real_features(dataset, split, num, network, show, protocol, places)

    real = features(arguments.split, arguments.num, True)
    if not arguments.memorisation:
        return real, None, None

    def whole(split: str) -> Any:
        return real if (arguments.split, arguments.num) == (split, 0) else features(split, 0, False)

    return real, whole("train"), whole("test")


def write_grid(path: Path, images: np.ndarray, labels: np.ndarray | None, named: Sequence[str] = ()) -> None:
    """Writes the first images, uint8 0 .. 255, as a picture: ten of each of at most ten classes, a row per class; for
    data on the plane, all points.

    Args:
      named: class names to draw; () draws none.
    """
    from jgen.data.grids import are_points, make_grid
    from jgen.data.pictures import write_png

    if are_points(images):
        write_png(path, make_grid(images, 1))
        return
    classes = [np.arange(len(images))] if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    columns = min(10, *(len(places) for places in classes))
    rows = [classes[0][:100]] if labels is None else [places[:columns] for places in classes[:10]]
    places = np.concatenate(rows)
    names = [named[label] for label in labels[places]] if named and labels is not None else []
    write_png(path, make_grid(images[places], columns, names=names))
