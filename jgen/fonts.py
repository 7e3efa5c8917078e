"""A font file from pictures of its letters: python -m jgen.fonts PICTURES --out my.ttf [--family "My Letters"]
Or from pictures of some, the others drawn by a trained model: python -m jgen.fonts RUN --samples PICTURES --out my.ttf

PICTURES is a folder with one square picture per character, named after it: A.png, or U+0041.png for file systems that
do not distinguish a.png from A.png. Pictures are white on black (with --no-white black on white), and have the layout
of the data set `fonts` (jgen/data/fonts.py): the baseline at 0.72 of the height, an em 0.7 of it. Outlines are traced
by potrace; side bearings are computed from the letters' sides: see `bearings`.

RUN is a model of letters conditioned on others of their font (jgen/models/text_to_image/fonts.py), which draws the
missing ones.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jgen import cli
from jgen.core.files import check_writable, written_whole
from jgen.core.model import Cond
from jgen.core.progress import progress_bar
from jgen.data.fonts import BASELINE, EM
from jgen.data.image_files import read_picture
from jgen.data.style import require_letter, style_condition
from jgen.errors import UserError, require, require_seed

if TYPE_CHECKING:
    from jgen.generator import Generator

UNITS = 1000  # font units per em
TRACED = 256  # least side in pixels of the enlarged picture that is traced, so that edges are found to within a pixel
HALF = 128  # threshold: a pixel on the edge of a letter is half covered
SPACE = 0.28  # width of a space, in em
GAP = 0.09  # average white space on each side of a letter, in em
DEEP = 0.12  # white space at a side counts up to this depth, in em, so that an opening such as that of a C adds no more
PictureMap = Mapping[str, np.ndarray]  # {character: uint8 (S, S), white on black}


@dataclass(frozen=True)
class Arguments:
    """The font to write."""

    out: str = "my.ttf"
    """The font file, TrueType."""
    family: str = "jgen"
    """Font family name."""
    white: bool = True
    """Whether the pictures are white on black."""
    samples: str = ""
    """Folder of pictures of some letters; the run draws the others in their style."""
    seed: int = 0
    """Seed of the letters that a run draws."""


def write_font(pictures: PictureMap, path: Path, family: str) -> None:
    """Writes a TrueType font of pictures.

    Raises:
      UserError: no pictures, pictures that are not square or differ in size, an empty picture, a missing library, or a
        path that cannot be written.
    """
    size = check_pictures(pictures)
    builder_of, pen_of, to_quadratic = import_libraries()
    names = {character: f"uni{ord(character):04X}" for character in sorted(pictures)}
    glyphs, metrics = {}, {}
    for name, width in ((".notdef", 0.5), ("space", SPACE)):
        glyphs[name], metrics[name] = pen_of(None).glyph(), (round(width * UNITS), 0)
    for character, name in progress_bar(names.items(), desc="tracing", unit="letter"):
        left, right = bearings(pictures[character])
        pen = pen_of(None)
        trace(pictures[character], to_quadratic(pen, max_err=1.0, reverse_direction=False), size)
        glyphs[name] = glyph = pen.glyph()
        glyph.recalcBounds(None)
        glyph.coordinates.translate((round(left * UNITS) - glyph.xMin, 0))
        glyph.recalcBounds(None)
        metrics[name] = (glyph.xMax + round(right * UNITS), glyph.xMin)
    builder = builder_of(UNITS, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({32: "space"} | {ord(character): name for character, name in names.items()})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(metrics)
    ascent, descent = round(BASELINE / EM * UNITS), round((1 - BASELINE) / EM * UNITS)
    builder.setupHorizontalHeader(ascent=ascent, descent=-descent)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=ascent, sTypoDescender=-descent, usWinAscent=ascent, usWinDescent=descent)
    builder.setupPost()
    with written_whole(path) as aside:
        builder.save(aside)


def check_pictures(pictures: PictureMap) -> int:
    """The side of the pictures in pixels. Raises `UserError` if a font cannot be made of them."""
    require(len(pictures) > 0, "there are no pictures of letters: a font needs one or more")
    first, size = next((character, array.shape[0]) for character, array in pictures.items())
    for character, array in pictures.items():
        shape = f"the picture of {character!r} is {array.shape[1]}x{array.shape[0]}"
        require(array.shape[0] == array.shape[1], f"{shape}: it must be square")
        require(array.shape[0] == size, f"{shape}, and that of {first!r} {size}x{size}: they must be of one size")
        is_drawn = bool((array >= HALF).any())
        require(is_drawn, f"the picture of {character!r} shows no letter: no pixel is as light as {HALF}")
    return size


def import_libraries() -> tuple[Any, Any, Any]:
    """fontTools' builder and pens. Raises `UserError` if they or potrace are not installed."""
    try:
        import potrace  # noqa: F401
        from fontTools.fontBuilder import FontBuilder
        from fontTools.pens.cu2quPen import Cu2QuPen
        from fontTools.pens.ttGlyphPen import TTGlyphPen
    except ImportError as error:
        needs = f"a font needs fontTools and potracer, which do not import here ({error})"
        raise UserError(f"{needs}: pip install 'jgen[fonts]'") from error
    return FontBuilder, TTGlyphPen, Cu2QuPen


def trace(picture: np.ndarray, pen: Any, size: int) -> None:
    """Draws the outlines of a picture (S, S) with a pen, in units from the left and up from the baseline."""
    import potrace
    from PIL import Image

    factor = max(1, -(-TRACED // size))
    large = np.asarray(Image.fromarray(picture).resize((size * factor,) * 2, Image.Resampling.BICUBIC))
    curves = list(potrace.Bitmap(large < HALF).trace())  # potrace takes False as ink
    scale = UNITS / (EM * size * factor)

    def place(point: Any) -> tuple[float, float]:
        return point.x * scale, (BASELINE * size * factor - point.y) * scale

    for curve in curves:
        pen.moveTo(place(curve.start_point))
        for segment in curve.segments:
            if segment.is_corner:
                pen.lineTo(place(segment.c))
                pen.lineTo(place(segment.end_point))
            else:
                pen.curveTo(place(segment.c1), place(segment.c2), place(segment.end_point))
        pen.closePath()


def bearings(picture: np.ndarray) -> tuple[float, float]:
    """The left and right side bearings of a letter, in em, such that the white space on each side is GAP on average: a
    vertical stem has GAP, and a slanted or round side, whose rows begin further in, a smaller bearing."""
    ink = picture >= HALF
    columns, rows = np.flatnonzero(ink.any(axis=0)), ink[ink.any(axis=1)]
    em = EM * len(picture)
    firsts, lasts = np.argmax(rows, axis=1), ink.shape[1] - 1 - np.argmax(rows[:, ::-1], axis=1)
    inset = (firsts - columns[0]) / em, (columns[-1] - lasts) / em
    left, right = (max(0.0, GAP - float(np.minimum(side, DEEP).mean())) for side in inset)
    return left, right


def complete(gen: Generator, pictures: PictureMap, seed: int = 0, **options: Any) -> dict[str, np.ndarray]:
    """All letters that a model knows: those given, and the others drawn in their style.

    Given pictures are scaled to the model's image size to condition it. The result has the larger of the two sizes.

    Args:
      gen: the generator of a run; pictures: {letter: uint8 (S, S), white on black}; options: of sampling.
    Returns:
      {letter: uint8 (T, T)}, in the order of the model's letters.
    Raises:
      UserError: no pictures, pictures of different sizes or of a character that no training font has, or a model
        without styles.
    """
    import jax

    fields, takes = gen.model.data.fields, gen.model.conditions
    require("style" in takes, f"{gen.model.name} takes no style glyphs: the run must be of fonts")
    side = check_pictures(pictures)
    letters, most = fields["label"].names, fields["style"].shape[0]
    for letter in pictures:
        require_letter(letter, letters)
    model_side = fields["style"].shape[1]
    shown = {letter: resized(pictures[letter], model_side)[..., None] for letter in list(pictures)[:most]}
    if len(pictures) > most:
        print(f"the model sees the first {most} of {len(pictures)} pictures", file=sys.stderr)
    missing = [number for number, letter in enumerate(letters) if letter not in pictures]
    drawn = {}
    if missing:
        cond: Cond = {**style_condition(shown, fields), "label": np.array(missing)}
        images = gen.sample(jax.random.key(seed), len(missing), **cond, **options)[..., 0]
        drawn = {letters[number]: resized(image, max(side, model_side)) for number, image in zip(missing, images)}
    given = {letter: resized(picture, max(side, model_side)) for letter, picture in pictures.items()}
    return {letter: (given | drawn)[letter] for letter in letters}


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    """A square picture resized to uint8 (side, side)."""
    from PIL import Image

    if len(picture) == side:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def read_pictures(folder: Path, white: bool) -> dict[str, np.ndarray]:
    """{character: uint8 (S, S), white on black} of a folder. Raises `UserError` for file names that name no
    character."""
    require(folder.is_dir(), f"there is no folder {folder}: it must hold a picture for each letter, such as A.png")
    pictures: dict[str, np.ndarray] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png"):
        code = re.fullmatch(r"[uU]\+([0-9a-fA-F]{4,6})", path.stem)
        character = chr(int(code[1], 16)) if code else path.stem
        names = "the name must be one character, such as A.png, or its number, such as U+0041.png"
        require(len(character) == 1, f"{path} is of {path.stem!r}: {names}")
        require(character not in pictures, f"{folder} has two pictures of {character!r}")
        picture = read_picture(path, 1)[..., 0]
        pictures[character] = picture if white else 255 - picture
    require(bool(pictures), f"{folder} has no .png: it must hold a picture for each letter, such as A.png")
    return pictures


def drawn_by(run: Path, pictures: PictureMap, seed: int) -> dict[str, np.ndarray]:
    """The given pictures, and those of the missing letters, drawn by the model of a run."""
    require_seed(seed, "--seed")
    cli.set_up_process()
    import jgen

    return complete(jgen.load(run), pictures, seed)


def command(args: list[str]) -> int:
    title = "python -m jgen.fonts PICTURES"
    if not args or args[0].startswith("-"):
        if {"--help", "-h"} & set(args):
            cli.parse(Arguments, ["--help"], title, __doc__ or "")
        require(False, "which pictures? python -m jgen.fonts PICTURES --out my.ttf")
    parsed = cli.expanded(cli.parse(Arguments, args[1:], title, __doc__ or ""), ("out", "samples"))
    out = Path(parsed.out)
    require(out.suffix.lower() == ".ttf", f"--out is {parsed.out}: it must be a .ttf")
    check_writable(out)
    place = Path(args[0]).expanduser()
    if parsed.samples:
        pictures = drawn_by(place, read_pictures(Path(parsed.samples), parsed.white), parsed.seed)
    else:
        is_run = (place / "config.json").is_file()
        require(not is_run, f"{place} is a run: it draws the letters that are missing in --samples PICTURES")
        require(parsed.seed == 0, f"--seed is {parsed.seed}: nothing is drawn without a run and --samples")
        pictures = read_pictures(place, parsed.white)
    write_font(pictures, out, parsed.family)
    print(f"{len(pictures)} letters: {out}")
    return 0


if __name__ == "__main__":
    cli.main(command)
