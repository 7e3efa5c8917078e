"""How well are letters drawn from a few others of their font? python -m jgen.studies.fonts RUN --out FOLDER

For every font of the test split, thirty letters in random order are style glyphs, and the others are drawn: the same
letters from the first one, the first five and all thirty style glyphs. The drawings are compared with the true letters:

    pixels     mean absolute difference of pixels, in units of their range
    SSIM       structural similarity (jgen/metrics/ssim.py): 1 for equal pictures
    letter     the fraction that a classifier of letters, trained on the training fonts, recognises as the right letter
    font       the fraction that a classifier of the test fonts, trained on their true letters, assigns to their font

The baselines are `nearest`, the letters of the training font that is nearest in pixels to the style glyphs, and `true`,
the letters themselves. Writes to FOLDER: fonts.json, from which the same command resumes; fonts.png, the letters of
some test fonts, where each line of true letters is above a line of the style glyphs (darker) and the drawings; and
fonts_text.png, a paragraph set in fonts made of the true letters, and below it in fonts completed by drawings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jgen import cli
from jgen.core.model import ArraySpec, Cond, DataSpec
from jgen.data.fonts import LETTERS
from jgen.errors import require, require_seed
from jgen.studies import reporting
from jgen.studies.reporting import Row

if TYPE_CHECKING:
    from jgen.data.dataset import Dataset
    from jgen.generator import Generator
GLYPHS = (1, 5, 30)  # numbers of style glyphs
SHOWN = 3  # fonts in the pictures
PARAGRAPH = (
    "The quick brown fox jumps over the lazy dog",
    "Sphinx of black quartz judge my vow",
    "HOW VEXINGLY QUICK DAFT ZEBRAS JUMP",
)
PAPER, INK, SIZE = 255, 0, 30  # grey values and pixels per em of the paragraph


@dataclass(frozen=True)
class Arguments:
    """What to draw."""

    out: str = "results/studies"
    """Folder of the record and the pictures."""
    num: int = 0
    """Largest number of test fonts, evenly spaced in their order; 0: all."""
    seed: int = 0
    """Seed of the choice of style glyphs, and of the drawings."""


class Task(NamedTuple):
    """Which letters are style glyphs and which are drawn.

    numbers: int (fonts,), indices of the fonts in the split. glyphs: uint8 (fonts, 52, H, W), true letters.
    order: int (fonts, 52), letters of each font: the first 30 are style glyphs, the others are drawn.
    """

    numbers: np.ndarray
    glyphs: np.ndarray
    order: np.ndarray

    @property
    def drawn(self) -> np.ndarray:
        """int (fonts, 22), the letters that are drawn."""
        return self.order[:, max(GLYPHS) :]

    @property
    def truth(self) -> np.ndarray:
        """uint8 (fonts, 22, H, W)."""
        return np.take_along_axis(self.glyphs, self.drawn[:, :, None, None], axis=1)


def command(args: list[str]) -> int:
    title = "python -m jgen.studies.fonts RUN"
    is_named = bool(args) and not args[0].startswith("-")
    run = args.pop(0) if is_named else ""
    a = cli.parse(Arguments, args, title, __doc__ or "")
    require(is_named, f"which run? {title} --out FOLDER")
    require(a.num >= 0, f"--num is {a.num}: it must be above zero, or 0 for all test fonts")
    require_seed(a.seed, "--seed")
    record, figure = reporting.open_record(a.out, "fonts")
    import jgen
    from jgen.studies import scores

    gen = jgen.load(run)
    require("style" in gen.model.conditions, f"{gen.model.name} takes no style glyphs: {run} must be a run of fonts")
    data = open_data(run, gen)
    task = choose(glyphs_of(data, "test"), a.num, a.seed)
    read = readers(data)
    settings = [
        {**scores.identity_of(run, gen, task.drawn.size, a.seed), "fonts": len(task.glyphs), **kind}
        for kind in [{"method": m, "glyphs": k} for m in ("model", "nearest") for k in GLYPHS]
        + [{"method": "true", "glyphs": 0}]
    ]

    def score_one(setting: Row) -> Row:
        makers: dict[str, Callable[[], np.ndarray]] = {
            "model": lambda: draw_letters(gen, task, setting["glyphs"], a.seed),
            "nearest": lambda: copy_nearest(glyphs_of(data, "train"), task, setting["glyphs"]),
            "true": lambda: task.truth,
        }
        return judge(makers[setting["method"]](), task, *read())

    rows = scores.score_all(record, settings, score_one)
    show(figure, figure.with_name("fonts_text.png"), gen, task, a.seed)
    print(table(rows))
    print(figure)
    return 0


def open_data(run: str, gen: Generator) -> Dataset:
    """The letters that the run was trained on, without style glyphs."""
    from jgen.data import dataset
    from jgen.train.run_directory import read_config

    fingerprint = read_config(Path(run))["data_fingerprint"]
    return dataset.reopen(replace(gen.config.data, style=0), fingerprint, run, gen.tokenizers)[1]


def glyphs_of(data: Dataset, split: str) -> np.ndarray:
    """uint8 (fonts, 52, H, W), the letters of a split's fonts."""
    images = data.splits[split].fetch(np.arange(data.splits[split].num))["image"]
    return images.reshape(-1, len(LETTERS), *images.shape[1:3])


def choose(glyphs: np.ndarray, num: int, seed: int) -> Task:
    """The letters of `num` fonts (0: all), in a separate random order for each font."""
    fonts = len(glyphs)
    chosen = np.arange(fonts) if num == 0 else np.unique(np.linspace(0, fonts - 1, min(num, fonts)).round().astype(int))
    order = np.stack([np.random.default_rng([seed, int(number)]).permutation(glyphs.shape[1]) for number in chosen])
    return Task(chosen, glyphs[chosen], order)


def draw_letters(gen: Generator, task: Task, glyphs: int, seed: int) -> np.ndarray:
    """The model's letters from the first style glyphs, uint8 (fonts, 22, H, W)."""
    import jax
    from tqdm import tqdm

    cond = conditions(gen, task, glyphs)
    num = task.drawn.size
    images = gen.sample(jax.random.key(seed), num, batch_size=128, progress=tqdm, **cond)
    return images[..., 0].reshape(task.truth.shape)


def conditions(gen: Generator, task: Task, glyphs: int) -> Cond:
    """The fields `label`, `style` and `style_label` of all letters that are drawn."""
    most, absent = gen.model.data.fields["style"].shape[0], len(LETTERS)
    shown = min(glyphs, most)
    fonts, per_font = task.drawn.shape
    style = np.zeros((fonts, most, *task.glyphs.shape[2:], 1), np.uint8)
    labels = np.full((fonts, most), absent, np.int32)
    letters = task.order[:, :shown]
    style[:, :shown, ..., 0] = np.take_along_axis(task.glyphs, letters[:, :, None, None], axis=1)
    labels[:, :shown] = letters
    fields = {"style": style, "style_label": labels}
    cond = {name: np.repeat(array, per_font, axis=0) for name, array in fields.items()}
    return {**cond, "label": task.drawn.reshape(-1).astype(np.int32)}


def copy_nearest(train: np.ndarray, task: Task, glyphs: int) -> np.ndarray:
    """The letters of the training font whose squared distance to each font's first style glyphs is smallest."""
    copied = []
    for true, order in zip(task.glyphs.astype(np.float32), task.order):
        shown, drawn = order[:glyphs], order[max(GLYPHS) :]
        distances = ((train[:, shown].astype(np.float32) - true[shown]) ** 2).sum((1, 2, 3))
        copied.append(train[distances.argmin(), drawn])
    return np.stack(copied)


def readers(data: Dataset) -> Callable[[], tuple[Any, Any]]:
    """A function that returns two classifiers: of letters, trained on the training fonts, and of the test fonts."""
    from jgen.metrics import classifier
    from jgen.sample_scores import CLASSIFIERS

    recipe = cli.import_file(CLASSIFIERS).get_recipe("fonts") if CLASSIFIERS.exists() else classifier.Recipe()

    @cache
    def load() -> tuple[Any, Any]:
        return classifier.load(data, recipe), classifier.load(by_font(data), replace(recipe, epochs=10))

    return load


def by_font(data: Dataset) -> Any:
    """The test split as a data set whose class is the font; its train and test splits both contain all letters."""
    test, letters = data.splits["test"], len(LETTERS)

    def fetch(positions: np.ndarray) -> Row:
        return {**test.fetch(positions), "label": (np.asarray(positions) // letters).astype(np.int32)}

    spec = DataSpec(data.spec.image, {"label": ArraySpec((), "int32", test.num // letters)})
    split = test._replace(fetch=fetch)
    return data._replace(name=f"{data.name}-styles", spec=spec, splits={"train": split, "test": split})


def judge(made: np.ndarray, task: Task, of_letters: Any, of_fonts: Any) -> Row:
    """The scores of letters uint8 (fonts, 22, H, W), and the names of the classifiers."""
    from jgen.metrics.ssim import ssim

    flat, truth = (x.reshape(-1, *x.shape[2:]) for x in (made, task.truth))
    letter = of_letters.apply(flat[..., None])[2].argmax(-1) == task.drawn.reshape(-1)
    fonts = np.repeat(task.numbers, task.drawn.shape[1])
    font = of_fonts.apply(flat[..., None])[2].argmax(-1) == fonts
    return {
        "pixels": float(np.abs(flat.astype(np.float64) - truth).mean() / 255),
        "ssim": float(ssim(flat, truth).mean()),
        "letter": float(letter.mean()),
        "font": float(font.mean()),
        "classifiers": [of_letters.name, of_fonts.name],
    }


def show(alphabets: Path, paragraphs: Path, gen: Generator, task: Task, seed: int) -> None:
    """Writes the two pictures, for some of the task's fonts."""
    from jgen import fonts
    from jgen.data.grids import make_grid
    from jgen.data.pictures import write_png

    lines, texts = [], []
    for place in np.unique(np.linspace(0, len(task.glyphs) - 1, SHOWN).round().astype(int)):
        true = dict(zip(LETTERS, task.glyphs[place]))
        given = {LETTERS[number]: true[LETTERS[number]] for number in task.order[place, : max(GLYPHS)]}
        made = fonts.complete(gen, given, seed)
        half = len(LETTERS) // 2
        for letters in (LETTERS[:half], LETTERS[half:]):
            lines += [true[letter] for letter in letters]
            lines += [made[letter] // 3 if letter in given else made[letter] for letter in letters]
        texts += [paragraph_in(pictures) for pictures in (true, made)]
    write_png(alphabets, make_grid(np.stack(lines)[..., None], len(LETTERS) // 2, scale=1))
    write_png(paragraphs, np.concatenate(texts)[..., None])


def paragraph_in(pictures: dict[str, np.ndarray]) -> np.ndarray:
    """The paragraph set in a font made of these letters, uint8 (h, w), black on white."""
    import tempfile

    from PIL import Image, ImageDraw, ImageFont

    from jgen import fonts

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.ttf"
        fonts.write_font(pictures, path, "made")
        font = ImageFont.truetype(str(path), SIZE, layout_engine=ImageFont.Layout.BASIC)
        step = round(1.4 * SIZE)
        picture = Image.new("L", (26 * SIZE, step * len(PARAGRAPH) + SIZE // 2), PAPER)
        for number, line in enumerate(PARAGRAPH):
            ImageDraw.Draw(picture).text((SIZE // 2, SIZE // 4 + number * step), line, INK, font)
    return np.asarray(picture)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    titles = {"model": "model", "nearest": "nearest training font", "true": "the true letters"}
    lines = ["| letters | style glyphs | pixels | SSIM | letter, % | font, % |", "| --- " * 6 + "|"]
    for row in rows:
        method, glyphs = row["setting"]["method"], row["setting"]["glyphs"]
        cells = [f"{row['pixels']:.4f}", f"{row['ssim']:.3f}", f"{100 * row['letter']:.1f}", f"{100 * row['font']:.1f}"]
        lines.append(f"| {titles[method]} | {glyphs or '-'} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.main(command)
