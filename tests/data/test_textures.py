"""A picture as squares: which, of what size, and what is no texture."""

import sys

import numpy as np
import pytest
from PIL import Image

from jgen.data import dataset
from jgen.data.config import Config, located
from jgen.data.textures import default_size
from jgen.errors import UserError


@pytest.fixture
def picture(tmp_path):
    """A grey picture of 70x100 pixels, no two squares alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wall.png")
    return tmp_path / "wall.png", pixels


def load(name, **options):
    return dataset.load(Config(name=f"texture:{name}", validation=0.0, **options))


def test_squares_are_cut_row_by_row_and_the_last_is_the_test_split(picture, cache):
    path, pixels = picture
    data = load(path, size=32)
    assert data.spec.image.shape == (32, 32, 1) and data.spec.image.levels == 256 and not data.spec.fields
    assert (data.splits["train"].num, data.splits["test"].num) == (5, 1)
    train = data.splits["train"].fetch(np.arange(5))["image"][..., 0]
    corners = [(y, x) for y in (0, 32) for x in (0, 32, 64)]
    np.testing.assert_array_equal(train, [pixels[y : y + 32, x : x + 32] for y, x in corners[:5]])
    np.testing.assert_array_equal(data.splits["test"].fetch(np.arange(1))["image"][0, ..., 0], pixels[32:64, 64:96])


def test_the_size_is_half_of_the_shorter_side(picture, cache):
    assert load(picture[0]).spec.image.shape == (32, 32, 1)
    assert [default_size(side) for side in (512, 200, 70, 40, 3, 1)] == [256, 96, 32, 20, 1, 1]


def test_coloured_pictures_have_three_channels(tmp_path, cache):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = load(tmp_path / "a.png")
    np.testing.assert_array_equal(data.splits["train"].fetch(np.arange(1))["image"][0], pixels[:32, :32])


def test_another_picture_under_the_name_is_another_set(picture, cache):
    path, pixels = picture
    first = load(path, size=32).fingerprint
    assert load(path, size=32).fingerprint == first
    Image.fromarray(255 - pixels).save(path)
    assert load(path, size=32).fingerprint != first


def test_paths_are_taken_from_the_root_and_names_are_not(picture, monkeypatch):
    monkeypatch.chdir(picture[0].parent)
    assert located(Config(name="texture:wall.png")).name == f"texture:{picture[0]}"
    assert located(Config(name="texture:brick")).name == "texture:brick"


def test_what_is_no_texture(picture, tmp_path, cache):
    path, _ = picture
    (tmp_path / "text.png").write_text("no picture")
    cases = [
        (str(path), {"size": 64}, "wall.png is 70x100: data.size is 64, and two squares of it at least must fit"),
        ("nothing.png", {}, "no texture 'nothing.png': it must be a picture file, or one of brick, grass, gravel"),
        ("", {}, "there is no texture ''"),
        (str(tmp_path / "text.png"), {}, "text.png does not open as an image"),
        (str(path), {"test": "x"}, "data.test is x: only folder:PATH and npz:FILE take one"),
    ]
    for name, options, words in cases:
        with pytest.raises(UserError, match=f"^[^\\n]*{words}[^\\n]*$"):
            load(name, **options)


def test_the_pictures_of_scikit_image(cache):
    pytest.importorskip("skimage")
    for name in ("brick", "grass", "gravel"):
        data = load(name, size=256)
        assert data.spec.image.shape == (256, 256, 1) and data.splits["train"].num == 3


def test_without_scikit_image(monkeypatch, cache):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UserError, match=r"texture:brick is a picture of scikit-image.* pip install 'jgen\[textures\]'"):
        load("brick")
