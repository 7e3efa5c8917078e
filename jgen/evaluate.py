"""Score trained runs: python -m jgen.evaluate RUN [RUN ...] [--split test] [--samples 1000] [--scoring.samples 100]

Held-out images give nats and bits per dimension, with the kind of likelihood and the protocol. Samples are compared
with real images in the features of a classifier trained on them (FD-...), or of the published Inception network whose
weights --inception names (FID); those of a conditional model are read by the classifier. The outcome is written to
RUN/evaluation.json, or to --out, and printed as a table, a row a run.

Samples of any other program: python -m jgen.evaluate --images FOLDER|FILE.npz --data.name mnist --out x.json
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from jgen import cli
from jgen.data.config import Config as Data
from jgen.errors import require

CLASSIFIERS = Path(__file__).resolve().parents[1] / "configs" / "classifier.py"


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
    inception: str = ""
    """File of the published Inception network's weights (.safetensors or .pth): distances are then FID."""
    images: str = ""
    """Instead of runs: a folder of pictures or an .npz with `images` (and `labels`) of any other program."""
    data: Data = field(default_factory=Data)
    """The data that --images are compared with."""
    seed: int = 0
    """Seed of samples, of the draws that a bound or an estimate makes, and of dynamic binarisation."""
    batch_size: int = 100
    """Images at a time."""
    step: int | None = None
    """Checkpoint; default: the newest."""
    ema: bool = True
    """Use the moving average of the weights."""
    out: str = ""
    """JSON file for the outcome; default: evaluation.json in the run."""


def evaluate(run: str, arguments: Arguments, options: dict[str, Any]) -> dict[str, Any]:
    """All scores of a run that its model allows, as a JSON document.

    Args:
      options: of the model's `scoring`, such as the number of importance samples.
    Raises:
      UserError: no run, data that is gone or has changed since the training, no such split, images fewer than asked
        for, or nothing to score.
    """
    import jax

    import jgen
    from jgen.data import dataset
    from jgen.data.pictures import to_display
    from jgen.train.run_directory import environment, read_config

    gen = jgen.load(run, step=arguments.step, ema=arguments.ema)
    require(
        gen.model.log_prob is not None or arguments.samples > 0,
        f"{gen.model.name} has no likelihood, and no samples were asked for: there is nothing to score",
    )
    first_stage, _ = gen.ctx.frozen.get("first_stage", ({}, {}))
    config, data = dataset.reopen(gen.config.data, read_config(Path(run))["data_fingerprint"], run)
    found = {"likelihood": likelihood(gen, data, arguments, options) if gen.model.log_prob is not None else None}
    if arguments.samples:
        start = time.time()
        where = {"batch_size": arguments.batch_size, "progress": progress("sampling")}
        images = gen.sample(jax.random.key(arguments.seed), arguments.samples, **where)
        found["sampling"] = {"num": arguments.samples, "seed": arguments.seed, "seconds": round(time.time() - start, 1)}
        found["sampling"]["options"] = dataclasses.asdict(gen.model.sampling) if gen.model.sampling else {}
        images = to_display(images, gen.model.images.levels)
        found |= compare(images, gen.labels(arguments.samples), data, config, arguments)
    return {
        "run": str(run),
        "system": gen.model.name,
        "data": gen.config.data.name,
        "data_fingerprint": data.fingerprint,
        "step": gen.step,
        "training_minutes": round(gen.seconds / 60, 2),
        "training": training_record(Path(run)),
        "validation": validation_curve(Path(run), gen.step),
        "batch_size": gen.config.train.batch_size,
        "ema": arguments.ema and gen.config.train.ema_decay > 0,
        "parameters": sum(x.size for x in jax.tree.leaves((gen.params, first_stage))),
        "command": " ".join(["python -m jgen.evaluate", *sys.argv[1:]]),
        "environment": environment(),
        **found,
    }


def training_record(run: Path) -> dict[str, Any]:
    """Where, with what and by which command a run was trained: its environment.json, {} where that is gone."""
    try:
        return json.loads((run / "environment.json").read_text())
    except (OSError, ValueError):
        return {}


def validation_curve(run: Path, step: int) -> list[dict[str, Any]]:
    """The validation scores of a run up to a step, from which the best can be told from the last."""
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):  # a run that was copied without it can be scored all the same
        return []
    return [line for line in lines if line.get("split") == "validation" and line["step"] <= step]


def evaluate_images(arguments: Arguments) -> dict[str, Any]:
    """The scores of samples that another program made. Raises `UserError` for files that cannot be compared."""
    from jgen.data import dataset
    from jgen.data.pictures import read_images
    from jgen.train.run_directory import environment

    data = dataset.load(arguments.data)
    images, labels = read_images(Path(arguments.images), data.images.channels)
    found = compare(images, labels, data, arguments.data, arguments)
    return {
        "run": arguments.images,
        "system": "images",
        "data": arguments.data.name,
        "data_fingerprint": data.fingerprint,
        "command": " ".join(["python -m jgen.evaluate", *sys.argv[1:]]),
        "environment": environment(),
        "likelihood": None,
        "sampling": {"num": len(images)},
        **found,
    }


def compare(
    images: np.ndarray, labels: np.ndarray | None, dataset: Any, config: Data, arguments: Arguments
) -> dict[str, Any]:
    """Distances of samples, uint8 0 .. 255, to real images, and how a classifier reads those made by class."""
    import jax

    from jgen.core import keys as rng
    from jgen.data import dataset as datasets
    from jgen.data.pictures import to_display
    from jgen.data.transforms import make_transform
    from jgen.metrics import classifier, quality

    images = quality.check_images(images, dataset.images.shape)
    reader = None
    if dataset.images.num_classes > 1 and (labels is not None or not arguments.inception):
        plain = datasets.load(dataclasses.replace(config, levels=256, binarise="none"))
        recipe = cli.import_file(CLASSIFIERS).get_recipe(config.name) if CLASSIFIERS.exists() else classifier.Recipe()
        reader = classifier.load(plain, recipe, CLASSIFIERS.parent / "classifiers")
    require(
        reader is not None or bool(arguments.inception),
        f"{config.name} has no classes to train a feature network on: give the published one's weights, --inception",
    )
    network = quality.of_inception(arguments.inception) if arguments.inception else quality.of_classifier(reader)

    transform = jax.jit(make_transform(config, train=False))

    def shown(batch: dict[str, np.ndarray]) -> np.ndarray:
        keys = rng.image_keys(jax.random.key(arguments.seed), batch["index"])
        return to_display(np.asarray(transform(keys, batch)["image"]), dataset.images.levels)

    how = f"{config.binarise} {config.levels} {arguments.seed if config.binarise == 'dynamic' else ''}"
    real = {
        split: quality.real_features(dataset, split, num, network, shown, how)
        for split, num in {"train": 0, "test": 0, arguments.split: arguments.num}.items()
    }
    found = quality.quality(images, network, real[arguments.split], real["train"], real["test"], arguments.seed)
    read = None
    if reader is not None and labels is not None:
        read = classifier.label_accuracy(reader.apply(images)[2], labels)
        read |= {"classifier": reader.name, "classifier_test_accuracy": reader.accuracy, "num": len(images)}
    return {"quality": found, "labels": read}


def progress(title: str) -> Any:
    from tqdm import tqdm

    return lambda chunks: tqdm(chunks, desc=title, unit="batch", file=sys.stderr)


def likelihood(gen: Any, dataset: Any, arguments: Arguments, options: dict[str, Any]) -> dict[str, Any]:
    """The likelihood of held-out images, with its kind and protocol."""
    import jax

    from jgen.core import keys as rng
    from jgen.data.transforms import make_transform
    from jgen.prob.pixels import bits_per_dim

    data, splits = gen.config.data, dataset.splits
    require(arguments.split in splits, f"the data has no split {arguments.split}: it has {', '.join(splits)}")
    split = splits[arguments.split]
    require(0 <= arguments.num <= split.num, f"--num is {arguments.num}: {arguments.split} has {split.num} images")
    num = arguments.num or split.num
    few = arguments.likelihood_images
    require(0 <= few <= num, f"--likelihood-images is {few}: {num} images of {arguments.split} are scored")
    num = few or num

    key_data, key_score = jax.random.split(jax.random.key(arguments.seed))
    transform = jax.jit(make_transform(data, train=False))
    batch = split.fetch(np.arange(num))
    images = np.asarray(transform(rng.image_keys(key_data, np.arange(num)), batch)["image"])
    label = batch["label"] if gen.model.conditional else None
    start = time.time()
    where = {"label": label, "batch_size": arguments.batch_size, "progress": progress("scoring")}
    nats = gen.log_prob(key_score, images, **where, **options).astype(np.float64)
    bits = bits_per_dim(nats, gen.model.images.size)
    protocol = {"split": arguments.split, "num": num, "binarise": data.binarise, "levels": gen.model.images.levels}
    if gen.model.conditional:
        protocol["given"] = "class"
    if gen.model.log_density is not None:  # of continuous images: whole numbers are scored with noise in [0, 1) added
        protocol["dequantisation"] = "uniform"
    return {
        "kind": gen.likelihood,
        "nats": {"mean": nats.mean(), "standard_error": nats.std() / np.sqrt(num)},
        "bits_per_dim": {"mean": bits.mean(), "standard_error": bits.std() / np.sqrt(num)},
        "protocol": {**protocol, "seed": arguments.seed, **options},
        "seconds": round(time.time() - start, 1),
    }


def check_arguments(a: Arguments) -> None:
    """Raises `UserError` for values out of their range, and for options that nothing would read."""
    for name in ("num", "likelihood_images", "samples", "seed"):
        require(getattr(a, name) >= 0, f"--{name.replace('_', '-')} is {getattr(a, name)}: it must be zero or above")
    require(a.batch_size >= 1, f"--batch-size is {a.batch_size}: it must be above zero")
    if a.images:
        for name in ("likelihood_images", "samples", "batch_size", "step", "ema"):
            option = f"--{name.replace('_', '-')}" if name != "ema" else "--no-ema"
            require(getattr(a, name) == getattr(Arguments, name), f"{option} is about runs: --images does not read it")
        return
    asked, default = dataclasses.asdict(a.data), dataclasses.asdict(Data())
    for name in asked:
        unread = f"--data.{name.replace('_', '-')} is about --images: a run is scored on the data it was trained on"
        require(asked[name] == default[name], unread)
    require(a.samples > 0 or not a.inception, "--inception is about samples, of which --samples 0 draws none")


def command(args: list[str]) -> int:
    runs = []
    while args and not args[0].startswith("-"):
        runs.append(args.pop(0))
    title = "python -m jgen.evaluate [RUN ...]"
    if not runs:
        arguments = cli.parse(Arguments, args, title, __doc__ or "")
        require(bool(arguments.images), "which run? python -m jgen.evaluate RUN, or --images FOLDER|FILE.npz")
        require(bool(arguments.out), "--images needs --out, the JSON file for the outcome")
        check_arguments(arguments)
        cli.set_up_process()
        return finish([(arguments.out, lambda: evaluate_images(arguments))])
    cli.set_up_process()
    import tyro

    from jgen.api import load_experiment

    todo: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for run in runs:
        scoring = getattr(load_experiment(run)[0].model, "scoring", None)
        fields = [("main", Annotated[Arguments, tyro.conf.arg(name="")], dataclasses.field(default=Arguments()))]
        if scoring is not None:
            fields.append(("scoring", type(scoring), dataclasses.field(default=scoring)))
        options = dataclasses.make_dataclass("Options", fields, frozen=True)
        parsed = cli.parse(options, args, title, __doc__ or "")
        require(not parsed.main.images, "--images is instead of runs: give one or the other")
        check_arguments(parsed.main)
        require(not parsed.main.out or len(runs) == 1, f"--out is {parsed.main.out}: it takes the outcome of one run")
        chosen = dataclasses.asdict(parsed.scoring) if scoring is not None else {}
        out = parsed.main.out or str(Path(run) / "evaluation.json")
        todo.append((out, lambda run=run, main=parsed.main, chosen=chosen: evaluate(run, main, chosen)))
    return finish(todo)


def finish(todo: list[tuple[str, Callable[[], dict[str, Any]]]]) -> int:
    """Finds and writes outcomes, each to its file; then prints those that were found, also when one goes wrong."""
    from jgen.metrics.table import table
    from jgen.train.run_directory import write_json

    done: dict[str, dict[str, Any]] = {}
    try:
        for out, outcome in todo:
            document = outcome()
            write_json(Path(out), document)
            done[out] = document
    finally:
        if done:
            print("\n".join([table(list(done.values())), *done]))
    return 0


if __name__ == "__main__":
    cli.main(command)
