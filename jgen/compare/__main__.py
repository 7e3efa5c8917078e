"""Every family at the same budget: python -m jgen.compare --data digits --minutes 10 --seeds 3 --workdir runs/compare

Each system is measured (speed, operations, memory, at several sizes), trained for the steps that its speed puts into
the time on this machine (or, with --teraflops, its operations into as many), sampled and scored. What was done before
is kept: the same command goes on where it was stopped. A system that fails becomes a row with its error. The outcome,
written anew after every stage, is WORKDIR/comparison.md, .csv, .json and .html, grids.png and figures.png.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys

from jgen import cli
from jgen.compare.config import ROOT, Arguments, System, find_systems
from jgen.compare.processes import Stopped, environment, heard, reason
from jgen.core.files import lock
from jgen.errors import UserError, require, require_positive

FEWEST = 50  # as jgen.metrics.quality.FEWEST: fewer samples could not be scored after hours of training


def command(args: list[str]) -> int:
    a = cli.parse(Arguments, args, "python -m jgen.compare", __doc__ or "")
    require_positive(**{"--minutes": a.minutes, "--seeds": a.seeds})
    by_time = a.minutes == Arguments.minutes or not a.teraflops
    require(by_time, f"--minutes is {a.minutes} and --teraflops {a.teraflops}: a budget is one or the other")
    require(a.samples >= FEWEST, f"--samples is {a.samples}: distances need at least {FEWEST}")
    require(a.num == 0 or a.num >= FEWEST, f"--num is {a.num}: it must be at least {FEWEST}, or 0 for all test images")
    require(a.likelihood_images >= 1, f"--likelihood-images is {a.likelihood_images}: it must be above zero")
    fits = 0 <= a.teraflops < math.inf
    require(fits, f"--teraflops is {a.teraflops}: it must be above zero and finite, or 0 for a budget of time")
    require(bool(a.sizes) and min(a.sizes) >= 1, f"--sizes is {a.sizes}: sizes must be above zero")
    systems = find_systems(a.data, a.systems)
    if a.inception:
        check_inception(a.inception)
    from jgen.compare import page, stages
    from jgen.compare.rows import markdown, quality_table

    page.pyplot()  # without matplotlib it would fail after hours
    fingerprint, there = look_at_data(a, systems[0])
    comparison = stages.Comparison(a, systems, there)
    with lock(comparison.workdir, "is comparing in", "wait for it, or choose another --workdir"):
        stages.check_budget(comparison, fingerprint)
        try:
            with heard():
                comparison.run()
                rows = comparison.report()
        except Stopped as stopped:
            print("stopped; run the same command again to go on", file=sys.stderr)
            return 128 + stopped.number
    print(markdown(quality_table(rows)))
    print(comparison.workdir / "comparison.html")
    if not any(row["seeds"] for row in rows):
        raise UserError(f"no system could be trained and scored: {next(iter(rows[0]['errors'].values()), 'no reason')}")
    return 0


def look_at_data(a: Arguments, system: System) -> tuple[str, int]:
    """Hash of the data, and number of its test images.

    Raises:
      UserError: data that cannot be loaded, or that has fewer images than are asked for.
    """
    from jgen.data import dataset

    data = dataset.load(cli.load_config(system.config, ROOT)[0].data)
    there = data.splits["test"].num
    require(a.num <= there, f"--num is {a.num}: test of {data.name} has {there} images")
    return data.fingerprint, there


def check_inception(path: str) -> None:
    """Raises `UserError` for a file that cannot be read as Inception's weights: it would be found out after hours."""
    words = [sys.executable, "-m", "jgen.metrics.inception", path]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    require(done.returncode == 0, f"--inception: {reason(done.stderr)}")


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", str(shutil.get_terminal_size((120, 40)).columns))
    cli.main(command)
