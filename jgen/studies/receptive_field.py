"""Which pixels does a pixel's distribution depend on? python -m jgen.studies.receptive_field --out FOLDER

An autoregressive network should let every pixel depend on all pixels before it. A stack of masked convolutions does
not: it has a blind spot above and to the right (van den Oord et al. 2016, arXiv 1606.05328, figure 1). Here the
networks of configurations get random parameters, and a random weighted sum of the outputs at the central pixel is
differentiated with respect to the image: the derivative is exactly zero in every draw for pixels that the network does
not see. Writes receptive_field.json and receptive_field.png to FOLDER.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen import cli
from jgen.core.model import ArraySpec, Context, DataSpec, GenerativeModel, ImageSpec
from jgen.errors import require, require_positive, require_seed
from jgen.studies import reporting
from jgen.studies.reporting import Row

LEVELS, CLASSES = 256, 10


class Network(NamedTuple):
    """A configuration's network for square images.

    title: in the figure; config: of a system that provides `conditionals`; changes: {option: value}, where "SIZE" means
    the images' height; without: names of layers whose parameters are set to zero.
    """

    title: str
    config: str
    changes: dict[str, Any] = {}
    without: tuple[str, ...] = ()


TRANSFORMER, STRIDED = "configs/autoregressive/image_transformer.py:mnist", {"attention": "strided", "stride": "SIZE"}
NETWORKS = (
    Network("PixelCNN", "configs/autoregressive/pixelcnn.py:mnist"),
    Network("Gated PixelCNN", "configs/autoregressive/gated_pixelcnn.py:mnist"),
    Network("PixelCNN++", "configs/autoregressive/pixelcnn_pp.py:mnist"),
    Network("PixelRNN, Row LSTM", "configs/autoregressive/pixelrnn.py:mnist", {"layer": "row"}),
    Network("PixelRNN, Diagonal BiLSTM", "configs/autoregressive/pixelrnn.py:mnist", {"layer": "diagonal"}),
    Network("Transformer, dense, 1 layer", TRANSFORMER, {"attention": "dense", "layers": 1}),
    # Without its second layer, which attends along the column.
    Network("Transformer, strided, 1 layer", TRANSFORMER, {**STRIDED, "layers": 2}, ("blocks_1",)),
    Network("Transformer, strided, 2 layers", TRANSFORMER, {**STRIDED, "layers": 2}),
)


@dataclass(frozen=True)
class Arguments:
    """Options of the measurement."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    size: int = 21
    """Height and width of the images; odd."""
    draws: int = 16
    """Number of random networks and images per system."""
    seed: int = 0
    """Seed of the networks and images."""


def command(args: list[str]) -> int:
    a = cli.parse(Arguments, args, "python -m jgen.studies.receptive_field", __doc__ or "")
    require(a.size >= 3 and a.size % 2 == 1, f"--size is {a.size}: it must be odd and 3 or more")
    require_positive(**{"--draws": a.draws})
    require_seed(a.seed, "--seed")
    record, figure = reporting.open_record(a.out, "receptive_field")
    from jgen.studies import scores

    common = {"size": a.size, "draws": a.draws, "seed": a.seed}
    settings = [{**network._asdict(), **common} for network in NETWORKS]
    rows = scores.score_all(record, settings, measure)
    return reporting.report(figure, rows, draw, table)


def measure(setting: Row) -> Row:
    """The receptive field of a setting, for JSON.

    Returns:
      system: its name. past: the number of pixels before the central one; seen, unseen: how many of these the network
      sees, and does not see; later: the number of pixels at or after it that it depends on, which must be 0.
      field: `receptive_field`, divided by its maximum, with four digits.
    """
    model = make_model(setting["config"], setting["changes"], setting["size"])
    field = receptive_field(model, setting["draws"], setting["seed"], tuple(setting["without"]))
    past, seen = np.arange(field.size) < field.size // 2, field.ravel() > 0
    relative = [[float(f"{value:.3e}") for value in row] for row in field / field.max()]
    counts = {"past": past.sum(), "seen": (past & seen).sum(), "unseen": (past & ~seen).sum()}
    counts["later"] = (~past & seen).sum()
    return {"system": model.name, **{name: int(count) for name, count in counts.items()}, "field": relative}


def make_model(config: str, changes: dict[str, Any], size: int) -> GenerativeModel:
    """The model of a configuration for square grey images, with some of its options changed: see `Network`.

    Raises:
      UserError: a system that does not provide `conditionals`.
    """
    from jgen.compare.systems import load_training, model_of

    training = load_training(config)
    changes = {name: size if value == "SIZE" else value for name, value in changes.items()}
    experiment = replace(training.experiment, model=replace(training.experiment.model, **changes))
    data = DataSpec(ImageSpec(size, size, 1, LEVELS), {"label": ArraySpec((), "int32", CLASSES)})
    model = model_of(replace(training, experiment=experiment), data)
    provides = "conditionals" in model.functions
    require(provides, f"{config}: {model.name} provides no `conditionals`: it must be autoregressive over pixels")
    return model


def receptive_field(model: GenerativeModel, draws: int, seed: int, without: tuple[str, ...] = ()) -> np.ndarray:
    """The mean absolute derivative of a random weighted sum of the central pixel's outputs by each pixel, float (H, W).

    Args:
      draws: number of draws of parameters, image and weights of the sum. without: see `Network`.
    """
    import jax
    import jax.numpy as jnp

    spec, gen = model.images, np.random.default_rng(seed)
    cond = {name: jnp.zeros((1, *model.data.fields[name].shape), jnp.int32) for name in model.conditions}
    batch = {"image": jnp.zeros((1, *spec.shape), jnp.uint8), **cond}
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), batch, {})

    def centre(x: Any, params: Any) -> Any:
        out = model.functions["conditionals"](params, Context(jnp.int32(0)), x, cond)
        return out[0, spec.height // 2, spec.width // 2].ravel()

    @jax.jit
    def derivative(params: Any, x: Any, weights: Any) -> Any:
        return jax.grad(lambda x: centre(x, params) @ weights)(x)

    shape = (1, *spec.shape)
    outputs = jax.eval_shape(centre, jnp.zeros(shape), shapes).shape
    total = np.zeros(spec.shape[:2])
    for _ in range(draws):
        x = gen.uniform(0, spec.levels - 1, shape).astype(np.float32)
        weights = gen.standard_normal(outputs).astype(np.float32)
        total += np.abs(derivative(random_parameters(shapes, gen, without), x, weights)).sum((0, 3)) / draws
    return total


def random_parameters(shapes: Any, gen: np.random.Generator, without: tuple[str, ...]) -> Any:
    """Normal parameters with variance 1 / inputs. (Initial parameters are partly zero, which would block gradients.)"""
    import jax

    def drawn(path: Any, leaf: Any) -> Any:
        if any(name in jax.tree_util.keystr(path) for name in without):
            return np.zeros(leaf.shape, np.float32)
        return (gen.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| network | configuration | pixels before | unseen | unseen, % |", "| --- " * 5 + "|"]
    for row in rows:
        share = f"{100 * row['unseen'] / row['past']:.1f}"
        setting = row["setting"]
        lines.append(f"| {setting['title']} | {setting['config']} | {row['past']} | {row['unseen']} | {share} |")
    return "\n".join(lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws each receptive field as a picture: pixels before the centre by their derivative, unseen ones in red."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.patches import Patch, Rectangle

    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    size = (3.1 * columns + 1.2, 2.5 * lines + 0.5)
    fig, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for place in axes.flat[len(rows) :]:
        place.set_visible(False)
    later, unseen = ListedColormap(["0.93"]), ListedColormap(["#d7301f"])
    image = None
    for place, row in zip(axes.flat, rows):
        field = np.array(row["field"])
        past = (np.arange(field.size) < field.size // 2).reshape(field.shape)
        place.imshow(np.where(past, np.nan, 1.0), cmap=later)
        place.imshow(np.where(past & (field == 0), 1.0, np.nan), cmap=unseen)
        seen = np.where(past & (field > 0), field, np.nan)
        image = place.imshow(np.clip(seen, 1e-4, 1), cmap="Blues", norm=LogNorm(1e-5, 1))
        centre = len(field) // 2
        place.add_patch(Rectangle((centre - 0.5, centre - 0.5), 1, 1, color="black"))
        words = f"{row['unseen']} of {row['past']} unseen" if row["unseen"] else f"all {row['past']} seen"
        place.set_title(f"{row['setting']['title']}\n{words}", fontsize=10)
        place.set(xticks=[], yticks=[], ylim=(centre + 2.5, -0.5))
        place.spines[:].set_visible(True)
    bar = fig.colorbar(image, ax=axes, shrink=0.6, label="mean absolute derivative, relative")
    bar.ax.set_ylim(1e-4, 1)
    colours = {"black": "the pixel that is predicted", "#d7301f": "before it, unseen", "0.93": "not before it"}
    marks = [Patch(color=colour, label=label) for colour, label in colours.items()]
    fig.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False)
    reporting.save_figure(path, fig)


if __name__ == "__main__":
    cli.main(command)
