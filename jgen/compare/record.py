"""The record of an earlier comparison, to add systems to: comparison.json, and the grids next to it."""

from __future__ import annotations

import base64
import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from jgen import cli
from jgen.compare.config import Arguments
from jgen.compare.rows import Protocol, Row, row_protocol
from jgen.compare.systems import System
from jgen.core.files import written_whole
from jgen.data.dataset import alike
from jgen.errors import require
from jgen.train.run_directory import read_json

GRIDS = "grids"  # folder of the systems' grids in a record
SHARED = ("data", "minutes", "teraflops", "samples", "num", "likelihood_images")  # options that all rows share


class Record(NamedTuple):
    """An earlier comparison.

    folder:    the folder of comparison.json.
    arguments: the arguments of the comparison.
    workdir:   the folder with the runs of added systems.
    """

    folder: Path
    document: dict[str, Any]
    arguments: Arguments
    workdir: Path

    def is_own(self, row: Row) -> bool:
        """Whether a row's system has its runs in `workdir`, so that the comparison can resume it."""
        if self.folder.resolve() == self.workdir.resolve():
            return True
        same = row.get("workdir", self.arguments.workdir) == str(self.workdir)
        return same and (self.workdir / row["system"]).is_dir()

    def other_rows(self, systems: list[System]) -> list[Row]:
        """The rows of all other systems, unchanged."""
        names = {system.name for system in systems}
        return [row for row in self.document["rows"] if row["system"] not in names]

    def replaced_rows(self, rows: list[Row]) -> list[Row]:
        """The existing rows, unchanged, of systems that are being replaced, while the new rows have no scores yet."""
        waiting = {row["system"] for row in rows if not row["seeds"]}
        return [row for row in self.document["rows"] if row["system"] in waiting and not self.is_own(row)]

    def protocol(self, systems: list[System]) -> Protocol | None:
        """The protocol of the distances in the rows of all other systems; None if none was scored."""
        return next((row_protocol(row) for row in self.other_rows(systems) if row["seeds"]), None)


def parse_arguments(args: list[str], prog: str, description: str) -> tuple[Arguments, Record | None]:
    """Parses the command line, and reads the record that --into names, whose options are the defaults.

    Raises:
      UserError: a mistake in the command line; a folder without a record, or options that its rows do not have.
    """
    a = cli.parse(Arguments, args, prog, description)
    if not a.into:
        return a, None
    folder = Path(a.into)
    file = folder / "comparison.json"
    require(file.is_file(), f"--into is {a.into}: there is no comparison.json of an earlier comparison")
    document = read_json(file)
    complete = isinstance(document, dict) and {"command", "rows"} <= set(document)
    require(complete, f"{file} is no record of a comparison: it lacks its command or its rows")
    before = arguments_of(document)
    is_workdir = (folder / "arguments.json").is_file()
    workdir = a.into if is_workdir else f"runs/{folder.resolve().name}"
    a = cli.parse(Arguments, ["--workdir", workdir, *option_words(before), *args], prog, description)
    check_shared(a, before)
    return a, Record(folder, document, before, Path(a.workdir).expanduser())


def arguments_of(document: dict[str, Any]) -> Arguments:
    """The arguments that a record was made with; for records of version 0.1, parsed from the command."""
    if "arguments" in document:
        arguments: dict[str, Any] = document["arguments"]
        saved: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in arguments.items()}
        return Arguments(**saved)
    return cli.parse(Arguments, shlex.split(document["command"])[3:], "python -m jgen.compare", "")


def option_words(arguments: Arguments) -> list[str]:
    """The options of a record as words of a command, except for the systems and folders."""
    words = []
    for field in dataclasses.fields(Arguments):
        value = getattr(arguments, field.name)
        if value != field.default and field.name not in ("systems", "workdir", "into", "replace"):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return words


def check_shared(arguments: Arguments, before: Arguments) -> None:
    """Raises `UserError` for options that would make new rows incomparable with those of a record."""
    changes = []
    for name in SHARED:
        old, new = getattr(before, name), getattr(arguments, name)
        if old != new:
            changes.append(f"--{name.replace('_', '-')} was {old}, is {new}")
    if bool(before.inception) != bool(arguments.inception):
        changes.append(f"--inception was {before.inception or 'not given'}, is {arguments.inception or 'not given'}")
    require(not changes, f"{arguments.into} was made otherwise, and rows would not compare: {'; '.join(changes)}")


def check_data(record: Record, fingerprint: str) -> None:
    """Raises `UserError` if a record has other data. `fingerprint`: the hash of the current data."""
    hashes = {row["data_fingerprint"] for row in record.document["rows"] if row.get("data_fingerprint")}
    for before in sorted(hashes):
        message = f"{record.folder} is of data with the hash {before[:12]}, that of the data here is {fingerprint[:12]}"
        require(alike(before, fingerprint), f"{message}: rows would not compare")


def choose_systems(record: Record, systems: list[System], named: bool, replace: bool = False) -> list[System]:
    """The systems to compare: those that the record lacks, and those that are to be resumed.

    Args:
      named: whether they were requested by name.
      replace: whether to compare systems in the record, too, and replace their rows.
    Raises:
      UserError: without `replace`, a named system that is already in the record, or no system that the record lacks.
    """
    if replace:
        return systems
    there = {row["system"] for row in record.document["rows"] if not record.is_own(row)}
    for system in systems:
        already = f"{record.folder} has a row of {system.name} already: --replace puts another in its place"
        require(not named or system.name not in there, already)
    new = [system for system in systems if system.name not in there]
    require(bool(new), f"{record.folder} has rows of all systems: {', '.join(system.name for system in systems)}")
    return new


def with_grids(folder: Path, rows: list[Row], source: Path) -> list[Row]:
    """Stores the rows' grids in the record `folder`, each under its system's name, and returns the changed rows.

    Args:
      source: the folder that their current paths are relative to.
    """
    return [row | {"grid": store_grid(folder, row, source)} for row in rows]


def store_grid(folder: Path, row: Row, source: Path) -> str:
    """Stores the grid of one row; returns its path relative to the folder, "" if there is none.

    Records of jgen 0.1 have their grids only in the HTML page.
    """
    name = f"{GRIDS}/{row['system']}.png"
    path = source / row["grid"]
    if not row["grid"]:
        return ""
    picture = path.read_bytes() if path.is_file() else grid_in_page(source / "comparison.html", row["system"])
    if picture is None:
        return ""
    if not (folder / name).is_file() or (folder / name).read_bytes() != picture:
        with written_whole(folder / name) as aside:
            aside.write_bytes(picture)
    return name


def grid_in_page(page: Path, system: str) -> bytes | None:
    """Extracts the grid of a system from the page of a comparison."""
    if not page.is_file():
        return None
    pattern = f"alt='samples of {re.escape(system)}' src='data:image/png;base64,([^']*)'"
    match = re.search(pattern, page.read_text())
    return base64.b64decode(match[1]) if match else None
