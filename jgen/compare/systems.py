"""The systems that can be compared, from their configurations, and the trainings that each consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jgen import cli
from jgen.compare.config import ROOT
from jgen.compare.facts import Facts
from jgen.core.model import DataSpec, GenerativeModel
from jgen.errors import require
from jgen.experiment import Experiment, make_model


def same_at_every_height(experiment: Experiment, own: int, height: int) -> Experiment:
    """`at_height` for a configuration that defines none."""
    return experiment


@dataclass(frozen=True)
class Training:
    """A configuration, and the trainings of the frozen models that it depends on.

    config:    its path from the root and its variant, "configs/vae/vq_prior.py:digits".
    name:      "vq_prior-digits".
    frozen:    {role: training}.
    at_height: see `jgen.compare.facts`.
    """

    config: str
    name: str
    experiment: Experiment
    facts: Facts = Facts()
    frozen: Mapping[str, Training] = field(default_factory=dict)
    at_height: Callable[[Experiment, int, int], Experiment] = same_at_every_height

    def in_order(self) -> list[Training]:
        """All trainings that this one depends on, directly or indirectly, each once, and then this one."""
        before = [each for inner in self.frozen.values() for each in inner.in_order()]
        return list({training.config: training for training in [*before, self]}.values())


@dataclass(frozen=True)
class System:
    """A generator to compare."""

    name: str
    training: Training

    @cached_property
    def model(self) -> GenerativeModel:
        """The system's model, for its own data."""
        return model_of(self.training, data_spec(self.training))


def data_spec(training: Training) -> DataSpec:
    """The specification of a training's data. Raises `UserError` for data that cannot be loaded."""
    from jgen.data import dataset

    return dataset.load(training.experiment.data).spec


def model_of(training: Training, data: DataSpec) -> GenerativeModel:
    """The model of a training for data with this specification; frozen models are for their own data."""
    frozen = {
        role: model_of(inner, data if inner.experiment.data == training.experiment.data else data_spec(inner))
        for role, inner in training.frozen.items()
    }
    return make_model(training.experiment.model, data, frozen)


def load_training(config: str, within: tuple[str, ...] = ()) -> Training:
    """The training of "configs/<family>/<system>.py:variant".

    Args:
      within: the configurations that depend on this one.
    Raises:
      UserError: no such configuration; a frozen run without a configuration in FROZEN, or a cycle of dependencies.
    """
    experiment, name = cli.load_config(config, ROOT)
    path_name, _, variant = config.partition(":")
    path = next(path for path in (Path(path_name), ROOT / path_name) if path.is_file())
    module = cli.import_config(path)
    variant = variant or next(iter(module.VARIANTS))
    config = f"{relative_to_root(path)}:{variant}"
    chain = " depends on ".join([*within, config])
    require(config not in within, f"{chain}: a system cannot depend on itself")
    sources, frozen = getattr(module, "FROZEN", {}), {}
    for role, run in experiment.frozen.items():
        if not run:  # an optional role
            continue
        missing = f"{config} depends on {run}: its FROZEN does not say which configuration trains {role}"
        require(role in sources, missing)
        source = sources[role] if ":" in sources[role] else f"{sources[role]}:{variant}"
        frozen[role] = load_training(source, (*within, config))
    facts = getattr(module, "FACTS", Facts())
    return Training(config, name, experiment, facts, frozen, getattr(module, "at_height", same_at_every_height))


def relative_to_root(path: Path) -> str:
    """The path relative to the root if it is below it, else unchanged."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def find_systems(data: str, names: str = "all") -> list[System]:
    """The systems to compare.

    Args:
      names: separated by commas, or "all".
    Raises:
      UserError: a data set that no configuration has; a name that is unknown, or of a system that lacks the data set or
        is not a generator.
    """
    trainings, variants = {}, set()
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        module = cli.import_config(path)
        variants |= set(module.VARIANTS)
        if data in module.VARIANTS:
            trainings[path.stem] = load_training(f"{path.relative_to(ROOT)}:{data}")
    require(bool(trainings), f"--data is {data}: configurations have {', '.join(sorted(variants))}")
    systems = {name: System(name, training) for name, training in trainings.items()}
    generators = [name for name, system in systems.items() if is_generator(system)]
    if names == "all":
        return [systems[name] for name in generators]
    known = f"the systems with {data} are {', '.join(generators)}"
    for name in names.split(","):
        require(name in systems, f"there is no system {name!r}: {known}")
        require(name in generators, f"{name} generates no images by itself: {known}")
    return [systems[name] for name in dict.fromkeys(names.split(","))]


def is_generator(system: System) -> bool:
    """Whether comparisons include a system: it draws images, and its `Facts.compared` is not False."""
    return system.training.facts.compared and system.model.sample is not None


def sampling_defaults(training: Training) -> Any:
    """The system's sampling options with the defaults of their dataclass; None if it has none."""
    sampling = getattr(training.experiment.model, "sampling", None)
    return None if sampling is None else type(sampling)()


def is_guided(training: Training) -> bool:
    """Whether the system's samples are guided by default."""
    sampling = getattr(training.experiment.model, "sampling", None)
    return getattr(sampling, "guidance_scale", 1.0) != 1.0
