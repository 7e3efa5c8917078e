"""Options of a comparison: the systems, and their budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from jgen.errors import require, require_positive

ROOT = Path(__file__).resolve().parents[2]
FEWEST = 50  # as jgen.metrics.quality.FEWEST, checked before hours of training


@dataclass(frozen=True)
class Arguments:
    """What to compare, and with which budget."""

    data: str = "digits"
    """Data set: the variant of each configuration to train."""
    minutes: float = 10.0
    """Training time of each system and seed on this machine, without compilation."""
    teraflops: float = 0.0
    """Budget in trillions of training operations, by XLA's count, instead of minutes; 0: use minutes."""
    seeds: int = 3
    """Number of runs of each system, with seeds 0, 1, ..."""
    systems: str = "all"
    """Names such as ddpm,vae; all: every generator that has this data set."""
    samples: int = 1000
    """Number of samples to score."""
    num: int = 0
    """Number of test images to compare samples with; 0: all."""
    likelihood_images: int = 200
    """Largest number of these images to compute the likelihood of: a diffusion model's bound is slow."""
    inception: str = ""
    """File of the published Inception network's weights: distances are then FID, as with jgen.evaluate."""
    sizes: tuple[int, ...] = (8, 16, 32)
    """Heights and widths at which speed is measured."""
    workdir: str = "runs/compare"
    """Folder of the runs and the results."""
    into: str = ""
    """Folder of an earlier comparison, or of its record, to add systems to: all other options default to those of the
    comparison, and the results are written there."""
    replace: bool = False
    """With --into and --systems: retrain systems of the record and replace their rows, such as after a change of
    defaults."""


def check_arguments(a: Arguments) -> None:
    """Raises `UserError` for options out of range, before anything is trained."""
    named = bool(a.into) and a.systems != "all"
    require(named or not a.replace, "--replace needs --into, and with --systems the names of the rows to replace")
    require_positive(**{"--minutes": a.minutes, "--seeds": a.seeds})
    one_budget = a.minutes == Arguments.minutes or not a.teraflops
    require(one_budget, f"--minutes is {a.minutes} and --teraflops {a.teraflops}: a budget is one or the other")
    require(a.samples >= FEWEST, f"--samples is {a.samples}: distances need at least {FEWEST}")
    require(a.num == 0 or a.num >= FEWEST, f"--num is {a.num}: it must be at least {FEWEST}, or 0 for all test images")
    require(a.likelihood_images >= 1, f"--likelihood-images is {a.likelihood_images}: it must be above zero")
    in_range = 0 <= a.teraflops < math.inf
    require(in_range, f"--teraflops is {a.teraflops}: it must be above zero and finite, or 0 for a budget of time")
    require(bool(a.sizes) and min(a.sizes) >= 1, f"--sizes is {a.sizes}: sizes must be above zero")


def describe_budget(a: Arguments) -> str:
    """The budget in words."""
    return f"{a.teraflops:g} trillion operations" if a.teraflops else f"{a.minutes:g} minutes"
