"""Pictures of what a trained model has learned: python -m jgen.figures RUN --kind KIND --out figure.png

KIND is one of
  reconstructions  images of the data, each above its reconstruction
  interpolation    interpolations between the latents of pairs of images, with the images themselves at the ends; for a
                   conditional model, both images have the same class, or the text of the first is used
  traversal        a row per latent dimension, which is moved from -3 to 3 around the latents of one image; the
                   dimensions that vary most over the data come first
  manifold         a grid over the two latent dimensions that vary most, at quantiles of a standard normal, with all
                   others at zero
  attribute        a row per image of the first of --classes, to whose latents the difference of the two classes' mean
                   latents (second minus first, over training images) is added with a strength from 0 to 1
  completions      the images, their kept pixels (the rest black), and --rows completions of each, one below the other;
                   --mask says where pixels are kept, and --kept how many of them
  restorations     the images, their measurements (scaled to the same size), and --rows restorations of each, one below
                   the other; --problem says what is measured
  inversions       images of the data, each above what the model decodes from the latents that were optimised for it
  truncation       a row per truncation value, in --rows equal steps up to the model's own, with the same --columns
                   latents in each row
  style_mixing     samples above and to the left; each image in the grid has the coarse styles of the sample to the left
                   and the fine styles of the one above
  prior            rows of images decoded from standard normal latents, as many from normal latents with each
                   dimension's mean and standard deviation over the data, and as many samples of the model
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from jgen.core.files import check_writable
from jgen.data.config import DataLocation
from jgen.data.dataset import Split
from jgen.errors import UserError, require, require_positive, require_seed
from jgen.experiment import Experiment
from jgen.prob.degradation import Problem

if TYPE_CHECKING:
    from jgen.core.model import Cond, GenerativeModel
    from jgen.generator import Generator

SEEN = 1000  # images to estimate the spread of a latent dimension, or the mean latents of a class, from

Splits = Mapping[str, Split]
Mask = Literal["top", "left", "border", "random", "text"]


@dataclass(frozen=True)
class Arguments:
    """Which figure to draw, from which images, and where to write it."""

    kind: Literal[
        "reconstructions",
        "interpolation",
        "traversal",
        "manifold",
        "attribute",
        "completions",
        "restorations",
        "inversions",
        "truncation",
        "style_mixing",
        "prior",
    ] = "reconstructions"
    """The kind of figure."""
    out: str = "figure.png"
    """Where to write the picture."""
    split: Literal["validation", "test", "train"] = "test"
    """Split of the data that images are taken from."""
    rows: int = 8
    """Number of rows; for reconstructions, image-reconstruction pairs; for completions, completions per image; for
    prior, rows of each of the three kinds. Not accepted by manifold, which is square."""
    columns: int = 11
    """Images in a row."""
    start: int = 0
    """Index of the first image taken from the split."""
    label: int | None = None
    """Class for a conditional model's traversal or manifold; default: that of the first image."""
    classes: tuple[int, int] = (0, 1)
    """For attribute: the class of the images, and the class that they are moved towards."""
    kept: float = 0.5
    """Approximate fraction of an image's pixels that completions keep, above 0 and below 1."""
    mask: Mask = "top"
    """Where completions keep pixels: rows from the top, columns from the left, all but a block in the middle, pixels at
    random, or all but a line of text (which ignores --kept)."""
    problem: Problem = "super_resolution"
    """The degradation that restorations undo: means of blocks of 2x2 pixels, luma, or noise."""
    noise: float = 0.0
    """Standard deviation of the noise added to the measurements for restorations, in pixel levels."""
    seed: int = 0
    """Seed of the model's random draws."""
    step: int | Literal["best"] | None = None
    """Checkpoint to load, or best: the stored one with the best validation score; default: the newest."""
    ema: bool = True
    """Use the moving average (EMA) of the weights."""
    data: DataLocation = field(default_factory=DataLocation)
    """Current location of the run's data, if it has moved since training."""


def command(args: list[str]) -> int:
    from jgen import cli

    if not args or args[0].startswith("-"):
        if "--help" in args or "-h" in args:
            cli.parse(Arguments, ["--help"], "python -m jgen.figures RUN", __doc__ or "")
        raise UserError("which run? python -m jgen.figures RUN --kind reconstructions --out figure.png")
    cli.set_up_process()
    import jgen
    from jgen.core.generate import require_capability
    from jgen.data.pictures import write_images
    from jgen.runs import load_experiment

    parsed = cli.parse(options(load_experiment(args[0])[0]), args[1:], "python -m jgen.figures RUN", __doc__ or "")
    a: Arguments = parsed.main
    check_arguments(a)
    gen = jgen.load(args[0], step=a.step, ema=a.ema, frozen=cli.given_frozen(parsed))
    draw, needed = FIGURES[a.kind]
    for capability in needed:
        require_capability(gen.model, capability)
    check_conditions(gen.model, a)
    conditional = "label" in gen.model.conditions
    require(a.label is None or conditional, f"--label is {a.label}: {gen.model.name} takes no classes")
    images, columns = draw(gen, open_splits(args[0], gen, a), a)
    write_images(Path(a.out).expanduser(), images, None, gen.model.images.levels, columns)
    print(f"{a.kind} of {gen}: {a.out}")
    return 0


def options(experiment: Experiment) -> type:
    """The command line's options: those above, and the run's frozen runs."""
    import tyro

    from jgen import cli

    main = Annotated[Arguments, tyro.conf.arg(name="")]
    fields: list[Any] = [("main", main, dataclasses.field(default=Arguments()))]
    return dataclasses.make_dataclass("Options", fields + cli.frozen_option(experiment), frozen=True)


def check_arguments(a: Arguments) -> None:
    """Raises `UserError` for options that are out of range or would have no effect."""
    require_positive(**{"--rows": a.rows, "--columns": a.columns})
    require_seed(a.seed, "--seed")
    require(a.start >= 0, f"--start is {a.start}: it must be zero or above")
    require(a.out.endswith(".png"), f"--out is {a.out}: a figure must end in .png")
    check_writable(Path(a.out).expanduser())
    moved = a.kind in ("traversal", "manifold")  # kinds about one image, of one class
    require(moved or a.label is None, f"--label is {a.label}: {a.kind} takes the classes of its images")
    square = f"--rows is {a.rows}: a manifold has as many rows as --columns"
    require(a.kind != "manifold" or a.rows == Arguments.rows, square)
    first, second = a.classes
    only = f"--classes is {first} {second}: {a.kind} has no classes to move between"
    require(a.kind == "attribute" or a.classes == Arguments.classes, only)
    require(first != second, f"--classes is {first} {second}: an attribute is the difference of two")
    require(0 < a.kept < 1, f"--kept is {a.kept}: it must be above 0 and below 1")
    require(a.noise >= 0, f"--noise is {a.noise}: it must be zero or above")
    for kind, names in (("completions", ("kept", "mask")), ("restorations", ("problem", "noise"))):
        for name in names:
            unread = f"--{name} is {getattr(a, name)}: {a.kind} does not read it, {kind} would"
            require(a.kind == kind or getattr(a, name) == getattr(Arguments, name), unread)


def check_conditions(model: GenerativeModel, a: Arguments) -> None:
    """Raises `UserError` for a model with conditions that this kind of figure cannot set."""
    others = ", ".join(name for name in model.conditions if name != "label")
    known = f"{model.name} is conditioned on {others}: {a.kind} knows classes only"
    require(not others or a.kind in OF_IMAGES, f"{known}; {', '.join(OF_IMAGES)} take what images have")


def open_splits(run: str, gen: Generator, a: Arguments) -> Splits:
    """The splits of the run's data. Raises `UserError` if the data has changed since training, or has no such split."""
    from jgen.data import dataset
    from jgen.train.run_directory import read_config

    fingerprint = read_config(Path(run))["data_fingerprint"]
    splits = dataset.reopen(gen.config.data, fingerprint, run, gen.tokenizers, a.data)[1].splits
    require(a.split in splits, f"--split is {a.split}: the run's data has {', '.join(splits)}")
    require(a.start < splits[a.split].num, f"--start is {a.start}: {a.split} has {splits[a.split].num} images")
    return splits


def data(gen: Generator, splits: Splits, a: Arguments, n: int) -> tuple[np.ndarray, Cond]:
    """`n` images of the split, as the model was trained on them, and their conditions, {} if it has none."""
    split = splits[a.split]
    require(a.start + n <= split.num, f"{n} images from --start {a.start} are wanted: {a.split} has {split.num} in all")
    batch = fetch(gen, split, a.start + np.arange(n), a.seed)
    return batch["image"], {name: batch[name] for name in gen.model.conditions}


def fetch(gen: Generator, split: Split, rows: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """These examples of the split, their images as the model was trained on them."""
    import jax

    from jgen.core import keys as rng
    from jgen.data.transforms import make_transform

    batch = split.fetch(rows)
    keys = rng.image_keys(rng.stream(rng.seed_key(seed), rng.DATA), batch["index"])
    batch = jax.jit(make_transform(gen.config.data, gen.model.data, train=False))(keys, batch)
    return {name: np.asarray(array) for name, array in batch.items()}


def reconstructions(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """Rows of images, each above its reconstructions."""
    import jax

    images, named = data(gen, splits, a, a.rows * a.columns)
    made = gen.reconstruct(jax.random.key(a.seed), images, **named)
    return above(images, made, a), a.columns


def above(images: np.ndarray, made: np.ndarray, a: Arguments) -> np.ndarray:
    """Rows of images, each above the row of their processed versions."""
    pairs = np.stack([x.reshape(a.rows, a.columns, *x.shape[1:]) for x in (images, made)], axis=1)
    return pairs.reshape(-1, *images.shape[1:])


def inversions(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """Rows of images, each above what is decoded from the latents that were optimised for it."""
    import jax

    images, named = data(gen, splits, a, a.rows * a.columns)
    key = jax.random.key(a.seed)  # shared: a generator with noise inputs then decodes with the noise of the search
    made = gen.decode(key, gen.invert(key, images, **named), **named)
    return above(images, made, a), a.columns


def truncation(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """A row of samples per truncation value; all images in a column have the same key and class."""
    import jax

    own = getattr(gen.model.sampling, "truncation", None)
    require(own is not None, f"{gen.model.name} has no truncation of its latents")
    label = np.arange(a.columns) % gen.model.data.num_classes if gen.model.conditions else None
    key, parts = jax.random.key(a.seed), np.arange(1, a.rows + 1) / a.rows
    rows = [gen.sample(key, a.columns, label=label, truncation=float(own * part)) for part in parts]
    return np.concatenate(rows), a.columns


def style_mixing(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """A row of samples (after an empty cell), then rows that begin with a sample and mix its styles with theirs."""
    import jax

    from jgen.core import keys as rng

    mix = gen.model.functions.get("mix_styles")
    if mix is None:
        raise UserError(f"{gen.model.name} has no styles to mix, as stylegan2 has")
    require(a.columns >= 2, f"--columns is {a.columns}: style_mixing has 2 or more, the samples to the left among them")
    key, number = jax.random.key(a.seed), a.columns - 1 + a.rows
    label = np.arange(number) % gen.model.data.num_classes if gen.model.conditions else None
    samples = gen.sample(key, number, label=label)
    left, above = np.divmod(np.arange(a.rows * (a.columns - 1)), a.columns - 1)
    places = (left + a.columns - 1, above)
    keys = tuple(rng.image_keys(key, place) for place in places)
    conds = tuple({} if label is None else {"label": label[place]} for place in places)
    mixed = np.asarray(jax.jit(mix)(gen.params, gen.ctx, keys, conds)).reshape(
        a.rows, a.columns - 1, *samples.shape[1:]
    )
    below = np.concatenate([samples[a.columns - 1 :, None], mixed], axis=1).reshape(-1, *samples.shape[1:])
    return np.concatenate([np.zeros_like(samples[:1]), samples[: a.columns - 1], below]), a.columns


def interpolation(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """A row per pair of images: the first, interpolations between their reconstructions, the second."""
    import jax

    require(a.columns >= 4, f"--columns is {a.columns}: an interpolation has 4 or more, the two images among them")
    # A conditional model's latents do not contain the class, so both ends get the same class: more images are searched.
    by_class = gen.model.conditions == ("label",)
    num = min(40 * a.rows, splits[a.split].num - a.start) if by_class else 2 * a.rows
    images, named = data(gen, splits, a, num)
    if by_class:
        label = named["label"]
        order = np.argsort(label, kind="stable")
        pairs = np.stack([order[:-1], order[1:]], axis=1)
        pairs = pairs[label[pairs[:, 0]] == label[pairs[:, 1]]]
        require(len(pairs) >= a.rows, f"{a.rows} pairs of one class are wanted: {num} images have {len(pairs)}")
        chosen = pairs[np.linspace(0, len(pairs) - 1, a.rows).astype(int)]
        images, named = images[chosen.ravel()], {"label": label[chosen.ravel()]}
    first, second = images[0::2], images[1::2]
    both = {name: values[0::2] for name, values in named.items()}  # of each row: the class, or the first image's text
    way = gen.interpolate(jax.random.key(a.seed), first, second, a.columns - 2, **both)
    rows = np.concatenate([first[:, None], way, second[:, None]], axis=1)
    return rows.reshape(-1, *first.shape[1:]), a.columns


def flat_latents(
    gen: Generator, splits: Splits, a: Arguments
) -> tuple[np.ndarray, Callable[[np.ndarray], Any], np.ndarray | None]:
    """Flattened latents of images of the data, (n, d); a function from (m, d) to the model's latents; the images'
    classes."""
    import jax

    num = min(SEEN, splits[a.split].num - a.start)
    images, named = data(gen, splits, a, num)
    leaves, tree = jax.tree.flatten(gen.encode(jax.random.key(a.seed), images, **named))
    flat = np.concatenate([x.reshape(num, -1) for x in leaves], axis=1)
    cuts = np.cumsum([x[0].size for x in leaves])[:-1]

    def unflatten(rows: np.ndarray) -> Any:
        parts = np.split(rows.astype(np.float32), cuts, axis=1)
        return jax.tree.unflatten(tree, [p.reshape(-1, *x.shape[1:]) for p, x in zip(parts, leaves)])

    return flat, unflatten, named.get("label")


def latent_spread(
    gen: Generator, splits: Splits, a: Arguments
) -> tuple[np.ndarray, Callable[[np.ndarray], Any], np.ndarray, int | None]:
    """Flattened latents of one image, (d,); a function from (n, d) to the model's latents; the dimensions, those that
    vary most first; the image's class."""
    flat, unflatten, label = flat_latents(gen, splits, a)
    class_ = None if label is None else int(label[0]) if a.label is None else a.label
    return flat[0], unflatten, np.argsort(-flat.std(axis=0), kind="stable"), class_


def traversal(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """A row per latent dimension, moved from -3 to 3 while the others keep the values of one image."""
    import jax

    base, unflatten, order, label = latent_spread(gen, splits, a)
    rows = min(a.rows, base.size)
    points = np.tile(base, (rows, a.columns, 1))
    points[np.arange(rows), :, order[:rows]] = np.linspace(-3.0, 3.0, a.columns)
    return gen.decode(jax.random.key(a.seed), unflatten(points.reshape(-1, base.size)), label=label), a.columns


def manifold(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """A grid over the two latent dimensions that vary most, at even quantiles of N(0, 1), the others at zero."""
    import jax

    base, unflatten, order, label = latent_spread(gen, splits, a)
    require(base.size >= 2, f"{gen.model.name} has {base.size} latent dimension: a manifold needs 2")
    side = a.columns
    quantiles = [statistics.NormalDist().inv_cdf((i + 0.5) / side) for i in range(side)]
    points = np.zeros((side, side, base.size))
    points[..., order[0]] = np.array(quantiles)[None, :]
    points[..., order[1]] = np.array(quantiles)[::-1, None]
    return gen.decode(jax.random.key(a.seed), unflatten(points.reshape(side * side, -1)), label=label), side


def attribute(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """A row per image of the first class, moved by the difference of the two classes' mean latents."""
    import jax

    images, key = images_of_class(gen, splits, a), jax.random.key(a.seed)
    train = fetch(gen, splits["train"], np.arange(min(SEEN, splits["train"].num)), a.seed)
    members = [train["label"] == each for each in a.classes]
    for each, rows in zip(a.classes, members):
        require(bool(rows.any()), f"--classes has {each}: none of {len(rows)} training images is of that class")

    def difference(z: np.ndarray) -> np.ndarray:
        return z[members[1]].mean(axis=0) - z[members[0]].mean(axis=0)

    def moved(z: np.ndarray, direction: np.ndarray) -> np.ndarray:
        strength = np.linspace(0.0, 1.0, a.columns).reshape(1, a.columns, *[1] * (z.ndim - 1))
        return (z[:, None] + strength * direction[None, None]).reshape(-1, *z.shape[1:]).astype(z.dtype)

    direction = jax.tree.map(difference, gen.encode(key, train["image"]))
    return gen.decode(key, jax.tree.map(moved, gen.encode(key, images), direction)), a.columns


def images_of_class(gen: Generator, splits: Splits, a: Arguments) -> np.ndarray:
    """`--rows` images of the first of the two classes. Raises `UserError` for invalid classes or too few images."""
    name, num_classes, wanted = gen.model.name, gen.model.data.num_classes, a.classes[0]
    require(num_classes > 0, "the run's data has no classes: an attribute is the difference of two")
    require(not gen.model.conditions, f"{name} is conditioned on the class: its latents do not hold it")
    for each in a.classes:
        require(0 <= each < num_classes, f"--classes has {each}: it must be from 0 to {num_classes - 1}")
    batch = fetch(gen, splits[a.split], np.arange(a.start, min(a.start + SEEN, splits[a.split].num)), a.seed)
    images = batch["image"][batch["label"] == wanted][: a.rows]
    there = f"{len(batch['label'])} images from --start {a.start} have {len(images)}"
    require(len(images) == a.rows, f"{a.rows} images of class {wanted} are wanted: {there}")
    return images


def completions(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """A row of images, a row of their kept pixels, and rows of completions."""
    import jax

    images, named = data(gen, splits, a, a.columns)
    mask = kept_pixels(a, *gen.model.images.shape[:2])
    repeated: Cond = {name: repeat(values, a.rows) for name, values in named.items()}
    made = gen.inpaint(jax.random.key(a.seed), repeat(images, a.rows), mask, **repeated)
    return np.concatenate([images, images * mask[None, :, :, None], made]), a.columns


def repeat(values: np.ndarray, times: int) -> np.ndarray:
    """All values (n, ...), repeated `times` times along the first axis."""
    return np.tile(values, (times, *[1] * (values.ndim - 1)))


def kept_pixels(a: Arguments, height: int, width: int) -> np.ndarray:
    """The mask (H, W) of completions; at least one pixel is kept, and at least one is not."""

    def some(part: float, size: int) -> int:
        return min(max(round(part * size), 1), size - 1)

    mask = np.zeros((height, width), bool)
    if a.mask == "top":
        mask[: some(a.kept, height)] = True
    elif a.mask == "left":
        mask[:, : some(a.kept, width)] = True
    elif a.mask == "random":
        order = np.random.default_rng(a.seed).permutation(height * width)
        mask.flat[order[: some(a.kept, height * width)]] = True
    elif a.mask == "text":
        mask[...] = ~written(height, width)
    else:
        rows, columns = (some((1 - a.kept) ** 0.5, size) for size in (height, width))
        top, left = (height - rows) // 2, (width - columns) // 2
        mask[...] = True
        mask[top : top + rows, left : left + columns] = False
    return mask


def written(height: int, width: int) -> np.ndarray:
    """The ink of a word across the middle, bool (H, W); true for some pixels, not for all."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(max(0.5 * width, 6.0))
    picture = Image.new("L", (width, height))
    ImageDraw.Draw(picture).text((width / 2, height / 2), "text", fill=255, font=font, anchor="mm")
    return np.asarray(picture) > 96


def restorations(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """A row of images, a row of their measurements, and rows of restorations."""
    import jax

    from jgen.prob.degradation import make_degradation

    images, named = data(gen, splits, a, a.columns)
    spec = gen.model.images
    measured = np.asarray(make_degradation(a.problem, spec)(jax.numpy.float32(images)))
    measured = measured + a.noise * np.random.default_rng(a.seed).standard_normal(measured.shape)
    repeated: Cond = {name: repeat(values, a.rows) for name, values in named.items()}
    given = repeat(measured, a.rows)
    made = gen.restore(jax.random.key(a.seed), given, problem=a.problem, noise=a.noise, **repeated)
    factor = spec.height // measured.shape[1]
    shown = np.clip(np.round(measured), 0, spec.levels - 1).astype(np.uint8).repeat(factor, 1).repeat(factor, 2)
    return np.concatenate([images, np.broadcast_to(shown, images.shape), made]), a.columns


def prior(gen: Generator, splits: Splits, a: Arguments) -> tuple[np.ndarray, int]:
    """Images decoded from standard normal latents and from normal latents with the data's moments, and samples."""
    import jax

    flat, unflatten, _ = flat_latents(gen, splits, a)
    n, key = a.rows * a.columns, jax.random.key(a.seed)
    eps = np.random.default_rng(a.seed).standard_normal((n, flat.shape[1]))
    label = np.arange(n) % gen.model.data.num_classes if gen.model.conditions else None
    drawn = [eps, flat.mean(axis=0) + flat.std(axis=0) * eps]
    images = [gen.decode(key, unflatten(z), label=label) for z in drawn]
    return np.concatenate([*images, gen.sample(key, n, label=label)]), a.columns


# The function that draws each figure, and the capabilities that it needs: `interpolate` for continuous latents.
FIGURES: dict[str, tuple[Callable[[Generator, Splits, Arguments], tuple[np.ndarray, int]], tuple[str, ...]]] = {
    "reconstructions": (reconstructions, ("reconstruct",)),
    "interpolation": (interpolation, ("interpolate",)),
    "traversal": (traversal, ("interpolate",)),
    "manifold": (manifold, ("interpolate",)),
    "attribute": (attribute, ("interpolate",)),
    "completions": (completions, ("inpaint",)),
    "restorations": (restorations, ("restore",)),
    "inversions": (inversions, ("invert", "decode")),
    "truncation": (truncation, ("sample",)),
    "style_mixing": (style_mixing, ("sample",)),
    "prior": (prior, ("interpolate", "sample")),
}
# Kinds that take any conditions, since these are those of the data's images.
OF_IMAGES = ("reconstructions", "interpolation", "completions", "restorations", "inversions")


if __name__ == "__main__":
    from jgen import cli

    cli.main(command)
