"""Memory per device for training every configuration for accelerators: python benchmarks/scaling.py [NAME ...]

Writes the table of docs/scaling.md. Nothing is computed: programs are traced for their shapes. The training state is
the bytes of the parameters, of the optimiser's state and of the moving average; the memory of an example is the peak
memory of its gradient as JAX traces it, before XLA's fusion, which avoids storing many elementwise results.

Given names, such as dit:cifar10 or stable_diffusion_unet, it measures only these and keeps the other rows.
--compile also compiles their gradients with XLA and prints the memory of an example by `memory_analysis()`.
--check only exits with an error if the document has a different table.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from on_device.costs import count, live_bytes  # noqa: E402

from jgen.cli import import_config  # noqa: E402
from jgen.core.backend import plain_forms  # noqa: E402
from jgen.core.keys import image_keys  # noqa: E402
from jgen.core.model import ArraySpec, Context, DataSpec, FrozenModel, ImageSpec  # noqa: E402
from jgen.data.transforms import added_fields  # noqa: E402
from jgen.errors import UserError  # noqa: E402
from jgen.experiment import make_model  # noqa: E402
from jgen.nn import condition_unet, efficientnet, perceptual  # noqa: E402
from jgen.nn.cross_attention import Tokens  # noqa: E402
from jgen.train.config import ema_enabled  # noqa: E402
from jgen.train.loop import role_optimisers, with_position  # noqa: E402
from jgen.train.step import init_state  # noqa: E402

IMAGES = {  # and classes
    "cifar10": (ImageSpec(32, 32, 3, 256), 10),
    "imagenet_resized/64x64": (ImageSpec(64, 64, 3, 256), 1000),
    "imagenet2012": (ImageSpec(256, 256, 3, 256), 1000),
}
SYSTEMS = {path.stem: path for path in sorted((ROOT / "configs").glob("*/*.py"))}
MEMORY = (8, 16, 24, 40, 80)  # GB of devices
BATCH = 512
COMPILED_BATCHES = (4, 8)  # of the programs that XLA compiles
RESERVED = 0.1  # fraction of the memory kept for the runtime and fragmentation
LINKS = {"NVLink, 450 GB/s": 450e9, "100 Gb/s": 12.5e9}
# Published latent U-Nets that `jgen.convert` reads and no configuration trains: configuration, side of the latents.
UNETS = {
    "stable_diffusion_unet": (condition_unet.Config(), 64),
    "stable_diffusion_unet, remat": (condition_unet.Config(remat=True), 64),
    "stable_diffusion_unet, remat, bfloat16": (condition_unet.Config(remat=True, dtype="bfloat16"), 64),
    "stable_diffusion_xl_unet, remat": (
        condition_unet.Config(
            channels=(320, 640, 1280),
            depths=(0, 2, 10),
            middle_depth=10,
            heads=(5, 10, 20),
            context=2048,
            pooled=1280,
            remat=True,
        ),
        128,
    ),
}
TEXT_LENGTH = 77  # tokens that these U-Nets attend to


def variants() -> list[tuple[str, str]]:
    """(system, variant) of all configurations for accelerators whose data shape is known here."""
    named = []
    for name, path in SYSTEMS.items():
        for variant, text in import_config(path).VARIANTS.items():
            device = "for an accelerator" in text or "for accelerators" in text
            if device and import_config(path).get_config(variant).data.name in IMAGES:
                named.append((name, variant))
    return named


def data_of(config: Any) -> DataSpec:
    """The specification of the data that a configuration's options name."""
    images, classes = IMAGES[config.name]
    return DataSpec(images, {"label": ArraySpec((), "int32", classes), **added_fields(config, images)})


def zero_weights() -> dict[str, np.ndarray]:
    """Stands in for the trained network of the perceptual loss, of which only the shapes are needed."""
    return {name: np.zeros(shape, np.float32) for name, shape in efficientnet.layout().items()}


def shapes_of(name: str, variant: str) -> tuple[Any, Any, Any]:
    """The experiment, its model, and the array shapes of its frozen models."""
    experiment = import_config(SYSTEMS[name]).get_config(variant)
    data, below = data_of(experiment.data), {}
    for role, run in experiment.frozen.items():
        system, _, other = Path(run).name.rpartition("-")
        below[role] = shapes_of(system, other)
    model = make_model(experiment.model, data, {role: made for role, (_, made, _) in below.items()})
    frozen = {}
    for role, (_, made, inner) in below.items():
        params, extra = jax.eval_shape(made.init, jax.random.key(0), batch_of(data, 2), inner)
        frozen[role] = FrozenModel(params, extra, inner)
    return experiment, model, frozen


def batch_of(data: DataSpec, num: int) -> dict[str, np.ndarray]:
    """A batch of zeros."""
    batch = {name: np.zeros((num, *spec.shape), spec.dtype) for name, spec in data.fields.items()}
    image = np.zeros((num, *data.image.shape), np.uint8)
    return with_position({**batch, "image": image, "index": np.arange(num, dtype=np.int32)})


def bytes_of(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def measure(name: str, variant: str, compiled: bool) -> dict[str, Any]:
    """In training: bytes of the state, bytes per example while its gradient is computed, operations per example."""
    experiment, model, frozen = shapes_of(name, variant)
    train, data = experiment.train, data_of(experiment.data)
    optimisers = role_optimisers(model, train)

    def init(key: Any, batch: Any, frozen: Any) -> Any:
        return init_state(model, optimisers, key, batch, ema_enabled(train), frozen)

    state = jax.eval_shape(init, jax.random.key(0), batch_of(data, 2), frozen)
    phases = [phase_gradient(model, phase, state, frozen) for phase in model.phases]
    costs = [example_costs(lambda n, phase=phase: phase(batch_of(data, n)), compiled) for phase in phases]
    return {
        "name": f"{name}:{variant}",
        "parameters": bytes_of(state.params) // 4,
        "params": bytes_of(state.params),
        "optimiser": bytes_of(state.opt),
        "average": bytes_of(state.ema),
        "rest": bytes_of(state.extra) + bytes_of(frozen),
        "example": max(example for example, _, _ in costs),
        "flops": sum(phase.repeats * flops for phase, (_, flops, _) in zip(model.phases, costs)),
        "compiled": max(by_xla for _, _, by_xla in costs),
        "batch": train.batch_size,
    }


def measure_unet(name: str, compiled: bool) -> dict[str, Any]:
    """`measure` for a U-Net of `UNETS` with Adam and a moving average, trained to predict noise."""
    config, size = UNETS[name]
    network = condition_unet.ConditionUNet(config, 4)

    def inputs(num: int) -> tuple[Any, ...]:
        tokens = Tokens(np.zeros((num, TEXT_LENGTH, config.context), np.float32), np.ones((num, TEXT_LENGTH), bool))
        pooled = (np.zeros((num, config.pooled), np.float32), np.zeros((num, condition_unet.NUM_SIZES), np.float32))
        x, t = np.zeros((num, size, size, 4), np.float32), np.zeros(num, np.float32)
        return x, t, tokens, *pooled * bool(config.pooled)

    params = jax.eval_shape(network.init, jax.random.key(0), *inputs(2))["params"]

    def gradient(num: int) -> tuple[Any, tuple[Any, ...]]:
        arrays = inputs(num)

        def loss(params: Any, arrays: Any) -> Any:
            return jnp.mean((network.apply({"params": params}, *arrays) - arrays[0]) ** 2)

        return jax.grad(loss), (params, arrays)

    example, flops, by_xla = example_costs(gradient, compiled)
    size_of_all = bytes_of(params)
    return {
        "name": name,
        "parameters": size_of_all // 4,
        "params": size_of_all,
        "optimiser": 2 * size_of_all,
        "average": size_of_all,
        "rest": 0,
        "example": example,
        "flops": flops,
        "compiled": by_xla,
        "batch": "",
    }


def example_costs(gradient: Any, compiled: bool) -> tuple[float, float, float]:
    """Bytes of intermediate results per example in a gradient, operations per example, and, if `compiled`, bytes
    per example by XLA.

    Args:
      gradient: number of examples -> a function and its arguments.
    """
    with plain_forms():
        # Batches so large that the examples need more memory than arrays of the parameters' size.
        programs = [jax.make_jaxpr(function)(*args) for function, args in (gradient(BATCH), gradient(2 * BATCH))]
        one, two = ((live_bytes(program), count(program)) for program in programs)
        by_xla = 0.0
        if compiled:
            sizes = [xla_bytes(*gradient(num)) for num in COMPILED_BATCHES]
            by_xla = (sizes[1] - sizes[0]) / (COMPILED_BATCHES[1] - COMPILED_BATCHES[0])
    return (two[0] - one[0]) / BATCH, (two[1] - one[1]) / BATCH, by_xla


def xla_bytes(function: Any, args: tuple[Any, ...]) -> int:
    """Bytes that the compiled program needs besides its arguments and results."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def phase_gradient(model: Any, phase: Any, state: Any, frozen: Any) -> Any:
    """A function of a batch that returns the gradient function of a phase and its arguments."""

    def of(batch: Any) -> tuple[Any, tuple[Any, ...]]:
        num = len(batch["index"])
        keys = image_keys(jax.random.key(0), jnp.arange(num))

        def loss(trained: Any, params: Any, extra: Any, frozen: Any, batch: Any) -> Any:
            ctx = Context(jnp.int32(0), jax.random.key(1), {**params, **trained}, extra, frozen)
            return phase.loss({**params, **trained}, ctx, keys, batch)[0]

        trained = {role: state.params[role] for role in phase.trains}
        rest = (state.params, per_example_of(model, state, num), frozen, batch)
        return (jax.grad(loss) if trained else loss), (trained, *rest)

    return of


def per_example_of(model: Any, state: Any, num: int) -> Any:
    """The extra roles of the state, for this number of examples."""

    def cut(role: str, tree: Any) -> Any:
        if role not in model.by_example:
            return tree
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape[1:]), x.dtype), tree)

    return {role: cut(role, tree) for role, tree in state.extra.items()}


def fitting(row: dict[str, Any]) -> list[int]:
    """Number of examples that fit on devices of `MEMORY`, besides the state and the gradients."""
    fixed = 2 * row["params"] + row["optimiser"] + row["average"] + row["rest"]
    free = [(1 - RESERVED) * size * 1e9 - fixed for size in MEMORY]
    return [max(0, int(size // max(row["example"], 1.0))) for size in free]


HEAD = ["configuration", "parameters", "state, GB", "an example, MB", "GFLOP an example", "batch"]
HEAD += [*(f"fit in {size} GB" for size in MEMORY), *(f"all-reduce, {name}" for name in LINKS)]


def cells(row: dict[str, Any]) -> str:
    """A row of the table."""
    state = row["params"] + row["optimiser"] + row["average"] + row["rest"]
    texts = [row["name"], f"{row['parameters'] / 1e6:.3g} M", f"{state / 1e9:.2f}", f"{row['example'] / 1e6:.1f}"]
    texts += [f"{row['flops'] / 1e9:.2f}", str(row["batch"])]
    texts += [str(n) if n < 10_000 else "> 10,000" for n in fitting(row)]
    texts += [f"{1e3 * 2 * row['params'] / rate:.2f} ms" for rate in LINKS.values()]
    return f"| {' | '.join(texts)} |"


def measured_row(name: str, compiled: bool) -> str | None:
    """The row of a configuration, or of one of `UNETS`; None if it cannot be measured here."""
    system, _, variant = name.partition(":")
    try:
        row = measure_unet(name, compiled) if name in UNETS else measure(system, variant, compiled)
    except UserError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return None
    by_xla = f", by XLA {row['compiled'] / 1e6:.1f} MB" * compiled
    print(f"{name}: an example {row['example'] / 1e6:.1f} MB{by_xla}", file=sys.stderr, flush=True)
    return cells(row)


def document_with(text: str, rows: dict[str, str], order: list[str], others: bool) -> str:
    """The document with these rows in its table; with `others`, its existing rows are kept."""
    place = re.compile("(<!-- scaling -->\n)(.*?)(<!-- /scaling -->)", re.DOTALL)
    old = place.search(text)
    assert old is not None
    earlier = {line.split(" | ")[0].removeprefix("| "): line for line in old[2].splitlines()[2:]} if others else {}
    rows = earlier | rows
    lines = [f"| {' | '.join(HEAD)} |", f"| {' | '.join(['---'] * len(HEAD))} |"]
    table = "\n".join([*lines, *(rows[name] for name in order if name in rows)])
    return place.sub(lambda match: f"{match[1]}{table}\n{match[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="configurations, such as dit:cifar10; default: all")
    parser.add_argument("--compile", action="store_true", help="also print the memory by XLA")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    perceptual.trained_weights = zero_weights
    order = [f"{name}:{variant}" for name, variant in variants()] + list(UNETS)
    if unknown := sorted(set(options.names) - set(order)):
        parser.error(f"{', '.join(unknown)}: the names are {', '.join(order)}")
    path, rows = ROOT / "docs" / "scaling.md", {}
    for name in options.names or order:
        row = measured_row(name, options.compile)
        rows |= {name: row} if row is not None else {}
        if not options.check and options.names:  # write after each: it takes a while
            path.write_text(document_with(path.read_text(), rows, order, others=True))
    before = path.read_text()
    text = document_with(before, rows, order, others=bool(options.names))
    if text != before and options.check:
        sys.exit("docs/scaling.md has another table: run python benchmarks/scaling.py")
    path.write_text(text)


if __name__ == "__main__":
    main()
