"""Score trained runs on held-out data: python -m jgen.evaluate RUN [RUN ...] [--split test] [--scoring.samples 100]

Prints nats and bits per dimension with the kind of likelihood and the protocol, and writes them to
RUN/evaluation.json, or to --out.
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


@dataclass(frozen=True)
class Arguments:
    """What is scored."""

    split: Literal["test", "validation", "train"] = "test"
    """Part of the run's data set."""
    num: int = 0
    """The first images of the split; 0: all."""
    seed: int = 0
    """Seed of the draws that a bound or an estimate makes, and of dynamic binarisation."""
    batch_size: int = 100
    """Images at a time."""
    step: int | None = None
    """Checkpoint; default: the newest."""
    ema: bool = True
    """Use the moving average of the weights."""
    out: str = ""
    """JSON file for the outcome; default: evaluation.json in the run."""


def score(run: str, arguments: Arguments, options: dict[str, Any]) -> dict[str, Any]:
    """The likelihood of a run's held-out images, with its protocol, as a JSON document.

    Args:
      options: of the model's `scoring`, such as the number of importance samples.
    Raises:
      UserError: no run, no likelihood, no such split, or images fewer than asked for.
    """
    import jax
    from tqdm import tqdm

    import jgen
    from jgen.core import keys as rng
    from jgen.core.generate import require_capability
    from jgen.data import dataset
    from jgen.data.transforms import make_transform
    from jgen.prob.pixels import bits_per_dim
    from jgen.train.run_directory import environment

    gen = jgen.load(run, step=arguments.step, ema=arguments.ema)
    require_capability(gen.model, "log_prob")
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
    progress = lambda chunks: tqdm(chunks, desc=f"scoring {run}", unit="batch", file=sys.stderr)
    start = time.time()
    where = {"label": label, "batch_size": arguments.batch_size, "progress": progress}
    nats = gen.log_prob(key_score, images, **where, **options).astype(np.float64)
    bits = bits_per_dim(nats, gen.model.images.size)
    protocol = {"split": arguments.split, "num": num, "binarise": data.binarise, "levels": gen.model.images.levels}
    return {
        "system": gen.model.name,
        "data": data.name,
        "likelihood": gen.likelihood,
        "nats": {"mean": nats.mean(), "standard_error": nats.std() / np.sqrt(num)},
        "bits_per_dim": {"mean": bits.mean(), "standard_error": bits.std() / np.sqrt(num)},
        "protocol": {**protocol, "seed": arguments.seed, **options},
        "step": gen.step,
        "ema": arguments.ema and gen.config.train.ema_decay > 0,
        "parameters": sum(x.size for x in jax.tree.leaves(gen.params)),
        "seconds": round(time.time() - start, 1),
        "environment": environment(),
    }


def describe(run: str, document: dict[str, Any]) -> str:
    """The outcome in a line."""
    kinds = {"exact": "exact", "lower_bound": "lower bound", "estimate": "estimate"}
    nats, bits, p = document["nats"], document["bits_per_dim"], dict(document["protocol"])
    protocol = ", ".join(f"{name} {value}" for name, value in p.items())
    return (
        f"{run}: {bits['mean']:.4f} bits/dim, log p(x) {nats['mean']:.3f} +- {nats['standard_error']:.3f} nats"
        f" ({kinds[document['likelihood']]}; {document['system']} on {document['data']}, {protocol})"
    )


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
        document = score(run, parsed.main, dataclasses.asdict(parsed.scoring) if scoring is not None else {})
        write_json(out, document)
        print(f"{describe(run, document)}\n{out}")
    return 0


if __name__ == "__main__":
    cli.main(command)
