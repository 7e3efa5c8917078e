"""Pictures of shapes and their captions: the splits share no pair of shape and colour, and the judge reads both."""

import hashlib
import itertools
import math
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from jgen import sample_scores
from jgen.data import dataset
from jgen.data.config import Config
from jgen.data.shapes import (
    COLOURS,
    PALETTE,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    Draws,
    caption_entropy,
    coverage,
    draw_scenes,
    extents_of,
    make_scenes,
    pairs_of,
    render,
)
from jgen.data.shapes_judge import judge, read_caption, read_pictures, shows
from jgen.errors import UserError

NOISE = 12.0  # grey values


def pictures(split, num, size=32):
    scenes, captions = make_scenes(split, np.arange(num))
    return scenes, captions, render(scenes, size)


def with_noise(images):
    noise = np.random.default_rng(0).normal(0, NOISE, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def is_true(statement, scenes, i):
    """Whether scene i is as a caption says."""
    names = list(zip(scenes.shape[i], scenes.colour[i]))[: scenes.number[i]]
    if len(names) != len(statement.things) or {(t.shape, t.colour) for t in statement.things} != set(names):
        return False
    places = [names.index((thing.shape, thing.colour)) for thing in statement.things]
    sizes = all(thing.size in (None, scenes.size[i, k]) for thing, k in zip(statement.things, places))
    first, *others = scenes.centre[i, places]
    stands = [(y < 0 if abs(y) > abs(x) else 2 + (x < 0)) for y, x in (other - first for other in others)]
    return sizes and stands == list(statement.relations) and statement.position in (None, scenes.position[i])


MOVES = [(by, axis) for by in (1, -1) for axis in (1, 2)]


def check_judge(split, num, size):
    scenes, captions, images = pictures(split, num, size)
    for seen in (images, with_noise(images), *(np.roll(images, *move) for move in MOVES)):
        scores = judge(captions, seen)
        assert all(np.nanmean(values) == 1.0 for values in scores.values()), (split, size)
    for i, things in enumerate(read_pictures(images)):
        seen = sorted((thing.shape, thing.colour, thing.size) for thing in things)
        there = [(scenes.shape[i, k], scenes.colour[i, k], scenes.size[i, k]) for k in range(scenes.number[i])]
        assert seen == sorted(there), (split, i)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_judge_reads_every_rendering_also_with_noise_and_moved_by_a_pixel(split):
    check_judge(split, 300, 32)


@pytest.mark.slow
def test_the_judge_reads_ten_thousand_renderings():
    check_judge("train", 8000, 32)
    check_judge("test", 2000, 32)
    check_judge("train", 1000, 64)
    check_judge("test", 1000, 64)


def test_the_judge_refuses_what_a_caption_does_not_say():
    """Each picture beside the caption of every other, and what the scenes themselves say of the two."""
    num = 60
    scenes, captions, images = pictures("train", num)
    statements = [read_caption(caption) for caption in captions]
    wanted = [[is_true(statement, scenes, i) for i in range(num)] for statement in statements]
    judged = judge([caption for caption in captions for _ in range(num)], np.tile(images, (num, 1, 1, 1)))["aligned"]
    np.testing.assert_array_equal(judged.reshape(num, num), np.array(wanted, float))
    assert np.all(np.diag(wanted)) and num < np.sum(wanted) < 2 * num


def test_the_judge_tells_words_from_pictures():
    two = {"a small red circle above a blue square": 1.0, "a blue square with a red disc over it": 1.0}
    two |= {"a blue square above a red circle": 0.0, "a large red circle above a blue square": 0.0}
    two |= {"a red circle left of a blue square": 0.0, "a red circle": 0.0, "a red ring above a blue square": 0.0}
    image = np.full((32, 32, 3), 128.0)
    for shape, colour, radius, centre in ((0, 0, 3.0, (8.0, 14.0)), (1, 2, 4.5, (22.0, 17.0))):
        covered = coverage(np.array([shape]), np.array([radius]), np.array([centre]), 32)[0]
        image += covered[..., None] * (PALETTE[colour] - 128.0)
    shown = np.repeat(np.round(image).astype(np.uint8)[None], len(two), axis=0)
    np.testing.assert_array_equal(judge(list(two), shown)["aligned"], list(two.values()))
    texts = ["a large red ring above a blue square", "a small blue square below a green triangle", "a red circle"]
    shares = judge(texts, shown[: len(texts)])
    np.testing.assert_array_equal(shares["shapes"], [0.5, 0.5, np.nan])
    np.testing.assert_array_equal(shares["colours"], [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(shares["sizes"], [0.0, 0.0, np.nan])
    noise = np.random.default_rng(0).integers(0, 256, (len(two), 32, 32, 3), np.uint8)
    assert not judge(list(two), noise)["aligned"].any()


@pytest.mark.slow
def test_what_captions_leave_out_bounds_retrieval():
    """How often a reader of both finds an image's own caption, and a caption's image, among 100 of the test split."""
    _, captions, images = pictures("test", 2000)
    read, statements = read_pictures(images), [read_caption(caption) for caption in captions]
    right = np.zeros(2)
    for start in range(0, 2000, 100):
        part = range(start, start + 100)
        fits = np.array([[shows(read[j], statements[i])[1] for j in part] for i in part], float)
        same = np.array([[captions[i] == captions[j] for j in part] for i in part])
        right += [np.sum((fits * same).sum(axis) / fits.sum(axis)) for axis in (0, 1)]
    np.testing.assert_allclose(right / 2000, [0.914, 0.922], atol=5e-4)  # as jgen/models/text_to_image/clip.py has it


def test_no_pair_of_shape_and_colour_is_in_both_splits():
    there = {}
    for split, num in (("train", 4000), ("test", 2000)):
        scenes = draw_scenes(split, Draws(split, np.arange(num)))
        rows, k = np.nonzero(np.arange(3) < scenes.number[:, None])
        there[split] = set(zip(scenes.shape[rows, k].tolist(), scenes.colour[rows, k].tolist()))
        assert there[split] == set(map(tuple, pairs_of(split).tolist()))
        pairs = [set(zip(*row)) for row in zip(scenes.shape.tolist(), scenes.colour.tolist())]
        assert all(len(row) == 3 for row in pairs)  # objects of a picture are told apart by their names
    assert not there["train"] & there["test"] and len(there["train"] | there["test"]) == len(SHAPES) * len(COLOURS)
    for part in (0, 1):  # each shape and each colour alone is in both
        assert {pair[part] for pair in there["train"]} == {pair[part] for pair in there["test"]}


def test_captions_say_what_is_in_their_scenes():
    scenes, captions = make_scenes("train", np.arange(500))
    unnamed = 0
    for i, caption in enumerate(captions):
        parsed, number = read_caption(caption), scenes.number[i]
        assert len(parsed.things) == number and parsed.relations == tuple(scenes.relation[i, : number - 1])
        assert parsed.position in (None, scenes.position[i])
        for k, thing in enumerate(parsed.things):
            assert (thing.shape, thing.colour) == (scenes.shape[i, k], scenes.colour[i, k])
            assert thing.size in (None, scenes.size[i, k])
            unnamed += thing.size is None
    assert 200 < unnamed < 500  # a third of a thousand
    assert len(set(captions)) > 450


def test_objects_stand_in_their_relations_inside_the_picture_and_apart():
    scenes = draw_scenes("train", Draws("train", np.arange(3000)))
    extents = extents_of(scenes.shape, scenes.radius)
    low, high = scenes.centre - extents[..., 0], scenes.centre + extents[..., 1]
    there = (np.arange(3) < scenes.number[:, None])[:, :, None]
    assert np.all(np.where(there, low, 1.0) > 1 - 1e-9) and np.all(np.where(there, high, 1.0) < SIDE - 1 + 1e-9)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        apart = np.max(np.maximum(low[:, b] - high[:, a], low[:, a] - high[:, b]), axis=1)
        assert np.all(apart[scenes.number > b] > 2 - 1e-9)
    for other in (1, 2):
        y, x = np.moveaxis(scenes.centre[:, other] - scenes.centre[:, 0], -1, 0)
        relation = np.where(np.abs(y) > np.abs(x), y < 0, 2 + (x < 0))
        assert np.array_equal(relation[scenes.number > other], scenes.relation[scenes.number > other, other - 1])
    assert np.bincount(scenes.relation[:, 0], minlength=len(RELATIONS)).min() > 600


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_coverage_is_that_of_finer_pixels(shape):
    """Area and centre of mass are those that sizes and relations are about; edges are as if pixels were averaged."""
    given = np.array([shape]), np.array([4.5]), np.array([[15.3, 16.8]])
    covered, fine = coverage(*given, 32)[0], coverage(*given, 1024)[0]
    averaged = fine.reshape(32, 32, 32, 32).mean((1, 3))
    error = np.abs(covered - averaged)  # where a corner of 60 degrees is in a pixel's middle, 1/2 in place of 1/6
    assert error.max() < 1 / 3 and error.mean() < 0.004
    pixels = np.arange(1024) / 32 + 1 / 64
    assert fine.sum() / 1024 == pytest.approx(np.pi * 4.5**2, rel=5e-3)
    centre = [fine.sum(1) @ pixels / fine.sum(), fine.sum(0) @ pixels / fine.sum()]
    np.testing.assert_allclose(centre, given[2][0], atol=0.02)


def surprise(caption, num_pairs):
    """-log p of a caption of the grammar, nats, from its words alone."""
    prefix, number = math.log(3), len(re.findall(r"\ba (?!picture)", caption))
    nats = prefix - math.log({1: 1 / 4, 2: 1 / 2, 3: 1 / 4}[number])
    nats += sum(math.log(num_pairs - k) for k in range(number))
    rest = caption.removeprefix("there is ").removeprefix("a picture of ")
    sized = 0
    for groups in (SHAPES, COLOURS, SIZES):
        for group in groups:
            times = sum(len(re.findall(rf"\b{word}\b", rest)) for word in group)
            nats += times * math.log(len(group))
            sized += times if groups is SIZES else 0
    nats += sized * (math.log(2) - math.log(2 / 3)) - (number - sized) * math.log(1 / 3)
    if number == 1:
        where = next((group for group in POSITIONS for words in group if rest.endswith(words)), None)
        return nats + (math.log(3) if where is None else math.log(5 * len(where)) - math.log(2 / 3))
    if number == 2:
        nats += math.log(3) if " with " in rest else -math.log(2 / 3)
    for group in RELATIONS:
        nats += sum(
            len(re.findall(rf"\b{words}\b", rest.replace("to the ", ""))) * math.log(len(group))
            for words in {words.replace("to the ", "") for words in group}
        )
    return nats + math.log(4 if number == 2 else 8)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_entropy_of_captions_is_the_mean_of_their_surprise(split):
    """And no count model of pairs of words, which sees less of them, has less."""
    captions = make_scenes(split, np.arange(4000))[1]
    nats = np.array([surprise(caption, len(pairs_of(split))) for caption in captions])
    entropy = caption_entropy(split)
    assert abs(nats.mean() - entropy) < 4 * nats.std() / len(nats) ** 0.5
    words = [["", *caption.split(), "."] for caption in captions]
    pairs = Counter(pair for each in words for pair in itertools.pairwise(each))
    firsts = Counter(word for each in words for word in each[:-1])
    counted = -sum(n * math.log(n / firsts[first]) for (first, _), n in pairs.items()) / len(captions)
    assert entropy < counted < 1.5 * entropy


def test_examples_are_functions_of_their_numbers():
    _, captions, images = pictures("test", 40)
    scenes, some = make_scenes("test", np.array([7, 31]))
    assert some == [captions[7], captions[31]]
    np.testing.assert_array_equal(render(scenes, 32), images[[7, 31]])
    assert make_scenes("train", np.arange(40))[1] != captions
    u = Draws("train", np.arange(20_000)).uniform()
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * len(u)) and abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(
        len(u)
    )


def test_examples_are_the_same_on_every_machine():
    """Else a run would find other data than it was trained on. They change with the set's version only."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        _, captions, images = pictures(split, 200)
        digest.update("\n".join(captions).encode() + images.tobytes())
    assert digest.hexdigest()[:16] == "89bc7af27d350379"


def small_set(monkeypatch, **options):
    monkeypatch.setattr("jgen.data.shapes.NUM_TRAIN", 60)
    monkeypatch.setattr("jgen.data.shapes.NUM_TEST", 30)
    return dataset.load(Config(name="shapes", **options))


def test_the_set_has_captions_as_tokens_and_lends_its_judge(cache, monkeypatch):
    data = small_set(monkeypatch, size=64, text_length=128)
    assert data.spec.image.shape == (64, 64, 3) and data.splits["validation"].num == 6
    part = data.splits["test"].fetch(np.arange(30))
    texts = [data.tokenizers["text"].decode(row) for row in part["text"]]
    assert texts == make_scenes("test", np.arange(30))[1]
    assert data.judges["text"](texts, part["image"])["aligned"].mean() == 1.0
    assert small_set(monkeypatch, size=64, text_length=128, levels=4).judges == {}


def test_samples_are_scored_by_the_captions_they_were_asked_for(cache, monkeypatch):
    data = small_set(monkeypatch, text_length=128)
    part = data.splits["test"].fetch(np.arange(30))
    drawn = part["image"].copy()
    drawn[:3] = 128  # nothing there
    model = SimpleNamespace(images=data.spec.image, conditions=("text",), functions={})
    gen = SimpleNamespace(model=model)
    stages = SimpleNamespace(model=model, upsamplers=(), sample=lambda key, n, start, **_: drawn[start : start + n])
    monkeypatch.setattr("jgen.held_out.sampling_conditions", lambda *_: {"text": part["text"]})
    monkeypatch.setattr("jgen.cli.model_hash", lambda gen: "")
    monkeypatch.setattr(sample_scores, "CHUNK", 8)
    arguments = SimpleNamespace(seed=0, samples=30, batch_size=8, grid="")
    scores = sample_scores.score_samples(gen, stages, data, arguments, {}, None)
    assert scores["alignment"]["text"] | {"aligned": 0.9, "num": 30} == scores["alignment"]["text"]
    assert scores["quality"] is None and scores["sampling"]["seconds"] is not None


@pytest.mark.parametrize(
    "options,message",
    [
        ({"size": 48}, "data.size is 48: shapes are rendered at 32 or 64 pixels"),
        ({"flip": True}, "data.flip is set: captions of shapes say left and right, which it would swap"),
        ({"fields": ("label",)}, "data.fields has 'label': shapes have text"),
    ],
)
def test_options_that_shapes_do_not_take(cache, options, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        dataset.load(Config(name="shapes", **options))


def test_a_caption_that_was_cut_is_named():
    with pytest.raises(UserError, match="^'a red cir' is no caption of shapes; it may have been cut: raise --data"):
        judge(["a red cir"], np.zeros((1, 32, 32, 3), np.uint8))
