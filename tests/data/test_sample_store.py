"""Samples that are written as they are drawn, and gone on with."""

import json

import numpy as np
import pytest
from data.small_sets import save
from PIL import Image

from jgen.core.model import ImageSpec
from jgen.data.sample_store import SampleStore

IMAGES = np.random.default_rng(0).integers(0, 17, (10, 4, 4, 1)).astype(np.uint8)


def store(out, num=10, start=0, **identity):
    return SampleStore(out, num, start, ImageSpec(4, 4, 1, 17), identity)


def drawn(asked):
    def batches(start, num):
        asked.append((start, num))
        for first in range(start, start + num, 4):
            yield IMAGES[first : min(first + 4, start + num)]

    return batches


def interrupted(batches, after):
    def some(start, num):
        for i, images in enumerate(batches(start, num)):
            if i == after:
                raise KeyboardInterrupt
            yield images

    return some


@pytest.mark.parametrize("name", ["folder", "x.npz", "x.png"])
def test_samples_are_gone_on_with(tmp_path, name):
    asked = []
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / name, seed=0).collect(interrupted(drawn(asked), 2))
    assert (name == "folder") == (tmp_path / name).exists()
    again = store(tmp_path / name, seed=0)
    assert again.next == 8
    again.collect(drawn(asked))
    again.finish(np.arange(10), 5)
    assert asked == [(0, 10), (8, 2)]
    shown = np.round(IMAGES * (255 / 16)).astype(np.uint8)
    if name == "folder":
        read = [np.asarray(Image.open(tmp_path / name / f"{i:06d}.png")) for i in range(10)]
        np.testing.assert_array_equal(read, shown[..., 0])
    elif name == "x.npz":
        with np.load(tmp_path / name) as saved:
            np.testing.assert_array_equal(saved["images"], IMAGES)
            assert saved["levels"] == 17 and saved["labels"].tolist() == list(range(10))
    else:
        sheet = np.asarray(Image.open(tmp_path / name))
        np.testing.assert_array_equal(sheet[2:50:12, 2:50:12], shown[0, ..., 0])
    assert {path.name for path in tmp_path.iterdir()} == {name}  # nothing is left beside


def test_other_samples_are_drawn_from_the_start(tmp_path):
    asked = []
    store(tmp_path / "f", seed=0).collect(drawn(asked))
    assert store(tmp_path / "f", seed=0).next == 10
    (tmp_path / "f" / "000003.png").unlink()
    assert store(tmp_path / "f", seed=0).next == 3  # one was removed
    assert store(tmp_path / "f", seed=1).next == 0
    assert store(tmp_path / "f", start=5, num=5, seed=1).next == 5
    store(tmp_path / "f", num=4, seed=1).collect(drawn(asked))
    assert store(tmp_path / "f", seed=1).next == 4  # the others are those of seed 0
    assert json.loads((tmp_path / "f" / ".samples.json").read_text())["done"] == [0, 4]
    save(tmp_path / "g" / "000000.png", IMAGES[0, ..., 0])
    assert store(tmp_path / "g", seed=0).next == 0
