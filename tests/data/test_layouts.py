"""Folders as people have them: numbered classes, links, splits, other files, names of any bytes; classes by name."""

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from data.small_sets import everything, png, prepare, save

from jgen.core.model import ArraySpec
from jgen.data import dataset as datasets
from jgen.data import folders
from jgen.data.config import Config
from jgen.data.pictures import read_images
from jgen.data.scan import natural_order
from jgen.errors import UserError


def grey(value):
    return np.full((4, 4), value, np.uint8)


def fill(folder, value, num=10):
    for i in range(num):
        save(folder / f"{i}.png", grey(value))


def pairs(dataset, split=None):
    """{(grey value, label)} of all splits, or of one."""
    parts = [everything(part) for name, part in dataset.splits.items() if split in (None, name)]
    return {(int(image.max()), int(label)) for part in parts for image, label in zip(part["image"], part["label"])}


def load(root, **options):
    return datasets.load(Config(name=f"folder:{root}", **options))


def test_numbered_classes_are_the_same_as_data_and_as_images(tmp_path, own_cache):
    for number in range(12):
        fill(tmp_path / "set" / str(number), 20 * number)
    dataset = load(tmp_path / "set")
    assert pairs(dataset) == {(20 * number, number) for number in range(12)}
    assert dataset.spec.fields["label"] == ArraySpec((), "int32", 12) and dataset.spec.classes[10] == "10"
    images, labels = read_images(tmp_path / "set", 1, dataset.spec.classes)
    np.testing.assert_array_equal(images[:, 0, 0, 0], 20 * labels)
    assert sorted(["x10", "x9", "b", "10", "9", "a1b10", "a1b9"], key=natural_order)[:3] == ["9", "10", "a1b9"]


def test_classes_of_images_are_matched_by_name(tmp_path, own_cache):
    for number, name in enumerate(("ant", "bee", "cat")):
        fill(tmp_path / "set" / name, number)
        if number:
            fill(tmp_path / "samples" / name, number, 2)
    dataset = load(tmp_path / "set")
    assert dataset.spec.classes == dataset.spec.fields["label"].names == ("ant", "bee", "cat")
    images, labels = read_images(tmp_path / "samples", 1, dataset.spec.classes)
    assert labels.tolist() == images[:, 0, 0, 0].tolist() == [1, 1, 2, 2]
    np.savez(tmp_path / "x.npz", images=images, labels=["bee", "bee", "cat", "ant"])
    assert read_images(tmp_path / "x.npz", 1, dataset.spec.classes)[1].tolist() == [1, 1, 2, 0]
    fill(tmp_path / "samples" / "dog", 3, 1)
    with pytest.raises(UserError, match="samples has the class 'dog': the data has ant, bee, cat$"):
        read_images(tmp_path / "samples", 1, dataset.spec.classes)


def test_linked_classes_are_read_and_loops_are_told(tmp_path, own_cache, capsys):
    fill(tmp_path / "elsewhere", 7)
    fill(tmp_path / "set" / "zebra", 9)
    (tmp_path / "set" / "apes").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "zebra" / "round").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "zebra" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    dataset = load(tmp_path / "set")
    assert pairs(dataset) == {(7, 0), (9, 1)} and dataset.spec.classes == ("apes", "zebra")
    line = capsys.readouterr().err
    assert "1 file is left out: 1 (broken link); links to a folder that they are in: zebra/round" in line


def test_all_formats_are_read_and_what_is_left_out_is_counted(tmp_path, own_cache, capsys):
    endings = "avif jfif jpe jp2 pbm tga webp png".split()
    for ending in endings:
        for i in range(2):
            save(tmp_path / "set" / ending / f"{i}.{ending}", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "set" / "movies").mkdir()
    for name in ("a.mp4", "b.MP4", "c.json", "readme.txt", "plain"):
        (tmp_path / "set" / "movies" / name).write_text("x")
    for name in (".DS_Store", "png/._0.png"):
        (tmp_path / "set" / name).write_text("hidden")
    dataset = load(tmp_path / "set")
    assert dataset.spec.classes == tuple(sorted(endings)) and sum(s.num for s in dataset.splits.values()) == 16
    line = capsys.readouterr().err.splitlines()[0]
    assert line == (
        f"folder {tmp_path / 'set'}: 5 files are left out: 2 .mp4, 1 .json, 1 .txt, 1 without an ending;"
        " folders without pictures: movies"
    )
    with pytest.raises(UserError, match="movies/? has no images: .*; 4 files are left out: 2 .mp4, "):
        load(tmp_path / "set" / "movies")


def test_transparent_pixels_have_one_background(tmp_path, own_cache):
    for i in range(10):
        colour = [0, 255, 0] if i % 2 else [255, 0, 255]
        save(tmp_path / "set" / f"{i}.png", np.full((4, 4, 4), [*colour, 0], np.uint8))
    for background, values in (("white", {255}), ("black", {0})):
        images = everything(load(tmp_path / "set", background=background).splits["train"])["image"]
        assert set(np.unique(images)) == values and images.shape[3] == 3
    with pytest.raises(UserError, match="^data.background is 'whit': it must be a colour such as white"):
        load(tmp_path / "set", background="whit")


@pytest.mark.parametrize("name", ["val", "valid", "validation", None])
def test_folders_named_after_splits_are_splits(tmp_path, own_cache, name):
    root = tmp_path / "set"
    for number, kind in enumerate(["train", "test"] + ([name] if name else [])):
        for label, animal in enumerate(("cat", "dog")):
            fill(root / kind / animal, 100 * number + label, 12)
    (root / "annotations").mkdir()  # without pictures
    dataset = load(root)
    assert dataset.spec.classes == ("cat", "dog")
    assert pairs(dataset, "train") == {(0, 0), (1, 1)} and pairs(dataset, "test") == {(100, 0), (101, 1)}
    validation_pairs = pairs(dataset, "validation")
    assert validation_pairs == {(200, 0), (201, 1)} if name else validation_pairs <= {(0, 0), (1, 1)}
    assert dataset.splits["train"].num == (24 if name else 22) and dataset.splits["test"].num == 24


def test_a_test_folder_is_named(tmp_path, own_cache):
    fill(tmp_path / "set", 1)
    fill(tmp_path / "held", 2, 3)
    splits = load(tmp_path / "set", test=str(tmp_path / "held"), validation=0.0).splits
    assert {name: part.num for name, part in splits.items()} == {"train": 10, "test": 3}
    assert everything(splits["test"])["image"].min() == 2
    with pytest.raises(UserError, match="^data.test is x: only folder:PATH and npz:FILE take one"):
        datasets.load(Config(test="x"))
    fill(tmp_path / "split" / "train", 1)
    fill(tmp_path / "split" / "test", 1)
    with pytest.raises(UserError, match="has a test split of its own"):
        load(tmp_path / "split", test=str(tmp_path / "held"))


@pytest.mark.parametrize(
    "kinds,words",
    [
        (["train", "test", "cat"], "has the splits test, train beside cat: splits must stand alone"),
        (["test", "val"], "has the splits test, val, but no folder train"),
        (["train", "val", "validation"], "each must be one folder"),
    ],
)
def test_splits_that_are_not_clear(tmp_path, own_cache, kinds, words):
    for kind in kinds:
        fill(tmp_path / "set" / kind, 0)
    with pytest.raises(UserError, match=words):
        load(tmp_path / "set")


def test_a_class_called_train_is_a_class(tmp_path, own_cache):
    for kind in ("car", "train"):
        fill(tmp_path / "set" / kind, 0)
    assert load(tmp_path / "set").spec.classes == ("car", "train")


def test_a_class_of_test_that_train_lacks_is_named(tmp_path, own_cache):
    for kind in ("train/cat", "test/cat", "test/dog"):
        fill(tmp_path / "set" / kind, 0)
    with pytest.raises(UserError, match="test/? has the class dog, which train does not have"):
        load(tmp_path / "set")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in UTF-8 only")
def test_names_that_are_no_utf8_are_read(tmp_path, own_cache):
    for i in range(10):
        save(tmp_path / "set" / "plain" / f"{i}.png", grey(1))
    folder = os.fsencode(tmp_path / "set") + b"/caf\xe9"
    os.mkdir(folder)
    for i in range(10):
        with open(folder + b"/\xff%d.png" % i, "wb") as file:
            file.write((tmp_path / "set" / "plain" / "0.png").read_bytes())
    dataset = load(tmp_path / "set")
    assert dataset.spec.num_classes == 2 and sum(part.num for part in dataset.splits.values()) == 20


def test_upright_pictures_are_of_one_size_and_cropped_upright(tmp_path, own_cache):
    from PIL import Image

    for i in range(10):  # a tall picture: 8 rows above 4 in black, 4 in white
        tall = np.repeat([0, 0, 0, 255], 4)[:, None].repeat(8, 1).astype(np.uint8)
        exif = Image.Exif()
        exif[274] = 6 if i % 2 else 1
        stored = Image.fromarray(tall).transpose(Image.Transpose.ROTATE_90) if i % 2 else Image.fromarray(tall)
        (tmp_path / "set").mkdir(exist_ok=True)
        stored.save(tmp_path / "set" / f"{i}.png", exif=exif)
    dataset = load(tmp_path / "set")
    assert dataset.spec.image.shape == (16, 8, 1)
    cropped = everything(load(tmp_path / "set", size=8).splits["train"])["image"]
    assert (cropped == 0).all()  # the centre: rows 4 to 11


def test_headers_are_read_once(tmp_path, own_cache, monkeypatch):
    fill(tmp_path / "set", 3)
    first = load(tmp_path / "set")
    monkeypatch.setattr(folders, "read_header", lambda *args: pytest.fail("a file was opened"))
    monkeypatch.setattr(folders, "read_picture", lambda *args: pytest.fail("a file was opened"))
    assert load(tmp_path / "set").fingerprint == first.fingerprint


def test_a_set_that_moved_is_the_same(tmp_path, own_cache, monkeypatch):
    fill(tmp_path / "set" / "a", 3)
    config = Config(name=f"folder:{tmp_path / 'set'}")
    before = datasets.load(config)
    monkeypatch.setattr(datasets, "memory_limit", lambda: 0)
    streamed = datasets.load(config)
    (tmp_path / "set").rename(tmp_path / "other")
    with pytest.raises(UserError, match="set does not exist: --data.name names where it is now"):
        datasets.reopen(config, before.fingerprint, "runs/x")
    place = replace(config, name=f"folder:{tmp_path / 'other'}")
    assert datasets.reopen(config, streamed.fingerprint, "runs/x", place=place)[1].fingerprint == streamed.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("JGEN_CACHE", str(own_cache))
    reopened_config, dataset = datasets.reopen(config, before.fingerprint, "runs/x", place=place)
    assert dataset.fingerprint == before.fingerprint and reopened_config.name == place.name


def test_a_test_split_without_labels(tmp_path, own_cache):
    import tensorflow_datasets as tfds

    class Unlabelled(tfds.features.ClassLabel):
        """TFDS refuses -1 of an example, but sets that hide the labels of test store it."""

        def encode_example(self, example_data):
            return np.int64(example_data)

    features = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": Unlabelled(num_classes=2)}
    train = [{"image": png(grey(i)[..., None]), "label": i % 2} for i in range(20)]
    test = [{"image": png(grey(i)[..., None]), "label": -1} for i in range(10)]
    prepare(tmp_path, "hidden", "1.0.0", features, {"train": train, "test": test})
    dataset = datasets.load(Config(name="hidden", dir=str(tmp_path)))
    assert datasets.has_labels(dataset, "train") and not datasets.has_labels(dataset, "test")
    with pytest.raises(UserError, match=r"^test of hidden has no labels \(they are -1\), and x needs them$"):
        datasets.require_labels_of(dataset, "test", "x needs them")
