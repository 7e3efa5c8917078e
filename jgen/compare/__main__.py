"""All families with the same budget: python -m jgen.compare --data digits --minutes 10 --seeds 3 --workdir runs/compare

Each system is measured (speed, operations, memory, at several sizes), trained for as many steps as fit into the time at
its speed on this machine (or, with --teraflops, into that many operations), sampled and scored. Finished stages are
kept: repeating the command resumes it. A system that fails becomes a row with its error. The results are rewritten
after every stage: WORKDIR/comparison.md, .csv, .json and .html, grids.png, figures.png and grids/.

--into FOLDER --systems NAME adds systems to an earlier comparison, or to its record: existing rows are unchanged, and
each row has its own environment, commit and commands. With --replace, NAME may already be in the record: its row is
replaced once the new one has a score.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys

from jgen import cli
from jgen.compare.config import Arguments, check_arguments
from jgen.compare.processes import Stopped, environment, reason, signals_raise
from jgen.compare.systems import System, find_systems
from jgen.core.files import lock
from jgen.errors import UserError, require


def command(args: list[str]) -> int:
    from jgen.compare import page, record, stages, tables

    a, earlier = record.parse_arguments(args, "python -m jgen.compare", __doc__ or "")
    check_arguments(a)
    systems = find_systems(a.data, a.systems)
    if earlier:
        systems = record.choose_systems(earlier, systems, named=a.systems != "all", replace=a.replace)
    if a.inception:
        check_inception(a.inception)
    page.pyplot()  # fails now if matplotlib is missing, not after hours
    fingerprint, num_test = look_at_data(a, systems[0])
    if earlier:
        record.check_data(earlier, fingerprint)
    comparison = stages.Comparison(a, systems, num_test, earlier)
    folder = earlier.folder if earlier else comparison.workdir
    with contextlib.ExitStack() as locks:
        for path in {path.resolve(): path for path in (folder, comparison.workdir)}.values():
            locks.enter_context(lock(path, "is comparing in", "wait for it, or choose another --workdir"))
        stages.check_budget(comparison, fingerprint)
        try:
            with signals_raise():
                comparison.run()
                rows = comparison.report()
        except Stopped as stopped:
            print("stopped; run the same command again to go on", file=sys.stderr)
            return 128 + stopped.number
    print(tables.markdown(tables.quality_table(rows)))
    print(folder / "comparison.html")
    if not any(row["seeds"] for row in rows):
        raise UserError(f"no system could be trained and scored: {next(iter(rows[0]['errors'].values()), 'no reason')}")
    return 0


def look_at_data(a: Arguments, system: System) -> tuple[str, int]:
    """Hash of the data, and number of its test images.

    Raises:
      UserError: data that cannot be loaded, or that has fewer images than requested.
    """
    from jgen.data import dataset

    data = dataset.load(system.training.experiment.data)
    num = data.splits["test"].num
    require(a.num <= num, f"--num is {a.num}: test of {data.name} has {num} images")
    return data.fingerprint, num


def check_inception(path: str) -> None:
    """Raises `UserError` for a file that does not hold Inception's weights, before hours of training."""
    words = [sys.executable, "-m", "jgen.metrics.inception", path]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    require(done.returncode == 0, f"--inception: {reason(done.stderr)}")


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", str(shutil.get_terminal_size((120, 40)).columns))
    cli.main(command)
