"""Font files from pictures: the letters that FreeType draws of them are the pictures', at the width that they need."""

from types import SimpleNamespace

import numpy as np
import pytest
from fontTools import ttLib
from PIL import Image, ImageDraw, ImageFont

from jgen import fonts
from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.data.fonts import BASELINE, EM, LETTERS, render_letters
from jgen.data.style import style_fields
from jgen.errors import UserError

TEXT = "AgOH"


def pictures_of(tmp_path, size):
    path = tmp_path / "source.ttf"
    path.write_bytes(ImageFont.load_default(20).path.getvalue())
    rendered = render_letters(str(path), size)[..., 0]
    return {letter: rendered[LETTERS.index(letter)] for letter in TEXT}


def drawn(font, letter, picture):
    """A letter as FreeType draws it where the picture has it, to an eighth of a pixel."""
    fine, size = 8, len(picture)
    side = size * fine
    large = ImageFont.truetype(font, round(EM * side), layout_engine=ImageFont.Layout.BASIC)
    left, _, right, _ = large.getbbox(letter, anchor="ls")
    best = None
    for shift in range(-fine, fine + 1):
        canvas = Image.new("L", (side, side))
        x = round((side - (right - left)) / 2) - left + shift
        ImageDraw.Draw(canvas).text((x, round(BASELINE * side)), letter, 255, large, anchor="ls")
        array = np.asarray(canvas.reduce(fine), np.float64)
        error = np.abs(array - picture).mean() / 255
        best = error if best is None else min(best, error)
    return best


def test_an_outline_drawn_again_is_the_picture_and_the_nearer_the_larger_it_is(tmp_path):
    errors = {}
    for size in (24, 96):
        pictures = pictures_of(tmp_path, size)
        fonts.write_font(pictures, tmp_path / "my.ttf", "Mine")
        errors[size] = np.mean([drawn(tmp_path / "my.ttf", letter, picture) for letter, picture in pictures.items()])
        ink = np.mean([picture.mean() / 255 for picture in pictures.values()])
        blank = np.zeros((size, size))
        assert errors[size] < 0.25 * ink, (size, errors[size], ink)
        assert drawn(tmp_path / "my.ttf", "A", blank) > 0.5 * pictures["A"].mean() / 255  # the test can fail
    assert errors[96] < 0.5 * errors[24]


def test_the_file_is_a_font_with_the_letters_their_names_and_bearings(tmp_path):
    pictures = pictures_of(tmp_path, 32)
    fonts.write_font(pictures, tmp_path / "my.ttf", "My Letters")
    with ttLib.TTFont(tmp_path / "my.ttf", checkChecksums=2) as font:
        assert set(font.getBestCmap()) == {ord(letter) for letter in TEXT + " "}
        assert font["name"].getDebugName(1) == "My Letters" and font["head"].unitsPerEm == fonts.UNITS
        glyphs, metrics = font["glyf"], font["hmtx"].metrics
        for letter in TEXT:
            advance, bearing = metrics[f"uni{ord(letter):04X}"]
            glyph = glyphs[f"uni{ord(letter):04X}"]
            left, right = fonts.bearings(pictures[letter])
            assert bearing == glyph.xMin and abs(bearing - left * 1000) <= 1
            assert abs(advance - glyph.xMax - right * 1000) <= 2
        assert glyphs["uni0048"].numberOfContours == 1 and glyphs["uni004F"].numberOfContours == 2
        ascent = font["hhea"].ascent - font["hhea"].descent
        assert ascent == pytest.approx(1000 / EM, abs=2)


def test_bearings_by_hand():
    """A stem has GAP at both sides; a bay that is deeper than DEEP counts as that deep."""
    stem = np.zeros((100, 100), np.uint8)
    stem[20:70, 40:50] = 255
    assert fonts.bearings(stem) == pytest.approx((fonts.GAP, fonts.GAP))
    bay = stem.copy()
    bay[20:30, 50:90] = 255  # a fifth of the rows reach 40 pixels further to the right
    left, right = fonts.bearings(bay)
    assert left == pytest.approx(fonts.GAP) and right == pytest.approx(max(0, fonts.GAP - 0.8 * fonts.DEEP))
    slanted = np.zeros((100, 100), np.uint8)
    for row in range(8):
        slanted[20 + row, 40 + row : 60 + row] = 255
    assert fonts.bearings(slanted) == pytest.approx([fonts.GAP - 3.5 / (EM * 100)] * 2)


def test_the_command_reads_a_folder_of_pictures(tmp_path, capsys):
    folder = tmp_path / "letters"
    folder.mkdir()
    for letter, picture in pictures_of(tmp_path, 32).items():
        Image.fromarray(255 - picture).save(folder / (f"{letter}.png" if letter != "A" else "U+0041.png"))
    out = tmp_path / "out.ttf"
    assert fonts.command([str(folder), "--out", str(out), "--no-white", "--family", "Other"]) == 0
    assert capsys.readouterr().out == f"4 letters: {out}\n"
    with ttLib.TTFont(out) as font:
        assert len(font.getBestCmap()) == 5


def test_what_cannot_be_a_font_is_one_line(tmp_path):
    ink = np.full((8, 8), 255, np.uint8)
    for pictures, words in (
        ({}, "there are no pictures"),
        ({"A": ink[:4]}, "the picture of 'A' is 8x4: it must be square"),
        ({"A": ink, "B": ink[:4, :4]}, "the picture of 'B' is 4x4, and that of 'A' 8x8: they must be of one size"),
        ({"A": 0 * ink}, "the picture of 'A' shows no letter"),
    ):
        with pytest.raises(UserError, match=words):
            fonts.write_font(pictures, tmp_path / "a.ttf", "A")
    folder = tmp_path / "names"
    for args, words in (
        ([], "which pictures"),
        ([str(folder)], "there is no folder"),
        ([str(folder), "--out", "a.otf"], "--out is a.otf: it must be a .ttf"),
    ):
        with pytest.raises(UserError, match=words):
            fonts.command([*args, *(["--out", str(tmp_path / "a.ttf")] if len(args) == 1 else [])])
    folder.mkdir()
    with pytest.raises(UserError, match="has no .png"):
        fonts.read_pictures(folder, True)
    Image.fromarray(ink).save(folder / "AB.png")
    with pytest.raises(UserError, match="AB.png is of 'AB': the name must be one character"):
        fonts.read_pictures(folder, True)


class Stub:
    """In the place of a trained model: draws a bar whose width is the letter's number, and keeps what it was given."""

    def __init__(self, size=32, most=3, conditions=("label", "style", "style_label")):
        image = ImageSpec(size, size, 1, 256)
        fields = {"label": ArraySpec((), "int32", 52, tuple(LETTERS)), **style_fields(most, image)}
        self.model = SimpleNamespace(name="stub", data=DataSpec(image, fields), conditions=conditions)

    def sample(self, key, n, **cond):
        self.given = cond
        images = np.zeros((n, *self.model.data.image.shape), np.uint8)
        for image, label in zip(images, cond["label"]):
            image[8:24, 2 : 3 + label // 2] = 255
        return images


def test_a_run_draws_the_letters_that_are_missing_and_the_font_opens(tmp_path, monkeypatch, capsys):
    folder, stub = tmp_path / "letters", Stub()
    folder.mkdir()
    pictures = pictures_of(tmp_path, 32)
    for letter, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"U+{ord(letter):04X}.png")
    monkeypatch.setattr("jgen.load", lambda run: stub)
    monkeypatch.setattr("jgen.cli.set_up_process", lambda: None)
    out = tmp_path / "out.ttf"
    assert fonts.command(["run", "--samples", str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"52 letters: {out}\n"
    shown = [LETTERS[number] for number in stub.given["style_label"]]
    assert shown == sorted(TEXT)[:3]  # as many as the model takes
    for letter, picture in zip(shown, stub.given["style"]):
        np.testing.assert_array_equal(picture[..., 0], pictures[letter])
    assert [LETTERS[number] for number in stub.given["label"]] == [x for x in LETTERS if x not in TEXT]
    with ttLib.TTFont(out, checkChecksums=2) as font:
        assert set(font.getBestCmap()) == {ord(letter) for letter in LETTERS + " "}
    opened = ImageFont.truetype(str(out), 40, layout_engine=ImageFont.Layout.BASIC)
    for letter in LETTERS:
        left, top, right, bottom = opened.getbbox(letter, anchor="ls")
        assert right > left and bottom > top
    assert drawn(out, "A", pictures["A"]) < 0.25 * pictures["A"].mean() / 255  # those given are as they were


def test_pictures_of_another_size_are_scaled_and_back(tmp_path):
    stub, pictures = Stub(size=16), pictures_of(tmp_path, 48)
    made = fonts.complete(stub, {letter: pictures[letter] for letter in "AO"})
    assert list(made) == list(LETTERS) and {array.shape for array in made.values()} == {(48, 48)}
    np.testing.assert_array_equal(made["A"], pictures["A"])
    assert stub.given["style"].shape == (3, 16, 16, 1)
    small = fonts.complete(Stub(size=32), {"A": pictures_of(tmp_path, 16)["A"]})
    assert {array.shape for array in small.values()} == {(32, 32)}


def test_letters_that_cannot_be_drawn_are_one_line(tmp_path):
    ink = np.full((8, 8), 255, np.uint8)
    for gen, pictures, words in (
        (Stub(), {}, "there are no pictures"),
        (Stub(), {"A": ink, "B": ink[:4, :4]}, "they must be of one size"),
        (Stub(), {"A": ink, "7": ink}, "'7' is a character that no font of the training set has: it has ABC"),
        (Stub(conditions=("label",)), {"A": ink}, "stub takes no style glyphs: the run must be of fonts"),
    ):
        with pytest.raises(UserError, match=f"^[^\n]*{words}[^\n]*$"):
            fonts.complete(gen, pictures)
    (tmp_path / "config.json").write_text("{}")
    for args, words in (
        ([str(tmp_path)], "is a run: it draws the letters that are missing in --samples PICTURES"),
        ([str(tmp_path / "x"), "--seed", "1"], "--seed is 1: nothing is drawn without a run and --samples"),
    ):
        with pytest.raises(UserError, match=words):
            fonts.command([*args, "--out", str(tmp_path / "a.ttf")])
