"""The study of drawn letters: which are shown, the nearest training font, and the scores by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import mistake

from jgen.core.model import DataSpec, ImageSpec
from jgen.data.dataset import Dataset, Split
from jgen.data.style import style_fields
from jgen.studies import fonts


def glyphs(num, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, 52, 12, 12)).astype(np.uint8)


def test_letters_that_are_drawn_are_never_shown_and_are_the_same_for_every_number():
    task = fonts.choose(glyphs(7), 3, seed=1)
    assert task.numbers.tolist() == [0, 3, 6] and task.drawn.shape == (3, 22)
    image = ImageSpec(12, 12, 1, 256)
    gen = SimpleNamespace(model=SimpleNamespace(data=DataSpec(image, style_fields(30, image))))
    for number in fonts.GLYPHS:
        cond = fonts.conditions(gen, task, number)
        for row, (label, shown) in enumerate(zip(cond["label"], cond["style_label"])):
            there = shown[shown < 52]
            assert len(there) == number and label not in there
            np.testing.assert_array_equal(cond["style"][row, :number, ..., 0], task.glyphs[row // 22, there])
        np.testing.assert_array_equal(cond["label"], task.drawn.ravel())
    np.testing.assert_array_equal(task.truth[1, 4], glyphs(7)[3, task.drawn[1, 4]])


def test_the_nearest_font_is_told_by_the_style_glyphs_alone():
    train, task = glyphs(5, seed=1), fonts.choose(glyphs(2), 0, seed=0)
    first = task.order[:, 0]
    train[3, first[0]] = task.glyphs[0, first[0]]  # equal in the first style glyph of font 0
    train[1, task.drawn[0]] = task.glyphs[0, task.drawn[0]]  # equal in all letters that are drawn: it must not tell
    made = fonts.copy_nearest(train, task, 1)
    np.testing.assert_array_equal(made[0], train[3, task.drawn[0]])


def test_scores_by_hand():
    task = fonts.choose(glyphs(4), 2, seed=0)
    made = task.truth.copy()
    made[0] = 255 - made[0]

    class Reader:
        """Says of every picture the same."""

        def __init__(self, name, logits):
            self.name, self.apply = name, lambda images: (None, None, np.tile(logits, (len(images), 1)))

    letter = int(task.drawn[0, 0])
    scores = fonts.judge(made, task, Reader("letters", np.eye(52)[letter]), Reader("fonts", np.eye(4)[3]))
    inverted = np.abs(255.0 - 2.0 * task.truth[0]).mean() / 255
    assert scores["pixels"] == pytest.approx(inverted / 2)
    assert scores["letter"] == np.mean(task.drawn == letter) and scores["font"] == 0.5
    assert 0 < scores["ssim"] < 0.6 and scores["classifiers"] == ["letters", "fonts"]
    row = {"setting": {"method": "model", "glyphs": 5}, **scores}
    assert f"| model | 5 | {scores['pixels']:.4f} | " in fonts.table([row]) and "| 50.0 |" in fonts.table([row])


def test_the_set_of_test_fonts_has_the_font_as_class():
    split = Split(104, lambda positions: {"image": np.zeros((len(positions), 2, 2, 1)), "index": positions})
    data = Dataset("fonts-2", DataSpec(ImageSpec(2, 2, 1, 256)), {"train": split, "test": split}, "f")
    own = fonts.by_font(data)
    assert own.spec.num_classes == 2 and own.splits["train"].fetch(np.array([0, 51, 52, 103]))["label"].tolist() == [
        0, 0, 1, 1,
    ]  # fmt: skip


def test_mistakes(tmp_path):
    mistake(lambda: fonts.command([]), "which run?")
    mistake(lambda: fonts.command(["run", "--num", "-1", "--out", str(tmp_path)]), "--num is -1")


def test_every_study_is_a_command():
    folder = Path(fonts.__file__).parent
    studies = [path for path in folder.glob("*.py") if "\ndef command(" in path.read_text()]
    assert len(studies) > 10
    for path in studies:
        assert path.read_text().endswith('if __name__ == "__main__":\n    cli.main(command)\n'), path.name
