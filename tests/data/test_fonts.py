"""Letters of fonts as data: what is drawn, which fonts are taken, and what is of which split."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fontTools import ttLib
from PIL import ImageFont

from jgen.core import keys as rng
from jgen.data import dataset
from jgen.data.config import Config
from jgen.data.fonts import BASELINE, LETTERS, files_in, read_font, render_letters, split_of, usable_fonts
from jgen.data.transforms import make_transform
from jgen.errors import UserError


def write_copy(path, family, without=""):
    """Pillow's own font under another name, without some characters."""
    path.write_bytes(ImageFont.load_default(20).path.getvalue())
    with ttLib.TTFont(path) as font:
        for number in (1, 16):
            font["name"].setName(family, number, 3, 1, 0x409)
        for table in font["cmap"].tables:
            for character in without:
                table.cmap.pop(ord(character), None)
        font.save(path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of two families of each split, one of them in two files, and of files that are left out."""
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "fonts"
    place.mkdir()
    names = iter(f"Family{number} Sans" for number in range(1000))
    wanted = {"train": 2, "validation": 2, "test": 2}
    while any(wanted.values()):
        family = next(names)
        if wanted[split_of(family)]:
            wanted[split_of(family)] -= 1
            write_copy(place / f"{family}.ttf", family)
    write_copy(place / "again.ttf", family)
    write_copy(place / "lacks.ttf", "Lacking", without="q")
    (place / "damaged.ttf").write_bytes(b"not a font")
    return place


def test_letters_stand_on_the_baseline_in_the_middle_of_their_pictures(tmp_path):
    path = write_copy(tmp_path / "a.ttf", "A")
    for size in (32, 64):
        pictures = render_letters(str(path), size)
        assert pictures.shape == (52, size, size, 1) and pictures.dtype == np.uint8 and pictures.max() == 255
        for letter in "AHTxz":
            picture = pictures[LETTERS.index(letter), ..., 0]
            rows, columns = np.flatnonzero(picture.max(1) > 127), np.flatnonzero(picture.max(0) > 127)
            assert abs(rows[-1] + 1 - BASELINE * size) <= 1
            assert abs((columns[0] + columns[-1] + 1) / 2 - size / 2) <= 1
        below = pictures[LETTERS.index("g"), int(BASELINE * size) + 2 :]
        assert below.max() > 127  # a descender


def test_fonts_that_lack_letters_are_damaged_or_are_there_twice_are_left_out(folder, capsys):
    fonts = usable_fonts(files_in(folder))
    assert len(fonts) == 6 and len({font.family for font in fonts}) == 6
    assert "fonts: 6 of 9 files are taken" in capsys.readouterr().err
    assert usable_fonts(files_in(folder)) == fonts and not capsys.readouterr().err  # from the cache
    assert read_font(folder / "lacks.ttf") is None and read_font(folder / "damaged.ttf") is None


def test_splits_share_no_family_and_examples_are_letters_of_fonts(folder):
    data = dataset.load(Config(name=f"fonts:{folder}", size=16))
    assert data.spec.image.shape == (16, 16, 1) and data.spec.label_names == tuple(LETTERS)
    assert LETTERS[:26] == string.ascii_uppercase
    assert split_of("PT Sans") == split_of("pt serif Caption") and {split_of(f"F{i} Sans") for i in range(99)} == {
        *data.splits
    }
    for name in ("train", "validation", "test"):
        split = data.splits[name]
        assert split.num == 2 * 52
        families = [font.family for font in usable_fonts(files_in(folder)) if split_of(font.family) == name]
        assert len(families) == 2
        batch = split.fetch(np.array([3, 52 + 30]))
        np.testing.assert_array_equal(batch["label"], [3, 30])
        for row, family, letter in zip(batch["image"], families, (3, 30)):
            np.testing.assert_array_equal(row, render_letters(str(folder / f"{family}.ttf"), 16)[letter])


@pytest.mark.parametrize("options,words", [
    ({"name": "fonts:nowhere"}, "data.name is fonts:.*nowhere: there is no such folder"),
    ({"name": "fonts:{empty}"}, "there is no .ttf or .otf file in it"),
    ({"name": "fonts:{few}"}, "1 fonts of folder .* have all letters: train, validation and test need one family"),
    ({"name": "fonts:{few}", "size": 4}, "data.size is 4: letters need 8 pixels or more"),
    ({"name": "fonts:{few}", "flip": True}, "data.flip is set: it would mirror letters"),
    ({"name": "fonts:{few}", "test": "elsewhere"}, "data.test is elsewhere: only folder:PATH and npz:FILE take one"),
    ({"name": "fonts:{few}", "fields": ("style",)}, "data.fields has 'style'"),
])  # fmt: skip
def test_what_cannot_serve_is_one_line(tmp_path, monkeypatch, options, words):
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "cache"))
    places = {name: tmp_path / name for name in ("empty", "few")}
    for place in places.values():
        place.mkdir()
    write_copy(places["few"] / "a.ttf", "A")
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        dataset.load(Config(**options | {"name": options["name"].format(**places)}))
    assert caught.match(words)


@pytest.mark.slow
def test_style_letters_are_of_the_examples_font_and_never_the_example(folder):
    config = Config(name=f"fonts:{folder}", size=16, style=20)
    data = dataset.load(config)
    assert data.spec.fields["style"].shape == (20, 16, 16, 1) and data.spec.fields["style_label"].shape == (20,)
    paths = {split: sorted(folder.glob("Family*.ttf")) for split in data.splits}
    transform = jax.jit(make_transform(config, data.spec, train=True))
    for name, split in data.splits.items():
        own = [path for path in paths[name] if split_of(path.stem) == name]
        assert len(own) == 2 and split.num == 104
        letters = np.stack([render_letters(str(path), 16) for path in own])
        positions = np.random.default_rng(0).permutation(split.num)
        fetched = split.fetch(positions)
        np.testing.assert_array_equal(fetched["siblings"], letters[positions // 52])
        batch = transform(rng.image_keys(jax.random.key(1), jnp.arange(split.num)), fetched)
        assert {"siblings"}.isdisjoint(batch) and set(data.spec.fields) <= set(batch)
        for label, font, style, shown in zip(batch["label"], positions // 52, batch["style"], batch["style_label"]):
            assert label not in shown and shown[0] < 52
            there = np.asarray(shown[shown < 52])
            np.testing.assert_array_equal(style[: len(there)], letters[font, there])


def test_styles_that_there_are_not_are_one_line(folder):
    for options, words in (
        ({"name": f"fonts:{folder}", "style": 52}, "data.style is 52: a font has 51 other letters"),
        ({"name": f"fonts:{folder}", "style": -1}, "data.style is -1: it must be above zero, or 0"),
        ({"name": "digits", "style": 3}, "data.style is 3: only fonts have other letters of a style, and data.name is"),
    ):
        with pytest.raises(UserError, match=f"^{words}[^\n]*$"):
            dataset.load(Config(**options))
