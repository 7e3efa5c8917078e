"""What is left of a generator's gradient as its discriminator gets better? python -m jgen.studies.gan_gradients

The experiment of Arjovsky & Bottou 2017 (arXiv 1701.04862, figures 2 and 3): a DCGAN is trained for 1, 10 and 25
epochs; then its generator is frozen, a new discriminator is trained from a random initialisation, and at intervals the
gradient with respect to the generator's parameters is computed for both losses,

    minimax         E log(1 - D(G(z)))
    non_saturating  -E log D(G(z))

without updating the generator. Writes gan_gradients.json and gan_gradients.png to FOLDER.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jgen import cli
from jgen.errors import require, require_positive, require_seed
from jgen.studies import reporting
from jgen.studies.reporting import Row

EPOCHS = (1, 10, 25)
NORMS = ("batch", "none")  # normalisations of the discriminator
LOSSES = {"minimax": "E log(1 - D(G(z)))", "non_saturating": "-E log D(G(z))"}


@dataclass(frozen=True)
class Arguments:
    """What to train."""

    out: str = "results/studies"
    """Folder of the record and the figure."""
    config: str = "configs/gan/dcgan.py:digits"
    """Configuration of a DCGAN, which is trained without classes."""
    steps: int = 4000
    """Training steps of the new discriminator."""
    every: int = 100
    """Steps between gradient measurements."""
    examples: int = 512
    """Number of latents that a gradient is averaged over."""
    seed: int = 0
    """Seed of networks, data and latents."""


def command(args: list[str]) -> int:
    a = cli.parse(Arguments, args, "python -m jgen.studies.gan_gradients", __doc__ or "")
    require_positive(**{"--steps": a.steps, "--every": a.every, "--examples": a.examples})
    require(a.every <= a.steps, f"--every is {a.every}: it must be at most --steps, {a.steps}")
    require_seed(a.seed, "--seed")
    record, figure = reporting.open_record(a.out, "gan_gradients")
    from jgen.studies import scores

    common = {"config": a.config, "steps": a.steps, "every": a.every, "examples": a.examples, "seed": a.seed}
    settings = [{"epochs": epochs, "disc_norm": norm, **common} for norm in NORMS for epochs in EPOCHS]
    rows = scores.score_all(record, settings, measure)
    return reporting.report(figure, rows, draw, table)


def measure(setting: Row) -> Row:
    """The gradients of a generator that was trained for some epochs, while a new discriminator is trained.

    Returns:
      steps: (n,), of the new discriminator; minimax, non_saturating: (n,), norms of the generator's gradient;
      accuracy: (n,), the discriminator's accuracy on real and generated examples, None at step 0.
    """
    import jax

    from jgen.compare.systems import load_training
    from jgen.core import keys as rng
    from jgen.core.model import DataSpec
    from jgen.data import dataset
    from jgen.studies.games import train_on
    from jgen.train.loop import role_optimisers
    from jgen.train.step import init_state, place_state

    training = load_training(setting["config"])
    data, config, seed = dataset.load(training.experiment.data), training.experiment.train, setting["seed"]
    split, size = data.splits["train"], config.batch_size
    model, *others = (make_dcgan(training, DataSpec(data.spec.image, {}), setting, loss) for loss in LOSSES)
    optimisers, first = role_optimisers(model, config), split.fetch(np.arange(size))
    start = jax.jit(lambda key: init_state(model, optimisers, key, first, ema=False))

    whole, fresh = place_state(model, start(rng.seed_key(seed))), start(rng.seed_key(seed + 1))
    num = round(setting["epochs"] * split.num / size)
    *_, (whole, _) = train_on(model, optimisers, whole, split, size, seed, num)
    state = place_state(
        model, fresh._replace(params=fresh.params | part(whole.params), extra=fresh.extra | part(whole.extra))
    )
    norms = make_norms(dict(zip(LOSSES, (model, *others), strict=True)), setting["examples"], seed)
    rows: list[tuple[int, Row, float | None]] = [(0, norms(state), None)]
    alone = model._replace(phases=model.phases[:1])
    later = train_on(alone, optimisers, state, split, size, seed + 1, setting["steps"])
    for number, (now, metrics) in enumerate(later, 1):
        if number % setting["every"] == 0:
            accuracy_now = (float(metrics["accuracy_real"]) + float(metrics["accuracy_fake"])) / 2
            rows.append((number, norms(now), accuracy_now))
    steps, gradients, accuracy = zip(*rows)
    return {"steps": steps, **{name: [each[name] for each in gradients] for name in LOSSES}, "accuracy": accuracy}


def part(roles: Any) -> Any:
    """The generator's part."""
    return {"gen": roles["gen"]}


def make_dcgan(training: Any, data: Any, setting: Row, loss: str) -> Any:
    """The model of a configuration without classes, with this loss and the setting's normalisation of the
    discriminator. Raises `UserError` for a system other than `dcgan`."""
    from jgen.compare.systems import model_of
    from jgen.models.gan.dcgan import Config

    config = training.experiment.model
    require(isinstance(config, Config), f"--config is {setting['config']}: it must be a configuration of dcgan")
    config = replace(config, loss=loss, conditioning="none", disc_norm=setting["disc_norm"], disc_steps=1)
    return model_of(replace(training, experiment=replace(training.experiment, model=config)), data)


def make_norms(models: dict[str, Any], examples: int, seed: int) -> Callable[[Any], dict[str, float]]:
    """state -> {loss: norm of the gradient of its mean by the generator's parameters}, for fixed latents."""
    import jax
    import jax.numpy as jnp
    import optax

    from jgen.core import keys as rng
    from jgen.core.model import Context

    keys = rng.image_keys(rng.stream(rng.seed_key(seed), rng.SCORE), jnp.arange(examples))

    @jax.jit
    def norms(params: Any, extra: Any) -> dict[str, Any]:
        ctx = Context(jnp.int32(0), ema=params, extra=extra)

        def loss(gen: Any, model: Any) -> Any:
            return model.phases[-1].loss({**params, "gen": gen}, ctx, keys, {})[0]

        return {name: optax.tree.norm(jax.grad(loss)(params["gen"], model)) for name, model in models.items()}

    return lambda state: {name: float(norm) for name, norm in norms(state.params, state.extra).items()}


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table: norms at the start, after a tenth of the steps, and at the end."""
    lines = ["| norm in D | G after | loss | at step 0 | after a tenth | at the end | end / largest | accuracy of D |"]
    lines.append("| --- " * 8 + "|")
    for row in rows:
        setting, tenth = row["setting"], (len(row["steps"]) - 1) // 10
        for name, formula in LOSSES.items():
            norms = row[name]
            numbers = " | ".join(
                f"{value:.2g}" for value in (norms[0], norms[tenth], norms[-1], norms[-1] / max(norms))
            )
            accuracy = f"{100 * row['accuracy'][-1]:.1f} %"
            lines.append(f"| {setting['disc_norm']} | {epochs_of(row)} | {formula} | {numbers} | {accuracy} |")
    return "\n".join(lines)


def epochs_of(row: Row) -> str:
    epochs = row["setting"]["epochs"]
    return f"{epochs} epoch{'s' * (epochs > 1)}"


def draw(path: Path, rows: list[Row]) -> None:
    """Draws the norms over the steps on a logarithmic scale, with a column per loss, a line per normalisation."""
    from jgen.compare.page import pyplot

    plt = pyplot()
    norms = list(dict.fromkeys(row["setting"]["disc_norm"] for row in rows))
    size = (11, 3.6 * len(norms))
    shared: dict[str, Any] = {"sharex": True, "sharey": True, "squeeze": False}
    fig, axes = plt.subplots(len(norms), 2, figsize=size, layout="constrained", **shared)
    for line, norm in zip(axes, norms):
        for ax, (name, formula) in zip(line, LOSSES.items()):
            for row in (row for row in rows if row["setting"]["disc_norm"] == norm):
                ax.plot(row["steps"], row[name], label=f"G after {epochs_of(row)}")
            title = "batch normalisation in D" if norm == "batch" else "no normalisation in D"
            ax.set(yscale="log", title=f"{formula}, {title}")
            ax.grid(alpha=0.25)
        line[0].set(ylabel="norm of the generator's gradient")
        line[0].legend(fontsize=9)
    for ax in axes[-1]:
        ax.set(xlabel="steps of the new discriminator")
    reporting.save_figure(path, fig)


if __name__ == "__main__":
    cli.main(command)
