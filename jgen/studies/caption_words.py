"""Which words does a text-to-image diffusion read? python -m jgen.studies.caption_words RUN [RUN ...] --out FOLDER

Test images of `shapes` get the same noise at several levels and are denoised twice: given their caption, and given it
with every word of one attribute (shape, colour or size) replaced by a word of another value. Reported is by how much
the mean squared error of the denoised image rises, in per cent of that with the true caption: 0 for words that the
model does not use, at the noise where the attribute is decided most. `--split train` tells composition from training:
pairs of shape and colour of the test split are in no training image.

Writes caption_words.json, from which the same command resumes, and caption_words.png to FOLDER.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jgen import cli
from jgen.data.shapes import COLOURS, SHAPES, SIZES
from jgen.errors import require, require_positive, require_seed
from jgen.studies import reporting
from jgen.studies.reporting import Row

if TYPE_CHECKING:
    from jgen.generator import Generator

ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}  # {name: values, each a tuple of synonyms}
AT_ONCE = 100  # images denoised at a time


@dataclass(frozen=True)
class Arguments:
    """Which images, at which noise."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    num: int = 500
    """Number of images, the first of the split."""
    split: Literal["test", "train"] = "test"
    """Part of the data."""
    noise: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 9.0)
    """Noise levels, as sigma / alpha; images range over [-1, 1]."""
    seed: int = 0
    """Seed of the noise and of the words put in."""


def command(args: list[str]) -> int:
    title = "python -m jgen.studies.caption_words RUN [RUN ...]"
    runs = []
    while args and not args[0].startswith("-"):
        runs.append(args.pop(0))
    a = cli.parse(Arguments, args, title, __doc__ or "")
    require(bool(runs), f"which runs? {title} --out FOLDER")
    require_positive(**{"--num": a.num, "--noise": a.noise})
    require_seed(a.seed, "--seed")
    record, figure = reporting.open_record(a.out, "caption_words")
    import jgen
    from jgen.studies import scores

    gens = {run: jgen.load(run) for run in runs}
    for run, gen in gens.items():
        check_run(run, gen)
    settings = [
        {**scores.identity_of(run, gen, a.num, a.seed), "split": a.split, "noise": list(a.noise), "attribute": name}
        for run, gen in gens.items()
        for name in ATTRIBUTES
    ]
    rows = scores.score_all(record, settings, lambda setting: measure(setting, gens[setting["run"]]))
    return reporting.report(figure, rows, draw, table)


def check_run(run: str, gen: Generator) -> None:
    """Raises `UserError` unless a run is a diffusion in pixels of `shapes`, given captions."""
    data, model = gen.config.data.name, gen.model
    require(data == "shapes", f"{run} was trained on {data}: its data must be shapes, whose captions are known")
    fits = {"denoise", "process"} <= set(model.functions) and "text" in model.conditions
    require(fits, f"{run} is a {model.name}: it must be a diffusion conditioned on text")


def replace_words(caption: str, values: tuple[tuple[str, ...], ...], seed: int) -> str:
    """A caption with every word of an attribute replaced by a word of another of its values, drawn at random.

    Args:
      values: of the attribute, each a tuple of synonyms.
    """
    rng = np.random.default_rng([seed, zlib.crc32(caption.encode())])
    words = caption.split()
    for place, word in enumerate(words):
        own = next((value for value in values if word in value), None)
        if own is not None:
            others = [other for value in values if value is not own for other in value]
            words[place] = others[rng.integers(len(others))]
    return " ".join(words)


def measure(setting: Row, gen: Generator) -> Row:
    """The rise of the error by noise level, in per cent, and its standard error over images."""
    from jgen.data import dataset
    from jgen.train.run_directory import read_config

    fingerprint = read_config(Path(setting["run"]))["data_fingerprint"]
    _, data = dataset.reopen(gen.config.data, fingerprint, setting["run"], gen.tokenizers)
    batch = data.splits[setting["split"]].fetch(np.arange(setting["samples"]))
    tokenizer, values = gen.tokenizers["text"], ATTRIBUTES[setting["attribute"]]
    captions = [tokenizer.decode(ids) for ids in batch["text"]]
    other = [tokenizer.encode(replace_words(caption, values, setting["seed"])) for caption in captions]
    rises, errors, texts = [], [], (batch["text"], np.stack(other))
    for true, wrong in denoising_errors(gen, batch["image"], texts, setting["noise"], setting["seed"]):
        rises.append(100 * float(np.mean(wrong - true) / np.mean(true)))
        errors.append(100 * float(np.std(wrong - true, ddof=1) / np.sqrt(len(true)) / np.mean(true)))
    return {"rise": rises, "standard_error": errors}


def denoising_errors(
    gen: Generator, images: np.ndarray, texts: tuple[np.ndarray, ...], levels: Sequence[float], seed: int
) -> Iterator[list[np.ndarray]]:
    """For each noise level, the mean squared errors of the denoised images, float64 (n,), given each of the texts.

    An image has the same noise, but for its scale, whatever the level and the text.

    Args:
      texts: tokens (n, T) each; levels: sigma / alpha.
    """
    import jax
    import jax.numpy as jnp

    from jgen.core import keys as rng
    from jgen.prob.pixels import to_float
    from jgen.prob.process import add_noise, time_of

    process = gen.model.functions["process"](gen.params, gen.ctx)
    denoise = jax.jit(partial(denoise_text, gen.model.functions["denoise"], gen.ctx))
    for t in np.asarray(time_of(process, -np.log(np.array(levels)))):
        errors: list[list[np.ndarray]] = [[] for _ in texts]
        for start in range(0, len(images), AT_ONCE):
            at = np.minimum(np.arange(start, start + AT_ONCE), len(images) - 1)  # the last part is filled up
            x = to_float(jnp.asarray(images[at]), gen.model.images.levels)
            times, keys = jnp.full(AT_ONCE, t, jnp.float32), rng.image_keys(rng.seed_key(seed), jnp.asarray(at))
            noisy = add_noise(process, x, times, rng.normal(keys, x.shape[1:]))
            for tokens, own in zip(texts, errors):
                squared = (np.asarray(denoise(gen.params, noisy, times, tokens[at])) - np.asarray(x)) ** 2
                own.append(squared.mean(axis=(1, 2, 3), dtype=np.float64)[: len(images) - start])
        yield [np.concatenate(own) for own in errors]


def denoise_text(denoise: Any, ctx: Any, params: Any, x_t: Any, t: Any, tokens: Any) -> Any:
    """`denoise` given tokens alone."""
    return denoise(params, ctx, x_t, t, {"text": tokens})


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table: the rise in per cent, and two standard errors."""
    levels = rows[0]["setting"]["noise"]
    lines = [f"| system, step | replaced | {' | '.join(f'{level:g}' for level in levels)} |"]
    lines.append("| --- " * (2 + len(levels)) + "|")
    for row in rows:
        setting = row["setting"]
        cells = [f"{rise:.2f} ± {2 * error:.2f}" for rise, error in zip(row["rise"], row["standard_error"])]
        lines.append(f"| {setting['system']}, {setting['step']:,} | {setting['attribute']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws the rise over the noise, a line per row."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    fig, axis = plt.subplots(figsize=(6.5, 4.0), layout="constrained")
    for row in rows:
        setting = row["setting"]
        label = f"{setting['system']}, step {setting['step']:,}: {setting['attribute']}"
        axis.errorbar(setting["noise"], row["rise"], 2 * np.array(row["standard_error"]), marker="o", label=label)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=1.0)
    axis.axhline(0, color="black", linewidth=0.5)
    axis.set_xlabel("noise, sigma / alpha")
    axis.set_ylabel("rise of the error, %")
    axis.legend(fontsize=8)
    reporting.save_figure(path, fig)


if __name__ == "__main__":
    cli.main(command)
