"""How many of 1,000 modes do convolutional GANs draw? python -m jgen.studies.stacked_digits --out FOLDER

Three random digits are the channels of one picture, so that the modes are the numbers 0 to 999 (Metz et al. 2017, arXiv
1611.02163; Srivastava et al. 2017, arXiv 1705.07761): "Stacked MNIST", or the same with the 8x8 digits. A classifier of
digits reads each channel of the samples. DCGANs of equal size are trained for the same number of steps with several
losses. Writes stacked_digits.json and stacked_digits.png to FOLDER.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from jgen import cli
from jgen.data.dataset import Split
from jgen.errors import require_positive, require_seed
from jgen.studies import reporting
from jgen.studies.mode_collapse import draw, table
from jgen.studies.reporting import Row

MODES = 1000
CONTESTS: dict[str, dict[str, Any]] = {  # options of a DCGAN
    "non-saturating": {"loss": "non_saturating", "disc_norm": "batch"},
    "hinge, spectral": {"loss": "hinge", "disc_norm": "spectral"},
    "Wasserstein, gradient penalty": {
        "loss": "wasserstein",
        "disc_norm": "none",
        "regulariser": "gradient_penalty",
        "disc_steps": 5,
    },
    "relativistic, R1 and R2": {
        "loss": "relativistic",
        "disc_norm": "none",
        "regulariser": "r1_r2",
        "penalty_weight": 0.1,
    },
}


@dataclass(frozen=True)
class Arguments:
    """What to stack, and how long to train."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    data: Literal["digits", "mnist"] = "digits"
    """The digits to stack."""
    steps: int = 1500
    """Training steps per loss, each with one update of the generator."""
    every: int = 500
    """Steps between counts."""
    samples: int = 10_000
    """Samples per count."""
    seed: int = 0
    """Seed of networks and data."""


def command(args: list[str]) -> int:
    a = cli.parse(Arguments, args, "python -m jgen.studies.stacked_digits", __doc__ or "")
    require_positive(**{"--steps": a.steps, "--every": a.every, "--samples": a.samples})
    require_seed(a.seed, "--seed")
    record, figure = reporting.open_record(a.out, "stacked_digits")
    from jgen.studies import scores

    common = {"data": f"stacked {a.data}", "config": f"configs/gan/dcgan.py:{a.data}", "num_modes": MODES}
    common |= {"steps": a.steps, "every": a.every, "samples": a.samples, "seed": a.seed}
    settings = [{**common, "name": name, "options": options} for name, options in CONTESTS.items()]
    return reporting.report(figure, scores.score_all(record, settings, measure), draw, table)


def stacked(split: Split, num: int, seed: int) -> Split:
    """`num` examples, each made of three from a split of grey images: {"image": uint8 (n, H, W, 3), "index", "label"},
    where the label is the three-digit number."""
    rows = np.random.default_rng(seed).integers(0, split.num, (num, 3))

    def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
        digits = split.fetch(rows[positions].ravel())
        images = digits["image"].reshape(len(positions), 3, *digits["image"].shape[1:3])
        label = digits["label"].reshape(-1, 3) @ np.array([100, 10, 1])
        index = np.asarray(positions, np.int32)
        return {"image": np.moveaxis(images, 1, -1), "index": index, "label": label.astype(np.int32)}

    return Split(num, fetch)


def read_modes(classify: Any, images: np.ndarray) -> np.ndarray:
    """The three-digit number that each image (n, H, W, 3) is classified as, int (n,).

    Args:
      classify: uint8 images (n, H, W, 1) to logits (n, 10).
    """
    channels = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3], 1)
    return classify(channels).argmax(-1).reshape(-1, 3) @ np.array([100, 10, 1])


def measure(setting: Row) -> Row:
    """Trains a DCGAN on stacked digits with the options of a setting.

    Returns:
      steps: (n,), steps of the counts; modes, quality, kl: (1, n) of `mode_scores`; quality is 1, since each sample is
      classified as some number. real: the scores of as many real examples.
    """
    import jax

    from jgen import sample_scores
    from jgen.compare.systems import load_training, model_of
    from jgen.core import keys as rng
    from jgen.core.generate import sample_images
    from jgen.core.model import Context, DataSpec, ImageSpec
    from jgen.data import dataset
    from jgen.metrics.modes import mode_scores
    from jgen.studies.games import train_on
    from jgen.studies.scores import ScoringProtocol
    from jgen.train.loop import role_optimisers
    from jgen.train.step import init_state, place_state

    training, seed = load_training(setting["config"]), setting["seed"]
    data, config = dataset.load(training.experiment.data), training.experiment.train
    reader = sample_scores.load_reader(data, training.experiment.data, ScoringProtocol(seed=seed), False)
    height, width, _ = data.spec.image.shape
    options = replace(training.experiment.model, conditioning="none", **setting["options"])
    training = replace(training, experiment=replace(training.experiment, model=options))
    model = model_of(training, DataSpec(ImageSpec(height, width, 3, 256), {}))
    split, num = stacked(data.splits["train"], 100_000, seed), setting["samples"]
    optimisers, first = role_optimisers(model, config), split.fetch(np.arange(config.batch_size))
    start = jax.jit(lambda key: init_state(model, optimisers, key, first, ema=False))
    state = place_state(model, start(rng.seed_key(seed)))

    def count(images: np.ndarray) -> Row:
        return mode_scores(read_modes(lambda channels: reader.apply(channels)[2], images), MODES)

    steps, rows = [], []
    trained = train_on(model, optimisers, state, split, config.batch_size, seed, setting["steps"])
    for number, (now, _) in enumerate(trained, 1):
        if number % setting["every"] == 0 or number == setting["steps"]:
            ctx = Context(now.step, extra=now.extra, averaged=False)
            images = sample_images(model, now.params, ctx, rng.seed_key(seed), num, batch_size=500)
            steps.append(number)
            rows.append(count(images))
    curves = {name: [[row[name] for row in rows]] for name in ("modes", "quality", "kl")}
    return {"steps": steps, **curves, "real": count(split.fetch(np.arange(num))["image"])}


if __name__ == "__main__":
    cli.main(command)
