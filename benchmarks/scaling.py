"""What training needs on a device, of every configuration for accelerators: python benchmarks/scaling.py [--check]

Writes the table of docs/scaling.md. Nothing is computed: programs are traced for their shapes. Bytes of the parameters,
of what the optimiser keeps and of the average are the training state's; the memory of an example is what its gradient
holds at a time, as JAX sees it before XLA, which never writes much of what is computed element by element.

--check exits where the document has another table.
"""

from __future__ import annotations

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
from jgen.nn import efficientnet, perceptual  # noqa: E402
from jgen.train.config import ema_enabled  # noqa: E402
from jgen.train.loop import role_optimisers, with_place  # noqa: E402
from jgen.train.step import init_state  # noqa: E402

IMAGES = {  # and classes
    "cifar10": (ImageSpec(32, 32, 3, 256), 10),
    "imagenet_resized/64x64": (ImageSpec(64, 64, 3, 256), 1000),
    "imagenet2012": (ImageSpec(256, 256, 3, 256), 1000),
}
SYSTEMS = {path.stem: path for path in sorted((ROOT / "configs").glob("*/*.py"))}
MEMORY = (8, 16, 24, 40, 80)  # GB of devices
BATCH = 512
RESERVED = 0.1  # of it, for the runtime and for fragments
LINKS = {"NVLink, 450 GB/s": 450e9, "100 Gb/s": 12.5e9}


def variants() -> list[tuple[str, str]]:
    """(system, variant) of all configurations for accelerators over data whose shape is known here."""
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
    """In place of the trained network of the perceptual loss, of which only the shapes are needed."""
    return {name: np.zeros(shape, np.float32) for name, shape in efficientnet.layout().items()}


def shapes_of(name: str, variant: str) -> tuple[Any, Any, Any]:
    """The experiment, its model, and the shapes of the arrays of those that it stands on."""
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
    return with_place({**batch, "image": image, "index": np.arange(num, dtype=np.int32)})


def bytes_of(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def measure(name: str, variant: str) -> dict[str, Any]:
    """Bytes of the state, bytes that an example takes while its gradient is computed, its operations, in training."""
    experiment, model, frozen = shapes_of(name, variant)
    train, data = experiment.train, data_of(experiment.data)
    optimisers = role_optimisers(model, train)

    def init(key: Any, batch: Any, frozen: Any) -> Any:
        return init_state(model, optimisers, key, batch, ema_enabled(train), frozen)

    state = jax.eval_shape(init, jax.random.key(0), batch_of(data, 2), frozen)
    example, flops = 0.0, 0.0
    with plain_forms():
        for phase in model.phases:
            # Batches so large that examples take more than what has the size of the parameters.
            one, two = (phase_costs(model, phase, state, frozen, batch_of(data, n)) for n in (BATCH, 2 * BATCH))
            example = max(example, (two[0] - one[0]) / BATCH)
            flops += phase.repeats * (two[1] - one[1]) / BATCH
    return {
        "name": f"{name}:{variant}",
        "parameters": bytes_of(state.params) // 4,
        "params": bytes_of(state.params),
        "optimiser": bytes_of(state.opt),
        "average": bytes_of(state.ema),
        "rest": bytes_of(state.extra) + bytes_of(frozen),
        "example": example,
        "flops": flops,
        "batch": train.batch_size,
    }


def phase_costs(model: Any, phase: Any, state: Any, frozen: Any, batch: Any) -> tuple[int, float]:
    """Bytes of intermediate results that the gradient of a phase holds at a time, and its operations."""
    num = len(batch["index"])
    keys = image_keys(jax.random.key(0), jnp.arange(num))

    def loss(trained: Any, params: Any, extra: Any, frozen: Any) -> Any:
        ctx = Context(jnp.int32(0), jax.random.key(1), {**params, **trained}, extra, frozen)
        return phase.loss({**params, **trained}, ctx, keys, batch)[0]

    trained = {role: state.params[role] for role in phase.trains}
    rest = (state.params, per_example_of(model, state, num), frozen)
    program = jax.make_jaxpr(jax.grad(loss) if trained else loss)(trained, *rest)
    return live_bytes(program), count(program)


def per_example_of(model: Any, state: Any, num: int) -> Any:
    """The state's extra roles for so many examples."""

    def cut(role: str, tree: Any) -> Any:
        if role not in model.by_example:
            return tree
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape[1:]), x.dtype), tree)

    return {role: cut(role, tree) for role, tree in state.extra.items()}


def fitting(row: dict[str, Any]) -> list[int]:
    """Examples at a time that fit on devices of `MEMORY`, beside the state and the gradients."""
    fixed = 2 * row["params"] + row["optimiser"] + row["average"] + row["rest"]
    free = [(1 - RESERVED) * size * 1e9 - fixed for size in MEMORY]
    return [max(0, int(size // max(row["example"], 1.0))) for size in free]


def table(rows: list[dict[str, Any]]) -> str:
    head = ["configuration", "parameters", "state, GB", "an example, MB", "GFLOP an example"]
    head += ["batch", *(f"fit in {size} GB" for size in MEMORY), *(f"all-reduce, {name}" for name in LINKS)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        state = row["params"] + row["optimiser"] + row["average"] + row["rest"]
        cells = [row["name"], f"{row['parameters'] / 1e6:.3g} M", f"{state / 1e9:.2f}", f"{row['example'] / 1e6:.1f}"]
        cells += [
            f"{row['flops'] / 1e9:.2f}",
            str(row["batch"]),
            *(str(n) if n < 10_000 else "> 10,000" for n in fitting(row)),
        ]
        cells += [f"{1e3 * 2 * row['params'] / rate:.2f} ms" for rate in LINKS.values()]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    perceptual.trained_weights = zero_weights
    rows = []
    for name, variant in variants():
        try:
            rows.append(measure(name, variant))
            print(f"{name}:{variant}", file=sys.stderr)
        except UserError as error:
            print(f"{name}:{variant} is left out: {error}", file=sys.stderr)
    path = ROOT / "docs" / "scaling.md"
    before = path.read_text()
    place = re.compile("(<!-- scaling -->\n).*?(<!-- /scaling -->)", re.DOTALL)
    text = place.sub(lambda match: f"{match[1]}{table(rows)}{match[2]}", before)
    if text != before and "--check" in sys.argv:
        sys.exit("docs/scaling.md has another table: run python benchmarks/scaling.py")
    path.write_text(text)


if __name__ == "__main__":
    main()
