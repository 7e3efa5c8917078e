"""Score trained runs: python -m jgen.evaluate RUN [RUN ...] [--split test] [--samples 1000] [--scoring.samples 100]

Held-out images give nats and bits per dimension, with the kind of likelihood and the protocol; samples of a conditional
model are read by a classifier trained on real images. The outcome is printed and written to RUN/evaluation.json, or to
--out.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from jgen import cli
from jgen.errors import UserError, require

CLASSIFIERS = Path(__file__).resolve().parents[1] / "configs" / "classifier.py"


@dataclass(frozen=True)
class Arguments:
    """What is scored."""

    split: Literal["test", "validation", "train"] = "test"
    """Part of the run's data set."""
    num: int = 0
    """The first images of the split; 0: all."""
    samples: int = 1000
    """Samples that a classifier reads, where the model is conditional; 0: none."""
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
      UserError: no run, no such split, images fewer than asked for, or nothing to score.
    """
    import jax

    import jgen
    from jgen.train.run_directory import environment

    gen = jgen.load(run, step=arguments.step, ema=arguments.ema)
    conditional = gen.model.conditional and gen.model.images.num_classes > 1 and arguments.samples > 0
    require(
        gen.model.log_prob is not None or conditional,
        f"{gen.model.name} has no likelihood, and no samples by class were asked for: there is nothing to score",
    )
    return {
        "run": str(run),
        "system": gen.model.name,
        "data": gen.config.data.name,
        "step": gen.step,
        "training_minutes": round(gen.seconds / 60, 2),
        "batch_size": gen.config.train.batch_size,
        "ema": arguments.ema and gen.config.train.ema_decay > 0,
        "parameters": sum(x.size for x in jax.tree.leaves(gen.params)),
        "command": " ".join(["python -m jgen.evaluate", *sys.argv[1:]]),
        "environment": environment(),
        "likelihood": likelihood(gen, arguments, options) if gen.model.log_prob is not None else None,
        "labels": labels(gen, arguments) if conditional else None,
    }


def progress(title: str) -> Any:
    from tqdm import tqdm

    return lambda chunks: tqdm(chunks, desc=title, unit="batch", file=sys.stderr)


def likelihood(gen: Any, arguments: Arguments, options: dict[str, Any]) -> dict[str, Any]:
    """The likelihood of held-out images, with its kind and protocol."""
    import jax

    from jgen.core import keys as rng
    from jgen.data import dataset
    from jgen.data.transforms import make_transform
    from jgen.prob.pixels import bits_per_dim

    data = gen.config.data
    splits = dataset.load(data).splits
    require(arguments.split in splits, f"the data has no split {arguments.split}: it has {', '.join(splits)}")
    split = splits[arguments.split]
    require(0 <= arguments.num <= split.num, f"--num is {arguments.num}: {arguments.split} has {split.num} images")
    num = arguments.num or split.num

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
    return {
        "kind": gen.likelihood,
        "nats": {"mean": nats.mean(), "standard_error": nats.std() / np.sqrt(num)},
        "bits_per_dim": {"mean": bits.mean(), "standard_error": bits.std() / np.sqrt(num)},
        "protocol": {**protocol, "seed": arguments.seed, **options},
        "seconds": round(time.time() - start, 1),
    }


def labels(gen: Any, arguments: Arguments) -> dict[str, Any]:
    """How a classifier trained on real images reads samples of every class in turn."""
    import jax

    from jgen.data import dataset
    from jgen.data.pictures import to_display
    from jgen.metrics import classifier

    data = dataclasses.replace(gen.config.data, levels=256, binarise="none")
    recipe = cli.import_file(CLASSIFIERS).get_recipe(data.name) if CLASSIFIERS.exists() else classifier.Recipe()
    reader = classifier.load(dataset.load(data), recipe)
    start = time.time()
    where = {"batch_size": arguments.batch_size, "progress": progress("sampling")}
    images = gen.sample(jax.random.key(arguments.seed), arguments.samples, **where)
    seconds = round(time.time() - start, 1)
    logits = reader.apply(to_display(images, gen.model.images.levels))[2]
    found = classifier.label_accuracy(logits, gen.labels(arguments.samples))
    protocol = {"num": arguments.samples, "seed": arguments.seed, "classifier": reader.name}
    return {**found, "classifier_test_accuracy": reader.accuracy, "protocol": protocol, "seconds": seconds}


def describe(document: dict[str, Any]) -> list[str]:
    """The outcome, a line a score."""
    kinds = {"exact": "exact", "lower_bound": "lower bound", "estimate": "estimate"}
    about = f"{document['run']} ({document['system']} on {document['data']}, step {document['step']})"
    lines = []
    if document["likelihood"]:
        found = document["likelihood"]
        nats, bits = found["nats"], found["bits_per_dim"]
        protocol = ", ".join(f"{name} {value}" for name, value in found["protocol"].items())
        lines.append(
            f"{about}: {bits['mean']:.4f} bits/dim, log p(x) {nats['mean']:.3f} +- {nats['standard_error']:.3f} nats"
            f" ({kinds[found['kind']]}; {protocol})"
        )
    if document["labels"]:
        found = document["labels"]
        worst = min(found["by_class"], key=found["by_class"].get)
        lines.append(
            f"{about}: {found['accuracy']:.4f} of {found['protocol']['num']} samples are read as the class asked for,"
            f" class {worst} least ({found['by_class'][worst]:.3f}); {found['classes']} classes are read"
            f" (classifier {found['protocol']['classifier']}, {found['classifier_test_accuracy']:.4f} on real images)"
        )
    return lines


def command(args: list[str]) -> int:
    runs = []
    while args and not args[0].startswith("-"):
        runs.append(args.pop(0))
    if not runs:
        if "--help" in args or "-h" in args:
            cli.parse(Arguments, ["--help"], "python -m jgen.evaluate RUN [RUN ...]", __doc__ or "")
        raise UserError("which run? python -m jgen.evaluate RUN")
    cli.set_up_process()
    import tyro

    from jgen.api import load_experiment
    from jgen.train.run_directory import write_json

    for run in runs:
        scoring = getattr(load_experiment(run)[0].model, "scoring", None)
        fields = [("main", Annotated[Arguments, tyro.conf.arg(name="")], dataclasses.field(default=Arguments()))]
        if scoring is not None:
            fields.append(("scoring", type(scoring), dataclasses.field(default=scoring)))
        options = dataclasses.make_dataclass("Options", fields, frozen=True)
        parsed = cli.parse(options, args, "python -m jgen.evaluate RUN [RUN ...]", __doc__ or "")
        out = Path(parsed.main.out or Path(run) / "evaluation.json")
        require(not parsed.main.out or len(runs) == 1, f"--out is {out}: it takes the outcome of one run")
        document = evaluate(run, parsed.main, dataclasses.asdict(parsed.scoring) if scoring is not None else {})
        write_json(out, document)
        print("\n".join([*describe(document), str(out)]))
    return 0


if __name__ == "__main__":
    cli.main(command)
