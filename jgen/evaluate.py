"""Score trained runs: python -m jgen.evaluate RUN [RUN ...] [--split test] [--samples 1000] [--scoring.samples 100]

Held-out images give nats and bits per dimension, with the kind of likelihood and the protocol. Samples are compared
with real images in the features of a classifier trained on them (FD-...), or of the published Inception network whose
weights --inception names (FID); those of a conditional model are read by the classifier. With --reconstruct, held-out
images are compared with what an autoencoder makes of them. The outcome is written to RUN/evaluation.json, or to --out,
and printed as a table, a row a run; an evaluation.json that is there already is kept as evaluation.1.json, and so on.

Samples of any other program: python -m jgen.evaluate --images FOLDER|FILE.npz --data.name mnist --out x.json
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from jgen import cli
from jgen.core.files import check_writable
from jgen.core.progress import progress_bar
from jgen.data.config import Config as Data
from jgen.data.config import place_of
from jgen.errors import UserError, require, require_seed

CLASSIFIERS = Path(__file__).resolve().parents[1] / "configs" / "classifier.py"
CHUNK = 1000  # samples held at a time
PATHS = ("inception", "images", "out", "grid")
IN_GRID = 1000  # of which a grid may be drawn
Compare = Callable[..., dict[str, Any]]  # of `make_comparison`


@dataclass(frozen=True)
class Arguments:
    """What is scored, and how."""

    split: Literal["test", "validation", "train"] = "test"
    """Part of the data set that scores are of, and that samples are compared with."""
    num: int = 0
    """The first images of the split; 0: all."""
    likelihood_images: int = 0
    """The first of them whose likelihood is found, for bounds that take long; 0: all of them."""
    samples: int = 1000
    """Samples drawn and compared with real images; 0: none."""
    reconstruct: bool = False
    """Score what the model makes of the split's images: error, distances to the images, codes in use."""
    inception: str = ""
    """File of the published Inception network's weights (.pth, or a .safetensors copy): distances are then FID."""
    images: str = ""
    """Instead of runs: a folder of pictures or an .npz with `images` (and `labels`) of any other program."""
    data: Data = field(default_factory=Data)
    """The data that --images are compared with; of a run, name, dir and test say where its data is now."""
    seed: int = 0
    """Seed of samples, of the draws that a bound or an estimate makes, and of dynamic binarisation."""
    batch_size: int = 100
    """Images at a time."""
    step: int | Literal["best"] | None = None
    """Checkpoint, or best: of those kept the one with the best validation score; default: the newest."""
    ema: bool = True
    """Use the moving average of the weights."""
    memorisation: bool = True
    """Judge whether samples repeat training images, and score real images in their place, for which all of them pass
    through the feature network."""
    out: str = ""
    """JSON file for the outcome; default: evaluation.json in the run."""
    grid: str = ""
    """PNG file for a picture of the first samples, a row a class."""


def evaluate(
    run: str, arguments: Arguments, scoring: dict[str, Any], sampling: dict[str, Any], frozen: dict[str, str]
) -> dict[str, Any]:
    """All scores of a run that its model allows, as a JSON document.

    Args:
      scoring, sampling: options of the model, such as the number of importance samples, or of a sampler's steps.
      frozen: {role: run directory} of the runs that it stands on, as `jgen.load` takes it.
    Raises:
      UserError: no run, data that is gone or has changed since the training, no such split, images fewer than asked
        for, or nothing to score: before anything is sampled or scored.
    """
    import jgen
    from jgen import held_out
    from jgen.core.generate import require_capability
    from jgen.data import dataset
    from jgen.data.pictures import to_display
    from jgen.train.run_directory import read_config

    gen = jgen.load(run, step=arguments.step, ema=arguments.ema, frozen=frozen)
    check_capabilities(gen, arguments)
    trained = length_of_training(gen, Path(run) / "checkpoints")
    fingerprint = read_config(Path(run))["data_fingerprint"]
    config, data = dataset.reopen(gen.config.data, fingerprint, run, gen.tokenizers, place_of(arguments.data))
    require(data.spec.image == gen.model.images, f"{data.name} has {data.spec.image}: {run} has {gen.model.images}")
    check_split(data, arguments)
    compared = arguments.samples > 0 or arguments.reconstruct
    compare = make_comparison(data, config, arguments, "label" in gen.model.conditions) if compared else None
    scores: dict[str, Any] = {}
    if compare and arguments.samples:  # first: options that do not serve are noticed soon
        scores |= score_samples(gen, data, arguments, sampling, compare)
    scores |= {"likelihood": None, "errors": {}}
    if gen.model.log_prob is not None:
        try:
            scores["likelihood"] = held_out.likelihood(gen, data, arguments, scoring)
        except UserError as error:  # one image without a number: the distances are found all the same
            scores["errors"]["likelihood"] = str(error)
    if compare and arguments.reconstruct:
        require_capability(gen.model, "reconstruct")
        made, labels, reconstruction = held_out.reconstruction(gen, data, arguments)
        made = to_display(made, gen.model.images.levels)
        compared_scores = compare(lambda start, stop: made[start:stop], len(made), labels)
        scores["reconstruction"] = reconstruction | compared_scores
    return {**record_of(gen, Path(run)), "trained": trained, "data_fingerprint": data.fingerprint, **scores}


def record_of(gen: Any, run: Path) -> dict[str, Any]:
    """What is scored, how it was trained, and by which command and on which machine it is scored."""
    import jax

    from jgen.train.logs import validation_scores
    from jgen.train.run_directory import environment

    return {
        "run": str(run),
        "system": gen.model.name,
        "data": gen.config.data.name,
        "step": gen.step,
        "training_minutes": round(gen.seconds / 60, 2),
        "training": training_record(run),
        "validation": validation_scores(run),
        "best": gen.model.best,
        "batch_size": gen.config.train.batch_size,
        "ema": bool(gen.ctx.averaged),
        "parameters": sum(x.size for x in jax.tree.leaves((gen.params, all_frozen(gen.ctx.frozen)))),
        "command": "python -m jgen.evaluate " + shlex.join(sys.argv[1:]),
        "environment": environment(),
    }


def all_frozen(frozen: Any) -> list[Any]:
    """The parameters of the models that a model stands on, and of those that they stand on in turn."""
    return [[model.params, all_frozen(model.frozen)] for model in frozen.values()]


def check_capabilities(gen: Any, arguments: Arguments) -> None:
    """Raises `UserError` where a model cannot do what is to be scored, or nothing is."""
    from jgen.core.generate import require_capability

    require(
        gen.model.log_prob is not None or arguments.samples > 0 or arguments.reconstruct,
        f"{gen.model.name} has no likelihood, and no samples were asked for: there is nothing to score",
    )
    if arguments.samples:
        require_capability(gen.model, "sample")
    if arguments.reconstruct:
        require_capability(gen.model, "reconstruct")


def score_samples(
    gen: Any, data: Any, arguments: Arguments, sampling: dict[str, Any], compare: Compare
) -> dict[str, Any]:
    """Draws samples, some at a time, and compares them with real images."""
    import jax

    from jgen import held_out
    from jgen.data.pictures import to_display

    key, num = jax.random.key(arguments.seed), arguments.samples
    cond = held_out.sampling_conditions(gen, data, arguments, num)
    first: list[np.ndarray] = []  # for the grid
    seconds, drawn = 0.0, 0

    def draw(start: int, stop: int) -> np.ndarray:
        nonlocal seconds, drawn
        began = time.time()
        part = {name: array[start:stop] for name, array in cond.items()}
        where = {"start": start, "batch_size": arguments.batch_size}
        images = to_display(gen.sample(key, stop - start, **where, **part, **sampling), gen.model.images.levels)
        seconds, drawn = seconds + time.time() - began, drawn + stop - start
        bar.update(stop - start)
        if arguments.grid and sum(map(len, first)) < IN_GRID:
            first.append(images)
        return images

    with progress_bar(total=num, desc="sampling", unit="image") as bar:
        made = {"model": cli.model_hash(gen), "seed": arguments.seed, "cond": cli.digest_of(cond), "options": sampling}
        scores = compare(draw, num, cond.get("label"), asked_for=True, identity=made)
    all_drawn = drawn == num  # else an earlier process drew some, and nobody knows how long it took
    if arguments.grid:
        if not first:
            draw(0, min(num, IN_GRID))
        images = np.concatenate(first)[:IN_GRID]
        label = cond.get("label")
        write_grid(Path(arguments.grid), images, None if label is None else label[: len(images)], data.spec.label_names)
    took = round(seconds, 1) if all_drawn else None
    return {"sampling": {"num": num, "seed": arguments.seed, "seconds": took, "options": sampling}, **scores}


def length_of_training(gen: Any, folder: Path) -> dict[str, Any]:
    """Steps and minutes to the newest checkpoint of a run, of which `gen` may be an earlier one."""
    from jgen.train import checkpoints

    newest = checkpoints.newest_good(folder) or gen.step
    since = 0.0
    if newest != gen.step:
        since = checkpoints.seconds_at(folder, newest) - checkpoints.seconds_at(folder, gen.step)
    return {"steps": newest, "minutes": round((gen.seconds + since) / 60, 2)}  # those of frozen models too


def training_record(run: Path) -> dict[str, Any]:
    """Where, with what and by which command a run was trained: its environment.json, {} where that is gone."""
    try:
        return json.loads((run / "environment.json").read_text())
    except (OSError, ValueError):
        return {}


def evaluate_images(arguments: Arguments) -> dict[str, Any]:
    """The scores of samples that another program made. Raises `UserError` for files that cannot be compared."""
    from jgen.data import dataset
    from jgen.data.pictures import read_images
    from jgen.metrics import classifier, quality
    from jgen.train.run_directory import environment

    data = dataset.load(arguments.data)
    check_split(data, arguments)
    images, labels = read_images(
        Path(arguments.images), data.spec.image.channels, data.spec.classes, arguments.data.background
    )
    images = quality.check_images(images, data.spec.image.shape)  # before anything is trained or computed
    require(len(images) >= quality.FEWEST, f"there are {len(images)} images: distances need at least {quality.FEWEST}")
    if labels is not None and data.spec.num_classes > 1:
        classifier.check_labels(labels, data.spec.num_classes)
    compare = make_comparison(data, arguments.data, arguments, labels is not None)
    return {
        "run": arguments.images,
        "system": "images",
        "data": arguments.data.name,
        "data_fingerprint": data.fingerprint,
        "command": "python -m jgen.evaluate " + shlex.join(sys.argv[1:]),
        "environment": environment(),
        "likelihood": None,
        "sampling": {"num": len(images)},
        **compare(lambda start, stop: images[start:stop], len(images), labels),
    }


def make_comparison(dataset: Any, config: Data, arguments: Arguments, by_class: bool) -> Compare:
    """(fetch, num, their classes or None, whether they were asked for by class) to the distances of samples to real
    images, and how a classifier reads them; fetch(start, stop) gives uint8 samples 0 .. 255.

    Networks are loaded and real images seen here, so that what is wrong with them is noticed before samples are drawn.

    Args:
      by_class: whether samples will have classes.
    """
    from jgen.data.dataset import json_hash
    from jgen.data.sources import cache_dir
    from jgen.metrics import classifier, quality

    reader = load_reader(dataset, config, arguments, by_class)
    require(
        reader is not None or bool(arguments.inception),
        f"{config.name} has no classes to train a feature network on: give the published one's weights, --inception,"
        " or leave samples out, --samples 0",
    )
    network = quality.of_inception(arguments.inception) if arguments.inception else quality.of_classifier(reader)
    real, train, test = load_real(dataset, config, arguments, network)
    reads_apart = reader is not None and bool(arguments.inception)

    def compare(
        fetch: Any, num: int, labels: np.ndarray | None, asked_for: bool = False, identity: Any = None
    ) -> dict[str, Any]:
        networks = [network.apply, *([reader.apply] if reads_apart and labels is not None else [])]
        names = [network.name, network.hash, reader.name if reader is not None else "", len(networks)]
        store = cache_dir() / "features" / f"samples-{json_hash([identity, names, num])[:16]}.partial"
        kept = store if identity is not None else None
        answers = quality.features_of_each(networks, num, fetch, "features of samples", CHUNK, kept)
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


def load_reader(dataset: Any, config: Data, arguments: Arguments, by_class: bool) -> Any:
    """The classifier that reads samples, and lends its features without --inception; None where neither is wanted."""
    from jgen.metrics import classifier

    if dataset.spec.num_classes <= 1 or (arguments.inception and not by_class):
        return None
    if CLASSIFIERS.exists():
        recipe = cli.import_file(CLASSIFIERS).get_recipe(config.name)
    else:
        recipe = classifier.Recipe()
        print(f"no {CLASSIFIERS}: the classifier of the features is trained by the default recipe", file=sys.stderr)
    return classifier.load(dataset, recipe, CLASSIFIERS.parent / "classifiers")


def load_real(dataset: Any, config: Data, arguments: Arguments, network: Any) -> tuple[Any, Any, Any]:
    """Features of the split's real images, and, for memorisation, of all of train and test."""
    import jax

    from jgen.core import keys as rng
    from jgen.data.pictures import to_display
    from jgen.data.transforms import make_transform
    from jgen.metrics import quality

    levels = dataset.spec.image.levels
    transform = jax.jit(make_transform(config, dataset.spec, train=False))
    # The last number changes with what a seed draws: features in the cache are of it.
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
    """The first images, uint8 0 .. 255, as a picture: of at most ten classes ten each, a row a class.

    Args:
      named: the names of the classes, which are drawn; () draws none.
    """
    from jgen.data.grids import make_grid
    from jgen.data.pictures import write_png

    classes = [np.arange(len(images))] if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    columns = min(10, *(len(places) for places in classes))
    rows = [classes[0][:100]] if labels is None else [places[:columns] for places in classes[:10]]
    places = np.concatenate(rows)
    names = [named[label] for label in labels[places]] if named and labels is not None else []
    write_png(path, make_grid(images[places], columns, names=names))


def check_split(dataset: Any, arguments: Arguments) -> None:
    """Raises `UserError` for a split that the data lacks, or more images of it than there are."""
    from jgen.metrics.quality import FEWEST

    splits, few = dataset.splits, arguments.likelihood_images
    require(arguments.split in splits, f"the data has no split {arguments.split}: it has {', '.join(splits)}")
    there = splits[arguments.split].num
    require(arguments.num <= there, f"--num is {arguments.num}: {arguments.split} has {there} images")
    num = arguments.num or there
    enough = not arguments.reconstruct or num >= FEWEST
    require(enough, f"{num} images of {arguments.split} would be reconstructed: distances need at least {FEWEST}")
    require(few <= num, f"--likelihood-images is {few}: {num} images of {arguments.split} are scored")


def check_arguments(a: Arguments) -> None:
    """Raises `UserError` for values out of their range, and for options that nothing would read."""
    require_seed(a.seed, "--seed")
    for name in ("num", "likelihood_images", "samples"):
        require(getattr(a, name) >= 0, f"--{name.replace('_', '-')} is {getattr(a, name)}: it must be zero or above")
    require(a.batch_size >= 1, f"--batch-size is {a.batch_size}: it must be above zero")
    if a.images:
        for name in ("likelihood_images", "samples", "reconstruct", "batch_size", "step", "ema", "grid"):
            option = f"--{name.replace('_', '-')}" if name != "ema" else "--no-ema"
            require(getattr(a, name) == getattr(Arguments, name), f"{option} is about runs: --images does not read it")
        return
    options, default = dataclasses.asdict(a.data), dataclasses.asdict(Data())
    for name in [name for name in options if name not in ("name", "dir", "test")]:
        unread = f"--data.{name.replace('_', '-')} is about --images: a run is scored on the data it was trained on"
        require(options[name] == default[name], unread)
    compared = a.samples > 0 or a.reconstruct
    require(compared or not a.inception, "--inception is about samples, of which --samples 0 draws none")
    from jgen.metrics.quality import FEWEST, NEEDED

    require(a.samples > 0 or not a.grid, "--grid is of samples, of which --samples 0 draws none")
    if a.samples:
        require(a.samples >= FEWEST, f"--samples is {a.samples}: distances need at least {FEWEST} images")
    if a.reconstruct:
        require(a.num == 0 or a.num >= FEWEST, f"--num is {a.num}: distances need at least {FEWEST} reconstructions")
    if compared:
        require(a.num == 0 or a.num >= NEEDED, f"--num is {a.num}: scores need at least {NEEDED} real images")


def command(args: list[str]) -> int:
    runs = []
    while args and not args[0].startswith("-"):
        runs.append(os.path.expanduser(args.pop(0)))
    title = "python -m jgen.evaluate [RUN ...]"
    if not runs:
        arguments = cli.expanded(cli.parse(Arguments, args, title, __doc__ or ""), PATHS)
        require(bool(arguments.images), "which run? python -m jgen.evaluate RUN, or --images FOLDER|FILE.npz")
        require(bool(arguments.out), "--images needs --out, the JSON file for the outcome")
        check_arguments(arguments)
        check_writable(Path(arguments.out))
        cli.set_up_process()
        return finish([(arguments.out, lambda: evaluate_images(arguments))])
    cli.set_up_process()
    import tyro

    from jgen.runs import load_experiment

    todo: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for run in runs:
        experiment = load_experiment(run)[0]
        parts = {part: getattr(experiment.model, part, None) for part in ("scoring", "sampling")}
        unnamed = Annotated[Arguments, tyro.conf.arg(name="")]
        fields: list[Any] = [("main", unnamed, dataclasses.field(default=Arguments()))]
        fields += [(name, type(x), dataclasses.field(default=x)) for name, x in parts.items() if x is not None]
        fields += cli.frozen_option(experiment)
        options = dataclasses.make_dataclass("Options", fields, frozen=True)
        parsed = cli.parse(options, args, title, __doc__ or "")
        parsed = dataclasses.replace(parsed, main=cli.expanded(parsed.main, PATHS))
        check_run_arguments(parsed, parts["sampling"], len(runs))
        out = parsed.main.out or str(Path(run) / "evaluation.json")
        for path in filter(None, (out, parsed.main.grid)):
            check_writable(Path(path))
        chosen = [dataclasses.asdict(getattr(parsed, part)) if parts[part] is not None else {} for part in parts]
        scoring, sampling = chosen
        todo.append((out, partial(evaluate, run, parsed.main, scoring, sampling, cli.given_frozen(parsed))))
    return finish(todo, keep=not parsed.main.out)


def check_run_arguments(parsed: Any, sampling: Any, num_runs: int) -> None:
    """Raises `UserError` for options of a run's scores that are out of range, or that nothing would read."""
    require(not parsed.main.images, "--images is instead of runs: give one or the other")
    check_arguments(parsed.main)
    for name in ("out", "grid"):
        given = getattr(parsed.main, name)
        require(not given or num_runs == 1, f"--{name} is {given}: it takes the outcome of one run")
    plain = parsed.main.samples > 0 or sampling is None or parsed.sampling == sampling
    require(plain, "--sampling.* is about samples, of which --samples 0 draws none")


def finish(todo: list[tuple[str, Callable[[], dict[str, Any]]]], keep: bool = False) -> int:
    """Computes and writes outcomes, each to its file; then prints those that succeeded, also when one goes wrong.

    Args:
      keep: whether a file that is there already is kept under another name.
    Raises:
      UserError: what went wrong, of each outcome that could not be had; the others are.
    """
    from jgen.metrics.table import table
    from jgen.train.run_directory import write_json

    done: list[dict[str, Any]] = []
    written: list[str] = []
    wrong: list[str] = []
    try:
        for out, outcome in todo:
            where = f"{Path(out).parent}: " if len(todo) > 1 else ""
            try:
                scores = outcome()
                if keep and (path := Path(out)).exists():
                    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
                    path.rename(next(name for name in names if not name.exists()))
                done.append(scores)
                write_json(Path(out), scores)
                written.append(out)
                wrong += [f"{where}{message}" for message in scores.get("errors", {}).values()]
            except UserError as error:
                wrong.append(f"{where}{error}")
    finally:
        if done:
            print("\n".join([table(done), *written]))
    require(not wrong, "; ".join(wrong))
    return 0


if __name__ == "__main__":
    cli.main(command)
