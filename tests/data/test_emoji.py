"""Pictures of colour fonts with their names: fonts with bitmaps that are made here, in both kinds of table."""

import io
import unicodedata

import numpy as np
import pytest
from conftest import mistake
from fontTools import ttLib
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables import C_B_D_T_, E_B_L_C_, sbixGlyph, sbixStrike
from fontTools.ttLib.tables._g_l_y_f import Glyph
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from PIL import Image

from jgen.data import dataset, emoji
from jgen.data.config import Config
from jgen.data.fonts import split_of

CODES = [*range(0x1F400, 0x1F428), 0x1F1E6, ord("A"), 0x1F3FB, 0xE000]  # 40 animals, and what is no symbol


def picture(code, width=17, height=16):
    """RGBA: a square of the code's own colour on nothing, half of it transparent by half."""
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[4:12, 4:12] = (code % 251, code // 251 % 251, 40, 255)
    pixels[4:8, 4:12, 3] = 128
    return pixels


def png(code):
    file = io.BytesIO()
    Image.fromarray(picture(code)).save(file, "png")
    return file.getvalue()


def write_font(path, table, codes=CODES):
    names = {code: f"u{code:X}" for code in codes}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf({name: Glyph() for name in [".notdef", *names.values()]})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in [".notdef", *names.values()]})
    builder.setupHorizontalHeader()
    builder.setupNameTable({"familyName": "Animals", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    font = builder.font
    if table == "sbix":
        add_sbix(font, names)
    elif table == "CBDT":
        add_cbdt(font, names)
    font.save(path)
    return path


def add_sbix(font, names):
    table = ttLib.newTable("sbix")
    for size in (8, 16):  # the larger is taken
        strike = sbixStrike.Strike(ppem=size, resolution=72)
        for code, name in names.items():
            data = png(code) if size == 16 else png(0)
            strike.glyphs[name] = sbixGlyph.Glyph(glyphName=name, graphicType="png ", imageData=data)
        strike.glyphs[".notdef"] = sbixGlyph.Glyph(glyphName=".notdef")
        table.strikes[size] = strike
    font["sbix"] = table


def add_cbdt(font, names):
    pictures, places = ttLib.newTable("CBDT"), ttLib.newTable("CBLC")
    pictures.version = places.version = 3.0
    glyphs = {}
    for code, name in names.items():
        glyph = glyphs[name] = C_B_D_T_.cbdt_bitmap_format_17(b"", font)
        glyph.metrics, glyph.imageData = SmallGlyphMetrics(), png(code)
        glyph.metrics.height, glyph.metrics.width = 16, 17
        glyph.metrics.BearingX = glyph.metrics.BearingY = glyph.metrics.Advance = 0
    strike = E_B_L_C_.Strike()
    size = strike.bitmapSizeTable
    size.hori, size.vert = E_B_L_C_.SbitLineMetrics(), E_B_L_C_.SbitLineMetrics()
    for line in (size.hori, size.vert):
        for field in ("ascender", "descender", "widthMax", "caretSlopeNumerator", "caretSlopeDenominator"):
            setattr(line, field, 0)
        for field in ("caretOffset", "minOriginSB", "minAdvanceSB", "maxBeforeBL", "minAfterBL", "pad1", "pad2"):
            setattr(line, field, 0)
    size.colorRef, size.ppemX, size.ppemY, size.bitDepth, size.flags = 0, 16, 16, 32, 1
    subtable = E_B_L_C_.eblc_index_sub_table_1(b"", font)
    subtable.indexFormat, subtable.imageFormat, subtable.names = 1, 17, list(names.values())
    ids = [font.getGlyphID(name) for name in subtable.names]
    size.startGlyphIndex, size.endGlyphIndex = min(ids), max(ids)
    subtable.firstGlyphIndex, subtable.lastGlyphIndex = min(ids), max(ids)
    strike.indexSubTables = [subtable]
    pictures.strikeData, places.strikes = [glyphs], [strike]
    font["CBDT"], font["CBLC"] = pictures, places


@pytest.fixture
def cache_here(tmp_path, monkeypatch):
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("table", ["CBDT", "sbix"])
def test_pictures_and_names_are_the_fonts(tmp_path, cache_here, table):
    path = write_font(tmp_path / "a.ttf", table)
    opened = dataset.load(Config(name=f"emoji:{path}", size=17, background="#203040", text_length=64))
    assert opened.spec.image.shape == (17, 17, 3) and set(opened.spec.fields) == {"text"}
    seen = {}
    for name, split in opened.splits.items():
        batch = split.fetch(np.arange(split.num))
        texts = [opened.tokenizers["text"].decode(row) for row in batch["text"]]
        assert all(split_of(text) == name for text in texts)
        seen |= dict(zip(texts, batch["image"]))
    animals = CODES[:40]
    assert set(seen) == {unicodedata.name(chr(code)).lower() for code in animals}
    for code in animals:
        wanted = np.full((17, 17, 3), (0x20, 0x30, 0x40), float)
        own = picture(code).astype(float)
        part = own[..., 3:] / 255
        wanted[:16] = part * own[..., :3] + (1 - part) * wanted[:16]  # of 16 rows in 17 the middle begins at the top
        np.testing.assert_allclose(seen[unicodedata.name(chr(code)).lower()], wanted, atol=1)


def test_pictures_are_of_any_size_and_another_background_is_another_set(tmp_path, cache_here):
    path = write_font(tmp_path / "a.ttf", "sbix")
    made = [dataset.load(Config(name=f"emoji:{path}", background=colour)) for colour in ("white", "black")]
    assert made[0].spec.image.shape == (64, 64, 3) and made[0].fingerprint != made[1].fingerprint
    corners = [one.splits["train"].fetch(np.arange(1))["image"][0, 0, 0].tolist() for one in made]
    assert corners == [[255] * 3, [0] * 3]


def test_an_installed_font_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "USUAL", tmp_path / "none.ttf")
    monkeypatch.setenv("PATH", str(tmp_path))  # without fontconfig
    words = ["data.name is emoji, and Noto Color Emoji is not installed", "fonts-noto-color-emoji", "emoji:FILE"]
    mistake(lambda: dataset.load(Config(name="emoji")), *words)
    monkeypatch.setattr(emoji, "USUAL", write_font(tmp_path / "usual.ttf", "sbix"))
    assert emoji.installed_font() == tmp_path / "usual.ttf"
    program, other = tmp_path / "fc-list", write_font(tmp_path / "other.ttf", "sbix")
    program.write_text(f"#!/bin/sh\necho {other}\n")
    program.chmod(0o755)
    assert emoji.installed_font() == other


@pytest.mark.parametrize(
    "options,words",
    [
        ({"size": 4}, ["data.size is 4", "8 pixels"]),
        ({"flip": True}, ["data.flip is set", "left and right"]),
        ({"test": "x"}, ["data.test is x", "only folder:PATH"]),
        ({"fields": ("label",)}, ["data.fields has 'label'"]),
        ({"background": "no colour"}, ["data.background is 'no colour'"]),
        ({"name": "emoji:nowhere.ttf"}, ["emoji:nowhere.ttf: there is no such file"]),
    ],
)
def test_options_that_do_not_serve(tmp_path, options, words):
    path = write_font(tmp_path / "a.ttf", "sbix")
    mistake(lambda: dataset.load(Config(**{"name": f"emoji:{path}", **options})), *words)


def test_fonts_that_do_not_serve(tmp_path):
    plain, damaged = write_font(tmp_path / "plain.ttf", ""), tmp_path / "damaged.ttf"
    damaged.write_bytes(b"not a font")
    mistake(lambda: dataset.load(Config(name=f"emoji:{plain}")), "plain.ttf has no colour bitmaps", "CBDT or sbix")
    mistake(lambda: dataset.load(Config(name=f"emoji:{damaged}")), "damaged.ttf is no font that can be read")
    few = write_font(tmp_path / "few.ttf", "sbix", CODES[:1])
    mistake(lambda: dataset.load(Config(name=f"emoji:{few}")), "1 symbols", "one or more each")
