"""Whether a device computes what the CPU does: losses, gradients and samples of every system's `tiny`, and resuming.

The CPU draws the parameters and computes first, with its own implementations; then the device computes with the plain
operations of the other backends. If the device is a CPU too, it also uses those plain operations, so that the
comparison tests what an accelerator would run.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

NUM = 8
# Largest allowed differences: of the loss (relative if it is above 1); of the gradient's norm, relative; of the
# gradient, as the norm of the difference over its norm; the share of pixels that may differ by more than a level.
LIMITS = {
    "float32": {"loss": 1e-4, "gradient_norm": 1e-4, "gradient": 1e-3, "pixels": 0.01},
    "bfloat16": {"loss": 0.03, "gradient_norm": 0.1, "gradient": 0.25, "pixels": 1.0},  # one step of rounding is 0.4 %
}


def systems(small: bool) -> list[list[str]]:
    """[system, type] of all cases: float32 first; if `small`, one system of each of three families, one in bfloat16."""
    from contract_cases import SYSTEMS

    names = list(SYSTEMS)
    if small:
        families = {path.parent.name: name for name, path in reversed(SYSTEMS.items())}
        names = sorted(families.values())[-3:]
    halves = [name for name in names if has_type(name)]
    return [[name, "float32"] for name in names] + [[name, "bfloat16"] for name in (halves[:1] if small else halves)]


def has_type(name: str) -> bool:
    """Whether a system has an option for the type of its arithmetic; False if a package that it needs is missing."""
    try:
        model = tiny(name).model
    except ModuleNotFoundError:
        return False
    return hasattr(model, "dtype") or hasattr(getattr(model, "network", None), "dtype")


def tiny(name: str) -> Any:
    from contract_cases import SYSTEMS

    from jgen.cli import import_config

    return import_config(SYSTEMS[name]).get_config("tiny")


def make_system(name: str, dtype: str) -> tuple[Any, Any]:
    """A system's tiny model with arithmetic of that type, and the shapes of (params, extra, frozen)."""
    import jax
    from contract_cases import make_batch, make_case, system_of

    from jgen.experiment import make_model

    case, experiment = make_case(name), tiny(name)
    model = case.model
    if dtype != "float32":
        config = experiment.model
        own = hasattr(config, "dtype")
        config = replace(config, dtype=dtype) if own else replace(config, network=replace(config.network, dtype=dtype))
        below = {role: make_case(system_of(run)).model for role, run in experiment.frozen.items()}
        model = make_model(config, model.data, below)
    params, extra = jax.eval_shape(model.init, jax.random.key(0), make_batch(model), case.frozen)
    return model, (params, extra, jax.eval_shape(lambda: case.frozen))


def outputs(model: Any, arrays: Any) -> dict[str, np.ndarray]:
    """Losses (phases,), gradients concatenated, and sampled images, each computed twice: "NAME" and "NAME again"."""
    import jax
    import jax.numpy as jnp
    from contract_cases import make_batch

    from jgen.core.backend import plain_forms
    from jgen.core.keys import image_keys
    from jgen.core.model import Context

    batch = make_batch(model, NUM)
    keys = image_keys(jax.random.key(1), jnp.arange(NUM))

    def context(arrays: Any) -> Any:
        params, extra, frozen = arrays
        return Context(jnp.int32(0), jax.random.key(2), params, extra, frozen)

    def gradients(arrays: Any) -> Any:
        losses, all_gradients = [], []
        for phase in model.phases:

            def loss(trained: Any, phase: Any = phase) -> Any:
                return phase.loss({**arrays[0], **trained}, context(arrays), keys, batch)[0]

            value, gradient = jax.value_and_grad(loss)({role: arrays[0][role] for role in phase.trains})
            losses.append(value)
            all_gradients += [x.ravel() for x in jax.tree.leaves(gradient)]
        return jnp.stack(losses), jnp.concatenate(all_gradients or [jnp.zeros(0)])

    def sample(arrays: Any) -> Any:
        return model.sample(arrays[0], context(arrays), keys, model.condition(batch))

    held = {}
    with plain_forms() if jax.default_backend() == "cpu" and IN_PLAIN_FORMS[0] else contextlib.nullcontext():
        compute = jax.jit(gradients)
        draw = jax.jit(sample) if model.sample is not None else None
        for again in ("", " again"):
            held[f"loss{again}"], held[f"gradient{again}"] = map(np.asarray, compute(arrays))
            if draw is not None:
                held[f"images{again}"] = np.asarray(draw(arrays))
    return held


IN_PLAIN_FORMS = [True]  # unset in the process that computes the reference


def reference(name: str, dtype: str, folder: str) -> None:
    """Draws parameters on this device, computes with them, and saves parameters and results in the folder."""
    import jax
    from contract_cases import make_batch, make_case

    IN_PLAIN_FORMS[0] = False
    model, _ = make_system(name, dtype)
    frozen = make_case(name).frozen
    params, extra = jax.jit(model.init)(jax.random.key(0), make_batch(model), frozen)
    # Layers initialised to zero hide the gradients of the layers before them.
    params = jax.tree.map(lambda x: x + 0.02 * np.cos(np.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    arrays = (params, extra, frozen)
    leaves = {f"leaf{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(arrays))}
    np.savez(Path(folder) / f"{name}_{dtype}.npz", **leaves, **outputs(model, arrays))


def device(name: str, dtype: str, folder: str) -> dict[str, Any]:
    """Computes on this device with the parameters of `reference`: differences, and what is wrong with them, if any."""
    import jax

    model, shapes = make_system(name, dtype)
    with np.load(Path(folder) / f"{name}_{dtype}.npz") as file:
        theirs = dict(file)
    leaves = [theirs[f"leaf{i}"] for i in range(len(jax.tree.leaves(shapes)))]
    ours = outputs(model, jax.tree.unflatten(jax.tree.structure(shapes), leaves))
    return compare(ours, theirs, dtype)


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], dtype: str) -> dict[str, Any]:
    """Differences of a device's outputs from the CPU's, against `LIMITS`."""
    a, b = (np.asarray(x["gradient"], np.float64) for x in (ours, theirs))
    norm = max(float(np.linalg.norm(b)), 1e-30)
    loss = np.abs(ours["loss"] - theirs["loss"]) / np.maximum(1.0, np.abs(theirs["loss"]))
    different = {
        "loss": float(loss.max(initial=0.0)),
        "gradient_norm": abs(float(np.linalg.norm(a)) - norm) / norm if b.size else 0.0,
        "gradient": float(np.linalg.norm(a - b)) / norm,
    }
    if "images" in ours:
        apart = np.abs(ours["images"].astype(int) - theirs["images"])
        different["pixels"] = float(np.mean(apart > 1))
        different["images"] = float(np.mean(np.any(apart > 0, axis=(1, 2, 3))))
    limits = LIMITS[dtype]
    wrong = [
        f"{what} differs by {different[what]:.1e}, at most {limits[what]:.0e}"
        for what in limits
        if what in different and not different[what] <= limits[what]
    ]
    again = [what for what in ("loss", "gradient", "images") if what in ours and differ(ours, what)]
    wrong += [f"{what} is another in a second run" for what in again]
    return {**different, "same_bits_twice": not again, "wrong": wrong}


def differ(held: dict[str, np.ndarray], what: str) -> bool:
    return held[what].tobytes() != held[f"{what} again"].tobytes()


def fit(run: str, steps: int) -> str:
    """Trains a small U-Net on random images up to this step, resuming the run if there is one: a hash of its arrays."""
    import hashlib

    import jax

    import jgen
    from jgen import cli
    from jgen.train import checkpoints

    cli.set_up_process()
    draw = np.random.default_rng(0)
    images, label = draw.integers(0, 256, (256, 8, 8, 1)).astype(np.uint8), np.arange(256) % 10
    experiment = tiny("ddpm")
    network = replace(experiment.model.network, attention=(4,))
    model = replace(experiment.model, network=network)
    train = replace(experiment.train, steps=steps, checkpoint_every=1000, sample_every=0, validate_every=0)
    train = replace(train, optimiser=replace(train.optimiser, schedule="constant"))
    data = replace(experiment.data, levels=0)
    jgen.fit(replace(experiment, model=model, train=train, data=data), run, images, label=label)
    assert checkpoints.newest_good(Path(run) / "checkpoints") == steps
    digest = hashlib.sha256()
    for averaged in (True, False):
        gen = jgen.load(run, ema=averaged)
        for leaf in jax.tree.leaves(gen.params):
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
