"""`shapes`: pictures of one to three coloured shapes with captions, rendered here, to measure composition.

A scene has one to three objects, each with a shape, a colour and a size, on a grey background. A single object has a
position in the picture; of several objects, the first has a relation to each of the others. Captions follow a small
grammar with synonyms, and may omit sizes and the position. No combination of a shape and a colour is in both splits:
objects of the test split have combinations that training never shows, of shapes and colours that it does show.

Example i of a split depends only on the split and i. Lengths are in units of 1/32 of the picture's side. Colours are
near the corners of the colour cube and the background is its centre, so that the colour can be recognised from an edge
pixel's mixture as well as from the inside; `jgen.data.shapes_judge` reads pictures and captions back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jgen.core.model import DataSpec, ImageSpec
from jgen.data.config import Config
from jgen.data.sources import Records, Source, Subjects
from jgen.errors import require

NUM_TRAIN, NUM_TEST = 20_000, 2_000
SIDE = 32.0  # units
MOST_OBJECTS = 3
CHUNK = 500  # pictures rendered at a time

# The names (first word of each line) and their synonyms.
SHAPES = (
    ("circle", "disc"),
    ("square", "box"),
    ("triangle",),
    ("diamond", "rhombus"),
    ("cross", "plus"),
    ("ring", "hoop"),
)
COLOURS = (
    ("red", "crimson"),
    ("green",),
    ("blue",),
    ("yellow",),
    ("cyan", "turquoise"),
    ("magenta", "pink"),
    ("white",),
    ("black",),
)
SIZES = (("small", "little", "tiny"), ("large", "big", "huge"))
RELATIONS = (
    ("above", "over"),
    ("below", "under", "beneath"),
    ("to the left of", "left of"),
    ("to the right of", "right of"),
)
POSITIONS = (
    ("at the top", "near the top"),
    ("at the bottom", "near the bottom"),
    ("on the left", "on the left side"),
    ("on the right", "on the right side"),
    ("in the middle", "in the centre"),
)
PREFIXES = ("", "there is ", "a picture of ")

BACKGROUND = 128.0
_LOW, _HIGH = 24.0, 232.0
PALETTE = np.array(
    [
        [_HIGH, _LOW, _LOW],
        [_LOW, _HIGH, _LOW],
        [_LOW, _LOW, _HIGH],
        [_HIGH, _HIGH, _LOW],
        [_LOW, _HIGH, _HIGH],
        [_HIGH, _LOW, _HIGH],
        [_HIGH, _HIGH, _HIGH],
        [_LOW, _LOW, _LOW],
    ]
)

ARM = 1 / 3  # half the width of a cross's arms, relative to their length
# The half extent of each shape with a unit disc's area: half the side, or the distance of a corner or an arm's end.
SCALES = (
    1.0,
    math.sqrt(math.pi) / 2,
    math.sqrt(4 * math.pi / math.sqrt(27)),
    math.sqrt(math.pi / 2),
    math.sqrt(math.pi / (4 - 4 * (1 - ARM) ** 2)),
    math.sqrt(4 / 3),
)
RADII = ((2.6, 3.1), (4.2, 4.8))  # radii of the disc of the same area, small and large

GAP = 2.0  # least distance of two objects along the axis of their relation
MARGIN = 1.0  # least distance to the picture's border
DOMINANCE = 3.0  # least amount by which the distance along a relation's axis exceeds that across it
ACROSS = 1.5, 6.0  # most distance across a relation, with three objects and with two
OFFSETS = 5.0, 2.0  # of a single object from the middle: least if at a side, most if in the middle


class Scenes(NamedTuple):
    """Scenes as arrays; entries of objects from index `number` on are unused.

    number: int (n,), number of objects. shape, colour: int (n, 3), in SHAPES and COLOURS. size: int (n, 3), 0 small,
    1 large. radius: float (n, 3), of the disc with the object's area. centre: float (n, 3, 2), the centre of mass,
    (y, x) from the top left. relation: int (n, 2), in RELATIONS: of the first object to the second and the third.
    position: int (n,), in POSITIONS, of a single object.
    """

    number: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    size: np.ndarray
    radius: np.ndarray
    centre: np.ndarray
    relation: np.ndarray
    position: np.ndarray


def is_held_out(shape: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Whether a combination of shape and colour belongs to the test split: two colours of each shape do."""
    return (colour - shape) % 4 == 3


def pairs_of(split: str) -> np.ndarray:
    """The pairs (shape, colour) of a split's objects, int (P, 2)."""
    shape, colour = np.divmod(np.arange(len(SHAPES) * len(COLOURS)), len(COLOURS))
    chosen = is_held_out(shape, colour) == (split == "test")
    return np.stack([shape[chosen], colour[chosen]], axis=1)


def pair_names() -> tuple[str, ...]:
    """The names of all pairs of a shape and a colour, such as "red circle"; shape s and colour c have the entry
    s * len(COLOURS) + c."""
    return tuple(f"{colour[0]} {shape[0]}" for shape in SHAPES for colour in COLOURS)


class Draws:
    """Uniform numbers that depend on a split, an example's index and the number of earlier draws.

    Each is a hash of the three (Steele et al. 2014, "Fast splittable pseudorandom number generators"), since NumPy
    would need a new generator for every example.
    """

    def __init__(self, split: str, index: np.ndarray):
        self._index = np.asarray(index, np.uint64) * np.uint64(2) + np.uint64(split == "test")
        self._drawn = 0

    def uniform(self, low: float | np.ndarray = 0.0, high: float | np.ndarray = 1.0) -> np.ndarray:
        """float64 (n,) in [low, high)."""
        self._drawn += 1
        with np.errstate(over="ignore"):
            z = self._index * np.uint64(0x9E3779B97F4A7C15) + np.uint64(self._drawn * 0xD1342543DE82EF95 % 2**64)
            for _ in range(2):  # neighbours differ in few bits: one round would leave correlations
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z = z ^ (z >> np.uint64(31))
        return low + (z >> np.uint64(11)).astype(np.float64) * 2.0**-53 * (high - low)

    def integers(self, high: int) -> np.ndarray:
        """int (n,) in 0 .. high - 1."""
        return self.uniform(0, high).astype(int)


def draw_scenes(split: str, draws: Draws) -> Scenes:
    """The scenes of the examples of `draws`."""
    number = 1 + np.searchsorted([0.25, 0.75], draws.uniform(), side="right")  # a quarter, a half, a quarter
    pairs = pairs_of(split)
    objects = pairs[distinct(draws, len(pairs))]
    size = np.stack([draws.integers(2) for _ in range(MOST_OBJECTS)], axis=1)
    low, high = np.moveaxis(np.array(RADII)[size], -1, 0)
    radius = low + np.stack([draws.uniform() for _ in range(MOST_OBJECTS)], axis=1) * (high - low)
    first = draws.integers(4)
    # The third object is left or right of the first if the second is above or below it, and vice versa.
    relation = np.stack([first, 2 * (first < 2) + draws.integers(2)], axis=1)
    position = draws.integers(len(POSITIONS))
    extents = extents_of(objects[..., 0], radius)
    alone, several = place_alone(draws, extents[:, 0], position), place_several(draws, extents, relation, number)
    centre = np.where((number == 1)[:, None, None], alone[:, None], several)
    return Scenes(number, objects[..., 0], objects[..., 1], size, radius, centre, relation, position)


def distinct(draws: Draws, num: int) -> np.ndarray:
    """Three different numbers of 0 .. num - 1, int (n, 3)."""
    first = draws.integers(num)
    second = (first + 1 + draws.integers(num - 1)) % num
    third = draws.integers(num - 2)
    for other in (np.minimum(first, second), np.maximum(first, second)):
        third = third + (third >= other)
    return np.stack([first, second, third], axis=1)


def extents_of(shape: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How far objects reach from their centres: float (..., 2, 2), per axis (y, x), in negative and positive
    direction."""
    half = np.array(SCALES)[shape] * radius
    extents = np.broadcast_to(half[..., None, None], (*half.shape, 2, 2)).copy()
    triangle = shape == SHAPES.index(("triangle",))
    extents[triangle] *= np.array([[1.0, 0.5], [3**0.5 / 2, 3**0.5 / 2]])
    return extents


def place_alone(draws: Draws, extents: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The centre (n, 2) of a single object with these extents (n, 2, 2) at a position: see OFFSETS."""
    rows = np.arange(len(position))
    axis, forth = np.where(position < 4, position // 2, 0), position % 2
    room = SIDE / 2 - MARGIN - extents[rows, axis, forth]
    along = draws.uniform(OFFSETS[0], room)
    offset = np.zeros((len(position), 2))
    offset[rows, axis] = np.where(forth == 1, along, -along)
    offset[rows, 1 - axis] = (along - DOMINANCE) * draws.uniform(-1, 1)
    middle = OFFSETS[1] * np.stack([draws.uniform(-1, 1), draws.uniform(-1, 1)], axis=1)
    return SIDE / 2 + np.where((position == 4)[:, None], middle, offset)


def place_several(draws: Draws, extents: np.ndarray, relation: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Centres (n, 3, 2) of objects with these extents (n, 3, 2, 2), in the relations (n, 2) of the first to the others.

    Along a relation's axis the other object keeps a distance of at least GAP from the first, as the second does from
    the third; then objects are randomly moved apart, and all together, as far as the picture has room.
    """
    rows, three = np.arange(len(relation)), number == 3
    axis, forth = relation // 2, 1 - relation % 2  # the other is further along the axis: the first is above or left
    most = np.where(three, ACROSS[0], ACROSS[1])
    first, second, third = (extents[:, i] for i in range(3))
    across = [draws.uniform(-1, 1) for _ in range(2)]

    def reach(of: np.ndarray, other: int, towards: bool) -> np.ndarray:
        return of[rows, axis[:, other], forth[:, other] if towards else 1 - forth[:, other]]

    clear = np.maximum(reach(first, 0, True), np.where(three, reach(third, 0, True) + ACROSS[0], 0.0))
    distance = [clear + reach(second, 0, False) + GAP, reach(first, 1, True) + reach(third, 1, False) + GAP]
    centre = np.zeros((len(relation), 3, 2))
    for other in range(2):
        centre[rows, 1 + other, axis[:, other]] = np.where(forth[:, other] == 1, 1, -1) * distance[other]
        centre[rows, 1 + other, 1 - axis[:, other]] = across[other] * np.minimum(most, distance[other] - DOMINANCE)
    there = (np.arange(3) < number[:, None])[:, :, None]
    for other in range(2):
        room = np.maximum(SIDE - 2 * MARGIN - np.subtract(*bounds(centre, extents, there)[::-1]), 0.0)
        apart = draws.uniform() * room[rows, axis[:, other]]
        moves = three if other else number >= 2
        centre[rows, 1 + other, axis[:, other]] += np.where(forth[:, other] == 1, 1, -1) * np.where(moves, apart, 0.0)
    low, high = bounds(centre, extents, there)
    free = np.stack([draws.uniform(), draws.uniform()], axis=1) * (SIDE - 2 * MARGIN - (high - low))
    return centre + (MARGIN - low + free)[:, None]


def bounds(centre: np.ndarray, extents: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest coordinates of the existing objects, (n, 2) each."""
    low = np.min(np.where(there, centre - extents[..., 0], np.inf), axis=1)
    return low, np.max(np.where(there, centre + extents[..., 1], -np.inf), axis=1)


def coverage(shape: np.ndarray, radius: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """The fraction of each pixel that an object covers: float32 (m, size, size) in [0, 1].

    Args:
      shape, radius: (m,). centre: (m, 2). size: pixels of a side.
    """
    pixels = ((np.arange(size) + 0.5) * (SIDE / size)).astype(np.float32)
    centre = np.asarray(centre, np.float32)
    y, x = pixels[None, :, None] - centre[:, 0, None, None], pixels[None, None, :] - centre[:, 1, None, None]
    half = (np.array(SCALES)[shape] * radius).astype(np.float32)[:, None, None]
    outside = np.empty((len(shape), size, size), np.float32)  # signed distance to the edge, negative inside
    for kind in range(len(SHAPES)):
        selected = shape == kind
        if selected.any():
            outside[selected] = distance_to_edge(kind, y[selected], x[selected], half[selected])
    return np.clip(0.5 - outside * (size / SIDE), 0.0, 1.0)


def distance_to_edge(kind: int, y: np.ndarray, x: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Signed distance of points to the edge of a shape of SHAPES, positive outside; near its corners a lower bound."""
    if kind in (0, 5):
        middle = np.sqrt(y * y + x * x)
        return middle - half if kind == 0 else np.maximum(middle - half, half / 2 - middle)
    if kind == 2:  # a corner on top; the centre of mass is half as far from the sides as from the corners
        return np.maximum(y, np.abs(x) * (3**0.5 / 2) - y / 2) - half / 2
    y, x = np.abs(y), np.abs(x)
    if kind == 1:
        return np.maximum(y, x) - half
    if kind == 3:
        return (y + x - half) * 0.5**0.5
    return np.minimum(np.maximum(y - half, x - ARM * half), np.maximum(x - half, y - ARM * half))


def render(scenes: Scenes, size: int) -> np.ndarray:
    """Pictures of scenes, uint8 (n, size, size, 3), with antialiased edges."""
    n = len(scenes.number)
    images = np.full((n, size, size, 3), BACKGROUND, np.float32)
    tints = (PALETTE - BACKGROUND).astype(np.float32)
    for i in range(MOST_OBJECTS):
        there = np.flatnonzero(scenes.number > i)
        covered = coverage(scenes.shape[there, i], scenes.radius[there, i], scenes.centre[there, i], size)
        images[there] += covered[..., None] * tints[scenes.colour[there, i], None, None]
    return np.round(images).astype(np.uint8)


def write_captions(scenes: Scenes, draws: Draws) -> list[str]:
    """A caption for each scene, with the wording chosen by further draws."""
    u = np.stack([draws.uniform() for _ in range(4 * MOST_OBJECTS + 4)], axis=1).tolist()
    return [write_caption(scenes, i, iter(of_caption)) for i, of_caption in enumerate(u)]


def write_caption(scenes: Scenes, i: int, draw: Iterator[float]) -> str:
    """The caption of scene i, with the wording chosen by uniform numbers."""

    def one_of(words: Sequence[str]) -> str:
        return words[int(next(draw) * len(words))]

    def described(k: int) -> str:
        size = one_of(SIZES[scenes.size[i, k]])
        with_size = size + " " if next(draw) < 2 / 3 else ""
        colour, shape = COLOURS[scenes.colour[i, k]], SHAPES[scenes.shape[i, k]]
        return f"a {with_size}{one_of(colour)} {one_of(shape)}"

    prefix, number, form = one_of(PREFIXES), scenes.number[i], next(draw)
    if number == 1:
        where = " " + one_of(POSITIONS[scenes.position[i]]) if form < 2 / 3 else ""
        return prefix + described(0) + where
    relations = [one_of(RELATIONS[relation]) for relation in scenes.relation[i, : number - 1]]
    if number == 3:
        return f"{prefix}{described(0)} {relations[0]} {described(1)} and {relations[1]} {described(2)}"
    if form < 2 / 3:
        return f"{prefix}{described(0)} {relations[0]} {described(1)}"
    return f"{prefix}{described(1)} with {described(0)} {relations[0]} it"


def caption_entropy(split: str) -> float:
    """The entropy of a caption of a split in nats, the mean -log p of a perfect model.

    Different draws always give different captions, so it is the sum of the entropies of the draws.
    """

    def words(groups: Sequence[Sequence[str]]) -> float:
        return float(np.mean([math.log(len(group)) for group in groups]))

    def choice(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    pairs = pairs_of(split)
    pair_entropy = np.mean([math.log(len(SHAPES[shape])) + math.log(len(COLOURS[colour])) for shape, colour in pairs])
    thing = float(pair_entropy) + choice(2 / 3) + 2 / 3 * (math.log(2) + words(SIZES))
    which = [math.log(len(pairs) - k) for k in range(MOST_OBJECTS)]  # different pairs
    one = thing + which[0] + choice(2 / 3) + 2 / 3 * (math.log(len(POSITIONS)) + words(POSITIONS))
    two = 2 * thing + sum(which[:2]) + math.log(4) + words(RELATIONS) + choice(2 / 3)
    three = 3 * thing + sum(which) + math.log(8) + 2 * words(RELATIONS)
    number = 1.5 * math.log(2) + math.log(len(PREFIXES))  # a quarter, a half, a quarter
    return number + one / 4 + two / 2 + three / 4


def make_scenes(split: str, positions: np.ndarray) -> tuple[Scenes, list[str]]:
    """The scenes of a split at these positions, and their captions."""
    draws = Draws(split, positions)
    scenes = draw_scenes(split, draws)
    return scenes, write_captions(scenes, draws)


def shapes_source(config: Config) -> Source:
    """The set as pictures of `config.size` pixels, 32 or 64, with captions as the text field `text`.

    Raises:
      UserError: another size, other fields, or mirrored images, whose captions would confuse left and right.
    """
    from jgen.data.shapes_judge import judge, pair_of

    require(config.size in (0, 32, 64), f"data.size is {config.size}: shapes are rendered at 32 or 64 pixels")
    require(not config.flip, "data.flip is set: captions of shapes say left and right, which it would swap")
    for name in config.fields:
        require(name == "text", f"data.fields has {name!r}: shapes have text")
    pixels = config.size or 32

    def records(split: str, num: int) -> Records:
        def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
            scenes, captions = make_scenes(split, positions)
            starts = range(0, len(captions), CHUNK)
            images = [render(Scenes(*(array[i : i + CHUNK] for array in scenes)), pixels) for i in starts]
            return {"image": np.concatenate(images), "text": np.array(captions, object)}

        return Records(num, fetch, lambda field, positions: make_scenes(split, positions)[1])

    splits = {"train": records("train", NUM_TRAIN), "test": records("test", NUM_TEST)}
    spec = DataSpec(ImageSpec(pixels, pixels, 3, 256))
    subjects = Subjects(pair_names(), tuple(f"{prefix}a {{}}" for prefix in PREFIXES), pair_of)
    judged: dict[str, Any] = {"judges": {"text": judge}, "subjects": {"text": subjects}}
    return Source("shapes", "1.0.0", "", spec, splits, ("text",), **judged)
