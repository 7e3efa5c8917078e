"""`emoji`: pictures of a colour font with their Unicode names as captions: `emoji`, an installed Noto Color Emoji, or
`emoji:FILE`, any font whose pictures are bitmaps (tables CBDT or sbix).

An example is a symbol character (Unicode's categories So and Sm); its caption is its name in lower case, such as
"grinning face with smiling eyes", according to Python's Unicode data: newer characters are left out, and so are the
halves of flags. Splits share no name: a tenth of the names each is assigned to test and to validation by a hash of the
name, independently of the other characters. Pictures are composited over `data.background` and made square.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen.core.model import DataSpec, ImageSpec
from jgen.data.config import Config
from jgen.data.fonts import import_font_tools, split_of
from jgen.data.image_files import background_colour
from jgen.data.sources import Records, Source, fit, map_in_threads
from jgen.errors import UserError, require

FAMILY = "Noto Color Emoji"
USUAL = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # the location of Debian's package
HOW = "install Debian's fonts-noto-color-emoji, or name a font file with colour bitmaps, --data.name emoji:FILE"
SYMBOLS = ("So", "Sm")
FLAG_LETTERS = range(0x1F1E6, 0x1F200)
SMALLEST = 8  # pixels of a side
VERSION = "1.0.0"


class Emoji(NamedTuple):
    """A character's name in lower case, and its picture as the bytes of a PNG file."""

    name: str
    png: bytes


def emoji_source(config: Config) -> Source:
    """The set as pictures of `config.size` pixels, 64 by default, with names as the text field `text`.

    Raises:
      UserError: no font, a font without colour bitmaps, mirrored pictures, or options of other sets.
    """
    size = config.size or 64
    require(size >= SMALLEST, f"data.size is {size}: emoji need {SMALLEST} pixels or more")
    require(not config.flip, "data.flip is set: names of emoji say left and right, which it would swap")
    for name in config.fields:
        require(name == "text", f"data.fields has {name!r}: emoji have text")
    _, _, file = config.name.partition(":")
    path = Path(file).expanduser() if file else installed_font()
    require(path.is_file(), f"data.name is emoji:{path}: there is no such file")
    state = path.stat()
    emoji = read_font(str(path), state.st_mtime_ns)
    colour = background_colour(config.background)
    splits = {part: [each for each in emoji if split_of(each.name) == part] for part in ("train", "validation", "test")}
    few = f"{path} has colour bitmaps of {len(emoji)} symbols: train, validation and test need one or more each"
    require(all(splits.values()), few)

    def records(emoji: list[Emoji]) -> Records:
        def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
            pictures = map_in_threads(lambda i: draw(emoji[i].png, size, colour), positions)
            return {"image": np.stack(pictures), "text": np.array([emoji[i].name for i in positions], object)}

        return Records(len(emoji), fetch, lambda field, positions: [emoji[i].name for i in positions])

    identity = (VERSION, str(path), state.st_size, state.st_mtime_ns, colour)
    digest = hashlib.sha256(repr((VERSION, colour)).encode())
    for each in emoji:
        digest.update(each.name.encode() + each.png)
    files = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    parts = {name: records(chosen) for name, chosen in splits.items()}
    spec, content = DataSpec(ImageSpec(size, size, 3, 256)), digest.hexdigest()[:16]
    return Source(f"emoji-{size}", VERSION, files, spec, parts, ("text",), content=content)


def installed_font() -> Path:
    """The file of the installed font. Raises `UserError` if there is none."""
    known = ""
    try:
        words = ["fc-list", "--format", "%{file}\n", FAMILY]
        known = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # without fontconfig it may be at its usual place
        pass
    files = [*sorted(filter(None, known.splitlines())), str(USUAL)]
    path = next((Path(file) for file in files if Path(file).is_file()), None)
    if path is None:
        raise UserError(f"data.name is emoji, and {FAMILY} is not installed: {HOW}")
    return path


@lru_cache(maxsize=2)
def read_font(path: str, changed: int) -> list[Emoji]:
    """The symbols of a font that have colour bitmaps, ordered by name.

    Args:
      changed: modification time of the file, so that the cached result is not used for a changed file.
    Raises:
      UserError: a damaged file, or one without such bitmaps.
    """
    tables = import_font_tools()
    try:
        with tables.TTFont(path, lazy=True) as font:
            bitmaps = bitmaps_of(font)
            known = font.getBestCmap() or {}
            drawn = {code: bitmaps[glyph] for code, glyph in sorted(known.items()) if glyph in bitmaps}
    except Exception as error:  # fontTools raises many types for a damaged file
        raise UserError(f"{path} is no font that can be read: {' '.join(str(error).split())[:100]}") from error
    require(bool(drawn), f"{path} has no colour bitmaps in a table CBDT or sbix: {HOW}")
    emoji = [Emoji(unicodedata.name(chr(code), "").lower(), png) for code, png in drawn.items() if is_symbol(code)]
    return sorted(each for each in emoji if each.name)


def is_symbol(code: int) -> bool:
    return code not in FLAG_LETTERS and unicodedata.category(chr(code)) in SYMBOLS


def bitmaps_of(font: Any) -> dict[str, bytes]:
    """{glyph: PNG file} of the largest bitmap size of a font; {} if it has none."""
    if "CBDT" in font and "CBLC" in font:
        sizes = [strike.bitmapSizeTable.ppemY for strike in font["CBLC"].strikes]
        data: Any = font["CBDT"].strikeData[sizes.index(max(sizes))] if sizes else {}
        return {name: glyph.imageData for name, glyph in data.items() if hasattr(glyph, "imageData")}
    if "sbix" in font and font["sbix"].strikes:
        strikes = font["sbix"].strikes
        glyphs = strikes[max(strikes)].glyphs
        return {name: glyph.imageData for name, glyph in glyphs.items() if glyph.graphicType == "png "}
    return {}


def draw(png: bytes, size: int, background: tuple[int, int, int]) -> np.ndarray:
    """A picture composited over a colour, centred in a square: uint8 (size, size, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), (*background, 255))
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return fit(np.asarray(square.convert("RGB")), size)
