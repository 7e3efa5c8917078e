"""`fonts`: the letters of many fonts as pictures, white on black, rendered here: `fonts`, those that fontconfig knows,
or `fonts:FOLDER`.

An example is a letter of a font; its class is the letter. Splits share no family: families whose names begin with the
same word, such as PT Sans and PT Sans Caption, are in the same split. A hash of that word assigns a tenth of the words
each to test and to validation, independently of the other fonts. With `style`, some of the font's other letters are
fields of an example (jgen/data/style.py).

All letters have the same scale and baseline, so that pictures can be turned back into a font (`jgen.fonts`): with S
pixels a side, an em is EM S pixels and the baseline BASELINE S from the top. A letter is centred horizontally. Fonts
are left out if they lack a letter, if letters do not fit into the picture or look the same (symbols), and if they are
duplicates.
"""

from __future__ import annotations

import hashlib
import json
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen.core.files import written_whole
from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.data.config import Config
from jgen.data.sources import Records, Source, cache_dir, map_in_threads
from jgen.errors import UserError, require

LETTERS = string.ascii_uppercase + string.ascii_lowercase
EM, BASELINE = 0.7, 0.72  # fractions of a picture's side
OVERSAMPLING = 4  # hinting moves edges by up to a pixel: pictures are drawn this many times as large, and averaged
SMALLEST = 8  # pixels of a side
KINDS = (".ttf", ".otf")
PROBED = 64  # pixels of a side of the picture that a font must fit
VERSION = "1.1.0"


class Font(NamedTuple):
    """A font file, with its family name and its style name."""

    path: str
    family: str
    style: str


def font_source(config: Config) -> Source:
    """The set as pictures of `config.size` pixels, 32 by default, whose class is the letter.

    Raises:
      UserError: no such folder, no fonts in it or known to fontconfig, mirrored letters, or options of other sets.
    """
    size = config.size or 32
    require(size >= SMALLEST, f"data.size is {size}: letters need {SMALLEST} pixels or more")
    require(not config.flip, "data.flip is set: it would mirror letters")
    require(not config.fields, f"data.fields has {config.fields[0] if config.fields else ''!r}: fonts have none")
    _, _, folder = config.name.partition(":")
    where = f"folder {folder}" if folder else "fontconfig"
    fonts = usable_fonts(files_in(Path(folder).expanduser()) if folder else files_of_fontconfig())
    splits = {
        name: [font for font in fonts if split_of(font.family) == name] for name in ("train", "validation", "test")
    }
    few = f"{len(fonts)} fonts of {where} have all letters: train, validation and test need one family or more each"
    require(all(splits.values()), few)

    def records(fonts: list[Font]) -> Records:
        def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
            number, letter = np.divmod(positions, len(LETTERS))
            needed, places = np.unique(number, return_inverse=True)
            rendered = map_in_threads(lambda each: render_letters(fonts[each].path, size), needed)
            image = np.stack([rendered[place][which] for place, which in zip(places.reshape(-1), letter)])
            return {"image": image, "label": letter.astype(np.int32)}

        return Records(len(fonts) * len(LETTERS), fetch)

    spec = DataSpec(ImageSpec(size, size, 1, 256), {"label": ArraySpec((), "int32", len(LETTERS), tuple(LETTERS))})
    files = state_of_files([Path(font.path) for font in fonts])
    content = hashlib.sha256(repr([(font.family, font.style) for font in fonts]).encode()).hexdigest()[:16]
    parts = {name: records(fonts) for name, fonts in splits.items()}
    return Source(f"fonts-{size}", VERSION, files, spec, parts, content=content, group=len(LETTERS))


def split_of(family: str) -> str:
    """The split of a family's fonts, the same for all families whose names begin with the same word."""
    word = (family.lower().split() or [""])[0]
    number = int(hashlib.sha256(word.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "validation"}.get(number, "train")


def files_in(folder: Path) -> list[Path]:
    """The font files below a folder, sorted. Raises `UserError` if there are none."""
    require(folder.is_dir(), f"data.name is fonts:{folder}: there is no such folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS)
    require(bool(files), f"data.name is fonts:{folder}: there is no {' or '.join(KINDS)} file in it")
    return files


def files_of_fontconfig() -> list[Path]:
    """The font files that fontconfig knows, sorted. Raises `UserError` if there is no fontconfig, or no font."""
    how = "install it and some fonts, or name a folder of them, --data.name fonts:FOLDER"
    try:
        done = subprocess.run(["fc-list", "--format", "%{file}\n"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"data.name is fonts, and fc-list of fontconfig does not run ({error}): {how}") from error
    files = sorted({Path(line) for line in done.stdout.splitlines() if line.lower().endswith(KINDS)})
    require(bool(files), f"data.name is fonts, and fontconfig knows no {' or '.join(KINDS)} file: {how}")
    return files


def usable_fonts(files: Sequence[Path]) -> list[Font]:
    """The fonts that have all letters, without duplicates, by family and style; prints how many files are left out.

    The result is cached for as long as the files do not change: checking a file takes 20 ms.
    """
    place = cache_dir() / "fonts" / f"{state_of_files(files)}.json"
    try:
        return [Font(*each) for each in json.loads(place.read_text())]
    except (OSError, ValueError, TypeError):
        pass
    there = {
        (font.family, font.style): font for font in reversed([read_font(path) for path in files]) if font is not None
    }
    fonts = [there[name] for name in sorted(there)]
    if len(fonts) < len(files):
        print(f"fonts: {len(fonts)} of {len(files)} files are taken: see jgen/data/fonts.py", file=sys.stderr)
    place.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(place) as aside:
        aside.write_text(json.dumps(fonts))
    return fonts


def state_of_files(files: Sequence[Path]) -> str:
    """A hash that changes when one of the files, or the way they are checked, changes."""
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((VERSION, EM, BASELINE, LETTERS, state)).encode()).hexdigest()[:16]


def import_font_tools() -> Any:
    """`fontTools.ttLib`. Raises `UserError` if it is not installed."""
    try:
        from fontTools import ttLib
    except ImportError as error:
        raise UserError(
            f"fonts need fontTools, which does not import here ({error}): pip install 'jgen[fonts]'"
        ) from error
    return ttLib


def read_font(path: Path) -> Font | None:
    """Reads a font file; None unless it has all letters, all different and within the picture."""
    tables = import_font_tools()
    try:
        with tables.TTFont(path, lazy=True) as file:
            known = file.getBestCmap() or {}
            names = file["name"]
            family = names.getDebugName(16) or names.getDebugName(1) or path.stem
            style = names.getDebugName(17) or names.getDebugName(2) or ""
        if not all(ord(letter) in known for letter in LETTERS):
            return None
        pictures = render_letters(str(path), PROBED, oversampling=1)
    except Exception:  # fontTools and FreeType raise many types for a damaged file
        return None
    inside = pictures[:, 1:-1, 1:-1].sum((1, 2), dtype=np.int64) == pictures.sum((1, 2), dtype=np.int64)
    is_drawn = pictures.reshape(len(LETTERS), -1).max(axis=1) > 127
    capitals = pictures[: len(string.ascii_uppercase)].reshape(len(string.ascii_uppercase), -1)
    differ = len(np.unique(capitals, axis=0)) == len(capitals)
    return Font(str(path), family, style) if inside.all() and is_drawn.all() and differ else None


def render_letters(path: str, size: int, oversampling: int = OVERSAMPLING) -> np.ndarray:
    """All letters of a font file, uint8 (52, size, size, 1): see the module's docstring."""
    from PIL import Image, ImageDraw, ImageFont

    side = size * oversampling
    font = ImageFont.truetype(path, round(EM * side), layout_engine=ImageFont.Layout.BASIC)
    pictures = np.empty((len(LETTERS), size, size, 1), np.uint8)
    for number, letter in enumerate(LETTERS):
        left, _, right, _ = font.getbbox(letter, anchor="ls")
        picture = Image.new("L", (side, side))
        x = (side - (right - left)) / 2 - left
        ImageDraw.Draw(picture).text((round(x), round(BASELINE * side)), letter, 255, font, anchor="ls")
        pictures[number, ..., 0] = np.asarray(picture.reduce(oversampling) if oversampling > 1 else picture)
    return pictures
