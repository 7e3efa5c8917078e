"""Judges whether pictures show what captions of `jgen.data.shapes` say: both are parsed, and compared.

A pixel's difference from the background has the direction of its object's colour, also at edges; adjacent pixels of the
same direction form an object. Its area gives its size, its centre of mass its position, and its shape is the one whose
rendering with that area and position is nearest. All of this is exact on renderings, also with noise or moved by a
pixel. An object that resembles no shape gets none, so that it matches no caption.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

from jgen.data.shapes import (
    BACKGROUND,
    COLOURS,
    MOST_OBJECTS,
    OFFSETS,
    PALETTE,
    POSITIONS,
    PREFIXES,
    RADII,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    coverage,
)
from jgen.errors import require

LEAST = 0.3  # least fraction of an object's colour in a pixel assigned to it
SPECK = 1.3  # radius, in units, below which a spot is not an object
LARGE = (RADII[0][1] + RADII[1][0]) / 2
ALIKE = 0.2  # most relative squared difference between an object and its shape's rendering
MIDDLE = (OFFSETS[0] + OFFSETS[1]) / 2
CHUNK = 500  # pictures read at a time


class Thing(NamedTuple):
    """An object of a picture, or of a caption, with None for what the caption does not say.

    shape, colour: in SHAPES and COLOURS; a shape of -1 is none. size: 0 small, 1 large. centre: (y, x) in units.
    """

    shape: int
    colour: int
    size: int | None
    centre: tuple[float, float] | None = None


class Statement(NamedTuple):
    """The content of a caption: its objects, the relations (in RELATIONS) of the first to the others, the position (in
    POSITIONS) of a single object."""

    things: tuple[Thing, ...]
    relations: tuple[int, ...] = ()
    position: int | None = None


def numbered(words: Sequence[Sequence[str]]) -> dict[str, int]:
    """{word: the index of its line}."""
    return {word: number for number, synonyms in enumerate(words) for word in synonyms}


WORDS = {
    "size": numbered(SIZES),
    "colour": numbered(COLOURS),
    "shape": numbered(SHAPES),
    "relation": numbered(RELATIONS),
    "position": numbered(POSITIONS),
}


def any_of(kind: str) -> str:
    return f"({'|'.join(map(re.escape, WORDS[kind]))})"


_THING = f"a (?:{any_of('size')} )?{any_of('colour')} {any_of('shape')}"
_RELATION = any_of("relation")
_PREFIX = f"(?:{'|'.join(PREFIXES)})"
ONE = re.compile(f"{_PREFIX}{_THING}(?: {any_of('position')})?")
TWO = re.compile(f"{_PREFIX}{_THING} {_RELATION} {_THING}")
TWO_WITH = re.compile(f"{_PREFIX}{_THING} with {_THING} {_RELATION} it")
THREE = re.compile(f"{_PREFIX}{_THING} {_RELATION} {_THING} and {_RELATION} {_THING}")


def read_caption(text: str) -> Statement:
    """Parses a caption. Raises `UserError` for a text that does not follow the grammar, such as a truncated one."""

    def thing(size: str | None, colour: str, shape: str) -> Thing:
        return Thing(WORDS["shape"][shape], WORDS["colour"][colour], None if size is None else WORDS["size"][size])

    if match := ONE.fullmatch(text):
        *of_thing, position = match.groups()
        return Statement((thing(*of_thing),), (), None if position is None else WORDS["position"][position])
    if match := TWO.fullmatch(text):
        words = match.groups()
        return Statement((thing(*words[:3]), thing(*words[4:])), (WORDS["relation"][words[3]],))
    if match := TWO_WITH.fullmatch(text):
        words = match.groups()
        return Statement((thing(*words[3:6]), thing(*words[:3])), (WORDS["relation"][words[6]],))
    match = THREE.fullmatch(text)
    why = "it may have been cut: raise --data.text-length"
    require(match is not None, f"{text!r} is no caption of shapes; {why}")
    assert match is not None
    words = match.groups()
    things = (thing(*words[:3]), thing(*words[4:7]), thing(*words[8:]))
    return Statement(things, (WORDS["relation"][words[3]], WORDS["relation"][words[7]]))


def pair_of(texts: Sequence[str]) -> np.ndarray:
    """The pair of shape and colour in each caption of a single object, int (n,), as numbered by
    `jgen.data.shapes.pair_names`; -1 for captions of several objects. Raises `UserError` for a text that is not a
    caption of the set."""
    things = [read_caption(text).things for text in texts]
    pairs = [each[0].shape * len(COLOURS) + each[0].colour if len(each) == 1 else -1 for each in things]
    return np.array(pairs, int)


def read_pictures(images: np.ndarray) -> list[list[Thing]]:
    """The objects of each picture, uint8 (n, S, S, 3)."""
    read: list[list[Thing]] = []
    for start in range(0, len(images), CHUNK):
        read += read_chunk(images[start : start + CHUNK])
    return read


def read_chunk(images: np.ndarray) -> list[list[Thing]]:
    from scipy import ndimage

    n, size = images.shape[:2]
    tints = PALETTE - BACKGROUND
    lengths = np.linalg.norm(tints, axis=1)
    along = (images.astype(np.float32) - BACKGROUND) @ (tints / lengths[:, None] ** 2).T.astype(np.float32)
    nearest = np.argmax(along, axis=-1)  # tints have equal norms
    amount = np.clip(np.take_along_axis(along, nearest[..., None], -1)[..., 0], 0.0, 1.0)
    planes = (nearest[:, None] == np.arange(len(COLOURS))[None, :, None, None]) & (amount > LEAST)[:, None]
    neighbours = np.zeros((3, 3, 3, 3), bool)
    neighbours[1, 1] = True  # connects pixels of the same picture and colour only
    labels, number = ndimage.label(planes, neighbours)
    boxes = ndimage.find_objects(labels)
    things: list[list[Thing]] = [[] for _ in range(n)]
    if not number:
        return things
    places = np.array([[box[0].start, box[1].start] for box in boxes])
    masks = np.zeros((number, size, size), np.float32)
    for i, (_, _, *box) in enumerate(boxes):
        picture, colour = places[i]
        rows, columns = (slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        # The faintest edge pixels adjoin the object's pixels; noise may give them any direction.
        own = ndimage.binary_dilation(labels[picture, colour, rows, columns] == i + 1, np.ones((3, 3), bool))
        masks[i, rows, columns] = own * np.clip(along[picture, rows, columns, colour], 0.0, 1.0)
    for picture, thing in zip(places[:, 0].tolist(), recognise(masks, places[:, 1])):
        if thing is not None:
            things[picture].append(thing)
    return things


def recognise(masks: np.ndarray, colours: np.ndarray) -> list[Thing | None]:
    """The objects with pixel coverages `masks`, (m, S, S) in [0, 1]; None for a speck."""
    size = masks.shape[1]
    unit = SIDE / size
    area = masks.sum((1, 2))
    pixels = (np.arange(size) + 0.5) * unit
    centre = np.stack([masks.sum(2) @ pixels, masks.sum(1) @ pixels], axis=1) / np.maximum(area, 1e-6)[:, None]
    radius = np.sqrt(area * unit**2 / np.pi)
    differences = np.empty((len(masks), len(SHAPES)))
    for shape in range(len(SHAPES)):
        drawn = coverage(np.full(len(masks), shape), radius, centre, size)
        differences[:, shape] = ((drawn - masks) ** 2).sum((1, 2)) / np.maximum((masks**2).sum((1, 2)), 1e-6)
    best = np.argmin(differences, axis=1)
    best = np.where(differences.min(axis=1) < ALIKE, best, -1)
    things: list[Thing | None] = []
    for i in range(len(masks)):
        here = (float(centre[i, 0]), float(centre[i, 1]))
        thing = Thing(int(best[i]), int(colours[i]), int(radius[i] > LARGE), here)
        things.append(thing if radius[i] > SPECK else None)
    return things


def relation_of(one: Thing, other: Thing) -> int:
    """The relation, in RELATIONS, of one object to another, along the axis on which they are further apart."""
    assert one.centre is not None and other.centre is not None
    y, x = other.centre[0] - one.centre[0], other.centre[1] - one.centre[1]
    return int(y < 0) if abs(y) > abs(x) else 2 + int(x < 0)


def position_of(thing: Thing) -> int:
    """The position of an object in the picture, in POSITIONS."""
    assert thing.centre is not None
    y, x = thing.centre[0] - SIDE / 2, thing.centre[1] - SIDE / 2
    if max(abs(y), abs(x)) < MIDDLE:
        return 4
    return int(y > 0) if abs(y) > abs(x) else 2 + int(x > 0)


def is_like(described: Thing, shown: Thing) -> bool:
    return (described.shape, described.colour) == (shown.shape, shown.colour) and described.size in (None, shown.size)


def shows(picture: Sequence[Thing], statement: Statement) -> tuple[bool, bool]:
    """(whether the picture has exactly the statement's objects, whether their positions also agree with it)."""
    things = statement.things
    if len(picture) != len(things):
        return False, False
    has_objects = False
    for shown in permutations(picture):
        if not all(map(is_like, things, shown)):
            continue
        has_objects = True
        relations = tuple(relation_of(shown[0], other) for other in shown[1:])
        if relations == statement.relations and statement.position in (None, position_of(shown[0])):
            return True, True
    return has_objects, False


def attributes(picture: Sequence[Thing], statement: Statement) -> tuple[float, float, float]:
    """The fractions of the statement's objects whose shape, colour and size (if named) match the picture's objects,
    under the best assignment of the objects; NaN if their numbers differ."""
    things = statement.things
    if len(picture) != len(things):
        return math.nan, math.nan, math.nan

    def right(shown: Sequence[Thing]) -> list[tuple[bool, bool, bool]]:
        pairs = zip(things, shown)
        return [(a.shape == b.shape, a.colour == b.colour, a.size in (None, b.size)) for a, b in pairs]

    most = np.array(max(map(right, permutations(picture)), key=lambda shares: sum(map(sum, shares))), float)
    sizes = [share for share, thing in zip(most[:, 2], things) if thing.size is not None]
    return most[:, 0].mean(), most[:, 1].mean(), float(np.mean(sizes)) if sizes else math.nan


def judge(texts: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of how well pictures match their captions: {name: float (n,)}; the mean of each is a fraction.

    Args:
      images: uint8 (n, S, S, 3), 0 .. 255.
    Returns:
      aligned: 1 if the picture has every object, size, relation and position that the caption names, and no other
        object; aligned_1 to aligned_3: the same for captions of one to three objects, NaN for others; number: 1 if the
        number of objects is right; objects: 1 if they have the shapes, colours and sizes that the caption names;
        shapes, colours, sizes: see `attributes`.
    Raises:
      UserError: a text that is not a caption of the set.
    """
    statements = [read_caption(text) for text in texts]
    pictures = read_pictures(images)
    outcome = np.array([shows(picture, each) for picture, each in zip(pictures, statements)], float).reshape(-1, 2)
    named = np.array([len(each.things) for each in statements])
    scores = {"aligned": outcome[:, 1]}
    for number in range(1, MOST_OBJECTS + 1):
        scores[f"aligned_{number}"] = np.where(named == number, outcome[:, 1], np.nan)
    scores["number"] = np.array([float(len(picture) == number) for picture, number in zip(pictures, named)])
    shares = np.array([attributes(*pair) for pair in zip(pictures, statements)], float).reshape(-1, 3)
    return {**scores, "objects": outcome[:, 0], **dict(zip(("shapes", "colours", "sizes"), shares.T))}
