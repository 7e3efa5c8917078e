"""Score trained runs: python -m jgen.evaluate RUN [RUN ...] [--split test] [--samples 1000] [--scoring.samples 100]

Likelihoods of held-out images are reported in nats and bits per dimension, with the kind of likelihood and the
protocol. Samples are compared with real images in the feature space of a classifier trained on the data (FD-...), or of
the published Inception network whose weights --inception names (FID). The classifier also checks the classes of a
conditional model's samples, and samples of captioned shapes are checked against their captions. With --reconstruct,
held-out images are compared with an autoencoder's reconstructions. A model with neither samples nor likelihood is
scored by its validation scores (--samples 0); one that compares images with texts, such as CLIP, by retrieval and
zero-shot classification. The results are written to RUN/evaluation.json, or to --out, and printed as a table, one row
per run; an existing evaluation.json is kept as evaluation.1.json, and so on.

Several processes divide the images to draw and score; the first process compares, writes and prints.

For samples of another program: python -m jgen.evaluate --images FOLDER|FILE.npz --data.name mnist --out x.json
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from jgen import cli
from jgen.core import parallel
from jgen.core.files import check_writable
from jgen.core.model import frozen_parameters
from jgen.data.config import Config as Data
from jgen.data.config import data_location
from jgen.distributed import Distributed, working_together
from jgen.errors import UserError, require, require_seed

if TYPE_CHECKING:
    from jgen.data.dataset import Dataset
    from jgen.generator import Generator

PATHS = ("inception", "efficientnet", "clip", "images", "out", "grid")


@dataclass(frozen=True)
class Arguments:
    """What to score, and how."""

    split: Literal["test", "validation", "train"] = "test"
    """Split of the data set to score, and to compare samples with."""
    num: int = 0
    """Number of images, the first of the split; 0: all."""
    likelihood_images: int = 0
    """Number of these images to compute the likelihood of, for slow bounds; 0: all."""
    samples: int = 1000
    """Number of samples to draw and compare with real images; 0: none."""
    reconstruct: bool = False
    """Score the model's reconstructions of the split: error, distances to the images, codes in use."""
    inception: str = ""
    """File of the published Inception network's weights (.pth, or a .safetensors copy): distances are then FID."""
    efficientnet: str = ""
    """File of EfficientNet-Lite0's weights, or `installed` for the package's: distances are measured in its features,
    which are the same for every data set of colour images."""
    clip: str = ""
    """Run of CLIP on such images: samples are scored by their similarity to their texts in its embeddings."""
    images: str = ""
    """Instead of runs: a folder of pictures, or an .npz with `images` (and `labels`), made by another program."""
    data: Data = field(default_factory=Data)
    """The data to compare --images with; for a run, name, dir and test give the current location of its data."""
    seed: int = 0
    """Seed of the samples, of the noise in a bound or an estimate, and of dynamic binarisation."""
    batch_size: int = 100
    """Images at a time."""
    step: int | Literal["best"] | None = None
    """Checkpoint to load, or best: the stored one with the best validation score; default: the newest."""
    ema: bool = True
    """Use the moving average (EMA) of the weights."""
    memorisation: bool = True
    """Check whether samples repeat training images, and also score real images as if they were samples; passes all
    training images through the feature network."""
    out: str = ""
    """JSON file for the results; default: evaluation.json in the run."""
    grid: str = ""
    """PNG file for a picture of the first samples, a row per class."""
    prompts: tuple[str, ...] = ()
    """Texts in which {} stands for a class, for zero-shot classification by a run of CLIP; default: the data's own."""
    cascade: tuple[str, ...] = ()
    """Run directories of upsamplers: the run's samples are enlarged by each of them in turn, and then compared with the
    last one's data."""
    distributed: Distributed = Distributed()


OF_RUN = Arguments(data=Data(name=""))  # defaults when a run is scored: its own data, unless a location is given


def evaluate(
    run: str, arguments: Arguments, scoring: dict[str, Any], sampling: dict[str, Any], frozen: dict[str, str]
) -> dict[str, Any]:
    """All scores of a run that its model supports, as a JSON document.

    Args:
      scoring, sampling: options of the model, such as the number of importance samples or of sampling steps.
      frozen: {role: run directory} of the runs that it depends on, as in `jgen.load`.
    Raises:
      UserError: no run, data that is missing or has changed since training, no such split, fewer images than requested,
        or nothing to score. Raised before anything is sampled or scored.
    """
    import jgen
    from jgen import held_out, sample_scores
    from jgen.cascade import Cascade
    from jgen.core.generate import require_capability
    from jgen.data import dataset
    from jgen.data.pictures import to_display
    from jgen.train.run_directory import read_config

    gen = jgen.load(run, step=arguments.step, ema=arguments.ema, frozen=frozen)
    check_capabilities(gen, arguments)
    trained = length_of_training(gen, Path(run) / "checkpoints")
    upsamplers = [jgen.load(path) for path in arguments.cascade]
    stages = Cascade(gen, *upsamplers)
    last, place = [(gen, run), *zip(upsamplers, arguments.cascade)][-1]
    fingerprint = read_config(Path(place))["data_fingerprint"]
    config, data = dataset.reopen(last.config.data, fingerprint, place, last.tokenizers, data_location(arguments.data))
    require(data.spec.image == last.model.images, f"{data.name} has {data.spec.image}: {place} has {last.model.images}")
    check_split(data, arguments)
    scored = {"model": [*map(cli.model_hash, (gen, *upsamplers))], "data": data.fingerprint}
    require_same_scores(arguments, scored | {"scoring": scoring, "sampling": sampling})
    if arguments.clip:
        data = judged_by_clip(gen, data, arguments.clip)
    by_class = "label" in gen.model.conditions
    compared = is_compared(gen, data, arguments)
    compare = sample_scores.make_comparison(data, config, arguments, by_class) if compared else None
    scores: dict[str, Any] = {}
    if arguments.samples:  # first, so that invalid options are noticed early
        scores |= sample_scores.score_samples(gen, stages, data, arguments, sampling, compare)
    scores |= {"likelihood": None, "errors": {}}
    if gen.model.log_prob is not None and not upsamplers:
        try:
            scores["likelihood"] = held_out.likelihood(gen, data, arguments, scoring)
        except UserError as error:  # the likelihood of an image is not finite: the distances are still computed
            scores["errors"]["likelihood"] = str(error)
    if is_validated(gen, arguments):
        scores |= held_out.validation(gen, data, arguments) | held_out.comparison(gen, data, arguments)
    if compare and arguments.reconstruct:
        require_capability(gen.model, "reconstruct")
        made, labels, reconstruction = held_out.reconstruction(gen, data, arguments)
        made = to_display(made, gen.model.images.levels)
        compared_scores = compare(lambda start, stop: made[start:stop], len(made), labels)
        scores["reconstruction"] = reconstruction | compared_scores
    scores["cascade"] = [record_of(one, Path(path)) for one, path in zip(upsamplers, arguments.cascade)]
    return {**record_of(gen, Path(run)), "trained": trained, "data_fingerprint": data.fingerprint, **scores}


def is_compared(gen: Generator, data: Dataset, arguments: Arguments) -> bool:
    """Whether the model's images are compared with real ones in a network's features."""
    if arguments.reconstruct or arguments.samples == 0 or is_texture(gen, arguments):
        return arguments.reconstruct
    has_features = data.spec.num_classes > 1 or bool(arguments.inception or arguments.efficientnet)
    # Without a feature network, samples can still be scored against their texts, if the data can judge these.
    return has_features or not any(name in data.judges for name in gen.model.conditions)


def require_same_scores(arguments: Arguments, scored: dict[str, Any]) -> None:
    """Raises `UserError` if one of several processes would score something else than the first.

    Args:
      scored: {name: value} of what this process would score.
    """
    from jgen.train.run_directory import program_identity

    values = ("split", "num", "likelihood_images", "samples", "reconstruct", "seed", "batch_size", "memorisation")
    identity = {name: getattr(arguments, name) for name in values}
    identity |= {name: bool(getattr(arguments, name)) for name in ("inception", "efficientnet", "clip", "grid")}
    parallel.require_same(identity | scored | program_identity())


def judged_by_clip(gen: Generator, data: Dataset, run: str) -> Any:
    """The data with CLIP scores added to its judges. Raises `UserError` if the model is not conditioned on texts."""
    import jgen
    from jgen import sample_scores

    data = data._replace(judges=sample_scores.with_clip_score(data, jgen.load(run)))
    takes = ", ".join(gen.model.conditions) or "nothing"
    is_asked = any(name in data.judges for name in gen.model.conditions)
    require(is_asked, f"--clip is about samples of texts: {gen.model.name} is conditioned on {takes}")
    return data


def record_of(gen: Generator, run: Path) -> dict[str, Any]:
    """A record of what is scored, how it was trained, and the command and machine of the evaluation."""
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
        "parameters": sum(x.size for x in jax.tree.leaves((gen.params, frozen_parameters(gen.ctx.frozen)))),
        "command": "python -m jgen.evaluate " + shlex.join(sys.argv[1:]),
        "environment": environment(),
    }


def is_validated(gen: Generator, arguments: Arguments) -> bool:
    """Whether a run is scored by its model's validation scores: it has no likelihood and no images are requested, such
    as for a model that only compares or encodes."""
    model, draws_images = gen.model, arguments.samples > 0 or arguments.reconstruct
    return model.validate is not None and model.sample is None and model.log_prob is None and not draws_images


def is_texture(gen: Generator, arguments: Arguments) -> bool:
    """Whether samples are scored by the model's own texture statistics, not by distances in a network's features."""
    from jgen.sample_scores import TEXTURE

    return TEXTURE in gen.model.functions and not (arguments.inception or arguments.efficientnet)


def check_capabilities(gen: Generator, arguments: Arguments) -> None:
    """Raises `UserError` if the model lacks a capability to be scored, nothing is to be scored, or there are too few
    samples."""
    from jgen.core.generate import require_capability
    from jgen.embeddings import compares
    from jgen.metrics.quality import FEWEST

    draws_images = arguments.samples > 0 or arguments.reconstruct
    require(
        gen.model.log_prob is not None or draws_images or is_validated(gen, arguments),
        f"{gen.model.name} has no likelihood, and no samples were asked for: there is nothing to score",
    )
    read = not arguments.prompts or (compares(gen.model) and is_validated(gen, arguments))
    require(read, "--prompts are for a run that compares images with texts, such as clip, scored with --samples 0")
    require(arguments.samples > 0 or not arguments.cascade, "--cascade is of samples, of which --samples 0 draws none")
    require(not (arguments.cascade and arguments.reconstruct), "--reconstruct is of one run: --cascade has several")
    if arguments.samples:
        require_capability(gen.model, "sample")
        enough = arguments.samples >= FEWEST or is_texture(gen, arguments)
        require(enough, f"--samples is {arguments.samples}: distances need at least {FEWEST} images")
    if arguments.reconstruct:
        require_capability(gen.model, "reconstruct")


def length_of_training(gen: Generator, folder: Path) -> dict[str, Any]:
    """Steps and minutes of training up to the run's newest checkpoint, even if `gen` is an earlier one."""
    from jgen.train import checkpoints

    newest = checkpoints.newest_good(folder) or gen.step
    since = 0.0
    if newest != gen.step:
        since = checkpoints.seconds_at(folder, newest) - checkpoints.seconds_at(folder, gen.step)
    return {"steps": newest, "minutes": round((gen.seconds + since) / 60, 2)}  # includes the training of frozen models


def training_record(run: Path) -> dict[str, Any]:
    """The run's environment.json (machine, versions and command of the training); {} if the file is missing."""
    try:
        return json.loads((run / "environment.json").read_text())
    except (OSError, ValueError):
        return {}


def evaluate_images(arguments: Arguments) -> dict[str, Any]:
    """The scores of samples made by another program. Raises `UserError` for files that cannot be compared."""
    from jgen import sample_scores
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
    scored = {"number of images": len(images), "labels": labels is not None, "data": data.fingerprint}
    require_same_scores(arguments, scored)
    compare = sample_scores.make_comparison(data, arguments.data, arguments, labels is not None)
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


def check_split(dataset: Dataset, arguments: Arguments) -> None:
    """Raises `UserError` for a split that the data does not have, or for more images than it has."""
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
    """Raises `UserError` for values out of range, and for options that would have no effect."""
    require_seed(a.seed, "--seed")
    require(
        not (a.inception and a.efficientnet), "--inception and --efficientnet: distances are in one network's features"
    )
    for name in ("num", "likelihood_images", "samples"):
        require(getattr(a, name) >= 0, f"--{name.replace('_', '-')} is {getattr(a, name)}: it must be zero or above")
    require(a.batch_size >= 1, f"--batch-size is {a.batch_size}: it must be above zero")
    if a.images:
        about_runs = ["likelihood_images", "samples", "reconstruct", "batch_size", "step", "ema", "grid", "clip"]
        for name in (*about_runs, "prompts", "cascade"):
            option = f"--{name.replace('_', '-')}" if name != "ema" else "--no-ema"
            require(getattr(a, name) == getattr(Arguments, name), f"{option} is about runs: --images does not read it")
        return
    options, default = dataclasses.asdict(a.data), dataclasses.asdict(Data())
    for name in [name for name in options if name not in ("name", "dir", "test")]:
        unread = f"--data.{name.replace('_', '-')} is about --images: a run is scored on the data it was trained on"
        require(options[name] == default[name], unread)
    compared = a.samples > 0 or a.reconstruct
    for name in ("inception", "efficientnet"):
        given = bool(getattr(a, name))
        require(compared or not given, f"--{name} is about samples, of which --samples 0 draws none")
    from jgen.metrics.quality import FEWEST, NEEDED

    require(a.samples > 0 or not a.grid, "--grid is of samples, of which --samples 0 draws none")
    require(a.samples > 0 or not a.clip, "--clip is about samples, of which --samples 0 draws none")
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
        return finish_together(arguments, [(arguments.out, lambda: evaluate_images(arguments))])
    import tyro

    from jgen.runs import load_experiment

    todo: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for run in runs:
        experiment = load_experiment(run)[0]
        parts = {part: getattr(experiment.model, part, None) for part in ("scoring", "sampling")}
        unnamed = Annotated[Arguments, tyro.conf.arg(name="")]
        fields: list[Any] = [("main", unnamed, dataclasses.field(default=OF_RUN))]
        fields += [(name, type(x), dataclasses.field(default=x)) for name, x in parts.items() if x is not None]
        fields += cli.frozen_option(experiment)
        options = dataclasses.make_dataclass("Options", fields, frozen=True)
        parsed = cli.parse(options, args, title, __doc__ or "")
        parsed = dataclasses.replace(parsed, main=cli.expanded(parsed.main, PATHS))
        check_run_arguments(parsed, parts["sampling"], len(runs))
        out = parsed.main.out or str(Path(run) / "evaluation.json")
        chosen = [dataclasses.asdict(getattr(parsed, part)) if parts[part] is not None else {} for part in parts]
        scoring, sampling = chosen
        todo.append((out, partial(evaluate, run, parsed.main, scoring, sampling, cli.given_frozen(parsed))))
    return finish_together(parsed.main, todo, keep=not parsed.main.out)


def finish_together(
    arguments: Arguments, todo: list[tuple[str, Callable[[], dict[str, Any]]]], keep: bool = False
) -> int:
    """`finish`, run by the processes that `arguments` gives."""
    cli.set_up_process(arguments.distributed)
    with working_together():
        if parallel.is_main_process():
            for path in filter(None, (*(out for out, _ in todo), arguments.grid)):
                check_writable(Path(path))
        return finish(todo, keep)


def check_run_arguments(parsed: Any, sampling: Any, num_runs: int) -> None:
    """Raises `UserError` for options of scoring a run that are out of range or would have no effect."""
    require(not parsed.main.images, "--images is instead of runs: give one or the other")
    check_arguments(parsed.main)
    for name in ("out", "grid"):
        given = getattr(parsed.main, name)
        require(not given or num_runs == 1, f"--{name} is {given}: it takes the outcome of one run")
    plain = parsed.main.samples > 0 or sampling is None or parsed.sampling == sampling
    require(plain, "--sampling.* is about samples, of which --samples 0 draws none")


def finish(todo: list[tuple[str, Callable[[], dict[str, Any]]]], keep: bool = False) -> int:
    """Computes the results and writes each to its file, then prints those that succeeded, even if others failed. With
    several processes the first writes and prints, and a failure in one of them ends all.

    Args:
      keep: whether an existing file is kept under another name.
    Raises:
      UserError: one or more results failed; the message gives the reason for each. The others are written.
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
                wrong += [f"{where}{message}" for message in scores.get("errors", {}).values()]
                if not parallel.is_main_process():
                    continue
                if keep and (path := Path(out)).exists():
                    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
                    path.rename(next(name for name in names if not name.exists()))
                done.append(scores)
                write_json(Path(out), scores)
                written.append(out)
            except UserError as error:
                if parallel.processes()[1] > 1:
                    raise UserError(f"{where}{error}") from error
                wrong.append(f"{where}{error}")
    finally:
        if done:
            print("\n".join([table(done), *written]))
    require(not wrong, "; ".join(wrong))
    return 0


if __name__ == "__main__":
    cli.main(command)
