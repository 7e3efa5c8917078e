"""What is compared, at which budget, and the systems that can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jgen import cli
from jgen.errors import require

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Arguments:
    """What is compared, and at which budget."""

    data: str = "digits"
    """Data set: the variant of every configuration that is trained."""
    minutes: float = 10.0
    """Training time of each system and seed on this machine, compiling apart."""
    teraflops: float = 0.0
    """Instead of the time: trillions of operations of training, by XLA's count; 0: the time."""
    seeds: int = 3
    """Trainings of each system, with seeds 0, 1, ..."""
    systems: str = "all"
    """Names such as ddpm,vae; all: every system that has this data set and makes images."""
    samples: int = 1000
    """Samples that are scored."""
    num: int = 0
    """Test images that samples are compared with; 0: all."""
    likelihood_images: int = 200
    """The first of them, at the most, whose likelihood is found; a bound of diffusion takes long."""
    inception: str = ""
    """File of the published Inception network's weights: distances are then FID, as with jgen.evaluate."""
    sizes: tuple[int, ...] = (8, 16, 32)
    """Heights and widths at which speed is measured."""
    workdir: str = "runs/compare"
    """Where runs and the outcome are."""


@dataclass(frozen=True)
class System:
    """A configuration, and that of its first stage, "" where it stands alone."""

    name: str
    config: str
    first_stage: str


def find_systems(data: str, wanted: str) -> list[System]:
    """The systems to compare, by their configurations.

    Raises:
      UserError: a data set that no configuration has, or a system that is unknown or lacks it.
    """
    from jgen.compare.program import first_stage_config

    found, stages, variants = {}, set(), set()
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        module = cli.import_config(path)
        variants |= set(module.VARIANTS)
        if data in module.VARIANTS:
            config = f"{path.relative_to(ROOT)}:{data}"
            first = first_stage_config(config, module.get_config(data))
            found[path.stem] = System(path.stem, config, first)
            stages.add(Path(first.partition(":")[0]).stem)
    require(bool(found), f"--data is {data}: configurations have {', '.join(sorted(variants))}")
    systems = {name: system for name, system in found.items() if name not in stages}
    if wanted == "all":
        return list(systems.values())
    for name in wanted.split(","):
        known = f"the systems with {data} are {', '.join(systems)}"
        require(name not in stages, f"{name} is the first stage of another system and makes no images itself: {known}")
        require(name in systems, f"there is no system {name!r}: {known}")
    return [systems[name] for name in dict.fromkeys(wanted.split(","))]
