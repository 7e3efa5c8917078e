"""Style glyphs: which letters are drawn and how many, and a user's own as a condition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.core import keys as rng
from jgen.core.model import ImageSpec
from jgen.data.fonts import LETTERS
from jgen.data.style import draw_style, style_condition, style_fields
from jgen.errors import UserError

MOST, NUM = 6, 4000
FIELDS = style_fields(MOST, ImageSpec(8, 8, 1, 256))


@pytest.fixture(scope="module")
def drawn():
    """Of letters whose picture is their number everywhere: (labels, style, style labels)."""
    siblings = jnp.broadcast_to(jnp.arange(52, dtype=jnp.uint8)[None, :, None, None, None], (NUM, 52, 2, 2, 1))
    labels = jnp.arange(NUM) % 52
    keys = rng.image_keys(jax.random.key(0), jnp.arange(NUM))
    fields = jax.jit(lambda k, s, y: draw_style(k, s, y, MOST))(keys, siblings, labels)
    part = draw_style(keys[5:9], siblings[5:9], labels[5:9], MOST)
    for name, array in part.items():  # of an example's own key, whatever the batch
        np.testing.assert_array_equal(array, fields[name][5:9])
    return np.asarray(labels), np.asarray(fields["style"]), np.asarray(fields["style_label"])


def test_letters_are_distinct_and_others_and_pictures_are_theirs(drawn):
    labels, style, shown = drawn
    there = shown < 52
    assert np.all(np.diff(there.astype(int), axis=1) <= 0) and there[:, 0].all()  # the first places
    assert not np.any(shown == labels[:, None])
    for row, mask in zip(shown, there):
        assert len(np.unique(row[mask])) == mask.sum()
    np.testing.assert_array_equal(style, np.where(there, shown, 0)[:, :, None, None, None] * np.ones((2, 2, 1), int))


def test_numbers_and_letters_are_as_often_as_stated(drawn):
    labels, _, shown = drawn
    numbers = (shown < 52).sum(axis=1)
    k = np.arange(1, MOST + 1)
    p = np.log((k + 1) / k) / np.log(MOST + 1)
    assert p.sum() == pytest.approx(1)
    shares = (numbers[:, None] == k).mean(axis=0)
    assert np.all(np.abs(shares - p) < 5 * np.sqrt(p * (1 - p) / NUM))
    counts = np.bincount(shown[shown < 52], minlength=52)
    assert np.all(np.abs(counts / counts.mean() - 1) < 5 / np.sqrt(counts.mean()))


def test_pictures_are_a_condition_padded_with_absent_letters():
    pictures = {letter: np.full((8, 8, 1), number, np.uint8) for number, letter in enumerate("aB", 1)}
    cond = style_condition(pictures, FIELDS)
    assert cond["style"].shape == (MOST, 8, 8, 1) and cond["style"].dtype == np.uint8
    assert list(cond["style_label"]) == [LETTERS.index("a"), LETTERS.index("B")] + [52] * (MOST - 2)
    assert list(cond["style"][:, 0, 0, 0]) == [1, 2, 0, 0, 0, 0]


@pytest.mark.parametrize("pictures,words", [
    ({}, "there is no style glyph: give the pictures of one letter or more"),
    ({"a": (8, 8, 1), "b": (6, 6, 1)}, r"the style glyph 'b' has shape \(6, 6, 1\): it must have \(8, 8, 1\)"),
    ({"a": (8, 8, 1), "7": (8, 8, 1)}, "'7' is a character that no font of the training set has: it has ABC"),
    ({letter: (8, 8, 1) for letter in "abcdefg"}, "there are 7 style glyphs: the model takes 6 at most"),
])  # fmt: skip
def test_pictures_that_cannot_serve_are_one_line(pictures, words):
    with pytest.raises(UserError, match=f"^{words}[^\n]*$"):
        style_condition({letter: np.zeros(shape, np.uint8) for letter, shape in pictures.items()}, FIELDS)
