"""Folders of pictures, with classes and captions."""

from dataclasses import replace

import numpy as np
import pytest
from data.small_sets import all_indices, everything, save

from jgen.core.model import ArraySpec
from jgen.data import dataset as datasets
from jgen.data.config import Config
from jgen.data.text import Tokenizer
from jgen.errors import UserError


def test_a_folder_with_classes(tmp_path, own_cache):
    expected = {}
    for i in range(30):
        array = np.random.default_rng(i).integers(0, 256, (6, 8), np.uint8)
        save(tmp_path / "set" / "cab"[i % 3] / f"{i}.png", array)
        expected[array.tobytes()] = "abc".index("cab"[i % 3])
    dataset = datasets.load(Config(name=f"folder:{tmp_path / 'set'}"))
    assert dataset.spec.image.shape == (6, 8, 1) and dataset.spec.num_classes == 3
    assert {name: split.num for name, split in dataset.splits.items()} == {"train": 25, "validation": 2, "test": 3}
    labels_by_image = {}
    for split in dataset.splits.values():
        part = everything(split)
        labels_by_image |= {image.tobytes(): label for image, label in zip(part["image"], part["label"])}
    assert labels_by_image == expected
    assert len(set(all_indices(dataset).tolist())) == 30
    again = datasets.load(Config(name=f"folder:{tmp_path / 'set'}"))
    for name, split in dataset.splits.items():
        for key, array in everything(split).items():
            np.testing.assert_array_equal(array, everything(again.splits[name])[key])


def test_a_split_of_a_folder_depends_on_file_names_only(tmp_path, own_cache):
    tests = []
    for place in ("here", "there"):
        for i in range(20) if place == "here" else reversed(range(20)):
            save(tmp_path / place / f"{i}.png", np.full((4, 4), i, np.uint8))
        dataset = datasets.load(Config(name=f"folder:{tmp_path / place}"))
        tests.append(everything(dataset.splits["test"])["image"])
    np.testing.assert_array_equal(tests[0], tests[1])


def test_a_folder_without_classes_in_colour(tmp_path, own_cache):
    for i in range(12):  # one colour picture makes the set a colour set
        array = np.random.default_rng(i).integers(0, 256, (4, 4, 3) if i == 0 else (4, 4), np.uint8)
        save(tmp_path / "set" / f"{i}.png", array)
    dataset = datasets.load(Config(name=f"folder:{tmp_path / 'set'}"))
    assert dataset.spec.image.shape == (4, 4, 3) and dataset.spec.num_classes == 0
    images = np.concatenate([everything(split)["image"] for split in dataset.splits.values()])
    grey = np.all(images == images[..., :1], axis=(1, 2, 3))
    assert grey.sum() == 11


def test_pictures_are_resized_and_their_centre_is_cut_out(tmp_path, own_cache):
    for i in range(10):
        width, height = (24, 8) if i % 2 else (4, 12)
        array = np.zeros((height, width, 3), np.uint8)
        if i % 2:  # red, green, blue side by side: the centre is green
            array[:, :8, 0] = array[:, 8:16, 1] = array[:, 16:, 2] = 255
        else:
            array[:4, :, 0] = array[4:8, :, 1] = array[8:, :, 2] = 255
        save(tmp_path / "set" / f"{i}.png", array)
    dataset = datasets.load(Config(name=f"folder:{tmp_path / 'set'}", size=8))
    assert dataset.spec.image.shape == (8, 8, 3)
    images = np.concatenate([everything(split)["image"] for split in dataset.splits.values()]).astype(int)
    assert images.shape == (10, 8, 8, 3)
    inner = images[:, 2:-2, 2:-2]  # away from the colours' edges, which a resized picture blurs
    assert inner[..., 1].min() > 240 and inner[..., 0].max() < 15 and inner[..., 2].max() < 15
    exact = np.all(images == np.array([0, 255, 0]), axis=(1, 2, 3))
    assert exact.sum() == 5  # the 24x8 pictures are only cropped


# Captions.


def captioned(root, captions, classes=("",)):
    """Pictures of one grey value each, i.png with the caption i.txt; returns {grey value: caption}."""
    for i, caption in enumerate(captions):
        folder = root / classes[i % len(classes)]
        save(folder / f"{i}.png", np.full((4, 4), i, np.uint8))
        if caption is not None:
            (folder / f"{i}.txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return Config(name=f"folder:{root}", text_length=40)


def texts_by_picture(dataset):
    tokenizer = dataset.tokenizers["text"]
    pairs = {}
    for split in dataset.splits.values():
        part = everything(split)
        assert part["text"].dtype == np.int32 and part["text"].shape == (split.num, 40)
        pairs |= {int(image.max()): tokenizer.decode(text) for image, text in zip(part["image"], part["text"])}
    return pairs


@pytest.mark.parametrize("streamed", [False, True])
def test_captions_are_the_field_text(tmp_path, own_cache, monkeypatch, streamed):
    captions = [f"a picture of {i}, \u00e9\u6f22\U0001f600" for i in range(20)]
    config = captioned(tmp_path / "set", captions)
    if streamed:
        monkeypatch.setattr(datasets, "memory_limit", lambda: 0)
    dataset = datasets.load(config)
    assert dict(dataset.spec.fields) == {"text": ArraySpec((40,), "int32", 259)}
    assert dataset.tokenizers == {"text": Tokenizer(40)} and dataset.spec.num_classes == 0
    assert texts_by_picture(dataset) == {i: caption for i, caption in enumerate(captions)}
    assert dataset.fingerprint.startswith("streamed-") == streamed


def test_a_caption_is_the_whole_text_without_white_space_at_its_ends(tmp_path, own_cache):
    files = ["one line\n", "  two\nlines \n\n", "crlf\r\nlines\r\n", b"\xef\xbb\xbfmarked", "", " \n"]
    wanted = ["one line", "two\nlines", "crlf\nlines", "marked", "", ""]
    config = captioned(tmp_path / "set", files + ["x"] * 6)
    assert texts_by_picture(datasets.load(config)) == dict(enumerate(wanted + ["x"] * 6))


def test_classes_and_captions_may_both_be_there(tmp_path, own_cache):
    config = captioned(tmp_path / "set", [f"caption {i}" for i in range(20)], classes=("cat", "dog"))
    dataset = datasets.load(config)
    assert set(dataset.spec.fields) == {"label", "text"} and dataset.spec.num_classes == 2
    assert texts_by_picture(dataset) == {i: f"caption {i}" for i in range(20)}
    for split in dataset.splits.values():
        part = everything(split)
        np.testing.assert_array_equal(part["label"], part["image"].max((1, 2, 3)) % 2)


def test_captions_of_some_pictures_only_are_refused(tmp_path, own_cache):
    config = captioned(tmp_path / "set", ["a"] * 7 + [None] + ["a"] * 3 + [None])
    with pytest.raises(UserError, match=r"/set/11\.png has no caption 11\.txt, but 10 of 12 pictures have: all must"):
        datasets.load(config)


def test_a_caption_that_is_no_utf8_is_named(tmp_path, own_cache):
    config = captioned(tmp_path / "set", ["a"] * 5 + [b"caf\xe9"] + ["a"] * 6)
    with pytest.raises(UserError, match=r"/set/5\.txt is no UTF-8 text: byte 3 is 0xe9$"):
        datasets.load(config)


def test_a_text_file_beside_no_picture_is_no_caption(tmp_path, own_cache):
    config = captioned(tmp_path / "set", [None] * 12)
    (tmp_path / "set" / "readme.txt").write_text("of these pictures")
    dataset = datasets.load(config)
    assert not dataset.spec.fields and not dataset.tokenizers
    assert set(everything(dataset.splits["train"])) == {"image", "index"}


def test_a_caption_that_changes_makes_the_cache_stale(tmp_path, own_cache):
    config = captioned(tmp_path / "set", ["before"] * 12)
    first = datasets.load(config)
    (tmp_path / "set" / "3.txt").write_text("after!")
    again = datasets.load(config)
    assert texts_by_picture(again) == {i: "after!" if i == 3 else "before" for i in range(12)}
    assert again.fingerprint != first.fingerprint


def test_the_cache_belongs_to_the_options_of_the_tokenizer(tmp_path, own_cache):
    config = captioned(tmp_path / "set", ["the same words again and again"] * 12)
    options = [config, replace(config, text_length=20), replace(config, tokenizer="bpe", vocabulary=270)]
    loaded = [datasets.load(each) for each in options]
    assert len({dataset.fingerprint for dataset in loaded}) == 3 == len(list(own_cache.glob("decoded/*")))
    for dataset in loaded:
        tokenizer, part = dataset.tokenizers["text"], everything(dataset.splits["test"])
        np.testing.assert_array_equal(part["text"], [tokenizer.encode("the same words again and again")])
        assert dataset.spec.fields["text"] == ArraySpec((tokenizer.length,), "int32", tokenizer.num_values)
    assert loaded[2].tokenizers["text"].num_values == 270


def test_byte_pairs_are_learned_from_the_training_split_only_and_once(tmp_path, own_cache, monkeypatch):
    config = replace(captioned(tmp_path / "set", ["common words"] * 30), tokenizer="bpe", validation=0.2)
    splits = datasets.load(replace(config, tokenizer="bytes")).splits
    for name in ("validation", "test"):
        for image in everything(splits[name])["image"]:
            (tmp_path / "set" / f"{image.max()}.txt").write_text("zzzz zzzz")
    tokenizer = datasets.load(config).tokenizers["text"]
    assert b"words" in b"|".join(tokenizer._pieces) and b"zz" not in b"|".join(tokenizer._pieces)
    monkeypatch.setattr(datasets, "train_bpe", lambda *args: pytest.fail("learned anew"))
    assert datasets.load(replace(config, text_length=9)).tokenizers["text"] == replace(tokenizer, length=9)


def test_a_run_opens_its_data_with_the_tokenizer_that_it_keeps(tmp_path, own_cache, monkeypatch):
    config = replace(captioned(tmp_path / "set", ["some words"] * 12), tokenizer="bpe")
    dataset = datasets.load(config)
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(datasets, "train_bpe", lambda *args: pytest.fail("learned anew"))
    _, again = datasets.reopen(config, dataset.fingerprint, "runs/x", dataset.tokenizers)
    assert again.tokenizers == dataset.tokenizers and again.fingerprint == dataset.fingerprint


def test_fields_of_a_folder_are_asked_for_by_their_names(tmp_path, own_cache):
    config = captioned(tmp_path / "set", ["a"] * 12)
    assert set(datasets.load(replace(config, fields=("text",))).spec.fields) == {"text"}
    with pytest.raises(UserError, match="^data.fields has 'label': folder .*/set has text$"):
        datasets.load(replace(config, fields=("label",)))
